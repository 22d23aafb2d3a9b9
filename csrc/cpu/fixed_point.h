// Sums that do not depend on their order: every addend is rounded to a multiple of 2^-s, and integers are added.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace vqk {

inline std::int64_t double_bits(double value) {
    std::int64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline double bits_to_double(std::int64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// the least e with |value| < 2^e, at least -1022
inline std::int64_t exponent_above(double value) {
    return (double_bits(value) >> 52 & 0x7ff) - 1022;
}

// bits of a multiple: 51, or as many fewer as keep the sum of `addends` multiples below 2^62;
// ops/code_range/README.md has the reasons
inline std::int64_t fixed_point_precision(std::int64_t addends) {
    const double others = double(std::max<std::int64_t>(addends - 1, 0));
    const std::int64_t headroom = std::max<std::int64_t>(exponent_above(others), 0);
    return std::min<std::int64_t>(62 - headroom, 51);
}

// s such that numbers below 2^exponent, as multiples of 2^-s, have this precision
inline std::int64_t fixed_point_shift(std::int64_t exponent, std::int64_t addends) {
    return std::min<std::int64_t>(fixed_point_precision(addends) - exponent, 1000);
}

inline double power_of_two(std::int64_t exponent) {
    return bits_to_double((exponent + 1023) << 52);
}

// accumulates addends of one shift; unsigned, because the running sum may wrap around and come back
struct FixedPoint {
    double scale;

    // rounds to nearest even: in [2^52, 2^53) the last bit of a float64 is worth 1
    static constexpr double offset = 0x1.8p52;

    // the multiple nearest to `value`, plus offset_bits(), which add up and are taken off at the end
    std::uint64_t operator()(double value) const { return std::uint64_t(double_bits(value * scale + offset)); }
    static std::uint64_t offset_bits() { return std::uint64_t(double_bits(offset)); }
};

}  // namespace vqk
