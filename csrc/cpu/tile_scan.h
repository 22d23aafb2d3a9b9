// The scan of cpu/nearest_code_scan.h by a matrix unit that multiplies tiles of bfloat16 and adds in float32.
//
// A coordinate v is split into bfloat16 parts: h the nearest to v, l the nearest to v - h. What the scan computes is
// one sum of products over *slots*, 32 to a tile, a score less all that it may be wrong by: a *lower bound* of the
// score.
//
//   products = 1    x_h c_h
//   products = 3    x_h c_h + x_h c_l + x_l c_h
//   either          1 b_0 + 1 b_1 + 1 b_2, the three parts of the bias    - A |c| - B |c - c_h|
#pragma once

#include <cstdint>

#include "cpu/nearest_code_scan.h"

namespace vqk {

struct TileScan {
    static constexpr int rows = 16, slots = 32;                   // of a tile of vectors
    static constexpr int tile = rows * slots;                     // its bfloat16 numbers; a tile of codes has as many
    static constexpr float absent = 3e38f;                        // a bias of +inf would make NaNs of its parts
    static constexpr int steps(std::int64_t dim, int products) {  // tiles a score takes
        return int((products * dim + 5 + slots - 1) / slots);
    }

    // Packs a block of codes as ScanKernel packs it, [D][V*W] and [V*W], to out [V][steps] tiles.
    void (*pack_codes)(const float* codes, const float* bias, int dim, int products, std::uint16_t* out);

    // Packs `count` negated vectors [count][D] to out [ceil(count / rows)][steps] tiles; rows behind the last are not
    // written.
    void (*pack_rows)(const float* negated, int count, int dim, int products, std::uint16_t* out);

    // ScanKernel::scan over packed tiles of `count` rows and `blocks` blocks
    void (*scan)(const std::uint16_t* rows, int count, const std::uint16_t* codes, std::int64_t blocks, int steps,
                 int section_blocks, std::int32_t section, LaneState state);

    // Multiply-adds of tiles at full rate for about `rounds` iterations; returns floating point operations. The
    // ceiling the scan is measured against.
    double (*spin)(std::int64_t rounds);
};

// Rounding errors of a score on tiles, relative to |c'|^2/2 + |x'||c'|. With u = 2^-24: the order of the sum of n
// terms is the hardware's own, (n - 1)u for any, doubled in case a step does not round to nearest; the parts of a
// bias lose u of it. The rest is as in a float32 scan: 2u for rounding x' and c', (D/4 + 7)u for |c'|^2/2.
static inline double tile_error(std::int64_t dim, int products) {
    return 1.001 * 1.04 * (2.0 * double(products * dim + 5) + 0.25 * double(dim) + 16) * 0x1p-24;
}

// A and B of a vector: the score of any code errs by at most A |c'| + B |c_r| + tile_error |c'|^2/2. With remainders
// x_r = x' - x_h and c_r = c' - c_h, one product leaves out x_r c' + x_h c_r; three leave out x_r c_r and what l
// leaves of either remainder, 2^-8 of it, times the other side. `rest` >= |x_r|.
struct Margins {
    double of_code, of_rest;
};
static inline Margins margins(std::int64_t dim, int products, double length, double rest) {
    const double rounding = tile_error(dim, products) * length, part = 1.01 * 0x1p-8;
    if (products == 1) return {rest + rounding, length + rest};
    return {part * rest + rounding, rest + part * length};
}

}  // namespace vqk
