// Body of the passes, once for all instruction sets and both precisions. L: lanes (cpu/lanes.h).

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/soft_entropy_pass.h"
#include "cpu/soft_entropy_tile.inl"

namespace vqk {
namespace {

// z and l of each vector, relative to the least t so far
template <class L, int Q, int V, bool floored>
struct Normalizer {
    using Real = typename L::Real;
    using F = typename L::F;
    F low[Q], z[Q], sum[Q];  // low in all lanes

    template <class T>
    void start(const T& tile) {
        for (int q = 0; q < Q; ++q) {
            low[q] = L::broadcast(tile.batch.total[tile.row + q].least);
            z[q] = sum[q] = F{};
        }
    }
    template <class T>
    void take(const T& tile) {
        for (int q = 0; q < Q; ++q) {
            F t[V];
            for (int v = 0; v < V; ++v) t[v] = tile.load(q, v);
            F nearest = t[0];
            for (int v = 1; v < V; ++v) nearest = L::min(nearest, t[v]);
            // some log K times in a row
            if (L::any_less(nearest, low[q])) lower(tile, q, L::broadcast(L::lowest(nearest)));
            tile.batch.low[tile.place() + q] = low[q][0];
            for (int v = 0; v < V; ++v) {
                F l = to_bits<L>(tile.pass, low[q] - t[v]);
                const F e = exp2_of<L>(l);
                if constexpr (floored) l = L::max(l, tile.of_row(tile.batch.cut, q));
                z[q] = z[q] + e;
                sum[q] = L::fma(l, e, sum[q]);
                L::store(tile.pair(q, v), e);
            }
        }
    }
    template <class T>
    void lower(const T& tile, int q, F to) {
        const F back = to_bits<L>(tile.pass, to - low[q]), shrink = exp2_of<L>(back);
        sum[q] = shrink * L::fma(back, z[q], sum[q]);
        z[q] = shrink * z[q];
        low[q] = to;
    }
    template <class T>
    void finish(const T& tile) {
        for (int q = 0; q < Q; ++q) {
            auto& total = tile.batch.total[tile.row + q];
            const Real now = low[q][0];
            if (now < total.least) {
                const double back = std::max(double(tile.pass.slope) * (double(now) - double(total.least)), -1500.0);
                const double shrink = std::exp2(back);
                total = {now, shrink * total.z, shrink * (total.l + back * total.z)};
            }
            total.z += double(L::sum(z[q]));
            total.l += double(L::sum(sum[q]));
        }
    }
};

template <class L, int Q, int V, bool floored>
void normalize(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
               std::int64_t to) {
    Normalizer<L, Q, V, floored> body;
    sweep<L, Q, V>(pass, batch, from, to, false, body);
}

template <class L, int V>
void assign(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
            std::int64_t to, double* sums) {
    using F = typename L::F;
    constexpr int W = L::W;
    for (std::int64_t block = from; block < to; ++block) {
        const std::int64_t place = (block - batch.chunk) * batch.rows;
        for (std::int64_t n = 0; n < batch.rows; n += W) {
            const F back = to_bits<L>(pass, L::load(batch.least + n) - L::load(batch.low + place + n));
            L::store(batch.factor + n, L::load(batch.share + n) * exp2_of<L>(back));
        }
        F sum[V] = {};
        const auto* e = batch.pairs + place * V * W;
        for (std::int64_t n = 0; n < batch.rows; ++n, e += V * W) {
            const F factor = L::broadcast(batch.factor[n]);
            for (int v = 0; v < V; ++v) sum[v] = L::fma(factor, L::load(e + v * W), sum[v]);
        }
        for (int v = 0; v < V; ++v) L::add_to(sums + (block * V + v) * W, sum[v]);
    }
}

template <class L, int Q, int V>
struct GainSum {
    using F = typename L::F;
    double* const sums;  // [rows]
    F part[Q];

    template <class T>
    void start(const T&) {
        for (int q = 0; q < Q; ++q) part[q] = F{};
    }
    template <class T>
    void take(const T& tile) {
        if (tile.nothing()) return;
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                const F relative = tile.relative(tile.load(q, v), q);
                const F p = exp2_of<L>(tile.log_p(relative, q)), gain = tile.gain(relative, q, v);
                part[q] = L::fma(p, gain, part[q]);
            }
        }
    }
    template <class T>
    void finish(const T& tile) {
        for (int q = 0; q < Q; ++q) sums[tile.row + q] += double(L::sum(part[q]));
    }
};

template <class L, int Q, int V>
void mean_gain(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
               std::int64_t to, double* sums) {
    GainSum<L, Q, V> body{sums, {}};
    sweep<L, Q, V>(pass, batch, from, to, false, body);
}

template <class L, int Q, int V>
struct Puller {
    using F = typename L::F;
    double *const total, *const grad_log;  // [rows]
    F h_sum[Q], g_log[Q];

    template <class T>
    void start(const T&) {
        for (int q = 0; q < Q; ++q) h_sum[q] = g_log[q] = F{};
    }
    template <class T>
    void take(const T& tile) {
        const bool live = !tile.nothing();
        tile.batch.live[tile.place() / Q] = live;
        if (!live) return;
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                const F t = tile.load(q, v), relative = tile.relative(t, q);
                const F gain = tile.gain(relative, q, v) - tile.of_row(tile.batch.mean_gain, q);
                F h = exp2_of<L>(tile.log_p(relative, q)) * gain;
                g_log[q] = L::fma(h, relative, g_log[q]);
                if (tile.pass.root) {
                    const F least = L::broadcast(tile.pass.least_t);
                    h = L::where(t > least, h / L::max(t, least), F{});
                }
                h_sum[q] = h_sum[q] + h;
                L::store(tile.pair(q, v), h);
            }
        }
    }
    template <class T>
    void finish(const T& tile) {
        for (int q = 0; q < Q; ++q) {
            total[tile.row + q] += double(L::sum(h_sum[q]));
            grad_log[tile.row + q] += double(L::sum(g_log[q]));
        }
    }
};

template <class L, int Q, int V>
void pull(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
          std::int64_t to, bool measured, double* total, double* grad_log) {
    Puller<L, Q, V> body{total, grad_log, {}, {}};
    sweep<L, Q, V>(pass, batch, from, to, measured, body);
}

// Calls body(T, d) for dimensions d to d + T, T = most as long as there are so many.
template <int most, class Body>
void in_tiles(std::int64_t dim, Body&& body, std::int64_t d = 0) {
    for (; d + most <= dim; d += most) body(std::integral_constant<int, most>{}, d);
    if constexpr (most > 1) in_tiles<most - 1>(dim, body, d);
}

// Calls body(count, at) for the most consecutive parts of `total` things that `most` allows.
template <int most, int total, class Body, int at = 0>
void in_parts(Body&& body) {
    constexpr int count = total - at < most ? total - at : most;
    body(std::integral_constant<int, count>{}, at);
    if constexpr (at + count < total) in_parts<most, total, Body, at + count>(std::forward<Body>(body));
}

// Q vectors x meet so many codes that their h stay in the L1 cache, V dimensions at a time; so many dimensions, before the
// next vectors do, that those of the codes stay in the L2 cache.
template <class L, int Q, int V>
void pull_x(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
            std::int64_t to, double* sums) {
    using F = typename L::F;
    constexpr int W = L::W;
    constexpr std::int64_t cached = 24 << 10, stretch = cached / (Q * V * W * sizeof(typename L::Real));
    constexpr std::int64_t slab = (128 << 10) / (stretch * V * W * sizeof(typename L::Real)) / V * V;
    static_assert(slab > 0);
    const std::int64_t dim = pass.dim;
    const auto group = [&](std::int64_t first, std::int64_t end, std::int64_t from_d, std::int64_t row) {
        std::int64_t live[stretch], count = 0;
        for (std::int64_t block = first; block < end; ++block) {
            if (batch.live[((block - batch.chunk) * batch.rows + row) / Q]) live[count++] = block;
        }
        in_tiles<V>(std::min(slab, dim - from_d), [&](auto tag, std::int64_t ahead) {
            constexpr int T = decltype(tag)::value;
            const std::int64_t d = from_d + ahead;
            const auto* codes = pass.turned + d * pass.blocks * V * W;
            F sum[T][Q] = {};
            for (std::int64_t at = 0; at < count * V; ++at) {
                const std::int64_t block = live[at / V], v = at % V;
                const auto* h = batch.pairs + (((block - batch.chunk) * batch.rows + row) * V + v) * W;
                const auto* values = codes + (block * T * V + v) * W;
                F value[T];
                for (int i = 0; i < T; ++i) value[i] = L::load(values + i * V * W);
                for (int q = 0; q < Q; ++q) {
                    const F factor = L::in_turn(L::load(h + q * V * W));
                    for (int i = 0; i < T; ++i) sum[i][q] = L::in_turn(L::fma(factor, value[i], sum[i][q]));
                }
            }
            double* out = sums + row * dim + d * Q;
            in_parts<W, T * Q>(
                [&](auto part, int at) { L::add_to(out + at, L::template sums<part>(&sum[0][0] + at)); });
        });
    };
    for (std::int64_t first = from; first < to; first += stretch) {
        for (std::int64_t d = 0; d < dim; d += slab) {
            for (std::int64_t row = 0; row < batch.rows; row += Q) group(first, std::min(to, first + stretch), d, row);
        }
    }
}

// A block of codes meets all vectors of the batch, Q dimensions at a time. Unrolled further, the compiler loses track of
// its registers.
template <class L, int Q, int V>
void pull_codes(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
                std::int64_t to, double* sums) {
    using F = typename L::F;
    constexpr int W = L::W;
    const std::int64_t dim = pass.dim + 1;
    for (std::int64_t block = from; block < to; ++block) {
        const std::int64_t place = (block - batch.chunk) * batch.rows;
        in_tiles<Q>(dim, [&](auto tag, std::int64_t d) {
            constexpr int T = decltype(tag)::value;
            F sum[T][V] = {};
            for (std::int64_t row = 0; row < batch.rows; row += Q) {
                if (!batch.live[(place + row) / Q]) continue;
                const auto* h = batch.pairs + (place + row) * V * W;
                const auto* negated = batch.negated + row * dim + d;
#pragma GCC unroll 1
                for (int q = 0; q < Q; ++q, h += V * W, negated += dim) {
                    F value[V];
                    for (int v = 0; v < V; ++v) value[v] = L::load(h + v * W);
                    for (int i = 0; i < T; ++i) {
                        const F factor = L::broadcast(negated[i]);
                        for (int v = 0; v < V; ++v) sum[i][v] = L::in_turn(L::fma(factor, value[v], sum[i][v]));
                    }
                }
            }
            double* out = sums + (block * dim + d) * V * W;
            for (int i = 0; i < T; ++i) {
                for (int v = 0; v < V; ++v) L::add_to(out + (i * V + v) * W, F{} - sum[i][v]);
            }
        });
    }
}

template <class L>
double spin_exp(std::int64_t rounds) {
    constexpr int chains = 8;  // enough independent ones to hide the latency on two ports
    typename L::F e[chains];
    for (int i = 0; i < chains; ++i) e[i] = L::broadcast(typename L::Real(i) / chains);
    for (std::int64_t round = 0; round < rounds; ++round) {
        // of a difference, as everywhere in the passes
        for (int i = 0; i < chains; ++i) e[i] = L::in_turn(exp2_of<L>(e[i] - typename L::Real(1)));
    }
    double total = 0;
    for (int i = 0; i < chains; ++i) total += double(L::sum(e[i]));
    volatile double keep = total;  // the loop must not be optimised away
    (void)keep;
    return double(rounds) * chains * L::W;
}

template <class L, int Q, int V>
SoftKernel<typename L::Real> make_soft_kernel() {
    return {Q,
            V * L::W,
            V,
            normalize<L, Q, V, false>,
            normalize<L, Q, V, true>,
            assign<L, V>,
            mean_gain<L, Q, V>,
            pull<L, Q, V>,
            pull_x<L, Q, V>,
            pull_codes<L, Q, V>,
            spin_exp<L>};
}

}  // namespace
}  // namespace vqk
