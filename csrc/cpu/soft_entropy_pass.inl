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
            F value[V];
            for (int v = 0; v < V; ++v) value[v] = L::load(values + v * W);
            for (int q = 0; q < Q; ++q) {
                const F factor = L::broadcast(negated[std::int64_t(q) * pass.dim + d]);
                for (int v = 0; v < V; ++v) score[q][v] = L::fma(factor, value[v], score[q][v]);
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

    // log p up to a constant of the row, which is its mean; bounded from below: p is 0 there, and 0 times infinity is not
    F relative(int q, int v) const {
        const F difference = L::broadcast(pass.slope) * (of_x(pass.origin, q, v) - t[q][v]);
        return L::max(difference, L::broadcast(Real(-1000)));
    }
    F log_p(F relative, int q, int v) const { return relative + of_x(pass.rest, q, v); }

    // are all p of the tile 0?
    bool nothing() const {
        F most = L::broadcast(-std::numeric_limits<Real>::infinity());
        for (int q = 0; q < Q; ++q) {
            F row = log_p(relative(q, 0), q, 0);
            for (int v = 1; v < V; ++v) row = L::max(row, log_p(relative(q, v), q, v));
            most = L::max(most, row);
        }
        return !(L::highest(most) > log_zero<Real>);
    }

    // a A(log p) + w v, up to a constant of the row
    F gain(F relative, int q, int v) const {
        F slope = F{} - relative;
        if (pass.floored) {
            const F exact = log_p(relative, q, v), floor = L::broadcast(pass.floor);
            slope = F{} - L::where(exact > floor, exact + Real(1), floor);
        }
        return L::fma(of_x(pass.grad_entropy, q, v), slope,
                      of_x(pass.weight, q, v) * of_codes(pass.grad_assigned, q, v));
    }
};

// Walks the streaming side past the owners [begin, end). A section of it stays in the cache while all tiles of the
// panel meet it; `Body` sums over the blocks of a section and adds to the owner's result at its end.
template <class L, int Q, int V, Owner owner, class Body>
void sweep(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, Body& body) {
    using Real = typename L::Real;
    constexpr std::int64_t block_size = V * L::W, section_bytes = 192 << 10;
    const std::int64_t dim = pass.dim;
    Tile<L, Q, V, owner> tile(pass);
    std::vector<Real> negated(std::size_t((end - begin + Q) * dim), Real(0));
    for (std::int64_t i = begin; i < end; ++i) {
        const Real* packed = tile.own().values + i / block_size * block_size * dim + i % block_size;
        for (std::int64_t d = 0; d < dim; ++d) negated[(i - begin) * dim + d] = -packed[d * block_size];
    }
    const std::int64_t blocks = tile.streaming().blocks;
    const std::int64_t section = std::clamp<std::int64_t>(section_bytes / (block_size * dim * sizeof(Real)), 8, 512);
    for (std::int64_t from = 0; from < blocks; from += section) {
        for (tile.first = begin; tile.first < end; tile.first += Q) {
            tile.negated = negated.data() + (tile.first - begin) * dim;
            body.start();
            for (std::int64_t block = from; block < std::min(blocks, from + section); ++block) {
                tile.position = block * block_size;
                tile.measure();
                body.take(tile);
            }
            for (int q = 0; q < Q && tile.first + q < end; ++q) body.finish(q, tile.first + q - begin);
        }
    }
}

// log sum e^l and the mean of l, with the least t so far of each lane as origin
template <class L, int Q>
struct Normalizer {
    using Real = typename L::Real;
    using F = typename L::F;
    struct Total {
        double t = absent<Real>, z = 0, lz = 0;
    };
    const Real slope;
    std::vector<Total> totals;
    F low[Q], z[Q], lz[Q];  // least t; sum of e, sum of l e for l = slope (low - t), e = exp(l)

    Normalizer(Real slope, std::int64_t owners) : slope(slope), totals(owners) {}

    void start() {
        for (int q = 0; q < Q; ++q) low[q] = L::broadcast(absent<Real>), z[q] = lz[q] = F{};
    }
    template <int V, Owner owner>
    void take(const Tile<L, Q, V, owner>& tile) {
        const F factor = L::broadcast(slope), least = L::broadcast(Real(-1000));  // see Tile::log_p
        for (int q = 0; q < Q; ++q) {
            F lowest = low[q];
            for (int v = 0; v < V; ++v) lowest = L::min(lowest, tile.t[q][v]);
            const F back = L::max(factor * (lowest - low[q]), least);
            const F shrink = exp_of<L>(back);
            lz[q] = shrink * L::fma(back, z[q], lz[q]);
            z[q] = shrink * z[q];
            low[q] = lowest;
            for (int v = 0; v < V; ++v) {
                const F l = L::max(factor * (lowest - tile.t[q][v]), least);
                const F e = exp_of<L>(l);
                z[q] = z[q] + e;
                lz[q] = L::fma(l, e, lz[q]);
            }
        }
    }
    void finish(int q, std::int64_t at) {
        Total& total = totals[at];
        const double t = L::lowest(low[q]);
        const F back = L::max(L::broadcast(slope) * (L::broadcast(Real(t)) - low[q]), L::broadcast(Real(-1000)));
        const F shrink = exp_of<L>(back);
        merge(total, {t, double(L::sum(shrink * z[q])), double(L::sum(shrink * L::fma(back, z[q], lz[q])))});
    }
    void merge(Total& total, Total part) const {
        if (part.t < total.t) std::swap(total, part);
        const double back = std::max(double(slope) * (total.t - part.t), -1000.0), shrink = std::exp(back);
        total.z += shrink * part.z;
        total.lz += shrink * (part.lz + back * part.z);
    }
};

template <class L, int Q, int V>
void normalize(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* least,
               double* log_sum, double* entropy) {
    Normalizer<L, Q> body(pass.slope, end - begin);
    sweep<L, Q, V, Owner::x>(pass, begin, end, body);
    for (std::int64_t i = begin; i < end; ++i) {
        const auto& total = body.totals[i - begin];
        least[i] = total.t;
        log_sum[i] = std::log(total.z);
        entropy[i] = std::max(0.0, log_sum[i] - total.lz / total.z);
    }
}

// sum of p term(tile, relative log p, q, v) for each owner
template <class L, int Q, class Term>
struct Summer {
    using F = typename L::F;
    const Term term;
    double* const sums;  // [owners]
    F part[Q];

    void start() {
        for (int q = 0; q < Q; ++q) part[q] = F{};
    }
    template <class T>
    void take(const T& tile) {
        if (tile.nothing()) return;
        constexpr int V = sizeof(tile.t[0]) / sizeof(F);
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                const F relative = tile.relative(q, v);
                part[q] = L::fma(exp_of<L>(tile.log_p(relative, q, v)), term(tile, relative, q, v), part[q]);
            }
        }
    }
    void finish(int q, std::int64_t at) { sums[at] += double(L::sum(part[q])); }
};

template <class L, int Q, int V, Owner owner, class Term>
void sum_terms(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* sums, Term term) {
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
    sum_terms<L, Q, V, Owner::x>(pass, begin, end, sums,
                                 [](const auto& tile, auto relative, int q, int v) { return tile.gain(relative, q, v); });
}

template <class L, int Q, int V>
void assign(const SoftPass<typename L::Real>& pass, std::int64_t begin, std::int64_t end, double* sums) {
    sum_terms<L, Q, V, Owner::codes>(pass, begin, end, sums, [](const auto& tile, auto, int q, int v) {
        return tile.of_x(tile.pass.weight, q, v);
    });
}

// sums of h y, h and g log p; see SoftKernel::Pull
template <class L, int Q>
struct Puller {
    using Real = typename L::Real;
    using F = typename L::F;
    static constexpr int W = L::W;
    const std::int64_t dim;
    double *sums, *total, *grad_log;
    std::vector<Real> moved;  // [Q][D][W] lanes of the sums of h y
    F h_sum[Q], g_log[Q];

    void start() {
        std::fill(moved.begin(), moved.end(), Real(0));
        for (int q = 0; q < Q; ++q) h_sum[q] = g_log[q] = F{};
    }
    template <int V, Owner owner>
    void take(const Tile<L, Q, V, owner>& tile) {
        if (tile.nothing()) return;
        F h[Q][V];
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                const F relative = tile.relative(q, v);
                const F gain = tile.gain(relative, q, v) - tile.of_x(tile.pass.mean_gain, q, v);
                h[q][v] = exp_of<L>(tile.log_p(relative, q, v)) * gain;
                g_log[q] = L::fma(h[q][v], relative, g_log[q]);
                if (tile.pass.root) {
                    const F t = tile.t[q][v], least = L::broadcast(tile.pass.least_t);
                    h[q][v] = L::where(t > least, h[q][v] / L::max(t, least), F{});
                }
                h_sum[q] = h_sum[q] + h[q][v];
            }
        }
        const Real* values = tile.block();
        for (std::int64_t d = 0; d < dim; ++d, values += V * W) {
            F value[V];
            for (int v = 0; v < V; ++v) value[v] = L::load(values + v * W);
            for (int q = 0; q < Q; ++q) {
                Real* lanes = moved.data() + (q * dim + d) * W;
                F sum = L::load(lanes);
                for (int v = 0; v < V; ++v) sum = L::fma(h[q][v], value[v], sum);
                L::store(lanes, sum);
            }
        }
    }
    void finish(int q, std::int64_t at) {
        for (std::int64_t d = 0; d < dim; ++d) {
            sums[at * dim + d] += double(L::sum(L::load(moved.data() + (q * dim + d) * W)));
        }
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
    const std::size_t lanes = std::size_t(Q) * pass.dim * L::W;
    Puller<L, Q> body{pass.dim, sums, total, grad_log, std::vector<typename L::Real>(lanes), {}, {}};
    sweep<L, Q, V, owner>(pass, begin, end, body);
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
            pull<L, Q, V, Owner::codes>};
}

}  // namespace
}  // namespace vqk
