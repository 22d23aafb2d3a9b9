// A balanced kd-tree over codes whose leaves are the blocks of the scan: codes that share a block are near each
// other, so a whole block can be ruled out by its bounding box. The order of codes never changes a result.
#pragma once

#include <cstdint>
#include <vector>

namespace vqk {

class CodeTree {
  public:
    CodeTree() = default;

    // Reorders `order` (rows of points [K, D]) so that every `block` of them in a row is a leaf.
    CodeTree(const float* points, std::int64_t dim, int block, std::vector<std::int32_t>& order, int threads);

    bool empty() const { return nodes_.empty(); }

    // the block whose cell a point lies in
    std::int32_t home(const float* point) const {
        std::int32_t first = 0;
        for (std::size_t at = 0; nodes_[at].middle;) {
            const bool upper = point[nodes_[at].axis] >= nodes_[at].plane;
            first = upper ? nodes_[at].middle : first;
            at = 2 * at + 1 + upper;
        }
        return first / block_;
    }

  private:
    // node i has the children 2 i + 1 and 2 i + 2
    struct Node {
        float plane = 0;
        std::int32_t axis = 0;
        std::int32_t middle = 0;  // where in the order the upper half begins, a multiple of the block; 0: a leaf
    };
    struct Span {
        std::size_t node;
        std::int32_t first, last;  // places in the order
    };
    struct Builder;

    std::int32_t block_ = 1;
    std::vector<Node> nodes_;
};

}  // namespace vqk
