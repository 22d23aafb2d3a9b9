// The scans by products of integers on AVX-VNNI, 256 bits wide: one instruction multiplies and adds; everything else
// is that of AVX2.
#include <cpuid.h>

#include "cpu/integer_scan.inl"
#include "cpu/simd_avx2.inl"

namespace vqk {
namespace {

struct AvxVnniWords : Avx2 {
    static constexpr IntegerFormat format = {2, 1, 0, 0, 32767, 32767, 32767, 32767};
    static I multiply_add(I sum, I a, I b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
    static F from_integers(I a) { return _mm256_cvtepi32_ps(a); }
};
struct AvxVnniBytes : AvxVnniWords {
    static constexpr IntegerFormat format = {4, 1, 0, 128, 127, 127, unbounded, unbounded};
    static I multiply_add(I sum, I a, I b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
};

constexpr IntegerScan words = make_integer_scan<AvxVnniWords, 6, 2>();
constexpr IntegerScan bytes = make_integer_scan<AvxVnniBytes, 6, 2>();

}  // namespace

bool avxvnni_supported() {
    // not by __builtin_cpu_supports, whose names of some compilers lack this one
    static const bool supported = [] {
        constexpr unsigned avx_vnni = 1u << 4;
        unsigned a, b, c, d;
        return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx_vnni) != 0;
    }();
    return supported;
}

const ScanKernel& scan_int16_avxvnni() {
    static const ScanKernel kernel = with_integers(scan_avx2(), Isa::avxvnni, &words, nullptr);
    return kernel;
}
const ScanKernel& scan_int8_avxvnni() {
    static const ScanKernel kernel = with_integers(scan_avx2(), Isa::avxvnni_int8, &words, &bytes);
    return kernel;
}

}  // namespace vqk
