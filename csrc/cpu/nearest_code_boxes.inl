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
        const auto gap = Simd::sub(x, Simd::min(Simd::max(x, Simd::load(box)), Simd::load(box + Simd::W)));
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
    const NearRoom room;
    Lanes<Simd> lanes;
    float limit = 0;  // no box farther away matters
    std::int64_t visited = 0;
    int groups = 0;  // measured

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

    // the lanes of a group's boxes that are no farther than `to`, but for the home
    std::uint32_t within(typename Simd::F distance, float to, std::int32_t group) const {
        const std::uint32_t kept = Simd::at_most(distance, to);
        return group == home / W ? kept & ~(1u << home % W) : kept;
    }

    // lists the groups with boxes that may matter, measures those, and visits the blocks whose are no farther than
    // `to`
    void measure(float to) {
        const int size = 2 * codes.dim * W;
        int listed = 0;
        for (std::int64_t begin = 0; begin * W < boxes.blocks; begin += W) {
            const auto distance = box_distances<Simd>(negated, codes.dim, boxes.groups + begin / W * size);
            for (auto mask = Simd::at_most(distance, limit); mask; mask &= mask - 1) {
                const auto group = std::int32_t(begin + __builtin_ctz(mask));
                const auto leaf = box_distances<Simd>(negated, codes.dim, boxes.leaves + group * size);
                Simd::store(room.distances + std::int64_t(groups) * W, leaf);
                room.groups[groups++] = group;
                listed += Simd::pick(within(leaf, to, group), group * W, room.blocks + listed);
            }
        }
        visit_listed(listed);
    }

    // visits the others of the measured that are no farther than the limit
    void visit_rest(float from) {
        int listed = 0;
        for (int g = 0; g < groups; ++g) {
            const auto leaf = Simd::load(room.distances + std::int64_t(g) * W);
            const std::uint32_t kept = within(leaf, limit, room.groups[g]) & ~Simd::at_most(leaf, from);
            listed += Simd::pick(kept, room.groups[g] * W, room.blocks + listed);
        }
        visit_listed(listed);
    }

    void visit_listed(int listed) {
        for (int i = 0; i < listed; ++i) visit(room.blocks[i]);
        tighten();
    }

    void run() {
        visit(home);
        tighten();
        // Where many blocks are to be visited, the nearest first, because they lower the limit most; an eighth
        // did as well as a quarter.
        const bool many = codes.dim > 4 && boxes.blocks > 4 * W;
        const float nearer = many ? limit / 8 : limit;
        measure(nearer);
        if (many) visit_rest(nearer);
    }
};

template <class Simd, int V>
std::int64_t scan_near(const float* negated, int rows, const PackedCodes& codes, const BoxTree& boxes,
                       const std::int32_t* home, const double* reach, const NearRoom& room, LaneState state) {
    std::int64_t visited = 0;
    for (int row = 0; row < rows; ++row) {
        if (reach[row] < 0) continue;
        NearQuery<Simd, V> query{
            negated + std::int64_t(row) * codes.dim, codes, boxes, home[row], reach[row], room, {}};
        query.run();
        query.lanes.store(state, row);
        visited += query.visited;
    }
    return visited;
}

}  // namespace
}  // namespace vqk
