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
        tile.as_floored([&](auto floored) {
            for (int q = 0; q < Q; ++q) {
                const auto row = tile.row_of(q);
                F sum = part[q];
                for (int v = 0; v < V; ++v) {
                    const F relative = tile.relative(tile.load(q, v), row);
                    const F gain =
                        tile.template gain<floored>(relative, row, tile.of_code(tile.pass.grad_assigned, v));
                    sum = L::fma(tile.p(relative, row), gain, sum);
                }
                part[q] = sum;
            }
        });
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
        const bool root = tile.pass.root;
        const F least = L::broadcast(tile.pass.least_t);
        tile.as_floored([&](auto floored) {
            for (int q = 0; q < Q; ++q) {
                const auto row = tile.row_of(q);
                const F mean_gain = tile.of_row(tile.batch.mean_gain, q);
                F h[V], sum = h_sum[q], log_sum = g_log[q];
                for (int v = 0; v < V; ++v) {
                    const F t = tile.load(q, v), relative = tile.relative(t, row);
                    const F gain =
                        tile.template gain<floored>(relative, row, tile.of_code(tile.pass.grad_assigned, v));
                    h[v] = tile.p(relative, row) * (gain - mean_gain);
                    log_sum = L::fma(h[v], relative, log_sum);
                    if (root) h[v] = L::where(t > least, h[v] / L::max(t, least), F{});
                    sum = sum + h[v];
                }
                for (int v = 0; v < V; ++v) L::store(tile.pair(q, v), h[v]);
                h_sum[q] = sum;
                g_log[q] = log_sum;
            }
        });
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

// sum[i] += factor i of `count` times the vectors that belong to them; from one to the next are `stride` factors.
// Unrolled further, the compiler loses track of its registers.
template <class L, int T, int V>
inline __attribute__((always_inline)) void multiply(typename L::F (&sum)[T][V], const typename L::Real* values,
                                                    const typename L::Real* factors, std::int64_t stride,
                                                    std::int64_t count) {
#pragma GCC unroll 1
    for (std::int64_t n = 0; n < count; ++n, values += V * L::W, factors += stride) {
        typename L::F value[V];
        for (int v = 0; v < V; ++v) value[v] = L::load(values + v * L::W);
        for (int i = 0; i < T; ++i) {
            const auto factor = L::broadcast(factors[i]);
            for (int v = 0; v < V; ++v) sum[i][v] = L::in_turn(L::fma(factor, value[v], sum[i][v]));
        }
    }
}

// to [V*W][N*W] = h of a block for N vectors of rows, 0 where there are none; false, if all are 0
template <class L, int Q, int V, int N>
bool turn(const SoftBatch<typename L::Real>& batch, std::int64_t block, std::int64_t row, typename L::Real* to) {
    constexpr int W = L::W;
    const std::int64_t place = (block - batch.chunk) * batch.rows;
    const std::int64_t end = std::min(batch.rows, row + N * W);
    const std::uint8_t* live = batch.live + place / Q;
    bool any = false;
    for (std::int64_t q = row / Q; q * Q < end; ++q) any |= live[q] != 0;
    if (!any) return false;
    alignas(64) static constexpr typename L::Real nothing[V * W] = {};
    for (int n = 0; n < N; ++n) {
        const typename L::Real* from[W];
        for (int i = 0; i < W; ++i) {
            const std::int64_t r = row + n * W + i;
            from[i] = r < end && live[r / Q] ? batch.pairs + (place + r) * V * W : nothing;
        }
        for (int v = 0; v < V; ++v) {
            typename L::F h[W];
            for (int i = 0; i < W; ++i) h[i] = L::load(from[i] + v * W);
            L::transpose(h);
            for (int i = 0; i < W; ++i) L::store(to + ((v * W + i) * N + n) * W, h[i]);
        }
    }
    return true;
}

// V vectors of W vectors x, turned, meet so many codes that they stay in the L1 cache, Q dimensions at a time; so
// many dimensions, before the next vectors do, that those of the codes stay in the L2 cache.
template <class L, int Q, int V>
void pull_x(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
            std::int64_t to, double* sums) {
    using Real = typename L::Real;
    using F = typename L::F;
    constexpr int W = L::W;
    constexpr std::int64_t codes = V * W, block_bytes = codes * V * W * sizeof(Real);
    constexpr std::int64_t stretch = std::max<std::int64_t>((16 << 10) / block_bytes, 4);
    constexpr std::int64_t most = (256 << 10) / (stretch * codes * std::int64_t(sizeof(Real)));
    const std::int64_t dim = pass.dim, slabs = (dim + most - 1) / most,
                       slab = (dim + slabs * Q - 1) / (slabs * Q) * Q;
    alignas(64) Real turned[stretch * codes * V * W];
    const auto tile = [&](auto vectors, std::int64_t vector, std::int64_t first, std::int64_t end,
                          std::int64_t from_d) {
        constexpr int N = decltype(vectors)::value;
        std::int64_t live[stretch], count = 0;
        for (std::int64_t block = first; block < end; ++block) {
            if (turn<L, Q, V, N>(batch, block, vector * W, turned + count * codes * N * W)) live[count++] = block;
        }
        in_tiles<Q>(std::min(slab, dim - from_d), [&](auto tag, std::int64_t ahead) {
            constexpr int T = decltype(tag)::value;
            const std::int64_t d = from_d + ahead;
            F sum[T][N] = {};
            const Real* h = turned;
            for (std::int64_t at = 0; at < count; ++at) {
                const Real* factors = pass.turned + (d * pass.blocks + live[at] * T) * codes;
                multiply<L>(sum, h, factors, T, codes);
                h += codes * N * W;
            }
            for (int i = 0; i < T; ++i) {
                for (int v = 0; v < N; ++v) L::add_to(sums + ((vector + v) * dim + d + i) * W, sum[i][v]);
            }
        });
    };
    for (std::int64_t first = from; first < to; first += stretch) {
        for (std::int64_t d = 0; d < dim; d += slab) {
            in_tiles<V>((batch.rows + W - 1) / W, [&](auto vectors, std::int64_t vector) {
                tile(vectors, vector, first, std::min(to, first + stretch), d);
            });
        }
    }
}

// A block of codes meets all vectors of the batch, Q dimensions at a time.
template <class L, int Q, int V>
void pull_codes(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
                std::int64_t to, double* sums) {
    constexpr int W = L::W;
    const std::int64_t dim = pass.dim + 1;
    for (std::int64_t block = from; block < to; ++block) {
        const std::int64_t place = (block - batch.chunk) * batch.rows;
        in_tiles<Q>(dim, [&](auto tag, std::int64_t d) {
            constexpr int T = decltype(tag)::value;
            typename L::F sum[T][V] = {};
            for (std::int64_t row = 0; row < batch.rows; row += Q) {
                if (!batch.live[(place + row) / Q]) continue;
                multiply<L>(sum, batch.pairs + (place + row) * V * W, batch.turned + d * batch.rows + row * T, T, Q);
            }
            double* out = sums + (block * dim + d) * V * W;
            for (int i = 0; i < T; ++i) {
                for (int v = 0; v < V; ++v) L::add_to(out + (i * V + v) * W, sum[i][v]);
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
