// The number that defines the nearest code: float64, summed over d = 0 .. D-1, products rounded before they are
// added. Compiled without floating point contraction (setup.py), so it is the same bits everywhere.
#pragma once

#include <cmath>
#include <cstdint>

#include "types.h"

namespace vqk {

constexpr int quad = 4;  // codes of one vector that are evaluated together

// sqrt(sum_d v_d^2)
template <class Value>
double canonical_norm(const Value* v, std::int64_t dim) {
    double total = 0;
    for (std::int64_t d = 0; d < dim; ++d) total += double(v[d]) * double(v[d]);
    return std::sqrt(total);
}

// sum_d (x_d - c_d)^2, or -sum_d x_d c_d, of vectors x[q] and codes c[q * quad + i], each sum in canonical order.
// A ScanKernel brings a vector version for floats; it gives the same bits.
template <class Value>
void canonical_sums(const Value* const* x, const Value* const* codes, int quads, std::int64_t dim, bool l2,
                    double* sums) {
    for (int q = 0; q < quads; ++q, codes += quad, sums += quad) {
        double total[quad] = {};
        for (std::int64_t d = 0; d < dim; ++d) {
            const double a = double(x[q][d]);
            for (int i = 0; i < quad; ++i) {
                const double b = double(codes[i][d]), difference = a - b;
                total[i] += l2 ? difference * difference : -(a * b);
            }
        }
        for (int i = 0; i < quad; ++i) sums[i] = total[i];
    }
}

// canonical_norm of `quad` vectors; likewise
template <class Value>
void canonical_norms(const Value* const* v, std::int64_t dim, double* norms) {
    for (int i = 0; i < quad; ++i) norms[i] = canonical_norm(v[i], dim);
}

// keeps the candidate with the lowest (key, index)
struct Winner {
    double key = HUGE_VAL;
    std::int64_t index = -1;
    void offer(double candidate_key, std::int64_t candidate) {
        // no branch: which candidate wins is anyone's guess
        const bool better = bool(int(candidate_key < key) | (int(candidate_key == key) & int(candidate < index)));
        key = better ? candidate_key : key;
        index = better ? candidate : index;
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
