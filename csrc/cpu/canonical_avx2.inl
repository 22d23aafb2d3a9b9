// canonical_sums for float codes with AVX2: a lane per code, four dimensions transposed at a time.
#include <immintrin.h>

#include <cstdint>

namespace vqk {
namespace {

inline __m256d add_term(__m256d total, double x, __m128 codes, bool l2) {
    const __m256d a = _mm256_set1_pd(x), b = _mm256_cvtps_pd(codes);
    const __m256d difference = _mm256_sub_pd(a, b);
    // multiply, then add: the canonical order has no fused step
    return l2 ? _mm256_add_pd(total, _mm256_mul_pd(difference, difference))
              : _mm256_sub_pd(total, _mm256_mul_pd(a, b));
}

void canonical_sums_avx2(const double* x, const float* const* codes, std::int64_t dim, bool l2, double* sums) {
    __m256d total = _mm256_setzero_pd();
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
        __m128 c0 = _mm_loadu_ps(codes[0] + d), c1 = _mm_loadu_ps(codes[1] + d);
        __m128 c2 = _mm_loadu_ps(codes[2] + d), c3 = _mm_loadu_ps(codes[3] + d);
        _MM_TRANSPOSE4_PS(c0, c1, c2, c3);
        total = add_term(total, x[d], c0, l2);
        total = add_term(total, x[d + 1], c1, l2);
        total = add_term(total, x[d + 2], c2, l2);
        total = add_term(total, x[d + 3], c3, l2);
    }
    for (; d < dim; ++d) {
        total = add_term(total, x[d], _mm_setr_ps(codes[0][d], codes[1][d], codes[2][d], codes[3][d]), l2);
    }
    _mm256_storeu_pd(sums, total);
}

}  // namespace
}  // namespace vqk
