// canonical_sums and canonical_norms for floats with AVX2: a lane per code, four dimensions transposed at a time.
#include <immintrin.h>

#include <cstdint>

#include "cpu/canonical.h"

namespace vqk {
namespace {

// dimensions d to d + 4 of four rows, each a vector over the rows
inline void load_columns(const float* const* rows, std::int64_t d, __m128 (&column)[4]) {
    for (int i = 0; i < 4; ++i) column[i] = _mm_loadu_ps(rows[i] + d);
    _MM_TRANSPOSE4_PS(column[0], column[1], column[2], column[3]);
}

inline __m128 load_column(const float* const* rows, std::int64_t d) {
    return _mm_setr_ps(rows[0][d], rows[1][d], rows[2][d], rows[3][d]);
}

// One quad on its way through the dimensions; `shared`: its pairs have one x.
template <bool shared>
struct QuadSum {
    const float* const* x;
    const float* const* codes;
    __m256d total = _mm256_setzero_pd();

    // multiply, then add: the canonical order has no fused step
    template <bool L2>
    void add_term(__m256d a, __m128 code) {
        const __m256d b = _mm256_cvtps_pd(code), difference = _mm256_sub_pd(a, b);
        total = L2 ? _mm256_add_pd(total, _mm256_mul_pd(difference, difference))
                   : _mm256_sub_pd(total, _mm256_mul_pd(a, b));
    }
    template <bool L2>
    void add_four(std::int64_t d) {
        __m128 c[4];
        load_columns(codes, d, c);
        if constexpr (shared) {
            const __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x[0] + d));
            add_term<L2>(_mm256_permute4x64_pd(a, 0x00), c[0]);
            add_term<L2>(_mm256_permute4x64_pd(a, 0x55), c[1]);
            add_term<L2>(_mm256_permute4x64_pd(a, 0xaa), c[2]);
            add_term<L2>(_mm256_permute4x64_pd(a, 0xff), c[3]);
        } else {
            __m128 a[4];
            load_columns(x, d, a);
            for (int i = 0; i < 4; ++i) add_term<L2>(_mm256_cvtps_pd(a[i]), c[i]);
        }
    }
    template <bool L2>
    void add_one(std::int64_t d) {
        const __m256d a = shared ? _mm256_set1_pd(double(x[0][d])) : _mm256_cvtps_pd(load_column(x, d));
        add_term<L2>(a, load_column(codes, d));
    }
};

// two at a time, because the additions of one wait for each other
template <bool L2, bool shared>
void sum_two(const float* const* x, const float* const* codes, int first, int second, std::int64_t dim,
             double* sums) {
    QuadSum<shared> a{x + first, codes + first}, b{x + second, codes + second};
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
        a.template add_four<L2>(d);
        b.template add_four<L2>(d);
    }
    for (; d < dim; ++d) {
        a.template add_one<L2>(d);
        b.template add_one<L2>(d);
    }
    _mm256_storeu_pd(sums + first, a.total);
    _mm256_storeu_pd(sums + second, b.total);
}

template <bool L2>
void sum_quads(const float* const* x, const float* const* codes, int quads, std::int64_t dim, double* sums) {
    for (int q = 0; q < quads; q += 2) {
        const int first = q * quad, second = q + 1 < quads ? first + quad : first;
        const bool shared = one_x(x + first) && one_x(x + second);
        (shared ? sum_two<L2, true> : sum_two<L2, false>)(x, codes, first, second, dim, sums);
    }
}

void canonical_sums_avx2(const float* const* x, const float* const* codes, int quads, std::int64_t dim, bool l2,
                         double* sums) {
    if (l2) return sum_quads<true>(x, codes, quads, dim, sums);
    return sum_quads<false>(x, codes, quads, dim, sums);
}

void canonical_norms_avx2(const float* const* v, std::int64_t dim, double* norms) {
    __m256d total = _mm256_setzero_pd();
    const auto add = [&](__m128 entries) {
        const __m256d wide = _mm256_cvtps_pd(entries);
        total = _mm256_add_pd(total, _mm256_mul_pd(wide, wide));
    };
    std::int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
        __m128 column[4];
        load_columns(v, d, column);
        for (const __m128 entries : column) add(entries);
    }
    for (; d < dim; ++d) add(load_column(v, d));
    _mm256_storeu_pd(norms, _mm256_sqrt_pd(total));
}

}  // namespace
}  // namespace vqk
