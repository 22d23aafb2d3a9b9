// W lanes of float or double for code that is compiled once per instruction set: compiler vector types, on which + -
// * / and comparisons work lane by lane. What the compiler cannot be trusted to find is left to a derived type, which
// the file of the instruction set provides: fma, sqrt, min and max.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace vqk {
namespace {

template <class T, int W>
struct VectorOf {
    typedef T type __attribute__((vector_size(W * sizeof(T))));
};

template <class RealType, int Width>
struct Lanes {
    static constexpr int W = Width;
    using Real = RealType;
    using Int = std::conditional_t<sizeof(Real) == 4, std::int32_t, std::int64_t>;
    using F = typename VectorOf<Real, W>::type;
    using I = typename VectorOf<Int, W>::type;

    static F load(const Real* p) {
        F a;
        std::memcpy(&a, p, sizeof a);
        return a;
    }
    static void store(Real* p, F a) { std::memcpy(p, &a, sizeof a); }
    static F broadcast(Real a) { return a - F{}; }  // a + 0 would not be a for a = -0
    static F where(I condition, F yes, F no) { return condition ? yes : no; }

    // the same tree of additions on every instruction set of equal W
    static Real sum(F a) {
        return fold(a, [](auto x, auto y) { return x + y; });
    }
    static Real lowest(F a) {
        return fold(a, [](auto x, auto y) { return x < y ? x : y; });
    }
    static Real highest(F a) {
        return fold(a, [](auto x, auto y) { return x > y ? x : y; });
    }

  private:
    template <class Vector, class Combine>
    static Real fold(Vector a, Combine combine) {
        constexpr int lanes = sizeof(Vector) / sizeof(Real);
        if constexpr (lanes == 2) {
            return combine(Real(a[0]), Real(a[1]));
        } else {
            typename VectorOf<Real, lanes / 2>::type half[2];
            std::memcpy(half, &a, sizeof a);
            return fold(combine(half[0], half[1]), combine);
        }
    }
};

// Logarithms of numbers that count as 0: far below what rounding leaves of a sum they could be part of, far above
// those whose products are denormal, which processors handle slowly.
template <class Real>
constexpr Real log_zero = sizeof(Real) == 4 ? Real(-64) : Real(-600);

// e^a for -1000 <= a <= 0, or 0 below log_zero. With a = n ln 2 + r, |r| <= ln(2)/2, it is 2^n times the Taylor
// polynomial of e^r, whose remainder is below r^(terms+1) e^r / (terms+1)!: 7e-9 for float, 3e-16 for double. With
// the rounding of r and of the polynomial the relative error stays below 2^-22 and 2^-51.
template <class L>
inline typename L::F exp_of(typename L::F a) {
    using Real = typename L::Real;
    using Int = typename L::Int;
    constexpr bool single = sizeof(Real) == 4;
    constexpr int mantissa = std::numeric_limits<Real>::digits - 1, terms = single ? 7 : 12;
    constexpr Real log2e = Real(1.44269504088896340736);
    // ln 2 in two parts: n * high is exact for every n that occurs
    constexpr Real high = single ? Real(0.693359375) : Real(0x1.62e42fep-1);
    constexpr Real low = single ? Real(-2.12194440054690583e-4) : Real(0x1.f473de6af278fp-30);
    constexpr Real magic = single ? Real(0x1.8p23) : Real(0x1.8p52);  // adding it rounds to an integer
    constexpr Int bias = std::numeric_limits<Real>::max_exponent - 1;

    const auto shifted = L::fma(a, L::broadcast(log2e), L::broadcast(magic));
    const auto n = shifted - magic;
    const auto r = L::fma(n, L::broadcast(-low), L::fma(n, L::broadcast(-high), a));

    Real coefficient[terms + 1] = {1};
    for (int i = 1; i <= terms; ++i) coefficient[i] = coefficient[i - 1] / Real(i);
    auto e = L::broadcast(coefficient[terms]);
    for (int i = terms - 1; i >= 0; --i) e = L::fma(e, r, L::broadcast(coefficient[i]));

    typename L::I bits;
    Int magic_bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    std::memcpy(&magic_bits, &magic, sizeof magic_bits);
    bits = (bits - magic_bits + bias) << mantissa;
    typename L::F power;
    std::memcpy(&power, &bits, sizeof power);
    return L::where(a > log_zero<Real>, e * power, typename L::F{});
}

}  // namespace
}  // namespace vqk
