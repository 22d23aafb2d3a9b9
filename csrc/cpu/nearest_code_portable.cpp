// Scan in plain C++ on small fixed arrays, for any compiler and processor; loops of 4 vectorise on SSE2 and NEON.
#include "cpu/canonical.h"
#include "cpu/nearest_code_scan.inl"

namespace vqk {
namespace {

struct Portable {
    static constexpr int W = 4;
    struct F {
        float lane[W];
    };
    struct I {
        std::int32_t lane[W];
    };
    static constexpr auto canonical_sums = vqk::canonical_sums<float>;
    static constexpr auto canonical_norms = vqk::canonical_norms<float>;
    static F load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static void store(float* p, F a) {
        for (int i = 0; i < W; ++i) p[i] = a.lane[i];
    }
    static F load_part(const float* p, int count) {
        F a{};
        for (int i = 0; i < count; ++i) a.lane[i] = p[i];
        return a;
    }
    static void store_part(float* p, F a, int count) {
        for (int i = 0; i < count; ++i) p[i] = a.lane[i];
    }
    static F broadcast(float a) { return {{a, a, a, a}}; }
    static void columns(const float* const* rows, std::int64_t d, F (&column)[4]) {
        for (int i = 0; i < 4; ++i) column[i] = Portable::column(rows, d + i);
    }
    static F column(const float* const* rows, std::int64_t d) {
        return {{rows[0][d], rows[1][d], rows[2][d], rows[3][d]}};
    }
    static I load(const std::int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static void store(std::int32_t* p, I a) {
        for (int i = 0; i < W; ++i) p[i] = a.lane[i];
    }
    static I broadcast(std::int32_t a) { return {{a, a, a, a}}; }
    // rounds twice where the fused form rounds once; the error bound in nearest_code.cpp covers both
    static F fma(F a, F b, F c) {
        for (int i = 0; i < W; ++i) c.lane[i] += a.lane[i] * b.lane[i];
        return c;
    }
    static F in_turn(F a) { return a; }
    static F add(F a, F b) {
        for (int i = 0; i < W; ++i) a.lane[i] += b.lane[i];
        return a;
    }
    static F sub(F a, F b) {
        for (int i = 0; i < W; ++i) a.lane[i] -= b.lane[i];
        return a;
    }
    static F max(F a, F b) {
        for (int i = 0; i < W; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
        return a;
    }
    static F min(F a, F b) {
        for (int i = 0; i < W; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
        return a;
    }
    static float sum(F a) { return (a.lane[0] + a.lane[1]) + (a.lane[2] + a.lane[3]); }
    static constexpr int plain_queries = 2;
    // the sums over the lanes of each
    static void store_sums(float* p, const F (&a)[4]) {
        for (int i = 0; i < 4; ++i) p[i] = sum(a[i]);
    }
    // sqrt(max(a, 0)), correctly rounded
    static constexpr double root_error = 0x1p-24;
    static F root(F a) {
        for (int i = 0; i < W; ++i) a.lane[i] = std::sqrt(a.lane[i] > 0 ? a.lane[i] : 0.0f);
        return a;
    }
    static float lowest_lane(F a) {
        float low = a.lane[0];
        for (int i = 1; i < W; ++i) low = a.lane[i] < low ? a.lane[i] : low;
        return low;
    }
    static std::uint32_t at_most(F a, float limit) {
        std::uint32_t mask = 0;
        for (int i = 0; i < W; ++i) mask |= std::uint32_t(a.lane[i] <= limit) << i;
        return mask;
    }
    // the numbers of the lanes in `kept`, counted from `first`; W places are written
    static int pick(std::uint32_t kept, std::int32_t first, std::int32_t* numbers) {
        return pick_lanes<Portable>(kept, first, numbers);
    }
    static I where_less(F a, F b, I yes, I no) {
        for (int i = 0; i < W; ++i) no.lane[i] = a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i];
        return no;
    }
};

}  // namespace

const ScanKernel& scan_portable() {
    static const ScanKernel kernel = make_kernel<Portable, 4, 2>(Isa::portable);
    return kernel;
}

}  // namespace vqk
