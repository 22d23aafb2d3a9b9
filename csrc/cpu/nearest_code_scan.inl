// Body of the scan, written against a `Simd` type that provides W lanes of float and a handful of operations.
// Included by one translation unit per instruction set; everything here has internal linkage on purpose, so that
// code compiled for one instruction set is never linked into another.

#include <limits>

#include "cpu/affine.h"
#include "cpu/nearest_code_scan.h"

namespace vqk {
namespace {

// Scores of Q queries against one block: bias + sum_d (-x_d) * c_d, one fused multiply-add per (pair, d).
// D stays a run-time number: unrolling the loop for small D was measured slower.
template <class Simd, int Q, int V>
inline void block_scores(const float* negated, int dim, const float* codes, const float* bias,
                         typename Simd::F (&score)[Q][V]) {
    constexpr int W = Simd::W;
    for (int v = 0; v < V; ++v) {
        const auto start = Simd::load(bias + v * W);
        for (int q = 0; q < Q; ++q) score[q][v] = start;
    }
    for (int d = 0; d < dim; ++d) {
        typename Simd::F code[V];
        for (int v = 0; v < V; ++v) code[v] = Simd::load(codes + (std::int64_t(d) * V + v) * W);
        for (int q = 0; q < Q; ++q) {
            const auto x = Simd::broadcast(negated[std::int64_t(q) * dim + d]);
            for (int v = 0; v < V; ++v) score[q][v] = Simd::fma(x, code[v], score[q][v]);
        }
    }
}

template <class Simd, int V>
inline typename Simd::F fold(const typename Simd::F (&score)[V]) {
    auto low = score[0];
    if constexpr (V == 4) return Simd::min(Simd::min(score[0], score[1]), Simd::min(score[2], score[3]));
    for (int v = 1; v < V; ++v) low = Simd::min(low, score[v]);
    return low;
}

template <class Simd, int Q, int V>
void scan(const float* negated, int rows, const PackedCodes& codes, int section_blocks, LaneState state) {
    constexpr int W = Simd::W;
    const int dim = codes.dim;
    const std::int64_t block_floats = std::int64_t(dim) * V * W;
    // a section stays in the L1 cache while every query of the panel passes over it
    std::int32_t section = 0;
    for (std::int64_t begin = 0; begin < codes.blocks; begin += section_blocks, ++section) {
        const std::int64_t end = begin + section_blocks < codes.blocks ? begin + section_blocks : codes.blocks;
        for (int row = 0; row < rows; row += Q) {
            const float* tile = negated + std::int64_t(row) * dim;
            typename Simd::F low[Q];
            for (int q = 0; q < Q; ++q) low[q] = Simd::broadcast(std::numeric_limits<float>::infinity());
            for (std::int64_t block = begin; block < end; ++block) {
                typename Simd::F score[Q][V];
                block_scores<Simd, Q, V>(tile, dim, codes.codes + block * block_floats,
                                              codes.bias + block * V * W, score);
                for (int q = 0; q < Q; ++q) low[q] = Simd::min(low[q], fold<Simd, V>(score[q]));
            }
            for (int q = 0; q < Q; ++q) {
                const std::int64_t at = std::int64_t(row + q) * W;
                Simd::update(low[q], section, state.best + at, state.second + at, state.section + at);
            }
        }
    }
}

template <class Simd>
Verdict verdict(const float* best, const float* second, double band) {
    const auto lowest = Simd::load(best);
    const double limit = double(Simd::lowest_lane(lowest)) + band;
    // rounding to float must not lower it
    const float threshold = float(limit + (limit < 0 ? -limit : limit) * 0x1p-23);
    return {threshold, Simd::at_most(lowest, threshold), Simd::at_most(Simd::load(second), threshold) != 0};
}

template <class Simd, int V>
std::int64_t collect(const float* negated, const PackedCodes& codes, std::int64_t begin, std::int64_t end,
                     float threshold, std::int64_t* found) {
    constexpr int W = Simd::W;
    const std::int64_t block_floats = std::int64_t(codes.dim) * V * W;
    std::int64_t count = 0;
    for (std::int64_t block = begin; block < end; ++block) {
        typename Simd::F score[1][V];
        block_scores<Simd, 1, V>(negated, codes.dim, codes.codes + block * block_floats,
                                    codes.bias + block * V * W, score);
        for (int v = 0; v < V; ++v) {
            for (std::uint32_t mask = Simd::at_most(score[0][v], threshold); mask; mask &= mask - 1) {
                found[count++] = (block * V + v) * W + __builtin_ctz(mask);
            }
        }
    }
    return count;
}

template <class Simd>
double spin_fma(std::int64_t rounds) {
    constexpr int chains = 16;  // enough independent ones to hide the latency on two ports
    typename Simd::F sum[chains];
    const auto a = Simd::broadcast(0.999f), b = Simd::broadcast(1e-3f);
    for (int i = 0; i < chains; ++i) sum[i] = Simd::broadcast(float(i));
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < chains; ++i) sum[i] = Simd::fma(sum[i], a, b);
    }
    float lanes[Simd::W], total = 0;
    for (int i = 0; i < chains; ++i) {
        Simd::store(lanes, sum[i]);
        for (float lane : lanes) total += lane;
    }
    volatile float keep = total;  // the loop must not be optimised away
    (void)keep;
    return 2.0 * double(rounds) * chains * Simd::W;
}

template <class Simd, int Q, int V>
ScanKernel make_kernel(const char* name) {
    return {name,          Q,                  Simd::W,          V * Simd::W,          scan<Simd, Q, V>,
            verdict<Simd>, collect<Simd, V>,   Simd::canonical_sums, affine_row<float>, spin_fma<Simd>};
}

}  // namespace
}  // namespace vqk
