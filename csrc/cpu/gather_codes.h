// Copies of the codes that indices name.
#pragma once

#include <cstdint>
#include <optional>

namespace vqk {

// codes[n, g] = codebook[g, indices[n, g]], zero where the index is -1. `element_size` is the bytes of a number.
// Returns an index outside [-1, K), if there is one; its rows are left zero.
std::optional<std::int64_t> gather_codes(const void* codebook, std::int64_t element_size,  // [G, K, D]
                                         const std::int64_t* indices,                      // [N, G]
                                         std::int64_t n, std::int64_t g, std::int64_t k, std::int64_t d, int threads,
                                         void* codes);  // [N, G, D]

}  // namespace vqk
