// The scan of cpu/nearest_code_scan.h by products of integers of 16 or 8 bits, which processors multiply at twice or
// four times the rate of fused multiply-adds.
//
// A row of coordinates v becomes integers q and a remainder: v = s q + v_r, with a step s of its own, so large that
// no sum of products of two rows passes the bits it is formed in. Sums are exact, in any order. Of a score the scan
// computes a *lower bound*,
//
//   |c|^2/2 + s_x s_c q_x.q_c - A |c| - B |c_r|,   A = |x_r| + rounding,  B = |x| + |x_r|:
//
// -x.c differs from the product of the integers by x_r.c + x_q.c_r.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/nearest_code_scan.h"

namespace vqk {

constexpr float unbounded = 1e30f;  // where 32 bits are enough for any sum

// How integers lie in lanes of 32 bits, and how large they may be.
struct IntegerFormat {
    int numbers;                    // of a lane: 2 of 16 bits, or 4 of 8
    int sums;                       // that a lane keeps apart while it adds: 1 of 32 bits, or 2 of 16
    int segment;                    // lanes that are added before sums are widened to 32 bits; 0: they have as many
    int offset;                     // of the numbers of vectors, where the instruction takes them without a sign
    float row_most, code_most;      // no number is larger
    float row_length, code_length;  // nor are those of one sum longer, taken as a vector
    int together = 1;               // lanes are multiplied so many at a time: a row has zeros behind its last
    int rows = 1;                   // and vectors: there is room to read that many from any of a panel

    constexpr int bits() const { return 32 / numbers; }
    constexpr int groups(int dim) const {
        const int lane = numbers * together;
        return (dim + lane - 1) / lane * together;
    }
    // lanes of a code: its numbers, and what the sums of each segment start from
    constexpr int lanes(int dim) const {
        const int groups = this->groups(dim);
        return groups + (offset == 0 ? 0 : segment == 0 ? 1 : (groups + segment - 1) / segment);
    }
    // which of the sums of a lane a dimension belongs to
    constexpr int sum_of(int d) const { return d % numbers * sums / numbers; }
    // whether a segment ends with dimension d of `dim`
    constexpr bool ends(int d, int dim) const {
        return d + 1 == dim || (segment != 0 && (d + 1) % (segment * numbers) == 0);
    }
    // dimensions of a sum, at most
    constexpr int terms(int dim) const { return segment == 0 ? dim : segment * numbers / sums; }
};

// Some vectors as integers, the padding included.
struct IntegerRows {
    const std::uint8_t* numbers;  // [rows][4 groups] bytes
    const float* step;            // [rows] s_x
    const float* less;            // [rows] -A
    const float* less_rest;       // [rows] -B
};

// Some blocks of codes as integers, in the order of PackedCodes.
struct IntegerCodes {
    std::int32_t* lanes;  // [block][lanes][V*W]
    float* step;          // [block][V*W] s_c
    float* length;        // [block][V*W] |c|, or a little more
    float* rest;          // [block][V*W] |c_r|, or a little more
    float* bias;          // [block][V*W] |c|^2/2, less what it may be wrong by; +inf where there is no code
    float* longest;       // [block][W] the largest |c| of a lane
    float* longest_rest;  // [block][W] and |c_r|
    std::int64_t blocks;
    int dim;
};

struct IntegerScan {
    IntegerFormat format;
    int width;  // lanes of a vector: W

    // Packs a block of codes as ScanKernel packs it, [D][V*W] and [V*W], to the first of `out`.
    void (*pack_codes)(const float* codes, const float* bias, const IntegerCodes& out);

    // Packs a negated vector [D] to out [4 groups]; also s_x, |x|, and |x_r| / |x|, the last two or a little more.
    void (*pack_row)(const float* negated, int dim, std::uint8_t* out, float* step, float* length, float* rest);

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
// for |c'|^2/2, 4u for either step and remainder, and 10 roundings of the sum. For cosine 4u and no |c'|^2/2.
static inline double integer_error(std::int64_t dim) {
    return 1.001 * (0.25 * double(dim) + 28) * 0x1p-24;
}

}  // namespace vqk
