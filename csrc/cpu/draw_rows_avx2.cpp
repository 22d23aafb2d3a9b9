// The draw's pass for AVX2 + FMA.
#include <immintrin.h>

#include "cpu/draw_rows_pass.inl"

namespace vqk {
namespace {

struct Avx2 : Lanes<float, 8> {
    static F fma(F a, F b, F c) { return F(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c))); }
    static F max(F a, F b) { return F(_mm256_max_ps(__m256(a), __m256(b))); }
    static F sqrt(F a) { return F(_mm256_sqrt_ps(__m256(a))); }
    static bool any(I mask) { return !_mm256_testz_si256(__m256i(mask), __m256i(mask)); }
};

}  // namespace

const DrawKernel& draw_avx2() {
    static const DrawKernel kernel = make_draw_kernel<Avx2, 6, 2>();
    return kernel;
}

}  // namespace vqk
