// Soft assignment passes for NEON on AArch64: 32 registers hold a tile of 4 owners x 4 vectors.
#include <arm_neon.h>

#include "cpu/soft_entropy_pass.inl"

namespace vqk {
namespace {

struct NeonSingle : Lanes<float, 4> {
    static F fma(F a, F b, F c) { return F(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b))); }
    static F sqrt(F a) { return F(vsqrtq_f32(float32x4_t(a))); }
    static F min(F a, F b) { return F(vminnmq_f32(float32x4_t(a), float32x4_t(b))); }
    static F max(F a, F b) { return F(vmaxnmq_f32(float32x4_t(a), float32x4_t(b))); }
    static F in_turn(F a) { return a; }
    static bool any_less(F a, F b) { return vmaxvq_u32(vcltq_f32(float32x4_t(a), float32x4_t(b))) != 0; }
};

struct NeonDouble : Lanes<double, 2> {
    static F fma(F a, F b, F c) { return F(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b))); }
    static F sqrt(F a) { return F(vsqrtq_f64(float64x2_t(a))); }
    static F min(F a, F b) { return F(vminnmq_f64(float64x2_t(a), float64x2_t(b))); }
    static F max(F a, F b) { return F(vmaxnmq_f64(float64x2_t(a), float64x2_t(b))); }
    static F in_turn(F a) { return a; }
    static bool any_less(F a, F b) {
        return vmaxvq_u32(vreinterpretq_u32_u64(vcltq_f64(float64x2_t(a), float64x2_t(b)))) != 0;
    }
};

}  // namespace

const SoftKernels& soft_neon() {
    static const SoftKernels kernels{make_soft_kernel<NeonSingle, 4, 4>(), make_soft_kernel<NeonDouble, 4, 4>()};
    return kernels;
}

}  // namespace vqk
