// The shifted and scaled float copies that the scan works on.
#pragma once

#include <cstdint>

namespace vqk {

template <int Count, class Value>
static inline void affine_step(const Value* row, const double* shift, double factor, float* out, double* square) {
    for (int i = 0; i < Count; ++i) {
        out[i] = float((double(row[i]) - shift[i]) * factor);
        square[i] += double(out[i]) * double(out[i]);
    }
}

// out_d = float((row_d - shift_d) * factor); returns the sum of their squares. Static: every translation unit that
// includes it compiles its own copy for its own instruction set.
template <class Value>
static double affine_row(const Value* row, const double* shift, double factor, std::int64_t dim, float* out) {
    // fixed counts become straight vector code, without the prologue of a loop that short rows feel
    double square[8] = {};
    std::int64_t d = 0;
    for (; d + 8 <= dim; d += 8) affine_step<8>(row + d, shift + d, factor, out + d, square);
    if (d + 4 <= dim) {
        affine_step<4>(row + d, shift + d, factor, out + d, square);
        d += 4;
    }
    for (; d < dim; ++d) affine_step<1>(row + d, shift + d, factor, out + d, square);
    return ((square[0] + square[1]) + (square[2] + square[3])) + ((square[4] + square[5]) + (square[6] + square[7]));
}

}  // namespace vqk
