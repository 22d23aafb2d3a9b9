// Scan for NEON on AArch64: 32 registers hold a tile of 4 queries x 4 vectors of 4 codes, and their factors. Of more
// gcc 12 spills a part in the loop.
#include "cpu/simd_neon.inl"

namespace vqk {
namespace {

// spin_fma with sums that are added to in place, as in the scan: NEON has no other fused form without a copy
double spin_sums(std::int64_t rounds) {
    constexpr int chains = 16;
    Neon::F sum[chains], total = Neon::broadcast(0.0f);
    const Neon::F a = Neon::broadcast(0.999f), b = Neon::broadcast(1e-3f);
    for (int i = 0; i < chains; ++i) sum[i] = Neon::broadcast(float(i));
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (Neon::F& each : sum) each = Neon::fma(a, b, each);
    }
    // a loop that is not unrolled would want the sums in memory, all the time
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) total = Neon::add(total, sum[i]);
    volatile float keep = Neon::sum(total);  // the loop must not be optimised away
    (void)keep;
    return 2.0 * double(rounds) * chains * Neon::W;
}

ScanKernel make_neon() {
    ScanKernel kernel = make_kernel<Neon, 4, 4>(Isa::neon);
    kernel.spin_fma = spin_sums;
    return kernel;
}

}  // namespace

const ScanKernel& scan_neon() {
    static const ScanKernel kernel = make_neon();
    return kernel;
}

}  // namespace vqk
