// The scan by products of integers on AVX-VNNI, 256 bits wide: one instruction multiplies pairs and adds them;
// everything else is that of AVX2.
#include "cpu/integer_scan.inl"
#include "cpu/simd_avx2.inl"

namespace vqk {
namespace {

struct AvxVnni : Avx2 {
    static I multiply_add(I sum, I a, I b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
    static F from_integers(I a) { return _mm256_cvtepi32_ps(a); }
};

}  // namespace

const ScanKernel& scan_avxvnni() {
    static const IntegerScan integers = make_integer_scan<AvxVnni, 6, 2>(0.5);
    static const ScanKernel kernel = with_integers(scan_avx2(), integers, Isa::avxvnni);
    return kernel;
}

}  // namespace vqk
