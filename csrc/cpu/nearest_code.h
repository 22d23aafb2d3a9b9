// Exact nearest-code lookup on the CPU. See csrc/README.md for the numerics and the proof of the error bound.
#pragma once

#include <cstdint>

#include "types.h"

namespace vqk {

struct ScanKernel;

enum class Isa : int { automatic = 0, portable = 1, avx2 = 2, avx512 = 3 };

// throws std::invalid_argument if this processor or build lacks the instruction set asked for
const ScanKernel& scan_kernel(Isa isa);

struct Lookup {
    const void* x;  // [N, G, D]
    DType x_type;
    const void* codebook;  // [G, K, D]
    DType codebook_type;
    std::int64_t n, g, k, d;
    Metric metric;
    int threads;
    Isa isa;
    std::int64_t* indices;  // [N, G]
    float* distance;        // [N, G]
};

// Returns the share of (vector, code) pairs that were scored: below 1 where boxes ruled codes out.
double nearest_code(const Lookup& call);

}  // namespace vqk
