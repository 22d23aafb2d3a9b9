// The `Simd` type of cpu/nearest_code_scan.inl for NEON on AArch64.
#pragma once

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
    static F mul(F a, F b) { return vmulq_f32(a, b); }
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

}  // namespace
}  // namespace vqk
