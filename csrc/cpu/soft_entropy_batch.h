// What a thread needs to take a batch of vectors through the passes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/soft_entropy_pass.h"

namespace vqk {
namespace {

constexpr std::int64_t cached_bytes = 1 << 20;  // of pairs: half of a second level cache
constexpr std::int64_t kept_bytes = 6 << 20;    // from further away they still come sooner than by computing again
constexpr std::int64_t most_rows = 126;         // of a batch: a block of their pairs stays in the first level cache
constexpr std::int64_t least_batches = 8;       // of fewer vectors each, if there are so few
constexpr std::int64_t turn_codes = 256;        // whose sums a batch has for itself at a time

struct Plan {
    std::int64_t rows;    // of a batch
    std::int64_t blocks;  // of a chunk
};

// A batch keeps its pairs with all codes if `few_rows` of them fit `kept_bytes`. It depends on no number of threads,
// and neither do sums over batches.
template <class Real>
Plan plan_for(const SoftKernel<Real>& kernel, std::int64_t n, std::int64_t blocks, std::int64_t few_rows) {
    const std::int64_t q = kernel.queries, block_bytes = kernel.block_codes * std::int64_t(sizeof(Real));
    const std::int64_t fair = std::clamp((n + least_batches - 1) / least_batches, q, most_rows);
    const std::int64_t most = fair / q * q, few = std::min(few_rows / q * q, most);
    if (few * blocks * block_bytes <= kept_bytes) {
        return {std::clamp(cached_bytes / (blocks * block_bytes) / q * q, few, most), blocks};
    }
    const std::int64_t turn = turn_codes / kernel.block_codes;
    return {most, std::max(cached_bytes / (most * block_bytes) / turn, std::int64_t(1)) * turn};
}

// The numbers of vectors [first, first + count) of `total` as products meet them, one vector after the other, `most`
// dimensions of each: to [dim / most][total][most], the last dimensions may be fewer.
template <class Real, class Number>
void in_strips(std::int64_t most, std::int64_t dim, std::int64_t total, std::int64_t first, std::int64_t count,
               Number&& number, Real* to) {
    for (std::int64_t d = 0; d < dim; d += most) {
        const std::int64_t size = std::min(most, dim - d);
        Real* strip = to + d * total + first * size;
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int64_t j = 0; j < size; ++j) *strip++ = number(i, d + j);
        }
    }
}

// A batch, the arrays it points to, and sums of its vectors: one for each thread.
template <class Real>
class Workspace {
  public:
    SoftBatch<Real> batch{};
    std::vector<SoftTotal<Real>> total;
    std::vector<double> gain, h_sum, grad_log;  // [rows]
    std::vector<double> row;                    // [D]
    std::int64_t pulled_size;
    AlignedArray<double> pulled;  // [rows padded / W][D][W] sums of h c
    AlignedArray<Real> negated, turned;
    enum Number { bias, weight, cut, least, share, factor, origin, rest, reach, bit_gain, mean_gain, count };

    Workspace(const Plan& plan, std::int64_t dim, std::int64_t block_codes)
        : total(plan.rows),
          gain(plan.rows),
          h_sum(plan.rows),
          grad_log(plan.rows),
          row(dim),
          pulled_size((plan.rows + batch_padding) * dim),
          pulled(make_aligned<double>(std::size_t(pulled_size))),
          negated(make_aligned<Real>(std::size_t(plan.rows * (dim + 1)))),
          turned(make_aligned<Real>(std::size_t(plan.rows * (dim + 1)))),
          pairs(make_aligned<Real>(std::size_t(plan.rows * plan.blocks * block_codes))),
          live(make_aligned<std::uint8_t>(std::size_t(plan.rows * plan.blocks))),
          low(plan.rows * plan.blocks + batch_padding),
          stride(plan.rows + batch_padding),
          numbers(count * stride) {
        batch.negated = negated.get();
        batch.turned = turned.get();
        batch.pairs = pairs.get();
        batch.live = live.get();
        batch.low = low.data();
        batch.total = total.data();
        batch.factor = of(factor);
        const Real** views[] = {&batch.bias,   &batch.weight, &batch.cut,   &batch.least,    &batch.share,    nullptr,
                                &batch.origin, &batch.rest,   &batch.reach, &batch.bit_gain, &batch.mean_gain};
        for (int i = 0; i < count; ++i) {
            if (views[i]) *views[i] = of(Number(i));
        }
    }
    void turn_vectors(std::int64_t queries, std::int64_t width) {
        const auto number = [&](std::int64_t i, std::int64_t d) { return -negated[i * width + d]; };
        in_strips(queries, width, batch.rows, 0, batch.rows, number, turned.get());
    }
    // [rows padded]
    Real* of(Number which) { return numbers.data() + which * stride; }

  private:
    AlignedArray<Real> pairs;
    AlignedArray<std::uint8_t> live;
    std::vector<Real> low;
    std::int64_t stride;
    std::vector<Real> numbers;
};

}  // namespace
}  // namespace vqk
