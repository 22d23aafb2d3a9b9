// Copies of codes and vectors, shifted and scaled, and their squares: what the scan reads.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/nearest_code_scan.h"

namespace vqk {
namespace {

// W codes at a time, four dimensions of them turned into vectors over the codes
template <class Simd, int V>
void pack(const float* const* codes, const float* factors, const float* shift, int dim, float* out, float* squares) {
    constexpr int W = Simd::W;
    for (int v = 0; v < V; ++v) {
        const auto factor = Simd::load(factors + v * W);
        auto square = Simd::broadcast(0.0f);
        const auto put = [&](typename Simd::F entries, int d) {
            const auto value = Simd::fma(entries, factor, Simd::broadcast(-shift[d]));
            Simd::store(out + (std::int64_t(d) * V + v) * W, value);
            return value;
        };
        int d = 0;
        for (; d + 4 <= dim; d += 4) {
            typename Simd::F column[4];
            Simd::columns(codes + v * W, d, column);
            auto part = Simd::broadcast(0.0f);  // short sums, added up: smaller rounding errors than one long sum
            for (int i = 0; i < 4; ++i) {
                const auto value = put(column[i], d + i);
                part = Simd::fma(value, value, part);
            }
            square = Simd::add(square, part);
        }
        for (; d < dim; ++d) {
            const auto value = put(Simd::column(codes + v * W, d), d);
            square = Simd::fma(value, value, square);
        }
        Simd::store(squares + v * W, square);
    }
}

template <class Simd>
float negate(const float* x, float factor, const float* shift, int dim, float* out) {
    constexpr int W = Simd::W;
    const auto scale = Simd::broadcast(-factor);
    auto square = Simd::broadcast(0.0f);
    int d = 0;
    for (; d + W <= dim; d += W) {
        const auto value = Simd::fma(Simd::load(x + d), scale, Simd::load(shift + d));
        Simd::store(out + d, value);
        square = Simd::fma(value, value, square);
    }
    if (d < dim) {
        const auto value = Simd::fma(Simd::load_part(x + d, dim - d), scale, Simd::load_part(shift + d, dim - d));
        Simd::store_part(out + d, value, dim - d);
        square = Simd::fma(value, value, square);
    }
    return Simd::sum(square);
}

// compiled here for the sake of the vector maximum
inline std::uint32_t largest(const float* v, std::int64_t count) {
    std::uint32_t high = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, v + i, sizeof bits);
        bits &= 0x7fffffffu;
        high = high > bits ? high : bits;
    }
    return high;
}

}  // namespace
}  // namespace vqk
