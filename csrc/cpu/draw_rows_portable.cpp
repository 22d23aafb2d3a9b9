// The draw's pass on vectors of 16 bytes, for any processor.
#include <cmath>

#include "cpu/draw_rows_pass.inl"

namespace vqk {
namespace {

struct Portable : Lanes<float, 4> {
    // rounds twice where the fused form rounds once; the error bound in draw_rows.cpp covers both
    static F fma(F a, F b, F c) { return a * b + c; }
    static F max(F a, F b) { return a > b ? a : b; }
    static F sqrt(F a) {
        for (int i = 0; i < W; ++i) a[i] = std::sqrt(a[i]);
        return a;
    }
    static bool any(I mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
};

}  // namespace

const DrawKernel& draw_portable() {
    static const DrawKernel kernel = make_draw_kernel<Portable, 4, 2>();
    return kernel;
}

}  // namespace vqk
