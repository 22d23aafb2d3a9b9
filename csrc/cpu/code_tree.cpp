#include "cpu/code_tree.h"

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"

namespace vqk {
namespace {

// A point's coordinate above its number: one comparison orders both, and no two are equal.
using Keyed = std::uint64_t;

Keyed keyed(float coordinate, std::int32_t member) {
    std::uint32_t bits;
    std::memcpy(&bits, &coordinate, sizeof bits);
    // integers that order like the floats
    bits ^= std::uint32_t(std::int32_t(bits) >> 31) | 0x80000000u;
    return Keyed(bits) << 32 | std::uint32_t(member);
}

std::int32_t member_of(Keyed value) {
    return std::int32_t(std::uint32_t(value));
}

// Makes the `rank` lowest values the first ones. Two pivots from a sample, on either side of that rank most likely,
// leave few between them to select from. Which way a value goes is arithmetic: a branch would be mispredicted half of
// the time. `spare` has room for `count`.
void select(Keyed* values, std::int64_t count, std::int64_t rank, Keyed* spare) {
    constexpr std::int64_t sample = 32, margin = 4;
    while (count > 4 * sample) {
        Keyed drawn[sample];
        for (std::int64_t i = 0; i < sample; ++i) drawn[i] = values[i * count / sample];
        std::sort(drawn, drawn + sample);
        const std::int64_t at = rank * sample / count;
        const Keyed low = drawn[std::max<std::int64_t>(at - margin, 0)];
        const Keyed high = drawn[std::min(at + margin, sample - 1)];
        std::int64_t below = 0, between = 0, above = 0;
        Keyed* const top = spare + count - 1;  // those above, downwards
        for (std::int64_t i = 0; i < count; ++i) {
            const Keyed value = values[i];
            values[below] = value;
            spare[between] = value;
            top[-above] = value;
            const bool is_low = value<low, is_high = value> high;
            below += is_low;
            above += is_high;
            between += !is_low & !is_high;
        }
        std::copy(spare, spare + between, values + below);
        std::copy(top + 1 - above, top + 1, values + below + between);
        if (rank < below) {
            count = below;
            continue;
        }
        const std::int64_t passed = rank <= below + between ? below : below + between;
        count = passed == below ? between : above;
        values += passed;
        rank -= passed;
    }
    if (rank < count) std::nth_element(values, values + rank, values + count);
}

}  // namespace

struct CodeTree::Builder {
    CodeTree& tree;
    const float* points;  // [K, D]
    std::int64_t dim;
    std::int32_t* order;

    // Orders the points of a span so that the lower ones along its widest axis come first, unless it is a leaf.
    Node split(const Span& span, std::vector<Keyed>& scratch) const {
        const std::int32_t block = tree.block_, count = span.last - span.first;
        // the boundary between blocks nearest to the middle
        const std::int32_t middle = ((span.first + span.last) / 2 + block / 2) / block * block;
        if (middle <= span.first || middle >= span.last) return {};
        std::int32_t* members = order + span.first;
        const std::int32_t axis = widest_axis(members, count);
        const auto along = [&](std::int32_t member) { return points[std::int64_t(member) * dim + axis]; };
        if (scratch.size() < std::size_t(2 * count)) scratch.resize(std::size_t(2 * count));
        Keyed* values = scratch.data();
        for (std::int32_t i = 0; i < count; ++i) values[i] = keyed(along(members[i]), members[i]);
        select(values, count, middle - span.first, values + count);
        for (std::int32_t i = 0; i < count; ++i) members[i] = member_of(values[i]);
        return {along(order[middle]), axis, middle};
    }

    // the axis along which a sample of the points spreads most
    std::int32_t widest_axis(const std::int32_t* members, std::int32_t count) const {
        constexpr std::int32_t sample = 32;
        const std::int32_t drawn = std::min(count, sample), step = count / drawn;
        const float* at[sample];
        for (std::int32_t i = 0; i < drawn; ++i) at[i] = points + members[i * step] * dim;
        std::int32_t widest = 0;
        float most = -1;
        for (std::int32_t d = 0; d < dim; ++d) {
            float sum = 0, square = 0;
            for (std::int32_t i = 0; i < drawn; ++i) {
                const float value = at[i][d] - at[0][d];  // against cancellation
                sum += value;
                square += value * value;
            }
            const float spread = square - sum * sum / float(drawn);
            if (spread > most) most = spread, widest = d;
        }
        return widest;
    }

    // depth first: what a subtree works on stays in the cache
    void grow(const Span& span, std::vector<Keyed>& scratch) const {
        const Node node = tree.nodes_[span.node] = split(span, scratch);
        if (node.middle == 0) return;
        grow({2 * span.node + 1, span.first, node.middle}, scratch);
        grow({2 * span.node + 2, node.middle, span.last}, scratch);
    }
};

CodeTree::CodeTree(const float* points, std::int64_t dim, int block, std::vector<std::int32_t>& order, int threads)
    : block_(block) {
    std::size_t leaves = 1;
    while (leaves * std::size_t(block) < order.size()) leaves *= 2;
    // a level more than halving takes: halves are rounded to blocks
    nodes_.resize(4 * leaves);
    const Builder builder{*this, points, dim, order.data()};
    const int useful = useful_threads(threads, double(order.size()) * 4);
    std::vector<Span> spans{{0, 0, std::int32_t(order.size())}};
    // level by level until every thread has some
    while (useful > 1 && spans.size() < std::size_t(4 * useful) && spans.size() < leaves) {
        std::vector<Node> found(spans.size());
        parallel_for(std::int64_t(spans.size()), useful, [&](std::int64_t i) {
            std::vector<Keyed> scratch;
            found[i] = builder.split(spans[i], scratch);
        });
        std::vector<Span> next;
        for (std::size_t i = 0; i < spans.size(); ++i) {
            const auto [node, first, last] = spans[i];
            nodes_[node] = found[i];
            if (found[i].middle == 0) continue;
            next.push_back({2 * node + 1, first, found[i].middle});
            next.push_back({2 * node + 2, found[i].middle, last});
        }
        spans = std::move(next);
    }
    parallel_for(std::int64_t(spans.size()), useful, [&](std::int64_t i) {
        std::vector<Keyed> scratch;
        builder.grow(spans[i], scratch);
    });
}

}  // namespace vqk
