// canonical_sums and canonical_norms for floats with AVX2: a lane per code, four dimensions transposed at a time.
#include <immintrin.h>

#include <cstdint>

#include "cpu/canonical.h"

namespace vqk {
namespace {

// one quad on its way through the dimensions
struct QuadSum {
    const float* x;
    const float* const* codes;
    __m256d total = _mm256_setzero_pd();

    // multiply, then add: the canonical order has no fused step
    template <bool L2>
    void add_term(__m256d a, __m128 code) {
        const __m256d b = _mm256_cvtps_pd(code), difference = _mm256_sub_pd(a, b);
        total = L2 ? _mm256_add_pd(total, _mm256_mul_pd(difference, difference))
                   : _mm256_sub_pd(total, _mm256_mul_pd(a, b));
    }
    template <bool L2>
    void add_four(std::int64_t d) {
        __m128 c0 = _mm_loadu_ps(codes[0] + d), c1 = _mm_loadu_ps(codes[1] + d);
        __m128 c2 = _mm_loadu_ps(codes[2] + d), c3 = _mm_loadu_ps(codes[3] + d);
        _MM_TRANSPOSE4_PS(c0, c1, c2, c3);
        const __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + d));
        add_term<L2>(_mm256_permute4x64_pd(a, 0x00), c0);
        add_term<L2>(_mm256_permute4x64_pd(a, 0x55), c1);
        add_term<L2>(_mm256_permute4x64_pd(a, 0xaa), c2);
        add_term<L2>(_mm256_permute4x64_pd(a, 0xff), c3);
    }
    template <bool L2>
    void add_one(std::int64_t d) {
        add_term<L2>(_mm256_set1_pd(double(x[d])), _mm_setr_ps(codes[0][d], codes[1][d], codes[2][d], codes[3][d]));
    }
};

template <bool L2>
void sum_quads(const float* const* x, const float* const* codes, int quads, std::int64_t dim, double* sums) {
    // two at a time, because the additions of one wait for each other
    for (int q = 0; q < quads; q += 2) {
        const int other = q + 1 < quads ? q + 1 : q;
        QuadSum a{x[q], codes + q * quad}, b{x[other], codes + other * quad};
        std::int64_t d = 0;
        for (; d + 4 <= dim; d += 4) {
            a.add_four<L2>(d);
            b.add_four<L2>(d);
        }
        for (; d < dim; ++d) {
            a.add_one<L2>(d);
            b.add_one<L2>(d);
        }
        _mm256_storeu_pd(sums + q * quad, a.total);
        _mm256_storeu_pd(sums + other * quad, b.total);
    }
}

void canonical_sums_avx2(const float* const* x, const float* const* codes, int quads, std::int64_t dim, bool l2,
                         double* sums) {
    if (l2) return sum_quads<true>(x, codes, quads, dim, sums);
    return sum_quads<false>(x, codes, quads, dim, sums);
}

void canonical_norms_avx2(const float* const* v, std::int64_t dim, double* norms) {
    __m256d total = _mm256_setzero_pd();
    const auto add = [&](__m128 entries) {
        const __m256d wide = _mm256_cvtps_pd(entries);
        total = _mm256_add_pd(total, _mm256_mul_pd(wide, wide));
    };
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
        __m128 v0 = _mm_loadu_ps(v[0] + d), v1 = _mm_loadu_ps(v[1] + d);
        __m128 v2 = _mm_loadu_ps(v[2] + d), v3 = _mm_loadu_ps(v[3] + d);
        _MM_TRANSPOSE4_PS(v0, v1, v2, v3);
        add(v0);
        add(v1);
        add(v2);
        add(v3);
    }
    for (; d < dim; ++d) add(_mm_setr_ps(v[0][d], v[1][d], v[2][d], v[3][d]));
    _mm256_storeu_pd(norms, _mm256_sqrt_pd(total));
}

}  // namespace
}  // namespace vqk
