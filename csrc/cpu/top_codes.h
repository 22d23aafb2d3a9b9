// The M nearest codes of every vector, exactly and in order. See csrc/README.md.
#pragma once

#include <cstdint>

#include "cpu/nearest_code.h"

namespace vqk {

// 1 <= m <= k; indices and distance of the call are [N, G, M]
void top_codes(const Lookup& call, std::int64_t m);

}  // namespace vqk
