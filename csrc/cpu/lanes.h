// W lanes of float or double for code that is compiled once per instruction set: compiler vector types, on which + -
// * / and comparisons work lane by lane. What the compiler cannot be trusted to find is left to a derived type, which
// the file of the instruction set provides: fma, sqrt, min, max, any_less, and in_turn, which stops it from starting
// all products of a tile of sums before any is added, for want of registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

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

    // sums[i] += a[i]; a vector of doubles has room for half of the floats
    static void add_to(double* sums, F a) {
        constexpr int room = sizeof(Real) == 4 ? W / 2 : W;
        typename VectorOf<Real, room>::type part[W / room];
        std::memcpy(part, &a, sizeof a);
        for (int i = 0; i < W / room; ++i, sums += room) {
            typename VectorOf<double, room>::type sum;
            std::memcpy(&sum, sums, sizeof sum);
            sum += __builtin_convertvector(part[i], decltype(sum));
            std::memcpy(sums, &sum, sizeof sum);
        }
    }

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

    // lane i of vector j becomes lane j of vector i, for W vectors
    template <int group = W / 2>
    static void transpose(F* a) {
        constexpr auto lanes = std::make_index_sequence<W>{};
        for (int i = 0; i < W; ++i) {
            if (i & group) continue;
            const F low = exchange<group, 0>(a[i], a[i + group], lanes);
            a[i + group] = exchange<group, 1>(a[i], a[i + group], lanes);
            a[i] = low;
        }
        if constexpr (group > 1) transpose<group / 2>(a);
    }

  private:
    // of a and b, seen as groups of lanes, those of even or those of odd number, in turn
    template <int group, int odd, std::size_t... lane>
    static F exchange(F a, F b, std::index_sequence<lane...>) {
        constexpr auto from = [](int i) { return (i & ~group) + odd * group; };
        return F{(lane & group ? b[from(lane)] : a[from(lane)])...};
    }
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

// Powers of 2 that count as 0 (e^-64 and e^-600): far below what rounding leaves of a sum they could be part of, far
// above those whose products are denormal, which processors handle slowly.
template <class Real>
constexpr Real log2_zero = Real((sizeof(Real) == 4 ? -64 : -600) * 1.44269504088896340736);

// Coefficients of a polynomial for 2^r, |r| <= 1/2: the Taylor polynomial of one degree more, whose last term a
// multiple of the Chebyshev polynomial T(2r) takes away.
template <class Real, int degree>
struct Exp2Polynomial {
    Real coefficient[degree + 1] = {};

    constexpr Exp2Polynomial() {
        double taylor[degree + 2] = {1}, before[degree + 2] = {1}, chebyshev[degree + 2] = {0, 2};
        for (int i = 1; i <= degree + 1; ++i) taylor[i] = taylor[i - 1] * 0.69314718055994530942 / i;
        for (int n = 1; n <= degree; ++n) {
            // T_n+1(y) = 2 y T_n(y) - T_n-1(y), from above so that each is read before it is written
            for (int i = n + 1; i >= 0; --i) {
                const double next = (i > 0 ? 4 * chebyshev[i - 1] : 0) - before[i];
                before[i] = chebyshev[i];
                chebyshev[i] = next;
            }
        }
        const double share = taylor[degree + 1] / chebyshev[degree + 1];
        for (int i = 0; i <= degree; ++i) coefficient[i] = Real(taylor[i] - share * chebyshev[i]);
    }
};

// 2^a for a <= 1, or 0 below log2_zero; in float |a| < 2^22. a = n + r exactly, and n is added to the exponent of a
// polynomial in r, which is off by less than 7e-9 of 2^r in float, 2e-16 in double. With its rounding the relative
// error stays below 2^-22 and 2^-51.
template <class L>
inline typename L::F exp2_of(typename L::F a) {
    using Real = typename L::Real;
    constexpr bool single = sizeof(Real) == 4;
    constexpr int mantissa = std::numeric_limits<Real>::digits - 1, degree = single ? 6 : 11;
    constexpr Real magic = single ? Real(0x1.8p23) : Real(0x1.8p52);  // adding it rounds to an integer
    constexpr Exp2Polynomial<Real, degree> polynomial;

    const auto shifted = a + magic;
    const auto r = a - (shifted - magic);
    auto e = L::broadcast(polynomial.coefficient[degree]);
    for (int i = degree - 1; i >= 0; --i) e = L::fma(e, r, L::broadcast(polynomial.coefficient[i]));

    // the last bits of `shifted` are n, those above are shifted out
    typename L::I bits, n;
    std::memcpy(&bits, &e, sizeof bits);
    std::memcpy(&n, &shifted, sizeof n);
    bits += n << mantissa;
    std::memcpy(&e, &bits, sizeof e);
    return L::where(a > log2_zero<Real>, e, typename L::F{});
}

}  // namespace
}  // namespace vqk
