// Vectors and codes as the scans of integers want them (cpu/integer_scan.h).
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
    // `lower`: scores are to be lower bounds
    IntegerPanel(const IntegerScan& scan, const float* negated, int rows, int dim, bool lower)
        : stride_(std::int64_t(scan.format.groups(dim)) * 4),
          numbers_(make_aligned<std::uint8_t>(std::size_t(rows + (scan.format.rows - 1)) * stride_)),
          step_(rows),
          less_(rows, 0.0f),
          less_rest_(rows, 0.0f),
          charge_(rows),
          charge_rest_(rows) {
        std::fill_n(numbers_.get() + rows * stride_, (scan.format.rows - 1) * stride_, std::uint8_t(0));
        for (int r = 0; r < rows; ++r) {
            float length, rest;
            scan.pack_row(negated + std::int64_t(r) * dim, dim, numbers_.get() + r * stride_, &step_[r], &length,
                          &rest);
            charge_[r] = float(double(length) * (double(rest) + integer_error(dim)) * (1 + 0x1p-20));
            charge_rest_[r] = float(double(length) * (1 + double(rest)) * (1 + 0x1p-20));
            if (!lower) continue;
            less_[r] = -charge_[r];
            less_rest_[r] = -charge_rest_[r];
        }
    }

    // what the product of row `r` with a code may be off by: A |c| + B |c_r|
    double charge(int r, double length, double rest) const {
        return double(charge_[r]) * length + double(charge_rest_[r]) * rest;
    }
    // the row and those behind it
    IntegerRows from(int row) const {
        return {numbers_.get() + row * stride_, step_.data() + row, less_.data() + row, less_rest_.data() + row};
    }

  private:
    const std::int64_t stride_;
    AlignedArray<std::uint8_t> numbers_;  // [rows and those behind][stride]
    std::vector<float> step_, less_, less_rest_, charge_, charge_rest_;
};

// Room for some packed blocks.
class IntegerBuffer {
  public:
    IntegerBuffer(const IntegerScan& scan, std::int64_t blocks, std::int64_t dim, std::int64_t block_codes)
        : dim_(int(dim)),
          block_codes_(block_codes),
          width_(scan.width),
          lanes_of_code_(scan.format.lanes(int(dim))),
          lanes_(make_aligned<std::int32_t>(std::size_t(blocks * block_codes * lanes_of_code_))),
          step_(of_codes(blocks)),
          length_(of_codes(blocks)),
          rest_(of_codes(blocks)),
          bias_(of_codes(blocks)),
          longest_(make_aligned<float>(std::size_t(blocks * width_))),
          longest_rest_(make_aligned<float>(std::size_t(blocks * width_))) {}

    // the blocks from `begin` on
    IntegerCodes view(std::int64_t begin, std::int64_t blocks) const {
        const std::int64_t at = begin * block_codes_;
        return {lanes_.get() + at * lanes_of_code_,
                step_.get() + at,
                length_.get() + at,
                rest_.get() + at,
                bias_.get() + at,
                longest_.get() + begin * width_,
                longest_rest_.get() + begin * width_,
                blocks,
                dim_};
    }

  private:
    AlignedArray<float> of_codes(std::int64_t blocks) const {
        return make_aligned<float>(std::size_t(blocks * block_codes_));
    }

    int dim_;
    std::int64_t block_codes_, width_, lanes_of_code_;
    AlignedArray<std::int32_t> lanes_;
    AlignedArray<float> step_, length_, rest_, bias_, longest_, longest_rest_;
};

}  // namespace vqk
