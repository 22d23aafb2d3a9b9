// Codes as the scan wants them: in the frame's coordinates, block by block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {

// |v| for which 1/|v| is a float of full precision
inline bool float_reciprocal(double norm) {
    return norm > 0x1p-100 && norm < 0x1p100;
}

// A section costs every query an update of its lanes, about 5 cycles, and leaves it 4 candidates per block, of about
// 12 + 0.75 D cycles each: the sum is least at this many blocks. A section has to stay in the L1 cache, too.
inline int blocks_of_section(std::int64_t blocks, std::int64_t dim, const ScanKernel& kernel) {
    constexpr double l1_floats = 4096;
    const double balanced = std::sqrt(double(blocks) * 4 / (48 + 3 * double(dim)));
    const double most = l1_floats / (double(dim) * kernel.block_codes);
    return int(std::max(1.0, std::min({std::round(balanced), most, 8.0})));
}

// Packs blocks of one group's codes; one packer per thread. Positions are codes, or places in `order`.
template <class Value>
class BlockPacker {
  public:
    BlockPacker(const CodeFrame<Value>& frame, const ScanKernel& kernel, const std::int32_t* order,
                std::int64_t positions)
        : frame_(frame),
          kernel_(kernel),
          order_(order),
          positions_(positions),
          row_(kernel.block_codes),
          factor_(kernel.block_codes),
          square_(kernel.block_codes) {}

    // writes block `b` to out [D][V*W] and bias [V*W]
    void pack(std::int64_t b, float* out, float* bias) {
        const int block = kernel_.block_codes;
        const float* offset = frame_.zeros.data();
        for (int j = 0; j < block; ++j) {
            // padding is the last code again
            const std::int64_t position = std::min(b * block + j, positions_ - 1);
            aim(j, order_ ? order_[position] : position);
        }
        // a row that is converted already has no offset any more
        if (std::is_same_v<Value, float> && frame_.metric != Metric::cosine) offset = frame_.offset.data();
        kernel_.pack(row_.data(), factor_.data(), offset, int(frame_.dim), out, square_.data());
        for (int j = 0; j < block; ++j) {
            const std::int64_t position = b * block + j;
            const bool counts =
                position < positions_ && (order_ || frame_.usable(position));  // an order holds usable codes alone
            bias[j] = !counts                       ? std::numeric_limits<float>::infinity()
                      : frame_.metric == Metric::l2 ? 0.5f * square_[j]
                                                    : 0.0f;
            if (counts) widest_ = std::max(widest_, square_[j]);
        }
    }

    // no code packed so far is longer
    double radius() const { return std::sqrt(double(widest_)) * (1 + double(frame_.dim + 16) * 0x1p-24); }

  private:
    void aim(int j, std::int64_t code) {
        const Value* given = frame_.values + code * frame_.dim;
        factor_[j] = 1.0f;
        if (!frame_.usable(code)) {
            row_[j] = frame_.zeros.data();
            return;
        }
        const double norm = frame_.norms.empty() ? 1.0 : frame_.norms[code];
        if constexpr (std::is_same_v<Value, float>) {
            if (float_reciprocal(norm)) {
                row_[j] = given;
                factor_[j] = float(frame_.factor(norm));
                return;
            }
        }
        converted_.resize(std::size_t(kernel_.block_codes) * frame_.dim);
        float* row = converted_.data() + j * frame_.dim;
        affine_row(given, frame_.shift.data(), frame_.factor(norm), frame_.dim, row);
        row_[j] = row;
    }

    const CodeFrame<Value>& frame_;
    const ScanKernel& kernel_;
    const std::int32_t* const order_;
    const std::int64_t positions_;
    std::vector<const float*> row_;       // [V*W] what is packed
    std::vector<float> factor_, square_;  // [V*W]
    std::vector<float> converted_;        // [V*W][D], if needed
    float widest_ = 0.0f;
};

struct Blocks {
    std::int64_t begin, end;
};

// The codes, divided where vectors are so few that they alone would leave threads idle: every share is whole
// sections.
struct Shares {
    std::int64_t count, blocks, section_blocks;

    // `tasks`: among which the vectors are divided
    Shares(int threads, std::int64_t tasks, std::int64_t blocks, std::int64_t section_blocks)
        : blocks(blocks), section_blocks(section_blocks) {
        constexpr std::int64_t fewest = 8;  // sections
        count = std::max<std::int64_t>(1, std::min(threads / std::max<std::int64_t>(tasks, 1), sections() / fewest));
    }

    std::int64_t sections() const { return (blocks + section_blocks - 1) / section_blocks; }
    Blocks operator[](std::int64_t share) const { return {border(share), border(share + 1)}; }

  private:
    std::int64_t border(std::int64_t at) const { return std::min(blocks, sections() * at / count * section_blocks); }
};

// room for some packed blocks
class BlockBuffer {
  public:
    BlockBuffer(std::int64_t blocks, std::int64_t dim, const ScanKernel& kernel)
        : dim_(dim),
          block_(kernel.block_codes),
          codes_(make_aligned<float>(std::size_t(blocks * block_ * dim))),
          bias_(make_aligned<float>(std::size_t(blocks * block_))) {}

    float* codes(std::int64_t b) { return codes_.get() + b * block_ * dim_; }
    float* bias(std::int64_t b) { return bias_.get() + b * block_; }
    PackedCodes view(std::int64_t blocks) const { return {codes_.get(), bias_.get(), blocks, int(dim_)}; }
    PackedCodes view(Blocks some) const {
        const std::int64_t at = some.begin * block_;
        return {codes_.get() + at * dim_, bias_.get() + at, some.end - some.begin, int(dim_)};
    }

  private:
    std::int64_t dim_, block_;
    AlignedArray<float> codes_, bias_;
};

// Packs all blocks, calling each(b) after block b; returns the radius.
template <class Value, class Each>
double pack_all(BlockBuffer& buffer, const CodeFrame<Value>& frame, const ScanKernel& kernel,
                const std::int32_t* order, std::int64_t positions, int threads, Each&& each) {
    constexpr std::int64_t chunk = 16;  // blocks of a task
    const std::int64_t blocks = (positions + kernel.block_codes - 1) / kernel.block_codes;
    std::vector<double> radius((blocks + chunk - 1) / chunk);
    const int useful = useful_threads(threads, double(positions) * double(frame.dim));
    parallel_for(std::int64_t(radius.size()), useful, [&](std::int64_t c) {
        BlockPacker<Value> packer(frame, kernel, order, positions);
        for (std::int64_t b = c * chunk; b < std::min(blocks, (c + 1) * chunk); ++b) {
            packer.pack(b, buffer.codes(b), buffer.bias(b));
            each(b);
        }
        radius[c] = packer.radius();
    });
    return *std::max_element(radius.begin(), radius.end());
}

// Walks over the blocks [begin, end), packing as many at a time as the L2 cache keeps, and calls
// visit(packed blocks, first of them): their copy stays in the cache.
template <class Value, class Visit>
void for_each_chunk(BlockPacker<Value>& packer, std::int64_t begin, std::int64_t end, int section_blocks,
                    std::int64_t dim, const ScanKernel& kernel, Visit&& visit) {
    constexpr std::int64_t chunk_floats = 96 * 1024;
    const std::int64_t section_floats = section_blocks * kernel.block_codes * dim;
    const std::int64_t step = std::min(std::max<std::int64_t>(1, chunk_floats / section_floats) * section_blocks,
                                       std::max<std::int64_t>(end - begin, 1));
    BlockBuffer buffer(step, dim, kernel);
    for (std::int64_t first = begin; first < end; first += step) {
        const std::int64_t blocks = std::min(step, end - first);
        for (std::int64_t b = 0; b < blocks; ++b) packer.pack(first + b, buffer.codes(b), buffer.bias(b));
        visit(buffer.view(blocks), first);
    }
}

}  // namespace vqk
