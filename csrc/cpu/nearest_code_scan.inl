// Body of the scan, written against a `Simd` type that provides W lanes of float and a handful of operations.
// Included by one translation unit per instruction set; everything here has internal linkage on purpose, so that
// code compiled for one instruction set is never linked into another.
#pragma once

#include <cstring>
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

// Folds all scores of some rows into `state`; scores(row, block, out) are those of Q queries and one block.
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
                for (int q = 0; q < Q; ++q) low[q] = Simd::min(low[q], fold<Simd, V>(score[q]));
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
    scan_sections<Simd, Q, V>(rows, codes.blocks, section_blocks, section, state,
                              [&](int row, std::int64_t block, typename Simd::F(&score)[Q][V]) {
                                  block_scores<Simd, Q, V>(negated + std::int64_t(row) * dim, dim,
                                                           codes.codes + block * block_floats,
                                                           codes.bias + block * V * W, score);
                              });
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
    if (squared) return scan_sections<Simd, Q, V>(rows, blocks, section_blocks, 0, state, squared_scores);
    scan_sections<Simd, Q, V>(rows, blocks, section_blocks, 0, state, unsquared_scores);
}

// Simd::pick where there is no instruction for it; bit l of `kept`: lane l
template <class Simd>
int pick_lanes(std::uint32_t kept, std::int32_t first, std::int32_t* numbers) {
    int count = 0;
    for (; kept; kept &= kept - 1) numbers[count++] = first + __builtin_ctz(kept);
    return count;
}

// Squared distances of a query to the W boxes of one group.
template <class Simd>
inline typename Simd::F box_distances(const float* negated, int dim, const float* box) {
    auto total = Simd::broadcast(0.0f);
    for (int d = 0; d < dim; ++d, box += 2 * Simd::W) {
        const auto x = Simd::broadcast(negated[d]);
        const auto outside = Simd::max(Simd::add(Simd::load(box), x), Simd::sub(Simd::load(box + Simd::W), x));
        const auto gap = Simd::max(outside, Simd::broadcast(0.0f));
        total = Simd::fma(gap, gap, total);
    }
    return total;
}

// One query on its way through the boxes. Alone, because queries that share a home in several dimensions still need
// different blocks: tiles of them were measured slower. Blocks are listed first and visited after, so that the
// processor works on many at a time: whatever waits for the limit waits for the latency of all that went before.
template <class Simd, int V>
struct NearQuery {
    static constexpr int W = Simd::W;
    const float* negated;
    const PackedCodes& codes;
    const BoxTree& boxes;
    const std::int64_t home;
    const double reach;
    std::int32_t* list;
    Lanes<Simd> lanes;
    float limit = 0;  // no box farther away matters
    std::int64_t visited = 0;

    void visit(std::int64_t block) {
        typename Simd::F score[1][V];
        block_scores<Simd, 1, V>(negated, codes.dim, codes.codes + block * codes.dim * V * W,
                                 codes.bias + block * V * W, score);
        lanes.take(fold<Simd, V>(score[0]), std::int32_t(block));
        ++visited;
    }

    void tighten() {
        // a box distance is computed with a relative error below (D + 4) 2^-23
        const double within = 2.0 * double(Simd::lowest_lane(lanes.best)) + reach;
        limit = within < 0 ? 0.0f : to_float(within * (1.0 + (codes.dim + 4) * 0x1p-22));
    }

    // visits the blocks but `home` whose boxes are farther than `from` and no farther than `to`
    void visit_between(float from, float to) {
        const int size = 2 * codes.dim * W;
        int listed = 0;
        for (std::int64_t begin = 0; begin * W < boxes.blocks; begin += W) {
            const auto distance = box_distances<Simd>(negated, codes.dim, boxes.groups + begin / W * size);
            for (auto mask = Simd::at_most(distance, to); mask; mask &= mask - 1) {
                const std::int64_t group = begin + __builtin_ctz(mask);
                const auto leaf = box_distances<Simd>(negated, codes.dim, boxes.leaves + group * size);
                auto kept = Simd::at_most(leaf, to) & ~Simd::at_most(leaf, from);
                if (group == home / W) kept &= ~(1u << home % W);
                listed += Simd::pick(kept, std::int32_t(group * W), list + listed);
            }
        }
        for (int i = 0; i < listed; ++i) visit(list[i]);
        tighten();
    }

    void run() {
        visit(home);
        tighten();
        float nearer = -1.0f;
        // Where many blocks are to be visited, the nearest first, because they lower the limit most; an eighth
        // did as well as a quarter.
        if (codes.dim > 4 && boxes.blocks > 4 * W) {
            nearer = limit / 8;
            visit_between(-1.0f, nearer);
        }
        visit_between(nearer, limit);
    }
};

template <class Simd, int V>
std::int64_t scan_near(const float* negated, int rows, const PackedCodes& codes, const BoxTree& boxes,
                       const std::int32_t* home, const double* reach, std::int32_t* list, LaneState state) {
    std::int64_t visited = 0;
    for (int row = 0; row < rows; ++row) {
        if (reach[row] < 0) continue;
        NearQuery<Simd, V> query{
            negated + std::int64_t(row) * codes.dim, codes, boxes, home[row], reach[row], list, {}};
        query.run();
        query.lanes.store(state, row);
        visited += query.visited;
    }
    return visited;
}

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

// W codes at a time, four dimensions of them turned into vectors over the codes
template <class Simd, int V>
void pack(const float* const* codes, const float* factors, const float* shift, int dim, float* out, float* squares) {
    constexpr int W = Simd::W;
    for (int v = 0; v < V; ++v) {
        const auto factor = Simd::load(factors + v * W);
        auto square = Simd::broadcast(0.0f);
        const auto put = [&](typename Simd::F entries, int d) {
            const auto value = Simd::fma(entries, factor, Simd::broadcast(-shift[d]));
            Simd::store(out + (std::int64_t(d) * V + v) * W, value);
            return value;
        };
        int d = 0;
        for (; d + 4 <= dim; d += 4) {
            typename Simd::F column[4];
            Simd::columns(codes + v * W, d, column);
            auto part = Simd::broadcast(0.0f);  // short sums, added up: smaller rounding errors than one long sum
            for (int i = 0; i < 4; ++i) {
                const auto value = put(column[i], d + i);
                part = Simd::fma(value, value, part);
            }
            square = Simd::add(square, part);
        }
        for (; d < dim; ++d) {
            const auto value = put(Simd::column(codes + v * W, d), d);
            square = Simd::fma(value, value, square);
        }
        Simd::store(squares + v * W, square);
    }
}

template <class Simd>
float negate(const float* x, float factor, const float* shift, int dim, float* out) {
    constexpr int W = Simd::W;
    const auto scale = Simd::broadcast(-factor);
    auto square = Simd::broadcast(0.0f);
    int d = 0;
    for (; d + W <= dim; d += W) {
        const auto value = Simd::fma(Simd::load(x + d), scale, Simd::load(shift + d));
        Simd::store(out + d, value);
        square = Simd::fma(value, value, square);
    }
    if (d < dim) {
        const auto value = Simd::fma(Simd::load_part(x + d, dim - d), scale, Simd::load_part(shift + d, dim - d));
        Simd::store_part(out + d, value, dim - d);
        square = Simd::fma(value, value, square);
    }
    return Simd::sum(square);
}

// compiled here for the sake of the vector maximum
inline std::uint32_t largest(const float* v, std::int64_t count) {
    std::uint32_t high = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, v + i, sizeof bits);
        bits &= 0x7fffffffu;
        high = high > bits ? high : bits;
    }
    return high;
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

// adds the codes of one block to one query's list
template <class Simd, int V>
inline void append_block(const typename Simd::F (&score)[V], float threshold, std::int32_t first, Candidate* list,
                         std::int32_t& count) {
    constexpr int W = Simd::W;
    static_assert(V * W <= 64, "a block is one mask");
    float scores[V * W];
    std::uint64_t mask = 0;
    for (int v = 0; v < V; ++v) {
        Simd::store(scores + v * W, score[v]);
        mask |= std::uint64_t(Simd::at_most(score[v], threshold)) << (v * W);
    }
    for (; mask; mask &= mask - 1) {
        const int j = __builtin_ctzll(mask);
        list[count++] = {scores[j], first + j};
    }
}

// scores(row, block, out) are those of Q queries and one block
template <class Simd, int Q, int V, class Scores>
inline void append_scores(int rows, std::int64_t begin, std::int64_t end, const CandidateLists& lists,
                          const Scores& scores) {
    for (int row = 0; row < rows; row += Q) {
        for (std::int64_t block = begin; block < end; ++block) {
            typename Simd::F score[Q][V];
            scores(row, block, score);
            for (int q = 0; q < Q; ++q) {
                const float threshold = lists.threshold[row + q];
                // most blocks have no candidate
                if (!Simd::at_most(fold<Simd, V>(score[q]), threshold)) continue;
                append_block<Simd, V>(score[q], threshold, std::int32_t(block * V * Simd::W),
                                      lists.list + (row + q) * lists.capacity, lists.count[row + q]);
            }
        }
    }
}

template <class Simd, int Q, int V>
void append(const float* negated, int rows, const PackedCodes& codes, std::int64_t begin, std::int64_t end,
            const CandidateLists& lists) {
    constexpr int W = Simd::W;
    const int dim = codes.dim;
    append_scores<Simd, Q, V>(
        rows, begin, end, lists, [&](int row, std::int64_t block, typename Simd::F(&score)[Q][V]) {
            block_scores<Simd, Q, V>(negated + std::int64_t(row) * dim, dim, codes.codes + block * dim * V * W,
                                     codes.bias + block * V * W, score);
        });
}

// Takes `shift` off some bounds, and lists those that are then not above a limit.
template <class Simd>
int lower_bounds(float* bounds, const float* shift, int count, float limit, std::int32_t* open) {
    constexpr int W = Simd::W;
    // a difference that is rounded up is made smaller again, one that is not above 0 bounds nothing
    const auto less = Simd::broadcast(1 - 0x1p-22f), nothing = Simd::broadcast(0.0f);
    int listed = 0, i = 0;
    for (; i + W <= count; i += W) {
        const auto left = Simd::fma(Simd::sub(Simd::load(bounds + i), Simd::load(shift + i)), less, nothing);
        Simd::store(bounds + i, left);
        if (const auto kept = Simd::at_most(left, limit)) listed += Simd::pick(kept, i, open + listed);
    }
    if (i < count) {
        const auto before = Simd::load_part(bounds + i, count - i), by = Simd::load_part(shift + i, count - i);
        const auto left = Simd::fma(Simd::sub(before, by), less, nothing);
        Simd::store_part(bounds + i, left, count - i);
        const auto kept = Simd::at_most(left, limit) & ((1u << (count - i)) - 1);
        listed += Simd::pick(kept, i, open + listed);
    }
    return listed;
}

template <class Simd, int Q, int V>
void score_listed(const float* negated, const std::int32_t* rows, int count, const PackedCodes& codes,
                  std::int64_t block, float* scores, float* lowest) {
    constexpr int W = Simd::W;
    const int dim = codes.dim;
    const float *packed = codes.codes + block * dim * V * W, *bias = codes.bias + block * V * W;
    for (int i = 0; i < count; i += Q) {
        const float* x[Q];
        for (int q = 0; q < Q; ++q) x[q] = negated + std::int64_t(rows[i + q]) * dim;
        typename Simd::F score[Q][V];
        scores_of<Simd, Q, V>([&](int q, int d) { return x[q][d]; }, dim, packed, bias, score);
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) Simd::store(scores + std::int64_t(i + q) * V * W + v * W, score[q][v]);
            lowest[i + q] = Simd::lowest_lane(fold<Simd, V>(score[q]));
        }
    }
}

template <class Simd>
void bound_distances(const float* lowest, const float* rest, int count, float unit, float* out) {
    constexpr int W = Simd::W;
    // a root of nothing is sqrt(2^-126), or less; then three roundings, and one by the unit of a tiny number
    const auto two = Simd::broadcast(2.0f), some = Simd::broadcast(-0x1p-62f), nothing = Simd::broadcast(0.0f);
    const auto factor = Simd::broadcast(unit * float(1 - Simd::root_error - 0x1p-21));
    const auto least = Simd::broadcast(-std::numeric_limits<float>::min());
    const auto most = Simd::broadcast(std::numeric_limits<float>::max());
    for (int i = 0; i < count; i += W) {
        const auto square = Simd::fma(two, Simd::load(lowest + i), Simd::load(rest + i));
        const auto root = Simd::max(Simd::add(Simd::root(square), some), nothing);
        Simd::store(out + i, Simd::min(Simd::max(Simd::fma(root, factor, least), nothing), most));
    }
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

// cpu/plain_scan.inl
template <class Simd, int V>
void scan_plain(const float* queries, const float* base, int rows, const PlainCodes& codes, int section_blocks,
                std::int32_t section, LaneState state);
template <class Simd>
void squares(const float* codes, std::int64_t count, float factor, const float* shift, int dim, float* squares);

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

#include "cpu/plain_scan.inl"
