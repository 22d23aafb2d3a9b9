// Scan for AVX-512 (F, DQ, VL, BW): 32 registers hold a tile of 6 queries x 4 vectors of 16 codes.
#include <immintrin.h>

#include "cpu/canonical_avx2.inl"
#include "cpu/nearest_code_scan.inl"

namespace vqk {
namespace {

struct Avx512 {
    static constexpr int W = 16;
    using F = __m512;
    using I = __m512i;
    static constexpr auto canonical_sums = canonical_sums_avx2;
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static F broadcast(float a) { return _mm512_set1_ps(a); }
    static I load(const std::int32_t* p) { return _mm512_loadu_si512(p); }
    static void store(std::int32_t* p, I a) { _mm512_storeu_si512(p, a); }
    static I broadcast(std::int32_t a) { return _mm512_set1_epi32(a); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static float lowest_lane(F a) { return _mm512_reduce_min_ps(a); }
    static std::uint32_t at_most(F a, float limit) {
        return _mm512_cmp_ps_mask(a, _mm512_set1_ps(limit), _CMP_LE_OQ);
    }
    static I where_less(F a, F b, I yes, I no) {
        return _mm512_mask_mov_epi32(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
    }
};

}  // namespace

const ScanKernel& scan_avx512() {
    static const ScanKernel kernel = make_kernel<Avx512, 6, 4>("avx512");
    return kernel;
}

}  // namespace vqk
