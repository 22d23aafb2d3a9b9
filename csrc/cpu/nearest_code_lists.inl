// The codes whose scores are not above a threshold: what a scan leaves to be decided.
#pragma once

#include <cstdint>

#include "cpu/nearest_code_tile.inl"
#include "cpu/unrolled.h"

namespace vqk {
namespace {

template <class Simd>
int shortlist(const LaneState& state, int rows, const double* band, const Shortlist& list) {
    constexpr int W = Simd::W;
    int count = 0;
    for (int r = 0; r < rows; ++r) {
        if (band[r] < 0) {
            list.ambiguous[r] = 0;
            continue;
        }
        const auto lowest = Simd::load(state.best + std::int64_t(r) * W);
        const double limit = double(Simd::lowest_lane(lowest)) + band[r];
        // rounding to float must not lower it, and padding (+inf) must stay above it
        const float threshold = to_float(limit + (limit < 0 ? -limit : limit) * 0x1p-23);
        list.threshold[r] = threshold;
        list.ambiguous[r] = Simd::at_most(Simd::load(state.second + std::int64_t(r) * W), threshold) != 0;
        for (std::uint32_t mask = Simd::at_most(lowest, threshold); mask; mask &= mask - 1) {
            list.hits[count++] = r * W + __builtin_ctz(mask);
        }
    }
    return count;
}

// positions in blocks [begin, end) of scores <= threshold; scores(block, out) are those of one query and one block
template <class Simd, int V, class Scores>
inline std::int64_t collect_scores(std::int64_t begin, std::int64_t end, float threshold, std::int64_t* found,
                                   const Scores& scores) {
    std::int64_t count = 0;
    for (std::int64_t block = begin; block < end; ++block) {
        typename Simd::F score[1][V];
        scores(block, score);
        for (int v = 0; v < V; ++v) {
            for (std::uint32_t mask = Simd::at_most(score[0][v], threshold); mask; mask &= mask - 1) {
                found[count++] = (block * V + v) * Simd::W + __builtin_ctz(mask);
            }
        }
    }
    return count;
}

template <class Simd, int V>
std::int64_t collect(const float* negated, const PackedCodes& codes, std::int64_t begin, std::int64_t end,
                     float threshold, std::int64_t* found) {
    constexpr int W = Simd::W;
    const std::int64_t block_floats = std::int64_t(codes.dim) * V * W;
    return collect_scores<Simd, V>(
        begin, end, threshold, found, [&](std::int64_t block, typename Simd::F(&score)[1][V]) {
            block_scores<Simd, 1, V>(negated, codes.dim, codes.codes + block * block_floats,
                                     codes.bias + block * V * W, score);
        });
}

template <class Simd, int V>
std::int64_t collect_levels(const ScanLevel* levels, int count, bool squared, int row, std::int64_t begin,
                            std::int64_t end, float threshold, std::int64_t* found) {
    return collect_scores<Simd, V>(begin, end, threshold, found,
                                   [&](std::int64_t block, typename Simd::F(&score)[1][V]) {
                                       if (squared) {
                                           level_scores<Simd, 1, V, true>(levels, count, row, block, score);
                                       } else {
                                           level_scores<Simd, 1, V, false>(levels, count, row, block, score);
                                       }
                                   });
}

// Adds the codes of one block that are within reach of one query to its list; `scores`: FullScores, or others of that
// form.
template <class Simd, int V, class Scores>
inline void append_block(const Scores& scores, int row, std::int64_t block, typename Simd::F (&score)[V],
                         const CandidateLists& lists) {
    constexpr int W = Simd::W;
    static_assert(V * W <= 64, "a block is one mask");
    float threshold = lists.threshold[row];
    if (lists.slack) {
        const float high = scores.high(row, block, score) + lists.slack[row];
        lists.threshold[row] = threshold = high < threshold ? high : threshold;
    }
    scores.complete(row, block, score);
    float each[V * W];
    std::uint64_t mask = 0;
    for (int v = 0; v < V; ++v) {
        Simd::store(each + v * W, score[v]);
        mask |= std::uint64_t(Simd::at_most(score[v], threshold)) << (v * W);
    }
    Candidate* const list = lists.list + row * lists.capacity;
    std::int32_t& count = lists.count[row];
    for (; mask; mask &= mask - 1) {
        const int j = __builtin_ctzll(mask);
        list[count++] = {each[j], std::int32_t(block * V * W) + j};
    }
}

// The same for those of Q queries, from `row` on, whose bits are set. Not inline: registers are for those who compute
// scores.
template <class Simd, int Q, int V, class Scores>
__attribute__((noinline)) void append_tile(const Scores& scores, std::uint32_t some, int row, std::int64_t block,
                                           typename Simd::F (&score)[Q][V], const CandidateLists& lists) {
    for (; some; some &= some - 1) {
        const int q = __builtin_ctz(some);
        append_block<Simd, V>(scores, row + q, block, score[q], lists);
    }
}

// The same for those that have a code within reach, if any.
template <class Simd, int Q, int V, class Scores>
inline __attribute__((always_inline)) void append_within(const Scores& scores, int row, std::int64_t block,
                                                         const typename Simd::F (&score)[Q][V],
                                                         const CandidateLists& lists) {
    std::uint32_t some = 0;
    unrolled<Q>([&](auto q) {
        const auto low = scores.low(row + q, block, score[q]);
        some |= std::uint32_t(Simd::at_most(low, lists.threshold[row + q]) != 0) << q;
    });
    if (!some) return;            // as most blocks
    typename Simd::F copy[Q][V];  // or all scores would be in memory
    unrolled<Q>([&](auto q) { unrolled<V>([&](auto v) { copy[q][v] = score[q][v]; }); });
    append_tile<Simd, Q, V>(scores, some, row, block, copy, lists);
}

// scores(row, block, out) makes those of Q queries and one block
template <class Simd, int Q, int V, class Scores>
inline void append_scores(int rows, std::int64_t begin, std::int64_t end, const CandidateLists& lists,
                          const Scores& scores) {
    for (int row = 0; row < rows; row += Q) {
        for (std::int64_t block = begin; block < end; ++block) {
            typename Simd::F score[Q][V];
            scores(row, block, score);
            append_within<Simd, Q, V>(scores, row, block, score, lists);
        }
    }
}

template <class Simd, int Q, int V>
void append(const float* negated, int rows, const PackedCodes& codes, std::int64_t begin, std::int64_t end,
            const CandidateLists& lists) {
    constexpr int W = Simd::W;
    const int dim = codes.dim;
    const auto scores = [&](int row, std::int64_t block, typename Simd::F(&score)[Q][V]) {
        block_scores<Simd, Q, V>(negated + std::int64_t(row) * dim, dim, codes.codes + block * dim * V * W,
                                 codes.bias + block * V * W, score);
    };
    append_scores<Simd, Q, V>(rows, begin, end, lists, full_scores<Simd, Q, V>(scores));
}

}  // namespace
}  // namespace vqk
