// The shifted and scaled float copies that the scan works on.
#pragma once

#include <cstdint>

namespace vqk {

// out_d = float((row_d - shift_d) * factor); returns the sum of their squares. Static: every translation unit that
// includes it compiles its own copy for its own instruction set.
template <class Value>
static double affine_row(const Value* row, const double* shift, double factor, std::int64_t dim, float* out) {
    constexpr int step = 8;  // a fixed count becomes straight vector code, without the prologue that short rows feel
    double square[step] = {};
    std::int64_t d = 0;
    for (; d + step <= dim; d += step) {
        for (int i = 0; i < step; ++i) {
            out[d + i] = float((double(row[d + i]) - shift[d + i]) * factor);
            square[i] += double(out[d + i]) * double(out[d + i]);
        }
    }
    for (int i = 0; d < dim; ++d, ++i) {
        out[d] = float((double(row[d]) - shift[d]) * factor);
        square[i] += double(out[d]) * double(out[d]);
    }
    return ((square[0] + square[1]) + (square[2] + square[3])) + ((square[4] + square[5]) + (square[6] + square[7]));
}

}  // namespace vqk
