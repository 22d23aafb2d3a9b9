// Vectors and codes as the scan of integers wants them (cpu/integer_scan.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/integer_scan.h"

namespace vqk {

// Some negated vectors, padding included.
class IntegerPanel {
  public:
    IntegerPanel(const IntegerScan& scan, const float* negated, int rows, int dim)
        : dim_(dim),
          stride_((dim + 1) / 2 * 2),
          numbers_(make_aligned<std::int16_t>(std::size_t(rows) * stride_)),
          length_(rows),
          rest_(rows),
          factor_(rows),
          less_(rows, 0.0f) {
        for (int r = 0; r < rows; ++r) {
            scan.pack_row(negated + std::int64_t(r) * dim, dim, numbers_.get() + r * stride_, &length_[r], &rest_[r]);
            factor_[r] = integer_factor(length_[r]);
        }
    }

    // E of a row against codes whose remainders are at most `share` of their lengths
    float margin(int r, float share) const { return integer_margin(dim_, length_[r], rest_[r], share); }
    // from now on scores are lower bounds for such codes
    void lower(float share) {
        for (std::size_t r = 0; r < less_.size(); ++r) less_[r] = margin(int(r), share);
    }
    IntegerRows from(int row) const {
        return {numbers_.get() + row * stride_, factor_.data() + row, less_.data() + row};
    }

  private:
    const int dim_;
    const std::int64_t stride_;
    AlignedArray<std::int16_t> numbers_;  // [rows][stride]
    std::vector<float> length_, rest_, factor_, less_;
};

// Room for some packed blocks.
class IntegerBuffer {
  public:
    IntegerBuffer(std::int64_t blocks, std::int64_t dim, std::int64_t block_codes)
        : dim_(int(dim)),
          block_codes_(block_codes),
          pairs_(make_aligned<std::int32_t>(std::size_t(blocks * block_codes * ((dim + 1) / 2)))),
          length_(make_aligned<float>(std::size_t(blocks * block_codes))),
          bias_(make_aligned<float>(std::size_t(blocks * block_codes))) {}

    // the blocks from `begin` on
    IntegerCodes view(std::int64_t begin, std::int64_t blocks) const {
        const std::int64_t at = begin * block_codes_;
        return {pairs_.get() + at * ((dim_ + 1) / 2), length_.get() + at, bias_.get() + at, blocks, dim_};
    }

  private:
    int dim_;
    std::int64_t block_codes_;
    AlignedArray<std::int32_t> pairs_;
    AlignedArray<float> length_, bias_;
};

}  // namespace vqk
