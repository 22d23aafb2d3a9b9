// One step of an exponential-moving-average codebook, in place.
#pragma once

#include <cstdint>

#include "types.h"

namespace vqk {

struct EmaUpdate {
    void* codebook;      // [G, K, D]
    void* cluster_size;  // [G, K]
    void* embed_sum;     // [G, K, D]
    const void* count;   // [G, K]
    const void* total;   // [G, K, D]
    DType type;          // f32 or f64, of all of them
    std::int64_t g, k, d;
    double decay, eps;
    bool normalize;
    int threads;
};

void ema_update(const EmaUpdate& call);

}  // namespace vqk
