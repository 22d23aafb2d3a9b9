// Exact nearest-code lookup on a CUDA device. See csrc/README.md for the numerics and the proof of the error bound.
#pragma once

#include <cstdint>

#include "types.h"

namespace vqk::cuda {

// all pointers are device pointers
struct Lookup {
    const void* x;  // [N, G, D]
    DType x_type;
    const void* codebook;  // [G, K, D]
    DType codebook_type;
    std::int64_t n, g, k, d;
    Metric metric;
    std::int64_t* indices;  // [N, G]
    float* distance;        // [N, G]
};

// where a call runs; `stream` is a cudaStream_t
struct Place {
    int device;
    int multiprocessors;
    void* stream;
};

// bytes of device memory, aligned to 16, that the call needs for itself; depends on sizes and multiprocessors alone
std::int64_t workspace_bytes(const Lookup& call, int multiprocessors);

// Enqueues the lookup and returns without waiting for it. The text of an error, or null.
const char* nearest_code(const Lookup& call, void* workspace, const Place& place);

}  // namespace vqk::cuda
