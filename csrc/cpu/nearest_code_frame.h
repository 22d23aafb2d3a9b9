// The scan's coordinates: c' = (c - m) s and x' = (x - m) s, with m near the mean of the codes and s a power of two,
// so that neither an offset of the data nor its unit costs precision. Dot products shift the codes alone, cosines
// neither (they scale to unit length). Any m and s are correct; these make the error bound small.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cpu/affine.h"
#include "cpu/canonical.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"
#include "cpu/tile_scan.h"

namespace vqk {

// whether every entry is finite, and then the largest magnitude
template <class Value>
double largest_magnitude(const ScanKernel& kernel, const Value* v, std::int64_t count) {
    if constexpr (std::is_same_v<Value, float>) {
        const std::uint32_t bits = kernel.largest(v, count);
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        return double(magnitude);
    } else {
        double high = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            if (!std::isfinite(v[i])) return HUGE_VAL;
            high = std::max(high, std::fabs(double(v[i])));
        }
        return high;
    }
}

template <class Value>
void norms_of(const ScanKernel& kernel, const Value* const* v, std::int64_t dim, double* norms) {
    if constexpr (std::is_same_v<Value, float>) {
        kernel.norms(v, dim, norms);
    } else {
        canonical_norms(v, dim, norms);
    }
}

template <class Value>
class CodeFrame {
  public:
    // `sampled`: look at some codes, not at all, and take the others for finite: whoever scans them will see. Cosines
    // want all of them.
    CodeFrame(const Value* values, std::int64_t count, std::int64_t dim, Metric metric, const ScanKernel& kernel,
              int threads, bool sampled = false)
        : values(values),
          count(count),
          dim(dim),
          metric(metric),
          offset(dim, 0.0f),
          shift(dim, 0.0),
          zeros(dim, 0.0f),
          unshifted(dim, 0.0) {
        const double largest = sampled && metric != Metric::cosine ? sample(kernel) : inspect(kernel, threads);
        // unit vectors need neither shift nor scale
        if (metric != Metric::cosine && first_usable < count) place(largest);
    }

    bool usable(std::int64_t code) const { return unusable_.empty() || !unusable_[code]; }
    bool all_usable() const { return unusable_.empty(); }
    bool empty() const { return first_usable == count; }

    // what becomes of a vector of length `norm`: s, or 1/|v|
    double factor(double norm) const { return metric != Metric::cosine ? scale : norm > 0 ? 1 / norm : 0; }

    const Value* const values;  // [K, D]
    const std::int64_t count;   // K
    const std::int64_t dim;
    const Metric metric;
    std::int64_t first_usable = 0;        // lowest index of a finite code
    double scale = 1.0;                   // s
    std::vector<float> offset;            // [D] m s, exactly
    std::vector<double> shift;            // [D] m
    const std::vector<float> zeros;       // [D] for what is not shifted
    const std::vector<double> unshifted;  // [D]
    double shift_norm = 0.0;              // |m| s
    std::vector<double> norms;            // [K] canonical, cosine only
    double shortest = HUGE_VAL;           // smallest of them that is not zero

  private:
    std::vector<std::uint8_t> unusable_;  // [K], or empty if every code is finite

    // of codes to look at: more would cost few vectors as much as a scan
    std::int64_t stride() const { return std::max<std::int64_t>(1, count / 128); }
    double inspect(const ScanKernel& kernel, int threads);
    double sample(const ScanKernel& kernel) const;
    void place(double largest);
};

// which codes are finite; returns the largest magnitude among those
template <class Value>
double CodeFrame<Value>::inspect(const ScanKernel& kernel, int threads) {
    constexpr std::int64_t chunk = 1024;
    if (metric == Metric::cosine) norms.resize(count);
    std::vector<std::uint8_t> flags(count, 0);
    std::vector<double> largest((count + chunk - 1) / chunk, 0.0);
    const int useful = useful_threads(threads, double(count) * double(dim) / 8);
    parallel_for(std::int64_t(largest.size()), useful, [&](std::int64_t c) {
        const std::int64_t begin = c * chunk, end = std::min(count, begin + chunk);
        for (std::int64_t i = begin; metric == Metric::cosine && i < end; i += quad) {
            const Value* codes[quad];
            double four[quad];
            for (int j = 0; j < quad; ++j) codes[j] = values + std::min(i + j, end - 1) * dim;
            norms_of(kernel, codes, dim, four);
            for (std::int64_t j = 0; j < std::min<std::int64_t>(quad, end - i); ++j) {
                norms[i + j] = four[j];
                flags[i + j] = !std::isfinite(four[j]);
            }
        }
        largest[c] = largest_magnitude(kernel, values + begin * dim, (end - begin) * dim);
        if (std::isfinite(largest[c])) return;
        largest[c] = 0;
        for (std::int64_t i = begin; i < end; ++i) {
            const double magnitude = largest_magnitude(kernel, values + i * dim, dim);
            flags[i] |= !std::isfinite(magnitude);
            if (!flags[i]) largest[c] = std::max(largest[c], magnitude);
        }
    });
    first_usable = std::find(flags.begin(), flags.end(), 0) - flags.begin();
    for (const double norm : norms) {
        if (norm > 0) shortest = std::min(shortest, norm);
    }
    if (std::find(flags.begin(), flags.end(), 1) != flags.end()) unusable_ = std::move(flags);
    return largest.empty() ? 0.0 : *std::max_element(largest.begin(), largest.end());
}

// the largest magnitude of some codes
template <class Value>
double CodeFrame<Value>::sample(const ScanKernel& kernel) const {
    double largest = 0;
    for (std::int64_t i = 0; i < count; i += stride()) {
        largest = std::max(largest, largest_magnitude(kernel, values + i * dim, dim));
    }
    return std::min(largest, std::numeric_limits<double>::max());
}

// shift and scale
template <class Value>
void CodeFrame<Value>::place(double largest) {
    int exponent = 0;
    std::frexp(largest, &exponent);
    // as a float, s must be a normal number
    const int most = std::is_same_v<Value, float> ? 126 : 1000;
    scale = std::ldexp(1.0, std::clamp(-exponent, -most, most));
    std::vector<double> mean(dim, 0.0);
    double taken = 0;
    for (std::int64_t i = first_usable; i < count; i += stride()) {
        if (!usable(i)) continue;
        taken += 1;
        for (std::int64_t d = 0; d < dim; ++d) mean[d] += double(values[i * dim + d]) * scale;
    }
    for (std::int64_t d = 0; d < dim; ++d) {
        offset[d] = float(mean[d] / taken);
        shift[d] = double(offset[d]) / scale;
    }
    const double square = std::accumulate(offset.begin(), offset.end(), 0.0,
                                          [](double sum, float m) { return sum + double(m) * double(m); });
    shift_norm = std::sqrt(square) * (1 + 1e-6);
}

// Rounding errors of a float32 score, relative to |c'|^2/2 + |x'||c'|. With u = 2^-24: rounding x' and c' to float
// costs 2u |x'||c'| and 2u |c'|^2/2, computing |c'|^2/2 another (D/4 + 7)u of it, and a sum of D + 1 terms with (or
// without) fused multiply-add at most (D + 1)u times the sum of their magnitudes. For cosine, where 1/|v| is rounded
// as well, x' and c' cost 4u |x'||c'|, and there is no |c'|^2/2.
inline double float_error(std::int64_t dim) {
    return 1.001 * (1.25 * double(dim) + 16) * 0x1p-24;
}

// What a scan has left in the lanes.
struct Scores {
    double radius;              // no code is longer
    bool lower_bounds = false;  // scores less all that they may be wrong by (cpu/tile_scan.h)
};

// Half the width of the band in which a float32 scan cannot tell codes apart: |score - true score| <= tolerance for
// vectors of length |x'|.
class Tolerance {
  public:
    template <class Value>
    Tolerance(const CodeFrame<Value>& frame, double radius)
        : radius_(radius),
          relative_(float_error(frame.dim)),
          cosine_(frame.metric == Metric::cosine),
          l2_(frame.metric == Metric::l2) {
        terms_ = double(frame.dim) + 8;
        reach_ = radius + frame.shift_norm;
        unit_ = cosine_ ? 1 / frame.shortest : frame.scale * frame.scale;
    }
    // `x_norm`: the length of x itself, if the metric is cosine
    double operator()(double length, double x_norm) const {
        return relative_ * radius_ * (0.5 * radius_ + length) + canonical(length, x_norm);
    }
    // The share of it that every score has: the canonical evaluation itself is off by a like share of |x - c|^2 (l2),
    // or of |x||c| before any shift. The last two terms are gradual underflow, of the scan and of the canonical
    // evaluation.
    double canonical(double length, double x_norm) const {
        const double size = l2_ ? (length + radius_) * (length + radius_) : length * reach_;
        // what 1 in the canonical sum is in the score, or more
        const double unit = cosine_ ? unit_ / x_norm : unit_;
        if (size > 0x1p1020 * unit) return HUGE_VAL;
        // D + 8 terms that underflow lose less than 2^-1000 in all: a subnormal number here would cost a hundred
        // cycles
        return 2 * terms_ * 0x1p-53 * size + terms_ * 0x1p-120 * (1 + length) + 0x1p-1000 * unit;
    }

  private:
    double radius_, relative_;
    bool cosine_, l2_;
    double terms_, reach_, unit_;
};

}  // namespace vqk
