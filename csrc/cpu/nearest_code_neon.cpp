// Scan for NEON on AArch64: 32 registers hold a tile of 4 queries x 4 vectors of 4 codes, and their factors. Of more
// gcc 12 spills a part in the loop.
#include <arm_neon.h>

#include "cpu/canonical_neon.inl"
#include "cpu/nearest_code_scan.inl"

namespace vqk {
namespace {

struct Neon {
    static constexpr int W = 4;
    using F = float32x4_t;
    using I = int32x4_t;
    static constexpr auto canonical_sums = canonical_sums_neon;
    static constexpr auto canonical_norms = canonical_norms_neon;
    static F load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, F a) { vst1q_f32(p, a); }
    static F load_part(const float* p, int count) {
        float part[W] = {};
        for (int i = 0; i < count; ++i) part[i] = p[i];
        return load(part);
    }
    static void store_part(float* p, F a, int count) {
        float part[W];
        store(part, a);
        for (int i = 0; i < count; ++i) p[i] = part[i];
    }
    static F broadcast(float a) { return vdupq_n_f32(a); }
    static void columns(const float* const* rows, std::int64_t d, F (&column)[4]) { load_columns(rows, d, column); }
    static F column(const float* const* rows, std::int64_t d) { return load_column(rows, d); }
    static I load(const std::int32_t* p) { return vld1q_s32(p); }
    static void store(std::int32_t* p, I a) { vst1q_s32(p, a); }
    static I broadcast(std::int32_t a) { return vdupq_n_s32(a); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    // gcc takes factors by their element of a register, unless it may not look into sums: then it copies them, too
    template <class Sum>
    static Sum in_turn(Sum a) {
        return a;
    }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    // those that prefer a number to a NaN
    static F min(F a, F b) { return vminnmq_f32(a, b); }
    static F max(F a, F b) { return vmaxnmq_f32(a, b); }
    static float sum(F a) { return vaddvq_f32(a); }
    static constexpr int plain_queries = 4;  // and four codes: 16 sums
    // the sums over the lanes of each
    static void store_sums(float* p, const F (&a)[4]) {
        vst1q_f32(p, vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])));
    }
    // sqrt(max(a, 0)), correctly rounded
    static constexpr double root_error = 0x1p-24;
    static F root(F a) { return vsqrtq_f32(max(a, broadcast(0.0f))); }
    static float lowest_lane(F a) { return vminnmvq_f32(a); }
    static std::uint32_t at_most(F a, float limit) {
        constexpr std::uint32_t bit[W] = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(vcleq_f32(a, broadcast(limit)), vld1q_u32(bit)));
    }
    // the numbers of the lanes in `kept`, counted from `first`; W places are written
    static int pick(std::uint32_t kept, std::int32_t first, std::int32_t* numbers) {
        return pick_lanes<Neon>(kept, first, numbers);
    }
    static I where_less(F a, F b, I yes, I no) { return vbslq_s32(vcltq_f32(a, b), yes, no); }
};

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
