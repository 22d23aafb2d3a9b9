// Exact lookup by a weighted sum of distances, one per level of vectors and codes.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/nearest_code.h"
#include "types.h"

namespace vqk {

struct MultilevelLookup {
    std::vector<const void*> x;         // [L] -> [N, D_l]
    std::vector<const void*> codebook;  // [L] -> [K, D_l]
    DType type;                         // of all of them: f32 or f64
    std::vector<std::int64_t> d;        // [L]
    std::vector<double> weight;         // [L] finite, not negative
    std::int64_t n, k;
    bool squared;
    int threads;
    Isa isa;
    std::int64_t* indices;  // [N]
    float* distance;        // [N]
};

void multilevel_nearest_code(const MultilevelLookup& call);

}  // namespace vqk
