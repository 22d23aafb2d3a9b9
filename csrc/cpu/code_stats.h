// Count and sum of the vectors assigned to each code.
#pragma once

#include <cstdint>
#include <optional>

#include "types.h"

namespace vqk {

struct CodeStats {
    const void* x;  // [N, G, D]
    DType x_type;
    const std::int64_t* indices;  // [N, G]
    const double* weight;         // [N, G] or null: 1
    std::int64_t n, g, k, d;
    bool skip_nonfinite;  // leave out vectors and weights that are not finite
    int threads;
    float* count;  // [G, K]
    void* total;   // [G, K, D] float, or double for double x
};

// Sums in float64 over the rows of a code in ascending order, rounded once: the same bits at any thread count.
// Returns an index outside [-1, K), if there is one; the results are then undefined.
std::optional<std::int64_t> code_stats(const CodeStats& call);

}  // namespace vqk
