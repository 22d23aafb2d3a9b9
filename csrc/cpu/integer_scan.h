// The scan of cpu/nearest_code_scan.h by products of 16-bit integers, which processors multiply in pairs and add in
// 32 bits at up to twice the rate of fused multiply-adds.
//
// A row of coordinates v becomes integers q and a remainder: v = s q + v_r, s = l / 32767, l its length or a little
// more, so that |q| < 32768 and the products of two rows add up to less than 2^31, in any order and exactly. Of a
// score the scan computes a *lower bound*,
//
//   |c|^2/2 + l_c (s_x / 32767 q_x.q_c - E),   E = l_x (|x_r| / l_x + (1 + |x_r| / l_x) R + rounding),
//
// R the largest |c_r| / l_c: -x.c differs from the product of the integers by x_r.c + x_q.c_r, at most E l_c.
#pragma once

#include <cstdint>

#include "cpu/nearest_code_scan.h"

namespace vqk {

constexpr float integer_range = 32767;

// Some vectors as integers, the padding included.
struct IntegerRows {
    const std::int16_t* numbers;  // [rows][D], or D + 1 if that is odd
    const float* factor;          // [rows] s_x / 32767
    const float* less;            // [rows] E
};

// Some blocks of codes as integers, in the order of PackedCodes.
struct IntegerCodes {
    std::int32_t* pairs;  // [block][ceil(D/2)][V*W] two integers each
    float* length;        // [block][V*W] l_c
    float* bias;          // [block][V*W] |c|^2/2, less what it may be wrong by; +inf where there is no code
    std::int64_t blocks;
    int dim;
};

struct IntegerScan {
    double cost;  // of a multiply-add, in those of float32: measured or, where no such processor was at hand, by rate

    // Packs a block of codes as ScanKernel packs it, [D][V*W] and [V*W], to the first of `out`; returns the largest
    // |c_r| / l_c.
    float (*pack_codes)(const float* codes, const float* bias, const IntegerCodes& out);

    // Packs a negated vector [D] to out [D], or D + 1 if that is odd; l_x and |x_r| / l_x to length and rest.
    void (*pack_row)(const float* negated, int dim, std::int16_t* out, float* length, float* rest);

    // ScanKernel::scan over packed codes
    void (*scan)(const IntegerRows& rows, int count, const IntegerCodes& codes, int section_blocks,
                 std::int32_t section, LaneState state);

    // ScanKernel::append over packed codes
    void (*append)(const IntegerRows& rows, int count, const IntegerCodes& codes, std::int64_t begin,
                   std::int64_t end, const CandidateLists& lists);

    // multiply-adds of integers at full rate for about `rounds` iterations; returns operations, two each
    double (*spin)(std::int64_t rounds);
};

// Rounding errors of a score, relative to |c'|^2/2 + |x'||c'|: with u = 2^-24, 2u for rounding x' and c', (D/4 + 7)u
// for |c'|^2/2, 4u for either factor and remainder, and 7 roundings of the sum.
inline double integer_error(std::int64_t dim) {
    return 1.001 * (0.25 * double(dim) + 24) * 0x1p-24;
}

// E and s_x / 32767 of a vector
inline float integer_margin(std::int64_t dim, double length, double rest, double share) {
    return float(length * (rest + (1 + rest) * share + integer_error(dim)) * (1 + 0x1p-20));
}
inline float integer_factor(double length) {
    return float(length / (double(integer_range) * double(integer_range)));
}

}  // namespace vqk
