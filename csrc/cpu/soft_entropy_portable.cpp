// Soft assignment passes on vectors of 16 bytes, for any processor.
#include <cmath>

#include "cpu/soft_entropy_pass.inl"

namespace vqk {
namespace {

template <class Real, int W>
struct Portable : Lanes<Real, W> {
    using F = typename Lanes<Real, W>::F;
    // rounds twice where the fused form rounds once; the error bound in soft_entropy.cpp covers both
    static F fma(F a, F b, F c) { return a * b + c; }
    static F min(F a, F b) { return a < b ? a : b; }
    static F max(F a, F b) { return a > b ? a : b; }
    static F in_turn(F a) { return a; }
    static bool any_less(F a, F b) {
        bool any = false;
        for (int i = 0; i < W; ++i) any |= a[i] < b[i];
        return any;
    }
    static F sqrt(F a) {
        for (int i = 0; i < W; ++i) a[i] = std::sqrt(a[i]);
        return a;
    }
};

}  // namespace

const SoftKernels& soft_portable() {
    static const SoftKernels kernels{make_soft_kernel<Portable<float, 4>, 4, 2>(),
                                     make_soft_kernel<Portable<double, 2>, 4, 2>()};
    return kernels;
}

}  // namespace vqk
