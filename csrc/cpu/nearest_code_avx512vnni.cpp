// The scan by products of integers on AVX-512 VNNI: one instruction multiplies pairs and adds them; everything else
// is that of AVX-512.
#include "cpu/integer_scan.inl"
#include "cpu/simd_avx512.inl"

namespace vqk {
namespace {

struct Avx512Vnni : Avx512 {
    static I multiply_add(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
    static F from_integers(I a) { return _mm512_cvtepi32_ps(a); }
};

}  // namespace

const ScanKernel& scan_avx512vnni() {
    static const IntegerScan integers = make_integer_scan<Avx512Vnni, 6, 4>(0.5);
    static const ScanKernel kernel = with_integers(scan_avx512(), integers, Isa::avx512vnni);
    return kernel;
}

}  // namespace vqk
