#include "cpu/code_tree.h"

#include <algorithm>
#include <utility>

#include "cpu/parallel.h"

namespace vqk {

CodeTree::CodeTree(const float* points, std::int64_t dim, int block, std::vector<std::int32_t>& order, int threads)
    : points_(points), dim_(dim), block_(block) {
    nodes_.push_back({0, std::int32_t(order.size())});
    // level by level: the nodes of one are independent
    for (std::size_t begin = 0; begin < nodes_.size();) {
        const std::size_t end = nodes_.size();
        std::vector<std::int32_t> middle(end - begin);
        parallel_for(std::int64_t(end - begin), useful_threads(threads, double(order.size()) * 4),
                     [&](std::int64_t i) { middle[i] = split(nodes_[begin + i], order.data()); });
        for (std::size_t i = begin; i < end; ++i) {
            const std::int32_t first = nodes_[i].first, last = nodes_[i].last, at = middle[i - begin];
            if (at == first) continue;
            nodes_[i].child = std::int32_t(nodes_.size());
            nodes_.push_back({first, at});
            nodes_.push_back({at, last});
        }
        begin = end;
    }
    points_ = nullptr;  // only needed to build
}

// the axis along which a sample of the points spreads most
std::int32_t CodeTree::widest_axis(const std::int32_t* members, std::int64_t count) const {
    constexpr std::int64_t sample = 64;
    const std::int64_t drawn = std::min(count, sample);
    std::vector<float> sum(std::size_t(dim_), 0.0f), square(std::size_t(dim_), 0.0f);
    const float* origin = points_ + std::int64_t(members[0]) * dim_;  // against cancellation
    for (std::int64_t i = 0; i < drawn; ++i) {
        const float* point = points_ + std::int64_t(members[i * count / drawn]) * dim_;
        for (std::int64_t d = 0; d < dim_; ++d) {
            const float value = point[d] - origin[d];
            sum[d] += value;
            square[d] += value * value;
        }
    }
    const auto spread = [&](std::int64_t d) { return square[d] - sum[d] * sum[d] / float(drawn); };
    std::int32_t widest = 0;
    for (std::int32_t d = 1; d < dim_; ++d) {
        if (spread(d) > spread(widest)) widest = d;
    }
    return widest;
}

// Orders the members of a node so that those below the plane come first; returns where the others begin, or the
// node's first place if it is not divided.
std::int32_t CodeTree::split(Node& node, std::int32_t* order) const {
    const std::int32_t count = node.last - node.first;
    // the boundary between blocks nearest to the middle
    const std::int32_t half = ((node.first + node.last) / 2 + block_ / 2) / block_ * block_;
    if (half <= node.first || half >= node.last) return node.first;
    std::int32_t *begin = order + node.first, *end = order + node.last;
    node.axis = widest_axis(begin, count);
    const auto key = [&](std::int32_t member) { return points_[std::int64_t(member) * dim_ + node.axis]; };

    constexpr std::int32_t sample = 129;
    if (count > 16 * block_) {
        float drawn[sample];
        for (std::int32_t i = 0; i < sample; ++i) drawn[i] = key(begin[std::int64_t(i) * count / sample]);
        std::nth_element(drawn, drawn + sample / 2, drawn + sample);
        node.plane = drawn[sample / 2];
        const auto middle = std::partition(begin, end, [&](std::int32_t member) { return key(member) < node.plane; });
        // many equal keys can make it lopsided; then the exact way
        if (middle - begin > count / 4 && end - middle > count / 4) return std::int32_t(middle - order);
    }
    // keys beside the members: comparing them does not chase pointers
    std::vector<std::pair<float, std::int32_t>> keyed(count);
    for (std::int32_t i = 0; i < count; ++i) keyed[i] = {key(begin[i]), begin[i]};
    const auto nth = keyed.begin() + (half - node.first);
    std::nth_element(keyed.begin(), nth, keyed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::int32_t i = 0; i < count; ++i) begin[i] = keyed[i].second;
    node.plane = nth->first;
    return half;
}

}  // namespace vqk
