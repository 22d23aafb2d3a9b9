// Soft assignment passes for AVX2 + FMA: 16 registers hold a tile of 6 owners x 2 vectors.
#include <immintrin.h>

#include "cpu/in_turn.h"
#include "cpu/soft_entropy_pass.inl"

namespace vqk {
namespace {

struct Avx2Single : Lanes<float, 8> {
    static F fma(F a, F b, F c) { return F(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c))); }
    static F sqrt(F a) { return F(_mm256_sqrt_ps(__m256(a))); }
    static F min(F a, F b) { return F(_mm256_min_ps(__m256(a), __m256(b))); }
    static F max(F a, F b) { return F(_mm256_max_ps(__m256(a), __m256(b))); }
    static F in_turn(F a) { return formed(a); }
    // gcc 12 converts half a vector at a time, through memory
    static void add_to(double* sums, F a) {
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(__m256(a)));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(__m256(a), 1));
        _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
        _mm256_storeu_pd(sums + 4, _mm256_add_pd(_mm256_loadu_pd(sums + 4), high));
    }
    static bool any_less(F a, F b) {
        return _mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_LT_OQ)) != 0;
    }
};

struct Avx2Double : Lanes<double, 4> {
    static F fma(F a, F b, F c) { return F(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c))); }
    static F sqrt(F a) { return F(_mm256_sqrt_pd(__m256d(a))); }
    static F min(F a, F b) { return F(_mm256_min_pd(__m256d(a), __m256d(b))); }
    static F max(F a, F b) { return F(_mm256_max_pd(__m256d(a), __m256d(b))); }
    static F in_turn(F a) { return formed(a); }
    static bool any_less(F a, F b) {
        return _mm256_movemask_pd(_mm256_cmp_pd(__m256d(a), __m256d(b), _CMP_LT_OQ)) != 0;
    }
};

}  // namespace

const SoftKernels& soft_avx2() {
    static const SoftKernels kernels{make_soft_kernel<Avx2Single, 6, 2>(), make_soft_kernel<Avx2Double, 6, 2>()};
    return kernels;
}

}  // namespace vqk
