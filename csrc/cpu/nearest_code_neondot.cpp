// The scan by products of 8-bit integers on AArch64: one instruction multiplies and adds. NEON multiplies 16 bits no
// faster than floats; everything else is that of NEON.
#include "cpu/integer_scan.inl"
#include "cpu/simd_neon.inl"

namespace vqk {
namespace {

struct NeonBytes : Neon {
    static constexpr IntegerFormat format = {4, 1, 0, 0, 127, 127, unbounded, unbounded};
    static I multiply_add(I sum, I a, I b) {
        return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
    }
    static F from_integers(I a) { return vcvtq_f32_s32(a); }
};

constexpr IntegerScan bytes = make_integer_scan<NeonBytes, 4, 4>();

}  // namespace

const ScanKernel& scan_int8_neon() {
    static const ScanKernel kernel = with_integers(scan_neon(), Isa::neon_int8, nullptr, &bytes);
    return kernel;
}

}  // namespace vqk
