// The number that defines the nearest code: float64, summed over d = 0 .. D-1, products rounded before they are
// added. Compiled without floating point contraction (setup.py), so it is the same bits everywhere.
#pragma once

#include <cmath>
#include <cstdint>

#include "types.h"

namespace vqk {

constexpr int canonical_batch = 4;  // codes evaluated together

// sqrt(sum_d v_d^2)
template <class Value>
double canonical_norm(const Value* v, std::int64_t dim) {
    double total = 0;
    for (std::int64_t d = 0; d < dim; ++d) total += double(v[d]) * double(v[d]);
    return std::sqrt(total);
}

// sum_d (x_d - c_d)^2, or -sum_d x_d c_d, of a batch of codes: independent sums, each in canonical order.
// A ScanKernel may bring a vector version for float codes; it gives the same bits.
template <class Value>
void canonical_sums(const double* x, const Value* const* codes, std::int64_t dim, bool l2, double* sums) {
    double total[canonical_batch] = {};
    for (std::int64_t d = 0; d < dim; ++d) {
        for (int i = 0; i < canonical_batch; ++i) {
            const double difference = x[d] - double(codes[i][d]);
            total[i] += l2 ? difference * difference : -(x[d] * double(codes[i][d]));
        }
    }
    for (int i = 0; i < canonical_batch; ++i) sums[i] = total[i];
}

// keeps the candidate with the lowest (key, index)
struct Winner {
    double key = HUGE_VAL;
    std::int64_t index = -1;
    void offer(double candidate_key, std::int64_t candidate) {
        if (candidate_key < key || (candidate_key == key && candidate < index)) {
            key = candidate_key;
            index = candidate;
        }
    }
};

// what is reported for a winning key; NaN if there was no usable code
inline float canonical_distance(Metric metric, double key, double x_norm) {
    if (!std::isfinite(key)) return std::nanf("");
    if (metric != Metric::cosine) return float(key);
    const double distance = x_norm > 0 ? 1.0 + key / x_norm : 1.0;
    return float(distance > 0 ? distance : 0.0);
}

}  // namespace vqk
