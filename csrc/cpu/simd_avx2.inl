// The `Simd` type of cpu/nearest_code_scan.inl for AVX2 + FMA.
#pragma once

#include <immintrin.h>

#include "cpu/canonical_avx2.inl"
#include "cpu/in_turn.h"
#include "cpu/nearest_code_scan.inl"

namespace vqk {
namespace {

struct Avx2 {
    static constexpr int W = 8;
    using F = __m256;
    using I = __m256i;
    static constexpr auto canonical_sums = canonical_sums_avx2;
    static constexpr auto canonical_norms = canonical_norms_avx2;
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
    static I first(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static F load_part(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
    static void store_part(float* p, F a, int count) { _mm256_maskstore_ps(p, first(count), a); }
    static F broadcast(float a) { return _mm256_set1_ps(a); }
    // four dimensions of W rows, each a vector over the rows: a 4 x 4 transpose in each half of the registers
    static void columns(const float* const* rows, std::int64_t d, F (&column)[4]) {
        const auto two = [&](int i) {
            return _mm256_set_m128(_mm_loadu_ps(rows[i + 4] + d), _mm_loadu_ps(rows[i] + d));
        };
        const F a = two(0), b = two(1), c = two(2), e = two(3);
        const F ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
        const F ce_low = _mm256_unpacklo_ps(c, e), ce_high = _mm256_unpackhi_ps(c, e);
        column[0] = _mm256_shuffle_ps(ab_low, ce_low, 0x44);
        column[1] = _mm256_shuffle_ps(ab_low, ce_low, 0xee);
        column[2] = _mm256_shuffle_ps(ab_high, ce_high, 0x44);
        column[3] = _mm256_shuffle_ps(ab_high, ce_high, 0xee);
    }
    static F column(const float* const* rows, std::int64_t d) {
        alignas(32) float entries[W];
        for (int i = 0; i < W; ++i) entries[i] = rows[i][d];
        return load(entries);
    }
    static I load(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
    static void store(std::int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<I*>(p), a); }
    static I broadcast(std::int32_t a) { return _mm256_set1_epi32(a); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    template <class Sum>
    static Sum in_turn(Sum a) {
        return formed(a);
    }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static I add(I a, I b) { return _mm256_add_epi32(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static float sum(F a) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static constexpr int plain_queries = 3;  // and four codes: 12 sums
    // the sums over the lanes of each
    static void store_sums(float* p, const F (&a)[4]) {
        const F pairs = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
        _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
    }
    // sqrt(max(a, 0)) up to root_error; the minimum turns infinity * 0 back into infinity
    static constexpr double root_error = 1.5 * 0x1p-12 + 0x1p-23;
    static F root(F a) {
        const F positive = max(a, broadcast(std::numeric_limits<float>::min()));
        return min(_mm256_mul_ps(positive, _mm256_rsqrt_ps(positive)),
                   broadcast(std::numeric_limits<float>::infinity()));
    }
    static float lowest_lane(F a) {
        const __m128 four = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
    }
    static std::uint32_t at_most(F a, float limit) {
        return std::uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_set1_ps(limit), _CMP_LE_OQ)));
    }
    // the numbers of the lanes in `kept`, counted from `first`; W places are written
    static int pick(std::uint32_t kept, std::int32_t first, std::int32_t* numbers) {
        return pick_lanes<Avx2>(kept, first, numbers);
    }
    static I where_less(F a, F b, I yes, I no) {
        return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
    }
};

}  // namespace
}  // namespace vqk
