// The number that defines the nearest code: float64, summed over d = 0 .. D-1, products rounded before they are
// added. Compiled without floating point contraction (setup.py), so it is the same bits everywhere.
#pragma once

#include <cmath>
#include <cstdint>

#include "types.h"

namespace vqk {

namespace {

constexpr int quad = 4;  // pairs of a vector and a code that are evaluated together

// sqrt(sum_d v_d^2)
template <class Value>
double canonical_norm(const Value* v, std::int64_t dim) {
    double total = 0;
    for (std::int64_t d = 0; d < dim; ++d) total += double(v[d]) * double(v[d]);
    return std::sqrt(total);
}

// sum_d (x_d - c_d)^2, or -sum_d x_d c_d, of `quads` * quad pairs, each sum in canonical order. A ScanKernel brings a
// vector version for floats; it gives the same bits, and is faster where a quad has one x.
template <class Value>
void canonical_sums(const Value* const* x, const Value* const* codes, int quads, std::int64_t dim, bool l2,
                    double* sums) {
    for (int q = 0; q < quads; ++q, x += quad, codes += quad, sums += quad) {
        double total[quad] = {};
        for (std::int64_t d = 0; d < dim; ++d) {
            for (int i = 0; i < quad; ++i) {
                const double a = double(x[i][d]), b = double(codes[i][d]), difference = a - b;
                total[i] += l2 ? difference * difference : -(a * b);
            }
        }
        for (int i = 0; i < quad; ++i) sums[i] = total[i];
    }
}

// whether the pairs of a quad share their x
template <class Value>
bool one_x(const Value* const* x) {
    return x[0] == x[1] && x[1] == x[2] && x[2] == x[3];
}

// canonical_norm of `quad` vectors; likewise
template <class Value>
void canonical_norms(const Value* const* v, std::int64_t dim, double* norms) {
    for (int i = 0; i < quad; ++i) norms[i] = canonical_norm(v[i], dim);
}

}  // namespace

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
static inline float canonical_distance(Metric metric, double key, double x_norm) {
    if (!std::isfinite(key)) return std::nanf("");
    if (metric != Metric::cosine) return float(key);
    const double distance = x_norm > 0 ? 1.0 + key / x_norm : 1.0;
    return float(distance > 0 ? distance : 0.0);
}

}  // namespace vqk
