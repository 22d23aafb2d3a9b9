// The scan by products of integers on AVX2: a product of pairs and a sum, on units that fused multiply-adds share;
// everything else is that of AVX2.
#include "cpu/integer_scan.inl"
#include "cpu/simd_avx2.inl"

namespace vqk {
namespace {

struct Avx2Integers : Avx2 {
    static I multiply_add(I sum, I a, I b) {
        const I product = _mm256_madd_epi16(a, b);
        // into the register of the sum: gcc would take another and move it back
        asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
        return sum;
    }
    static F from_integers(I a) { return _mm256_cvtepi32_ps(a); }
};

}  // namespace

const ScanKernel& scan_int16_avx2() {
    static const IntegerScan integers = make_integer_scan<Avx2Integers, 6, 2>(0.65);
    static const ScanKernel kernel = with_integers(scan_avx2(), integers, Isa::avx2_int16);
    return kernel;
}

}  // namespace vqk
