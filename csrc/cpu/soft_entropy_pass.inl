// Body of the passes, once for all instruction sets and both precisions. L: lanes (cpu/lanes.h). A register tile is Q
// owners x V vectors of W lanes of the streaming side.

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/lanes.h"
#include "cpu/soft_entropy_pass.h"

namespace vqk {
namespace {

enum class Owner { x, codes };

// a difference of two t as one of log2 p
template <class L>
typename L::F to_bits(const SoftPass<typename L::Real>& pass, typename L::F difference) {
    using Real = typename L::Real;
    if constexpr (sizeof(Real) == 4) return difference;
    // a double t has no bound, and p = 0 times infinity is not 0
    return L::max(L::broadcast(pass.slope) * difference, L::broadcast(Real(-1500)));
}

// Q owners in front of a block of the streaming side.
template <class L, int Q, int V, Owner owner>
struct Tile {
    using Real = typename L::Real;
    using F = typename L::F;
    static constexpr int W = L::W;

    const SoftPass<Real>& pass;
    const Real* negated = nullptr;  // [Q][D]
    std::int64_t first = 0;         // of the owners
    std::int64_t position = 0;      // of the block's first vector
    F t[Q][V];

    explicit Tile(const SoftPass<Real>& pass) : pass(pass) {}

    const PackedSide<Real>& own() const { return owner == Owner::x ? pass.x : pass.codes; }
    const PackedSide<Real>& streaming() const { return owner == Owner::x ? pass.codes : pass.x; }

    // a number of each vector x, or of each code, for owner q and vector v of the block
    F of_x(const Real* numbers, int q, int v) const { return at(numbers, owner == Owner::x, q, v); }
    F of_codes(const Real* numbers, int q, int v) const { return at(numbers, owner == Owner::codes, q, v); }
    F at(const Real* numbers, bool owned, int q, int v) const {
        return owned ? L::broadcast(numbers[first + q]) : L::load(numbers + position + v * W);
    }
    const Real* block() const { return streaming().values + position * pass.dim; }

    // The same bits whichever side owns: the products are the same and d ascends.
    void measure() {
        F score[Q][V];  // not t itself: registers
        for (int v = 0; v < V; ++v) {
            const F bias = L::load(streaming().bias + position + v * W);
            for (int q = 0; q < Q; ++q) score[q][v] = bias + own().bias[first + q];
        }
        const Real* values = block();
        for (int d = 0; d < pass.dim; ++d, values += V * W) {
            F factor[Q];  // Q + 1 registers beside the scores; of V + 1 the compiler makes V Q loads
            for (int q = 0; q < Q; ++q) factor[q] = L::broadcast(negated[std::int64_t(q) * pass.dim + d]);
            for (int v = 0; v < V; ++v) {
                const F value = L::load(values + v * W);
                for (int q = 0; q < Q; ++q) score[q][v] = L::fma(factor[q], value, score[q][v]);
            }
        }
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) t[q][v] = score[q][v];
        }
        if (!pass.root) return;
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) t[q][v] = L::sqrt(L::max(t[q][v] + t[q][v], F{}));
        }
    }

    // log2 p up to a constant of the row, which is its mean
    F relative(int q, int v) const { return to_bits<L>(pass, of_x(pass.origin, q, v) - t[q][v]); }
    F log_p(F relative, int q, int v) const { return relative + of_x(pass.rest, q, v); }

    // are all p of the tile 0? If not, the first comparison usually tells
    bool nothing() const {
        constexpr bool rows = owner == Owner::x;
        for (int i = 0; i < (rows ? Q : V); ++i) {
            F nearest = rows ? t[i][0] : t[0][i];
            for (int j = 1; j < (rows ? V : Q); ++j) nearest = L::min(nearest, rows ? t[i][j] : t[j][i]);
            if (L::any_less(nearest, rows ? of_x(pass.reach, i, 0) : of_x(pass.reach, 0, i))) return false;
        }
        return true;
    }

    F gain(F relative, int q, int v) const {
        if (pass.floored) {
            const F exact = log_p(relative, q, v), floor = L::broadcast(pass.floor);
            relative = L::where(exact > floor, exact + Real(1.44269504088896340736), floor);
        }
        return L::fma(of_x(pass.bit_gain, q, v), relative,
                      of_x(pass.weight, q, v) * of_codes(pass.grad_assigned, q, v));
    }
};

// Walks the streaming side past the owners [begin, end). A section of it stays in the cache while all tiles of the
// panel meet it; `Body` sums over the blocks of a section and adds to the owner's result at its end.
template <class L, int Q, int V, Owner owner, class Body>
void sweep(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, Body& body) {
    using Real = typename L::Real;
    constexpr std::int64_t block_size = V * L::W, section_bytes = 384 << 10;
    const std::int64_t dim = pass.dim;
    Tile<L, Q, V, owner> tile(pass);
    std::vector<Real> negated(std::size_t((end - begin + Q) * dim), Real(0));
    for (std::int64_t i = begin; i < end; ++i) {
        const Real* packed = tile.own().values + i / block_size * block_size * dim + i % block_size;
        for (std::int64_t d = 0; d < dim; ++d) negated[(i - begin) * dim + d] = -packed[d * block_size];
    }
    const std::int64_t blocks = tile.streaming().blocks;
    const std::int64_t section = std::clamp<std::int64_t>(section_bytes / (block_size * dim * sizeof(Real)), 16, 512);
    for (std::int64_t from = 0; from < blocks; from += section) {
        for (tile.first = begin; tile.first < end; tile.first += Q) {
            tile.negated = negated.data() + (tile.first - begin) * dim;
            body.start(tile.first - begin);
            for (std::int64_t block = from; block < std::min(blocks, from + section); ++block) {
                tile.position = block * block_size;
                tile.measure();
                body.take(tile);
            }
            for (int q = 0; q < Q && tile.first + q < end; ++q) body.finish(q, tile.first + q - begin);
        }
    }
}

// log2 sum 2^l and the mean of l, l = low - t with the least t of the row so far for low
template <class L, int Q>
struct Normalizer {
    using Real = typename L::Real;
    using F = typename L::F;
    struct Total {
        Real low = absent<Real>;
        double z = 0, lz = 0;
    };
    const SoftPass<Real>& pass;
    std::vector<Total> totals;  // [owners padded]
    F low[Q], z[Q], lz[Q];      // low in all lanes; sum of e, sum of l e for e = 2^l

    Normalizer(const SoftPass<Real>& pass, std::int64_t owners) : pass(pass), totals(owners + Q) {}

    void start(std::int64_t at) {
        for (int q = 0; q < Q; ++q) low[q] = L::broadcast(totals[at + q].low), z[q] = lz[q] = F{};
    }
    template <int V, Owner owner>
    void take(const Tile<L, Q, V, owner>& tile) {
        for (int q = 0; q < Q; ++q) {
            F nearest = tile.t[q][0];
            for (int v = 1; v < V; ++v) nearest = L::min(nearest, tile.t[q][v]);
            // some log K times in a row
            if (L::any_less(nearest, low[q])) lower(q, L::broadcast(L::lowest(nearest)));
            for (int v = 0; v < V; ++v) {
                const F l = to_bits<L>(pass, low[q] - tile.t[q][v]);
                const F e = exp2_of<L>(l);
                z[q] = z[q] + e;
                lz[q] = L::fma(l, e, lz[q]);
            }
        }
    }
    void lower(int q, F to) {
        const F back = to_bits<L>(pass, to - low[q]), shrink = exp2_of<L>(back);
        lz[q] = shrink * L::fma(back, z[q], lz[q]);
        z[q] = shrink * z[q];
        low[q] = to;
    }
    void finish(int q, std::int64_t at) {
        Total& total = totals[at];
        const Real now = L::lowest(low[q]);
        const double back = std::max(double(pass.slope) * (double(now) - double(total.low)), -1500.0);
        const double shrink = std::exp2(back);
        total = {now, shrink * total.z + double(L::sum(z[q])),
                 shrink * (total.lz + back * total.z) + double(L::sum(lz[q]))};
    }
};

template <class L, int Q, int V>
void normalize(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* least,
               double* log_sum, double* entropy) {
    Normalizer<L, Q> body(pass, end - begin);
    sweep<L, Q, V, Owner::x>(pass, begin, end, body);
    for (std::int64_t i = begin; i < end; ++i) {
        const auto& total = body.totals[i - begin];
        least[i] = total.low;
        log_sum[i] = std::log2(total.z);
        entropy[i] = std::max(0.0, log_sum[i] - total.lz / total.z);
    }
}

// sum of p term(tile, relative log2 p, q, v) for each owner
template <class L, int Q, class Term>
struct Summer {
    using F = typename L::F;
    const Term term;
    double* const sums;  // [owners]
    F part[Q];

    void start(std::int64_t) {
        for (int q = 0; q < Q; ++q) part[q] = F{};
    }
    template <class T>
    void take(const T& tile) {
        if (tile.nothing()) return;
        constexpr int V = sizeof(tile.t[0]) / sizeof(F);
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                const F relative = tile.relative(q, v);
                part[q] = L::fma(exp2_of<L>(tile.log_p(relative, q, v)), term(tile, relative, q, v), part[q]);
            }
        }
    }
    void finish(int q, std::int64_t at) { sums[at] += double(L::sum(part[q])); }
};

template <class L, int Q, int V, Owner owner, class Term>
void sum_terms(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* sums,
               Term term) {
    std::fill(sums + begin, sums + end, 0.0);
    Summer<L, Q, Term> body{term, sums + begin, {}};
    sweep<L, Q, V, owner>(pass, begin, end, body);
}

template <class L, int Q, int V>
void floored_entropy(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* entropy) {
    sum_terms<L, Q, V, Owner::x>(pass, begin, end, entropy, [](const auto& tile, auto relative, int q, int v) {
        return typename L::F{} - L::max(tile.log_p(relative, q, v), L::broadcast(tile.pass.floor));
    });
}

template <class L, int Q, int V>
void mean_gain(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* sums) {
    sum_terms<L, Q, V, Owner::x>(pass, begin, end, sums, [](const auto& tile, auto relative, int q, int v) {
        return tile.gain(relative, q, v);
    });
}

template <class L, int Q, int V>
void assign(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* sums) {
    sum_terms<L, Q, V, Owner::codes>(pass, begin, end, sums, [](const auto& tile, auto, int q, int v) {
        return tile.of_x(tile.pass.weight, q, v);
    });
}

// sums of h y, h and g log2 p; see SoftKernel::Pull
template <class L, int Q, int V>
struct Puller {
    using Real = typename L::Real;
    using F = typename L::F;
    static constexpr int W = L::W;
    // Sums of so many dimensions stay in the L1 cache. Of longer vectors a slice meets several blocks at a time.
    static constexpr std::int64_t slice = 32, most_blocks = 8;
    struct Block {
        const Real* values;
        F h[Q][V];
    };
    const std::int64_t dim;
    double *const sums, *const total, *const grad_log;
    std::vector<F> moved;  // [Q][D] lanes of the sums of h y
    std::vector<Block> blocks;
    std::size_t taken = 0;  // of `blocks`
    F h_sum[Q], g_log[Q];

    Puller(std::int64_t dim, double* sums, double* total, double* grad_log)
        : dim(dim),
          sums(sums),
          total(total),
          grad_log(grad_log),
          moved(Q * dim),
          blocks(std::clamp<std::int64_t>(dim / slice, 1, most_blocks)) {}

    void start(std::int64_t) {
        std::fill(moved.begin(), moved.end(), F{});
        for (int q = 0; q < Q; ++q) h_sum[q] = g_log[q] = F{};
    }
    template <Owner owner>
    void take(const Tile<L, Q, V, owner>& tile) {
        if (tile.nothing()) return;
        Block& block = blocks[taken++];
        block.values = tile.block();
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                const F relative = tile.relative(q, v);
                const F gain = tile.gain(relative, q, v) - tile.of_x(tile.pass.mean_gain, q, v);
                F h = exp2_of<L>(tile.log_p(relative, q, v)) * gain;
                if constexpr (owner == Owner::x) g_log[q] = L::fma(h, relative, g_log[q]);
                if (tile.pass.root) {
                    const F t = tile.t[q][v], least = L::broadcast(tile.pass.least_t);
                    h = L::where(t > least, h / L::max(t, least), F{});
                }
                h_sum[q] = h_sum[q] + h;
                block.h[q][v] = h;
            }
        }
        if (taken == blocks.size()) move();
    }
    void move() {
        for (std::int64_t from = 0; from < dim; from += slice) {
            for (std::size_t i = 0; i < taken; ++i) {
                F h[Q][V];  // registers
                for (int q = 0; q < Q; ++q) {
                    for (int v = 0; v < V; ++v) h[q][v] = blocks[i].h[q][v];
                }
                const Real* values = blocks[i].values + from * V * W;
                for (std::int64_t d = from; d < std::min(dim, from + slice); ++d, values += V * W) {
                    F value[V];
                    for (int v = 0; v < V; ++v) value[v] = L::load(values + v * W);
                    for (int q = 0; q < Q; ++q) {
                        F sum = moved[q * dim + d];
                        for (int v = 0; v < V; ++v) sum = L::fma(h[q][v], value[v], sum);
                        moved[q * dim + d] = sum;
                    }
                }
            }
        }
        taken = 0;
    }
    void finish(int q, std::int64_t at) {
        if (taken) move();
        for (std::int64_t d = 0; d < dim; ++d) sums[at * dim + d] += double(L::sum(moved[q * dim + d]));
        total[at] += double(L::sum(h_sum[q]));
        grad_log[at] += double(L::sum(g_log[q]));
    }
};

template <class L, int Q, int V, Owner owner>
void pull(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* sums, double* total,
          double* grad_log) {
    std::fill_n(sums, (end - begin) * pass.dim, 0.0);
    std::fill_n(total, end - begin, 0.0);
    std::fill_n(grad_log, end - begin, 0.0);
    Puller<L, Q, V> body(pass.dim, sums, total, grad_log);
    sweep<L, Q, V, owner>(pass, begin, end, body);
}

template <class L>
double spin_exp(std::int64_t rounds) {
    constexpr int chains = 8;  // enough independent ones to hide the latency on two ports
    typename L::F e[chains];
    for (int i = 0; i < chains; ++i) e[i] = L::broadcast(typename L::Real(i) / chains);
    for (std::int64_t round = 0; round < rounds; ++round) {
        // of a difference, as everywhere in the passes
        for (int i = 0; i < chains; ++i) e[i] = exp2_of<L>(e[i] - typename L::Real(1));
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
            normalize<L, Q, V>,
            floored_entropy<L, Q, V>,
            mean_gain<L, Q, V>,
            assign<L, Q, V>,
            pull<L, Q, V, Owner::x>,
            pull<L, Q, V, Owner::codes>,
            spin_exp<L>};
}

}  // namespace
}  // namespace vqk
