// Count and sum of the vectors assigned to each code.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/code_range.h"
#include "types.h"

namespace vqk {

struct CodeStats {
    const void* x;  // [N, G, D]
    DType x_type;
    const std::int64_t* indices;  // [N, G]
    const double* weight;         // [N, G] or null: 1
    const CodeRange* range;       // [G] of these vectors, or of more than these; null: sums in float64, in row order
    std::int64_t n, g, k, d;
    bool skip_nonfinite;  // leave out vectors and weights that are not finite; else a sum with such an entry is NaN
    int threads;
    bool as_integers;  // with a range: the multiples of 2^-shift themselves, for count and total int64
    void* count;       // [G, K] float or int64
    void* total;       // [G, K, D] float, double for double x, or int64
};

// With a range the sums are fixed-point: the same bits in any order of the vectors and at any thread count.
// Returns an index outside [-1, K), if there is one; the results are then undefined.
std::optional<std::int64_t> code_stats(const CodeStats& call);

}  // namespace vqk
