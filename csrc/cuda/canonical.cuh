// The number that defines the nearest code, on the device: float64, summed over d = 0 .. D-1. Every operation is an
// intrinsic that rounds once, so that the compiler cannot fuse a product into a sum.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "types.h"

namespace vqk::cuda {

constexpr int warp_lanes = 32;

// one row of a tensor of any floating point type, read as float64
struct Vector {
    const void* values;
    DType type;
    std::int64_t begin;

    __device__ double operator[](std::int64_t d) const {
        switch (type) {
            case DType::f32:
                return static_cast<const float*>(values)[begin + d];
            case DType::f64:
                return static_cast<const double*>(values)[begin + d];
            case DType::f16:
                return widen(static_cast<const half_t*>(values)[begin + d]);
            default:
                return widen(static_cast<const bfloat16_t*>(values)[begin + d]);
        }
    }
};

// sqrt(sum_d v_d^2)
__device__ inline double canonical_norm(Vector v, std::int64_t dim) {
    double total = 0;
    for (std::int64_t d = 0; d < dim; ++d) total = __dadd_rn(total, __dmul_rn(v[d], v[d]));
    return __dsqrt_rn(total);
}

// what is minimised: |x - c|^2, -x.c or -x.c/|c|; infinite for a code that must not be chosen
__device__ inline double canonical_key(Vector x, Vector code, std::int64_t dim, Metric metric) {
    double total = 0, square = 0;
    bool usable = true;
    for (std::int64_t d = 0; d < dim; ++d) {
        const double a = x[d], b = code[d];
        usable &= isfinite(b);
        square = __dadd_rn(square, __dmul_rn(b, b));
        const double difference = __dsub_rn(a, b);
        total = metric == Metric::l2 ? __dadd_rn(total, __dmul_rn(difference, difference))
                                     : __dsub_rn(total, __dmul_rn(a, b));
    }
    if (metric == Metric::cosine) {
        const double norm = __dsqrt_rn(square);
        usable &= isfinite(norm);
        total = norm > 0 ? __ddiv_rn(total, norm) : 0.0;
    }
    return usable && !isnan(total) ? total : HUGE_VAL;
}

// the candidate with the lowest (key, index)
struct Winner {
    double key = HUGE_VAL;
    std::int64_t index = -1;

    __device__ void offer(double candidate_key, std::int64_t candidate) {
        if (candidate_key < key || (candidate_key == key && candidate < index)) {
            key = candidate_key;
            index = candidate;
        }
    }

    // the best of `lanes` neighbours (a power of two) of a warp, in all of them; the whole warp calls it
    __device__ void gather(int lanes) {
        for (int mask = lanes / 2; mask > 0; mask /= 2) {
            const double other_key = __shfl_xor_sync(0xffffffffu, key, mask);
            const std::int64_t other = __shfl_xor_sync(0xffffffffu, index, mask);
            if (other >= 0) offer(other_key, other);
        }
    }

    // Writes the result. Without a usable code, or with a key beyond float64: index 0, distance NaN.
    __device__ void write(Metric metric, double x_norm, std::int64_t* to_index, float* to_distance) const {
        double distance = key;
        if (metric == Metric::cosine) {
            distance = x_norm > 0 ? __dadd_rn(1.0, __ddiv_rn(key, x_norm)) : 1.0;
            distance = distance > 0 ? distance : 0.0;
        }
        *to_index = isfinite(key) ? index : 0;
        *to_distance = isfinite(key) ? float(distance) : nanf("");
    }
};

}  // namespace vqk::cuda
