// Count and sum of the vectors assigned to each code.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/code_range.h"

namespace vqk {

struct CodeStats {
    CodeRows rows;
    const CodeRange* range;  // [G, K] of these vectors, or of more than these; null: they are measured first
    bool fixed;              // sums on a grid, else float64 in row order
    bool as_integers;        // with a range: the multiples of 2^-shift themselves, for count and total int64
    void* count;             // [G, K] float or int64
    void* total;             // [G, K, D] float, double for double x, or int64
};

// Fixed sums are the same bits in any order of the vectors and at any thread count; an entry that is not finite, if
// it is not left out, makes its sum NaN. Returns an index outside [-1, K), if there is one; results are then
// undefined.
std::optional<std::int64_t> code_stats(const CodeStats& call);

}  // namespace vqk
