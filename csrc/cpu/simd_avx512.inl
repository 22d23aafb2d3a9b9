// The `Simd` type of cpu/nearest_code_scan.inl for AVX-512 (F, DQ, VL, BW).
#pragma once

#include <immintrin.h>

#include "cpu/canonical_avx2.inl"
#include "cpu/in_turn.h"
#include "cpu/nearest_code_scan.inl"

namespace vqk {
namespace {

struct Avx512 {
    static constexpr int W = 16;
    using F = __m512;
    using I = __m512i;
    static constexpr auto canonical_sums = canonical_sums_avx2;
    static constexpr auto canonical_norms = canonical_norms_avx2;
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static __mmask16 first(int count) { return __mmask16((1u << count) - 1); }
    static F load_part(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
    static void store_part(float* p, F a, int count) { _mm512_mask_storeu_ps(p, first(count), a); }
    static F broadcast(float a) { return _mm512_set1_ps(a); }
    // four dimensions of W rows, each a vector over the rows: a 4 x 4 transpose in every quarter of the registers
    static void columns(const float* const* rows, std::int64_t d, F (&column)[4]) {
        const auto four = [&](int i) {
            F a = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + d));
            a = _mm512_insertf32x4(a, _mm_loadu_ps(rows[i + 4] + d), 1);
            a = _mm512_insertf32x4(a, _mm_loadu_ps(rows[i + 8] + d), 2);
            return _mm512_insertf32x4(a, _mm_loadu_ps(rows[i + 12] + d), 3);
        };
        const F a = four(0), b = four(1), c = four(2), e = four(3);
        const F ab_low = _mm512_unpacklo_ps(a, b), ab_high = _mm512_unpackhi_ps(a, b);
        const F ce_low = _mm512_unpacklo_ps(c, e), ce_high = _mm512_unpackhi_ps(c, e);
        column[0] = _mm512_shuffle_ps(ab_low, ce_low, 0x44);
        column[1] = _mm512_shuffle_ps(ab_low, ce_low, 0xee);
        column[2] = _mm512_shuffle_ps(ab_high, ce_high, 0x44);
        column[3] = _mm512_shuffle_ps(ab_high, ce_high, 0xee);
    }
    static F column(const float* const* rows, std::int64_t d) {
        alignas(64) float entries[W];
        for (int i = 0; i < W; ++i) entries[i] = rows[i][d];
        return load(entries);
    }
    static I load(const std::int32_t* p) { return _mm512_loadu_si512(p); }
    static void store(std::int32_t* p, I a) { _mm512_storeu_si512(p, a); }
    static I broadcast(std::int32_t a) { return _mm512_set1_epi32(a); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    template <class Sum>
    static Sum in_turn(Sum a) {
        return formed(a);
    }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static float sum(F a) { return _mm512_reduce_add_ps(a); }
    static constexpr int plain_queries = 6;  // and four codes: 24 sums
    // the sums over the lanes of each
    static void store_sums(float* p, const F (&a)[4]) {
        const auto half = [](F all) {
            return _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
        };
        const __m256 pairs =
            _mm256_hadd_ps(_mm256_hadd_ps(half(a[0]), half(a[1])), _mm256_hadd_ps(half(a[2]), half(a[3])));
        _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
    }
    // sqrt(max(a, 0)) up to root_error; the minimum turns infinity * 0 back into infinity
    static constexpr double root_error = 0x1p-14 + 0x1p-23;
    static F root(F a) {
        const F positive = max(a, broadcast(std::numeric_limits<float>::min()));
        return min(_mm512_mul_ps(positive, _mm512_rsqrt14_ps(positive)),
                   broadcast(std::numeric_limits<float>::infinity()));
    }
    static float lowest_lane(F a) { return _mm512_reduce_min_ps(a); }
    static std::uint32_t at_most(F a, float limit) {
        return _mm512_cmp_ps_mask(a, _mm512_set1_ps(limit), _CMP_LE_OQ);
    }
    // the numbers of the lanes in `kept`, counted from `first`; W places are written
    static int pick(std::uint32_t kept, std::int32_t first, std::int32_t* numbers) {
        const I lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        store(numbers, _mm512_maskz_compress_epi32(__mmask16(kept), _mm512_add_epi32(lanes, broadcast(first))));
        return __builtin_popcount(kept);
    }
    static I where_less(F a, F b, I yes, I no) {
        return _mm512_mask_mov_epi32(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
    }
};

}  // namespace
}  // namespace vqk
