// The scans by products of integers on AVX-512 VNNI: one instruction multiplies and adds; everything else is that of
// AVX-512.
#include "cpu/integer_scan.inl"
#include "cpu/simd_avx512.inl"

namespace vqk {
namespace {

struct Avx512VnniWords : Avx512 {
    static constexpr IntegerFormat format = {2, 1, 0, 0, 32767, 32767, 32767, 32767};
    static I multiply_add(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
    static F from_integers(I a) { return _mm512_cvtepi32_ps(a); }
};
struct Avx512VnniBytes : Avx512VnniWords {
    static constexpr IntegerFormat format = {4, 1, 0, 128, 127, 127, unbounded, unbounded};
    static I multiply_add(I sum, I a, I b) { return _mm512_dpbusd_epi32(sum, a, b); }
};

constexpr IntegerScan words = make_integer_scan<Avx512VnniWords, 6, 4>();
constexpr IntegerScan bytes = make_integer_scan<Avx512VnniBytes, 6, 4>();

}  // namespace

const ScanKernel& scan_int16_avx512vnni() {
    static const ScanKernel kernel = with_integers(scan_avx512(), Isa::avx512vnni, &words, nullptr);
    return kernel;
}
const ScanKernel& scan_int8_avx512vnni() {
    static const ScanKernel kernel = with_integers(scan_avx512(), Isa::avx512vnni_int8, &words, &bytes);
    return kernel;
}

}  // namespace vqk
