// The two sides of a group as given, and the precision that its temperature asks for.
//
// Precision. A pass sees logits -slope t with t computed from copies x' = x - m, c' = c - m (m near the codebook
// mean; l2 and euclidean) or from the vectors themselves. With X = max |x'|, C = max |c'|, u = 2^-24, in float:
//   l2         t = |x'-c'|^2 / 2    errs by at most e = (D + 8) u (X + C)^2 / 2    slope = 2 / temperature
//   cosine     t = -x'.c'           e = (D + 8) u                                  slope = 1 / temperature
//   dot        t = -x.c             e = (D + 8) u X C                              slope = 1 / temperature
//   euclidean  t = |x'-c'|          e = sqrt((D + 8) u) (X + C)                    slope = 1 / temperature
// where 2u of each factor is the rounding of the copies, (D + 1) u the sum, with or without fused multiply-add. If
// slope times e exceeds `logit_tolerance`, or an input is float64, the group is computed in float64, with the same
// errors for u = 2^-53.
//
// In float both copies are scaled, before they are rounded, so that t comes out multiplied by slope log2(e): a logit
// in bits, which the passes need not multiply any more. It is bounded: slope e <= 2^-9 says |t| < 2^13 bits. In
// float64 it need not be, and far vectors are told apart by exact differences of t before anything is multiplied.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/soft_entropy.h"

namespace vqk {
namespace {

constexpr double logit_tolerance = 0x1p-9;
constexpr double largest_length = 1e10;  // beyond, `absent` would not be far away

double sum_of_squares(const double* values, std::int64_t count) {
    constexpr int lanes = 8;  // independent sums
    double part[lanes] = {};
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (int lane = 0; lane < lanes; ++lane) part[lane] += values[i + lane] * values[i + lane];
    }
    for (; i < count; ++i) part[0] += values[i] * values[i];
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// The vectors of one side and group as given.
struct Given {
    const void* values;
    DType type;
    std::int64_t count, stride, dim;  // `stride` elements from one vector to the next
    bool unit;                        // to be scaled to length 1

    // out_d = value_d - shift_d, scaled if unit; returns the length of the result before scaling
    double read(std::int64_t i, const double* shift, double* out) const {
        double square = 0;
        with_dtype(type, [&](auto* tag) {
            const auto* row = static_cast<decltype(tag)>(values) + i * stride;
            for (std::int64_t d = 0; d < dim; ++d) out[d] = double(widen(row[d])) - shift[d];
            square = sum_of_squares(out, dim);
            if (!unit || !std::isfinite(square)) return;
            const double factor = square > 0 ? 1 / std::sqrt(square) : 0;
            for (std::int64_t d = 0; d < dim; ++d) out[d] *= factor;
        });
        return std::sqrt(square);
    }

    // the greatest length of those that count
    template <class Counts>
    double longest(const double* shift, int threads, Counts&& counts) const {
        constexpr std::int64_t part = 256;
        std::vector<double> found((count + part - 1) / part);
        parallel_for(std::int64_t(found.size()), useful_threads(threads, double(count) * double(dim)),
                     [&](std::int64_t p) {
                         std::vector<double> row(dim);
                         for (std::int64_t i = p * part; i < std::min(count, (p + 1) * part); ++i) {
                             if (counts(i)) found[p] = std::max(found[p], read(i, shift, row.data()));
                         }
                     });
        return found.empty() ? 0 : *std::max_element(found.begin(), found.end());
    }
};

// What is known of a group before its precision is chosen.
struct Survey {
    Given x, codes;
    const double* weight;  // [N], stride g
    std::int64_t g;
    std::vector<double> shift;         // [D] m
    std::vector<std::uint8_t> usable;  // [K] finite codes
    double x_length = 0, code_length = 0;
    bool any_code = false;

    bool takes_part(std::int64_t n) const { return any_code && weight[n * g] > 0; }
};

bool centred(SoftMetric metric) {
    return metric == SoftMetric::l2 || metric == SoftMetric::euclidean;
}

Survey survey(const SoftProblem& problem, std::int64_t group) {
    const auto offset = [](const void* values, DType type, std::int64_t elements) {
        const void* moved = nullptr;
        with_dtype(type, [&](auto* tag) { moved = static_cast<decltype(tag)>(values) + elements; });
        return moved;
    };
    const std::int64_t d = problem.d, k = problem.k;
    const bool unit = problem.metric == SoftMetric::cosine;
    Survey found{
        {offset(problem.x, problem.x_type, group * d), problem.x_type, problem.n, problem.g * d, d, unit},
        {offset(problem.codebook, problem.codebook_type, group * k * d), problem.codebook_type, k, d, d, unit},
        problem.weight + group,
        problem.g,
        std::vector<double>(d),
        std::vector<std::uint8_t>(k)};
    const std::vector<double> origin(d);
    std::vector<double> row(d);
    double finite = 0;
    for (std::int64_t i = 0; i < k; ++i) {
        found.usable[i] = std::isfinite(found.codes.read(i, origin.data(), row.data()));
        if (!found.usable[i]) continue;
        finite += 1;
        found.any_code = true;
        if (!centred(problem.metric)) continue;
        const double share = 1 / finite;
        for (std::int64_t j = 0; j < d; ++j) found.shift[j] += (row[j] - found.shift[j]) * share;
    }
    if (unit) {
        found.x_length = found.code_length = 1;
        return found;
    }
    const double* shift = found.shift.data();
    found.code_length = found.codes.longest(shift, problem.threads, [&](std::int64_t i) { return found.usable[i]; });
    found.x_length = found.x.longest(shift, problem.threads, [&](std::int64_t n) { return found.takes_part(n); });
    return found;
}

// t is half of what l2 means by distance
double distance_of_t(SoftMetric metric) {
    return metric == SoftMetric::l2 ? 2 : 1;
}

double slope_of(const SoftProblem& problem) {
    return distance_of_t(problem.metric) / problem.temperature;
}

bool single_suffices(const SoftProblem& problem, const Survey& found) {
    if (problem.x_type == DType::f64 || problem.codebook_type == DType::f64) return false;
    const double x = found.x_length, c = found.code_length, slope = slope_of(problem);
    const double size = centred(problem.metric) ? (x + c) * (x + c) / 2 : x * c;
    double error = double(problem.d + 8) * 0x1p-24 * size + double(problem.d + 8) * 0x1p-149;
    if (problem.metric == SoftMetric::euclidean) error = std::sqrt(2 * error);
    return std::max(x, c) < largest_length && slope > 1e-10 && slope < 1e10 && slope * error <= logit_tolerance;
}

}  // namespace
}  // namespace vqk
