// canonical_sums and canonical_norms for floats with NEON: a lane per code, four dimensions transposed at a time.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpu/canonical.h"

namespace vqk {
namespace {

// rows become columns
inline void transpose(float32x4_t (&v)[4]) {
    const auto wide = [](float32x4_t a) { return vreinterpretq_f64_f32(a); };
    const float64x2_t even01 = wide(vtrn1q_f32(v[0], v[1])), odd01 = wide(vtrn2q_f32(v[0], v[1]));
    const float64x2_t even23 = wide(vtrn1q_f32(v[2], v[3])), odd23 = wide(vtrn2q_f32(v[2], v[3]));
    v[0] = vreinterpretq_f32_f64(vtrn1q_f64(even01, even23));
    v[1] = vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23));
    v[2] = vreinterpretq_f32_f64(vtrn2q_f64(even01, even23));
    v[3] = vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23));
}

// dimensions d to d + 4 of four rows, each a vector over the rows
inline void load_columns(const float* const* rows, std::int64_t d, float32x4_t (&column)[4]) {
    for (int i = 0; i < 4; ++i) column[i] = vld1q_f32(rows[i] + d);
    transpose(column);
}

inline float32x4_t load_column(const float* const* rows, std::int64_t d) {
    const float entries[4] = {rows[0][d], rows[1][d], rows[2][d], rows[3][d]};
    return vld1q_f32(entries);
}

// the sums of one quad, in float64
struct QuadTotal {
    float64x2_t low = vdupq_n_f64(0.0), high = low;

    // multiply, then add: the canonical order has no fused step
    template <bool L2>
    void add_term(float32x4_t x, float32x4_t code) {
        add_half<L2>(low, vcvt_f64_f32(vget_low_f32(x)), vcvt_f64_f32(vget_low_f32(code)));
        add_half<L2>(high, vcvt_high_f64_f32(x), vcvt_high_f64_f32(code));
    }
    void add_square(float32x4_t entries) {
        const float64x2_t a = vcvt_f64_f32(vget_low_f32(entries)), b = vcvt_high_f64_f32(entries);
        low = vaddq_f64(low, vmulq_f64(a, a));
        high = vaddq_f64(high, vmulq_f64(b, b));
    }
    void store(double* out) const {
        vst1q_f64(out, low);
        vst1q_f64(out + 2, high);
    }

  private:
    template <bool L2>
    static void add_half(float64x2_t& total, float64x2_t a, float64x2_t b) {
        const float64x2_t difference = vsubq_f64(a, b);
        total = L2 ? vaddq_f64(total, vmulq_f64(difference, difference)) : vsubq_f64(total, vmulq_f64(a, b));
    }
};

// One quad on its way through the dimensions; `shared`: its pairs have one x.
template <bool shared>
struct QuadSum {
    const float* const* x;
    const float* const* codes;
    QuadTotal total;

    template <bool L2>
    void add_four(std::int64_t d) {
        float32x4_t code[4], a[4];
        load_columns(codes, d, code);
        if constexpr (shared) {
            for (int i = 0; i < 4; ++i) a[i] = vdupq_n_f32(x[0][d + i]);
        } else {
            load_columns(x, d, a);
        }
        for (int i = 0; i < 4; ++i) total.add_term<L2>(a[i], code[i]);
    }
    template <bool L2>
    void add_one(std::int64_t d) {
        total.add_term<L2>(shared ? vdupq_n_f32(x[0][d]) : load_column(x, d), load_column(codes, d));
    }
};

// two at a time, because the additions of one wait for each other
template <bool L2, bool shared>
void sum_two(const float* const* x, const float* const* codes, int first, int second, std::int64_t dim,
             double* sums) {
    QuadSum<shared> a{x + first, codes + first, {}}, b{x + second, codes + second, {}};
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
        a.template add_four<L2>(d);
        b.template add_four<L2>(d);
    }
    for (; d < dim; ++d) {
        a.template add_one<L2>(d);
        b.template add_one<L2>(d);
    }
    a.total.store(sums + first);
    b.total.store(sums + second);
}

template <bool L2>
void sum_quads(const float* const* x, const float* const* codes, int quads, std::int64_t dim, double* sums) {
    for (int q = 0; q < quads; q += 2) {
        const int first = q * quad, second = q + 1 < quads ? first + quad : first;
        const bool shared = one_x(x + first) && one_x(x + second);
        (shared ? sum_two<L2, true> : sum_two<L2, false>)(x, codes, first, second, dim, sums);
    }
}

void canonical_sums_neon(const float* const* x, const float* const* codes, int quads, std::int64_t dim, bool l2,
                         double* sums) {
    if (l2) return sum_quads<true>(x, codes, quads, dim, sums);
    return sum_quads<false>(x, codes, quads, dim, sums);
}

void canonical_norms_neon(const float* const* v, std::int64_t dim, double* norms) {
    QuadTotal total;
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
        float32x4_t column[4];
        load_columns(v, d, column);
        for (const float32x4_t entries : column) total.add_square(entries);
    }
    for (; d < dim; ++d) total.add_square(load_column(v, d));
    total.low = vsqrtq_f64(total.low);
    total.high = vsqrtq_f64(total.high);
    total.store(norms);
}

}  // namespace
}  // namespace vqk
