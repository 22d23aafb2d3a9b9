// The lookup in few dimensions: codes ordered by a kd-tree, blocks skipped by their bounding boxes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/code_tree.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {

// The usable codes of one group in the order of a tree, packed, with a box around every block.
template <class Value>
class OrderedCodes {
  public:
    OrderedCodes(const CodeFrame<Value>& frame, const ScanKernel& kernel, int threads)
        : frame(frame), kernel_(kernel), block_(kernel.block_codes), lanes_(kernel.lanes) {
        order.reserve(frame.count);
        for (std::int64_t i = 0; i < frame.count; ++i) {
            if (frame.usable(i)) order.push_back(std::int32_t(i));
        }
        blocks_ = (std::int64_t(order.size()) + block_ - 1) / block_;
        grow(threads);
        pack(threads);
    }

    PackedCodes view() const { return packed_.front().view(blocks_); }
    BoxTree boxes() const { return {leaves_.get(), groups_.get(), blocks_, int(frame.dim)}; }

    const CodeFrame<Value>& frame;
    std::vector<std::int32_t> order;  // packed position -> code
    CodeTree tree;
    double radius = 0.0;  // largest |c'|

  private:
    const ScanKernel& kernel_;
    const int block_, lanes_;
    std::int64_t blocks_ = 0;
    std::vector<BlockBuffer> packed_;      // one
    AlignedArray<float> leaves_, groups_;  // see BoxTree

    void grow(int threads);
    void pack(int threads);
    void box_leaf(std::int64_t b);
    void box_groups();
    // a bound of no box: lower ones are even, upper ones odd
    static float nowhere(std::int64_t side) {
        return (side % 2 == 0 ? 1 : -1) * std::numeric_limits<float>::infinity();
    }
};

// orders the codes by a tree over c'
template <class Value>
void OrderedCodes<Value>::grow(int threads) {
    constexpr std::int64_t chunk = 1024;
    const std::int64_t count = std::int64_t(order.size()), dim = frame.dim;
    std::vector<float> points(std::size_t(count * dim));
    parallel_for((count + chunk - 1) / chunk, useful_threads(threads, double(count) * double(dim)),
                 [&](std::int64_t c) {
                     for (std::int64_t i = c * chunk; i < std::min(count, (c + 1) * chunk); ++i) {
                         const double norm = frame.norms.empty() ? 1.0 : frame.norms[order[i]];
                         affine_row(frame.values + order[i] * dim, frame.shift.data(), frame.factor(norm), dim,
                                    points.data() + i * dim);
                     }
                 });
    std::vector<std::int32_t> places(count);
    std::iota(places.begin(), places.end(), 0);
    tree = CodeTree(points.data(), dim, block_, places, threads);
    for (std::int32_t& place : places) place = order[place];
    order = std::move(places);
}

template <class Value>
void OrderedCodes<Value>::pack(int threads) {
    const std::int64_t dim = frame.dim, leaf_groups = (blocks_ + lanes_ - 1) / lanes_;
    packed_.emplace_back(blocks_, dim, kernel_);
    leaves_ = make_aligned<float>(std::size_t(leaf_groups * 2 * dim * lanes_));
    groups_ = make_aligned<float>(std::size_t((leaf_groups + lanes_ - 1) / lanes_ * 2 * dim * lanes_));
    // places behind the last block are infinitely far from everything
    for (std::int64_t side = 0; side < leaf_groups * 2 * dim; ++side) {
        std::fill_n(leaves_.get() + side * lanes_, lanes_, nowhere(side));
    }
    radius = pack_all(packed_.front(), frame, kernel_, order.data(), std::int64_t(order.size()), threads,
                      [&](std::int64_t b) { box_leaf(b); });
    box_groups();
}

template <class Value>
void OrderedCodes<Value>::box_leaf(std::int64_t b) {
    constexpr int width = 8;  // divides every kernel's block; so many at a time the compiler makes vectors of
    const std::int64_t dim = frame.dim;
    const float* codes = packed_.front().codes(b);
    float* box = leaves_.get() + b / lanes_ * 2 * dim * lanes_ + b % lanes_;
    for (std::int64_t d = 0; d < dim; ++d, codes += block_) {
        float low[width], high[width];
        for (int i = 0; i < width; ++i) low[i] = high[i] = codes[i];
        for (int j = width; j < block_; j += width) {
            for (int i = 0; i < width; ++i) low[i] = codes[j + i] < low[i] ? codes[j + i] : low[i];
            for (int i = 0; i < width; ++i) high[i] = codes[j + i] > high[i] ? codes[j + i] : high[i];
        }
        box[(2 * d) * lanes_] = -*std::max_element(high, high + width);
        box[(2 * d + 1) * lanes_] = -*std::min_element(low, low + width);
    }
}

template <class Value>
void OrderedCodes<Value>::box_groups() {
    const std::int64_t leaf_groups = (blocks_ + lanes_ - 1) / lanes_, stride = 2 * frame.dim * lanes_;
    const std::int64_t padded = (leaf_groups + lanes_ - 1) / lanes_ * lanes_;
    for (std::int64_t g = 0; g < padded; ++g) {
        float* box = groups_.get() + g / lanes_ * stride + g % lanes_;
        for (std::int64_t side = 0; side < 2 * frame.dim; ++side) {
            float bound = nowhere(side);
            for (int l = 0; g < leaf_groups && l < lanes_; ++l) {
                const float leaf = leaves_[g * stride + side * lanes_ + l];
                bound = side % 2 == 0 ? std::min(bound, leaf) : std::max(bound, leaf);
            }
            box[side * lanes_] = bound;
        }
    }
}

// the blocks whose cells the rows lie in
template <class Value>
std::vector<std::int32_t> find_homes(const Rows<Value>& rows, const OrderedCodes<Value>& codes) {
    std::vector<std::int32_t> home(rows.count);
    std::vector<float> point(std::size_t(rows.dim));
    for (int r = 0; r < rows.count; ++r) {
        std::transform(rows.negated.get() + r * rows.dim, rows.negated.get() + (r + 1) * rows.dim, point.begin(),
                       [](float value) { return -value; });
        home[r] = codes.tree.home(point.data());
    }
    return home;
}

// Every query against the blocks near its home; returns the share of blocks that were scored. If that is large, boxes
// cost more than they save.
template <class Value>
double scan_near(Rows<Value>& rows, const std::int32_t* home, const OrderedCodes<Value>& codes,
                 const ScanKernel& kernel) {
    const Tolerance tolerance(codes.frame, codes.radius);
    std::vector<double> reach(rows.count, -1.0);
    // |x'-c'|^2 = 2 score + |x'|^2, plus |c'|^2 where the score lacks it
    const double lacking = codes.frame.metric == Metric::l2 ? 0.0 : codes.radius * codes.radius;
    for (int r = 0; r < rows.count; ++r) {
        if (!rows.scannable(r)) continue;
        reach[r] = 4 * tolerance(rows.length[r], rows.x_norm(r)) + rows.length[r] * rows.length[r] + lacking;
    }
    const auto room = std::size_t(codes.view().blocks + rows.lanes);
    std::vector<std::int32_t> blocks(room), groups(room);
    std::vector<float> distances(room);
    const std::int64_t scored =
        kernel.scan_near(rows.negated.get(), rows.count, codes.view(), codes.boxes(), home, reach.data(),
                         {blocks.data(), groups.data(), distances.data()}, rows.state(0));
    return double(scored) / (double(rows.count) * double(codes.view().blocks));
}

}  // namespace vqk
