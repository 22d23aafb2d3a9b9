// The scans by products of integers on AVX2: a product and a sum, on units that fused multiply-adds share; everything
// else is that of AVX2.
#include "cpu/integer_scan.inl"
#include "cpu/simd_avx2.inl"

namespace vqk {
namespace {

struct Avx2Words : Avx2 {
    static constexpr IntegerFormat format = {2, 1, 0, 0, 32767, 32767, 32767, 32767};
    static I multiply_add(I sum, I a, I b) {
        const I product = _mm256_madd_epi16(a, b);
        // into the register of the sum: gcc would take another and move it back
        asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
        return sum;
    }
    static F from_integers(I a) { return _mm256_cvtepi32_ps(a); }
};

// Two products of 8 bits and their sum saturate at 16 bits, which 128 x 127 twice does not reach. Further sums wrap
// around, the offset with them; as a whole they fit, since 150 x 218 is below 2^15.
struct Avx2Bytes : Avx2Words {
    static constexpr IntegerFormat format = {4, 2, 16, 64, 64, 127, 150, 218};
    static I multiply_add(I sum, I a, I b) {
        const I product = _mm256_maddubs_epi16(a, b);
        asm volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product));
        return sum;
    }
    static I widened(I sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};

constexpr IntegerScan words = make_integer_scan<Avx2Words, 6, 2>();
constexpr IntegerScan bytes = make_integer_scan<Avx2Bytes, 6, 2>();

}  // namespace

const ScanKernel& scan_int16_avx2() {
    static const ScanKernel kernel = with_integers(scan_avx2(), Isa::avx2_int16, &words, nullptr);
    return kernel;
}
const ScanKernel& scan_int8_avx2() {
    static const ScanKernel kernel = with_integers(scan_avx2(), Isa::avx2_int8, &words, &bytes);
    return kernel;
}

}  // namespace vqk
