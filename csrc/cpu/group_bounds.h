// The nearest codes of vectors whose nearest codes were known before the codes moved a little, as k-means moves them:
// a lower bound of the distance to each group of codes tells which groups need no look. csrc/README.md has the proof.
#pragma once

#include <cstdint>

#include "types.h"

namespace vqk {

// Groups are `group_size` codes each, in an order that the caller keeps from call to call.
struct GroupBounds {
    const void* x;  // [N, D] finite, not float64
    DType x_type;
    const float* codes;         // [K, D] finite
    const float* before;        // [K, D] where the codes were when `lower` and `indices` were found
    const std::int32_t* order;  // [K] the codes, group by group
    std::int64_t n, k, d;
    int threads;
    Isa isa;
    float* lower;           // [N, groups] no code of the group is nearer; 0 tells nothing
    std::int64_t* indices;  // [N] a code, then the nearest: the bits of nearest_code (l2)
    float* distance;        // [N] then, likewise
};

int group_size(Isa isa);

// What a lookup of everything costs, of the same number of pairs scored here.
double plain_cost(std::int64_t k, std::int64_t d, Isa isa);

// Returns the share of (vector, code) pairs that were scored.
double nearest_by_bounds(const GroupBounds& call);

}  // namespace vqk
