// The scan of all codes, and the table of everything that is written against a `Simd` type, which provides W lanes of
// float and a handful of operations. Included by one translation unit per instruction set; everything here and in
// what it includes has internal linkage on purpose, so that code compiled for one instruction set is never linked
// into another.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/nearest_code_bounds.inl"
#include "cpu/nearest_code_boxes.inl"
#include "cpu/nearest_code_copies.inl"
#include "cpu/nearest_code_lists.inl"
#include "cpu/nearest_code_scan.h"
#include "cpu/nearest_code_tile.inl"
#include "cpu/plain_scan.inl"
#include "cpu/unrolled.h"

namespace vqk {
namespace {

// Folds all scores of some rows into `state`: FullScores, or others of that form.
template <class Simd, int Q, int V, class Scores>
inline void scan_sections(int rows, std::int64_t blocks, int section_blocks, std::int32_t section, LaneState state,
                          const Scores& scores) {
    // A short section stays in the L1 cache while every query passes over it, a long one in the L2 cache; that long
    // codes are no slower than short ones without being cut into pieces for L1 was measured.
    for (std::int64_t begin = 0; begin < blocks; begin += section_blocks, ++section) {
        const std::int64_t end = begin + section_blocks < blocks ? begin + section_blocks : blocks;
        for (int row = 0; row < rows; row += Q) {
            typename Simd::F low[Q];
            for (int q = 0; q < Q; ++q) low[q] = Simd::broadcast(std::numeric_limits<float>::infinity());
            for (std::int64_t block = begin; block < end; ++block) {
                typename Simd::F score[Q][V];
                scores(row, block, score);
                unrolled<Q>([&](auto q) { low[q] = Simd::min(low[q], scores.low(row + q, block, score[q])); });
            }
            for (int q = 0; q < Q; ++q) {
                Lanes<Simd> lanes;
                lanes.load(state, row + q);
                lanes.take(low[q], section);
                lanes.store(state, row + q);
            }
        }
    }
}

template <class Simd, int Q, int V>
void scan(const float* negated, int rows, const PackedCodes& codes, int section_blocks, std::int32_t section,
          LaneState state) {
    constexpr int W = Simd::W;
    const int dim = codes.dim;
    const std::int64_t block_floats = std::int64_t(dim) * V * W;
    const auto scores = [&](int row, std::int64_t block, typename Simd::F(&score)[Q][V]) {
        block_scores<Simd, Q, V>(negated + std::int64_t(row) * dim, dim, codes.codes + block * block_floats,
                                 codes.bias + block * V * W, score);
    };
    scan_sections<Simd, Q, V>(rows, codes.blocks, section_blocks, section, state, full_scores<Simd, Q, V>(scores));
}

template <class Simd, int Q, int V>
void scan_levels(const ScanLevel* levels, int count, bool squared, int rows, int section_blocks, LaneState state) {
    using Score = typename Simd::F[Q][V];
    const auto unsquared_scores = [&](int row, std::int64_t block, Score& score) {
        level_scores<Simd, Q, V, false>(levels, count, row, block, score);
    };
    const auto squared_scores = [&](int row, std::int64_t block, Score& score) {
        level_scores<Simd, Q, V, true>(levels, count, row, block, score);
    };
    const std::int64_t blocks = levels->codes.blocks;
    const auto scan = [&](const auto& scores) {
        scan_sections<Simd, Q, V>(rows, blocks, section_blocks, 0, state, full_scores<Simd, Q, V>(scores));
    };
    if (squared) return scan(squared_scores);
    scan(unsquared_scores);
}

template <class Simd>
double spin_fma(std::int64_t rounds) {
    constexpr int chains =
        12;  // enough independent ones to hide the latency on two ports, few enough for 16 registers
    typename Simd::F sum[chains];
    const auto a = Simd::broadcast(0.999f), b = Simd::broadcast(1e-3f);
    for (int i = 0; i < chains; ++i) sum[i] = Simd::broadcast(float(i));
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < chains; ++i) sum[i] = Simd::in_turn(Simd::fma(sum[i], a, b));
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
ScanKernel make_kernel(Isa isa) {
    ScanKernel kernel;
    kernel.isa = kernel.base = isa;
    kernel.queries = Q;
    kernel.lanes = Simd::W;
    kernel.block_codes = V * Simd::W;
    kernel.pack = pack<Simd, V>;
    kernel.negate = negate<Simd>;
    kernel.largest = largest;
    kernel.root_error = Simd::root_error;
    kernel.scan = scan<Simd, Q, V>;
    kernel.scan_plain = scan_plain<Simd, V>;
    kernel.squares = squares<Simd>;
    kernel.scan_levels = scan_levels<Simd, Q, V>;
    kernel.scan_near = scan_near<Simd, V>;
    kernel.shortlist = shortlist<Simd>;
    kernel.collect = collect<Simd, V>;
    kernel.append = append<Simd, Q, V>;
    kernel.lower_bounds = lower_bounds<Simd>;
    kernel.score_listed = score_listed<Simd, Q, V>;
    kernel.bound_distances = bound_distances<Simd>;
    kernel.collect_levels = collect_levels<Simd, V>;
    kernel.sums = Simd::canonical_sums;
    kernel.norms = Simd::canonical_norms;
    kernel.spin_fma = spin_fma<Simd>;
    return kernel;
}

}  // namespace
}  // namespace vqk
