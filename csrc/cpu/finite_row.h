// The largest magnitude in a row, and whether all of it is finite, in one pass over the bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "types.h"

namespace vqk {

template <class Value>
using BitsOf = std::conditional_t<sizeof(Value) == 8, std::int64_t,
                                  std::conditional_t<sizeof(Value) == 4, std::int32_t, std::int16_t>>;

// without the sign, the bits of numbers sort like their magnitudes, with infinity and NaN above the finite ones
template <class Value>
BitsOf<Value> magnitude_bits(Value value) {
    BitsOf<Value> bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & BitsOf<Value>(~(BitsOf<Value>(1) << (8 * sizeof bits - 1)));
}

template <class Value>
Value from_bits(BitsOf<Value> bits) {
    Value value;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}

// the largest magnitude; not finite if any entry is not
template <class Value>
double largest_magnitude(const Value* row, std::int64_t dim) {
    BitsOf<Value> largest = 0;
    for (std::int64_t d = 0; d < dim; ++d) largest = std::max(largest, magnitude_bits(row[d]));
    return double(widen(from_bits<Value>(largest)));
}

template <class Value>
double largest_magnitude(const Value* row, std::int64_t dim, double weight) {
    std::int64_t largest = 0;
    for (std::int64_t d = 0; d < dim; ++d)
        largest = std::max(largest, magnitude_bits(double(widen(row[d])) * weight));
    return from_bits<double>(largest);
}

template <class Value>
double largest_finite_magnitude(const Value* row, std::int64_t dim, double weight) {
    double largest = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
        const double magnitude = std::fabs(double(widen(row[d])) * weight);
        if (std::isfinite(magnitude)) largest = std::max(largest, magnitude);
    }
    return largest;
}

}  // namespace vqk
