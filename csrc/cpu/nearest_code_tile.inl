// Scores of a register tile, some queries before a block of codes, and what the lanes of a query keep of them.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/nearest_code_scan.h"

namespace vqk {
namespace {

// the nearest finite float
inline float to_float(double value) {
    constexpr double most = std::numeric_limits<float>::max();
    return float(value > most ? most : value);
}

// The lanes of one query (LaneState) in registers.
template <class Simd>
struct Lanes {
    typename Simd::F best = Simd::broadcast(std::numeric_limits<float>::infinity());
    typename Simd::F second = best;
    typename Simd::I section = Simd::broadcast(std::int32_t(0));

    void load(const LaneState& state, int row) {
        const std::int64_t at = std::int64_t(row) * Simd::W;
        best = Simd::load(state.best + at);
        second = Simd::load(state.second + at);
        section = Simd::load(state.section + at);
    }
    void store(const LaneState& state, int row) const {
        const std::int64_t at = std::int64_t(row) * Simd::W;
        Simd::store(state.best + at, best);
        Simd::store(state.second + at, second);
        Simd::store(state.section + at, section);
    }
    void take(typename Simd::F low, std::int32_t from) {
        section = Simd::where_less(low, best, Simd::broadcast(from), section);
        second = Simd::min(second, Simd::max(best, low));
        best = Simd::min(best, low);
    }
};

// Scores of Q queries against one block: bias + sum_d (-x_d) * c_d, one fused multiply-add per (pair, d); at(q, d) is
// -x_d of a query. in_turn() stops the compiler from starting them all before any is done, for want of registers.
// D stays a run-time number: unrolling the loop for small D was measured slower.
template <class Simd, int Q, int V, class At>
inline void scores_of(const At& at, int dim, const float* codes, const float* bias, typename Simd::F (&score)[Q][V]) {
    constexpr int W = Simd::W;
    for (int v = 0; v < V; ++v) {
        const auto start = Simd::load(bias + v * W);
        for (int q = 0; q < Q; ++q) score[q][v] = start;
    }
    for (int d = 0; d < dim; ++d) {
        typename Simd::F code[V];
        for (int v = 0; v < V; ++v) code[v] = Simd::load(codes + (std::int64_t(d) * V + v) * W);
        for (int q = 0; q < Q; ++q) {
            const auto x = Simd::broadcast(at(q, d));
            for (int v = 0; v < V; ++v) score[q][v] = Simd::in_turn(Simd::fma(x, code[v], score[q][v]));
        }
    }
}

// of queries that lie one behind the other
template <class Simd, int Q, int V>
inline void block_scores(const float* negated, int dim, const float* codes, const float* bias,
                         typename Simd::F (&score)[Q][V]) {
    const auto at = [&](int q, int d) { return negated[std::int64_t(q) * dim + d]; };
    scores_of<Simd, Q, V>(at, dim, codes, bias, score);
}

template <class Simd, int V>
inline typename Simd::F fold(const typename Simd::F (&score)[V]) {
    auto low = score[0];
    if constexpr (V == 4) return Simd::min(Simd::min(score[0], score[1]), Simd::min(score[2], score[3]));
    for (int v = 1; v < V; ++v) low = Simd::min(low, score[v]);
    return low;
}

// What `compute(row, block, score)` makes, the scores of Q queries and one block, as they are.
template <class Simd, int Q, int V, class Compute>
struct FullScores {
    const Compute& compute;

    void operator()(int row, std::int64_t block, typename Simd::F (&score)[Q][V]) const {
        compute(row, block, score);
    }
    // no score of a lane is lower, given those of one query
    typename Simd::F low(int, std::int64_t, const typename Simd::F (&score)[V]) const { return fold<Simd, V>(score); }
    // nor are all higher
    float high(int, std::int64_t, const typename Simd::F (&score)[V]) const {
        return Simd::lowest_lane(fold<Simd, V>(score));
    }
    // what is to be done before a score is one
    void complete(int, std::int64_t, typename Simd::F (&)[V]) const {}
};

template <class Simd, int Q, int V, class Compute>
inline FullScores<Simd, Q, V, Compute> full_scores(const Compute& compute) {
    return {compute};
}

// Scores of Q queries, from `row` on, against one block, summed over the levels.
template <class Simd, int Q, int V, bool squared>
inline void level_scores(const ScanLevel* levels, int count, int row, std::int64_t block,
                         typename Simd::F (&score)[Q][V]) {
    constexpr int W = Simd::W;
    for (int q = 0; q < Q; ++q) {
        for (int v = 0; v < V; ++v) score[q][v] = Simd::broadcast(0.0f);
    }
    for (const ScanLevel* level = levels; level != levels + count; ++level) {
        const int dim = level->codes.dim;
        typename Simd::F term[Q][V];
        block_scores<Simd, Q, V>(level->negated + std::int64_t(row) * dim, dim,
                                 level->codes.codes + block * dim * V * W, level->codes.bias + block * V * W, term);
        const auto factor = Simd::broadcast(level->factor);
        for (int q = 0; q < Q; ++q) {
            const auto half = Simd::broadcast(level->half[row + q]);
            for (int v = 0; v < V; ++v) {
                term[q][v] = Simd::add(term[q][v], half);
                if constexpr (!squared) term[q][v] = Simd::root(term[q][v]);
                score[q][v] = Simd::fma(factor, term[q][v], score[q][v]);
            }
        }
    }
}

// Simd::pick where there is no instruction for it; bit l of `kept`: lane l
template <class Simd>
int pick_lanes(std::uint32_t kept, std::int32_t first, std::int32_t* numbers) {
    int count = 0;
    for (; kept; kept &= kept - 1) numbers[count++] = first + __builtin_ctz(kept);
    return count;
}

}  // namespace
}  // namespace vqk
