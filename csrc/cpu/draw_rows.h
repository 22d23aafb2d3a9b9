// A vector for each code, drawn with a probability proportional to exp(-distance).
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/nearest_code.h"
#include "types.h"

namespace vqk {

// The distance of a code and a vector is that of `metric` for one level of weight 1 (cosine: -cos). `levels`: the sum
// over levels of weight * |x - c|.
enum class DrawMetric : int { l2 = 0, cosine = 1, dot = 2, levels = 3 };

struct RowDraw {
    std::vector<const void*> codes;   // [L] -> [K, D_l]
    std::vector<const void*> x;       // [L] -> [N, D_l]
    DType type;                       // of all of them: f32 or f64
    std::vector<std::int64_t> d;      // [L]
    std::vector<double> weight;       // [L] finite, not negative
    const std::uint8_t* usable;       // [N] whether a vector may be drawn; then it is finite
    const std::int64_t* row_number;   // [N] in [0, 2^32)
    const std::int64_t* code_number;  // [K] in [0, 2^32)
    std::int64_t n, k;
    DrawMetric metric;
    int threads;
    Isa isa;
    std::int64_t* rows;  // [K] 0 if there is none
    double* key;         // [K] infinite if there is none
};

void draw_rows(const RowDraw& call);

}  // namespace vqk
