// The scan of the few blocks whose bounding boxes a query may have its nearest code in.
#pragma once

#include <cstdint>

#include "cpu/nearest_code_tile.inl"

namespace vqk {
namespace {

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

}  // namespace
}  // namespace vqk
