// The draw's pass for AVX-512.
#include <immintrin.h>

#include "cpu/draw_rows_pass.inl"

namespace vqk {
namespace {

struct Avx512 : Lanes<float, 16> {
    static F fma(F a, F b, F c) { return F(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c))); }
    static F max(F a, F b) { return F(_mm512_max_ps(__m512(a), __m512(b))); }
    static F sqrt(F a) { return F(_mm512_sqrt_ps(__m512(a))); }
    static bool any(I mask) { return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0; }
};

}  // namespace

const DrawKernel& draw_avx512() {
    static const DrawKernel kernel = make_draw_kernel<Avx512, 6, 4>();
    return kernel;
}

}  // namespace vqk
