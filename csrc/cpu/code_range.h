// How large the addends of the sum of each code are, and how many: what a fixed-point grid is chosen by.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/code_rows.h"

namespace vqk {

// the numbers of one code, as they lie in memory
struct CodeRange {
    std::int64_t exponent;         // the least e with |weight * x| < 2^e for all entries, at least -1022
    std::int64_t weight_exponent;  // the same for |weight|
    std::int64_t vectors;          // how many take part, in all codes of the group
    std::int64_t nonfinite;  // how many have an index, but an entry or a weight that is not finite, in all codes
};

// Returns an index outside [-1, K), if there is one; the ranges are then undefined.
std::optional<std::int64_t> code_range(const CodeRows& rows, CodeRange* range /* [G, K] */);

}  // namespace vqk
