// The draw's pass for NEON on AArch64.
#include <arm_neon.h>

#include "cpu/draw_rows_pass.inl"

namespace vqk {
namespace {

struct Neon : Lanes<float, 4> {
    static F fma(F a, F b, F c) { return F(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b))); }
    static F max(F a, F b) { return F(vmaxnmq_f32(float32x4_t(a), float32x4_t(b))); }
    static F sqrt(F a) { return F(vsqrtq_f32(float32x4_t(a))); }
    static bool any(I mask) { return vmaxvq_u32(uint32x4_t(mask)) != 0; }
};

}  // namespace

const DrawKernel& draw_neon() {
    static const DrawKernel kernel = make_draw_kernel<Neon, 4, 4>();
    return kernel;
}

}  // namespace vqk
