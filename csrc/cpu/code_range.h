// How large the addends of per-code sums are, and how many: what a fixed-point grid is chosen by.
#pragma once

#include <cstdint>

#include "types.h"

namespace vqk {

// the numbers of one group, as they lie in memory
struct CodeRange {
    std::int64_t exponent;         // the least e with |weight * x| < 2^e for all entries, at least -1022
    std::int64_t weight_exponent;  // the same for |weight|
    std::int64_t vectors;          // how many take part
    std::int64_t nonfinite;        // how many have an index, but an entry or a weight that is not finite
};

struct CodeRangeCall {
    const void* x;  // [N, G, D]
    DType x_type;
    const std::int64_t* indices;  // [N, G]
    const double* weight;         // [N, G] or null: 1
    std::int64_t n, g, d;
    bool skip_nonfinite;  // a vector that is not finite takes no part; else its finite entries do
    int threads;
    CodeRange* range;  // [G]
};

void code_range(const CodeRangeCall& call);

}  // namespace vqk
