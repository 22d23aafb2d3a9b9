// The pass over all pairs of a code and a vector that finds out which vectors a code might draw.
#pragma once

#include <cstdint>

namespace vqk {

// Vectors in blocks of V*W, [block][D][V*W], and codes one by one. With q = x_bias + code_bias - x.c, the distance of
// a pair is the sum over levels of factor * q, or of factor * sqrt(q).
struct DrawLevel {
    const float* x;          // [blocks][D][V*W]
    const float* x_bias;     // [blocks][V*W]; infinite for what takes no part
    const float* negated;    // [codes][D] -c
    const float* code_bias;  // [codes]
    int dim;
    float factor;
    bool root;
};

struct DrawPass {
    const DrawLevel* levels;
    int count;
    const std::uint32_t* row_number;   // [blocks][V*W]
    const std::uint32_t* code_number;  // [codes]
};

// Evaluates a pair; returns the bound that a pair has to keep from now on to be of interest to the code.
using Offer = float (*)(void* judge, std::int64_t code, std::int64_t row);

struct DrawKernel {
    int codes, block_rows;  // codes per tile; V*W

    // Offers every pair of codes [begin, end) and blocks [from, to) whose distance less the largest noise it can have
    // is at most bound[code], which the offers move. Codes are in whole tiles.
    void (*scan)(const DrawPass& pass, std::int64_t begin, std::int64_t end, std::int64_t from, std::int64_t to,
                 float* bound, Offer offer, void* judge);
};

const DrawKernel& draw_portable();
#if VQK_X86
const DrawKernel& draw_avx2();
const DrawKernel& draw_avx512();
#endif
#if VQK_NEON
const DrawKernel& draw_neon();
#endif

namespace {

// What scatters the sum of a row's and a code's number; the draw is a function of it (see canonical_noise).
template <class Unsigned>
constexpr Unsigned scattered(Unsigned value) {
    value = (value ^ (value >> 16)) * 0x21F0AAADu;
    value = (value ^ (value >> 15)) * 0x735A2D97u;
    return value ^ (value >> 15);
}

}  // namespace

}  // namespace vqk
