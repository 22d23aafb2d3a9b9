// A balanced kd-tree over codes whose leaves are the blocks of the scan: codes that share a block are near each
// other, so a whole block can be ruled out by its bounding box. The order of codes never changes a result.
#pragma once

#include <cstdint>
#include <vector>

namespace vqk {

class CodeTree {
  public:
    CodeTree() = default;

    // Reorders `order` (rows of points [K, D]) so that, but for a few, every `block` of them in a row is a leaf.
    // Large nodes are split at the median of a sample, which is quick; small ones exactly, between blocks.
    CodeTree(const float* points, std::int64_t dim, int block, std::vector<std::int32_t>& order, int threads);

    bool empty() const { return nodes_.empty(); }

    // the block whose cell a point lies in
    std::int32_t home(const float* point) const {
        std::int32_t at = 0;
        while (nodes_[at].child) at = nodes_[at].child + (point[nodes_[at].axis] < nodes_[at].plane ? 0 : 1);
        return nodes_[at].first / block_;
    }

  private:
    struct Node {
        std::int32_t first, last;  // places in the order
        std::int32_t child = 0;    // the left one; the right one follows it. 0: a leaf
        std::int32_t axis = 0;
        float plane = 0;
    };

    std::int32_t widest_axis(const std::int32_t* members, std::int64_t count) const;
    std::int32_t split(Node& node, std::int32_t* order) const;

    const float* points_ = nullptr;
    std::int64_t dim_ = 0;
    std::int32_t block_ = 1;
    std::vector<Node> nodes_;
};

}  // namespace vqk
