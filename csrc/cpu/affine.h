// The shifted and scaled float copies that the scan works on.
#pragma once

#include <cstdint>

namespace vqk {

// out_d = float((row_d - shift_d) * factor); returns the sum of their squares. Static: every translation unit that
// includes it compiles its own copy for its own instruction set.
template <class Value>
static double affine_row(const Value* row, const double* shift, double factor, std::int64_t dim, float* out) {
    for (std::int64_t d = 0; d < dim; ++d) out[d] = float((double(row[d]) - shift[d]) * factor);
    // four partial sums instead of one chain of additions
    double square[4] = {};
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
        for (int i = 0; i < 4; ++i) square[i] += double(out[d + i]) * double(out[d + i]);
    }
    for (; d < dim; ++d) square[0] += double(out[d]) * double(out[d]);
    return (square[0] + square[1]) + (square[2] + square[3]);
}

}  // namespace vqk
