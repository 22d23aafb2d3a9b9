// Soft assignment passes for AVX-512: 32 registers hold a tile of 6 owners x 4 vectors.
#include <immintrin.h>

#include "cpu/in_turn.h"
#include "cpu/soft_entropy_pass.inl"

namespace vqk {
namespace {

struct Avx512Single : Lanes<float, 16> {
    static F fma(F a, F b, F c) { return F(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c))); }
    static F sqrt(F a) { return F(_mm512_sqrt_ps(__m512(a))); }
    static F min(F a, F b) { return F(_mm512_min_ps(__m512(a), __m512(b))); }
    static F max(F a, F b) { return F(_mm512_max_ps(__m512(a), __m512(b))); }
    static F in_turn(F a) { return formed(a); }
    // gcc 12 converts a quarter of a vector at a time, through memory
    static void add_to(double* sums, F a) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(__m512(a)));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(__m512(a), 1));
        _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
        _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
    }
    static bool any_less(F a, F b) { return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_LT_OQ) != 0; }
};

struct Avx512Double : Lanes<double, 8> {
    static F fma(F a, F b, F c) { return F(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c))); }
    static F sqrt(F a) { return F(_mm512_sqrt_pd(__m512d(a))); }
    static F min(F a, F b) { return F(_mm512_min_pd(__m512d(a), __m512d(b))); }
    static F max(F a, F b) { return F(_mm512_max_pd(__m512d(a), __m512d(b))); }
    static F in_turn(F a) { return formed(a); }
    static bool any_less(F a, F b) { return _mm512_cmp_pd_mask(__m512d(a), __m512d(b), _CMP_LT_OQ) != 0; }
};

}  // namespace

const SoftKernels& soft_avx512() {
    static const SoftKernels kernels{make_soft_kernel<Avx512Single, 6, 4>(), make_soft_kernel<Avx512Double, 6, 4>()};
    return kernels;
}

}  // namespace vqk
