// In the place of the compiler's, for kernels of newer instruction sets than AVX2: SIMDe has most of AVX-512 in terms
// of AVX2, the rest follows Intel's manual. Every operation rounds as the processor's does; what has leave to be
// inexact is off by nearly as much as it may be.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tiles.h"

#if !defined(SIMDE_X86_AVX2_NATIVE) || !defined(SIMDE_X86_FMA_NATIVE) || defined(SIMDE_X86_AVX512F_NATIVE)
#error "expected AVX2 and FMA, and nothing newer: fused multiply-adds have to be the processor's own"
#endif

namespace emulated {

template <class To, class From>
inline To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// the numbers in a register
template <class T, int count>
struct Lanes {
    T at[count];

    template <class Vector>
    static Lanes of(const Vector& a) {
        return bits<Lanes>(a);
    }
    template <class Compute>
    static Lanes each(Compute compute) {
        Lanes a;
        for (int i = 0; i < count; ++i) a.at[i] = compute(i);
        return a;
    }
    void store(T* p, unsigned mask) const {
        for (int i = 0; i < count; ++i) {
            if (mask >> i & 1) p[i] = at[i];
        }
    }
};
using Floats = Lanes<float, 16>;

inline __m512 maskz_loadu(unsigned mask, const float* p) {
    return bits<__m512>(Floats::each([&](int i) { return mask >> i & 1 ? p[i] : 0.0f; }));
}

inline __m512 to_float(const __m512i& a) {
    const auto from = Lanes<std::int32_t, 16>::of(a);
    return bits<__m512>(Floats::each([&](int i) { return float(from.at[i]); }));
}

inline __m512d to_double(const __m256& a) {
    const auto from = Lanes<float, 8>::of(a);
    return bits<__m512d>(Lanes<double, 8>::each([&](int i) { return double(from.at[i]); }));
}

// half 0 or 1
inline __m256 half_of(const __m512& a, int half) {
    const Floats from = Floats::of(a);
    return bits<__m256>(Lanes<float, 8>::each([&](int i) { return from.at[8 * half + i]; }));
}

inline __m512i widened(const __m256i& a) {
    const auto from = Lanes<std::uint16_t, 16>::of(a);
    return bits<__m512i>(Lanes<std::uint32_t, 16>::each([&](int i) { return from.at[i]; }));
}

// the upper half meets the lower
template <class Combine>
inline float reduced(const __m512& a, Combine combine) {
    Floats part = Floats::of(a);
    for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) part.at[i] = combine(part.at[i + half], part.at[i]);
    }
    return part.at[0];
}

// off by 2^-14, less the rounding of the result, to the side that a bit of the argument names
inline __m512 rsqrt14(const __m512& a) {
    const Floats from = Floats::of(a);
    return bits<__m512>(Floats::each([&](int i) {
        const double side = bits<std::uint32_t>(from.at[i]) % 2 ? 1 : -1;
        return float((1 + side * (0x1p-14 - 0x1p-23)) / std::sqrt(double(from.at[i])));
    }));
}

// the nearest bfloat16, the even one of two; denormal numbers are taken for 0
inline std::uint16_t bfloat16(float a) {
    const auto word = bits<std::uint32_t>(a);
    if (a != a) return std::uint16_t(word >> 16 | 0x40);
    if ((word & 0x7f800000) == 0) return std::uint16_t(word >> 16 & 0x8000);
    return std::uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

inline __m256i to_bfloat16(const __m512& a) {
    const Floats from = Floats::of(a);
    return bits<__m256i>(Lanes<std::uint16_t, 16>::each([&](int i) { return bfloat16(from.at[i]); }));
}

inline __m512i to_bfloat16(const __m512& upper, const __m512& lower) {
    const Floats high = Floats::of(upper), low = Floats::of(lower);
    return bits<__m512i>(
        Lanes<std::uint16_t, 32>::each([&](int i) { return bfloat16(i < 16 ? low.at[i] : high.at[i - 16]); }));
}

}  // namespace emulated

// what SIMDe lacks
#define _mm512_maskz_loadu_ps(mask, p) emulated::maskz_loadu(mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) emulated::Floats::of(a).store(p, mask)
#define _mm256_mask_storeu_epi16(p, mask, a) emulated::Lanes<std::uint16_t, 16>::of(a).store(p, mask)
#define _mm512_cvtss_f32(a) emulated::Floats::of(a).at[0]
#define _mm512_cvtps_pd(a) emulated::to_double(a)
#define _mm512_extractf32x8_ps(a, half) emulated::half_of(a, half)
#define _mm512_cvtepi32_ps(a) emulated::to_float(a)
#define _mm512_cvtepu16_epi32(a) emulated::widened(a)
#define _mm512_reduce_add_ps(a) emulated::reduced(a, [](float x, float y) { return x + y; })
#define _mm512_reduce_min_ps(a) emulated::reduced(a, [](float x, float y) { return x < y ? x : y; })
#define _mm512_reduce_max_ps(a) emulated::reduced(a, [](float x, float y) { return x > y ? x : y; })
#define _mm512_rsqrt14_ps(a) emulated::rsqrt14(a)
#define _mm512_cvtneps_pbh(a) emulated::to_bfloat16(a)
#define _mm512_cvtne2ps_pbh(a, b) emulated::to_bfloat16(a, b)
#define _mm256_dpwssd_avx_epi32(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)
