// The inner loop of the lookup: float32 scores of a panel of queries against packed codes, reduced to a few
// candidates per query. Instantiated once per instruction set by the *_avx512 / *_avx2 / *_portable files.
//
// Letters: Q queries per register tile, V vectors of W lanes per block of codes, D dimensions.
#pragma once

#include <cstdint>

#include "types.h"

namespace vqk {

struct IntegerScan;
struct TileScan;

// Packed codes: blocks of V*W codes, stored [block][D][V*W] so that one dimension of a block is V vector loads.
// `bias` [block][V*W] is the score of a code against the zero query; +inf in padding and non-finite codes.
struct PackedCodes {
    const float* codes;
    const float* bias;
    std::int64_t blocks;
    int dim;
};

// Codes as they are given, row by row, in blocks of V*W that nobody packed. The last block may be part of one: behind
// the last code the bias is +inf.
struct PlainCodes {
    const float* codes;   // [count][D]
    const float* factor;  // [block][V*W]
    const float* bias;    // [block][V*W]
    std::int64_t count;   // of codes, at least 1
    std::int64_t blocks;
    int dim;
};

// Bounding boxes of blocks, when a tree has ordered the codes, of negated coordinates like those of the vectors.
// Boxes are stored W to a group, [group][D][2][W]: the lower bounds of W boxes along a dimension, then their upper
// bounds. A place without a box holds +inf and -inf.
struct BoxTree {
    const float* leaves;  // a box per block
    const float* groups;  // a box per group of W leaves
    std::int64_t blocks;
    int dim;
};

// One level of a lookup whose score is a sum over levels (cpu/multilevel.h). All levels hold the same codes in the
// same places.
struct ScanLevel {
    PackedCodes codes;
    const float* negated;  // [rows][D_l]
    const float* half;     // [rows] |x'|^2 / 2, or less
    float factor;          // > 0
};

// What the scan of a query leaves behind, per lane l of W. A section is `section_blocks` consecutive blocks;
// the codes {l + W*j} of its blocks compete in lane l.
//   best[l]     lowest score seen in the lane
//   second[l]   lowest score among the *other* sections' minima of the lane
//   section[l]  where best[l] was seen
struct LaneState {
    float* best;            // [rows][W]
    float* second;          // [rows][W]
    std::int32_t* section;  // [rows][W]
};

// Which codes of each query can still be the nearest, read off its lanes.
struct Shortlist {
    float* threshold;         // [rows] no code with a higher score can
    std::uint8_t* ambiguous;  // [rows] some lane has such a code in another section than the recorded one
    std::int32_t* hits;       // [rows * W] row * W + lane whose recorded section has one, ascending
};

struct Candidate {
    float score;
    std::int32_t position;  // of the code
};

// For each query, the codes so far whose scores are not above a threshold of its own, by ascending position.
struct CandidateLists {
    float* threshold;     // [rows] finite or -inf
    Candidate* list;      // [rows][capacity]
    std::int32_t* count;  // [rows]
    std::int64_t capacity;
    // [rows] If given, one code is sought: what a score may be at most, and this, lowers the threshold.
    const float* slack = nullptr;
};

// Room for what scan_near finds out about the boxes of one query, for each block and W more.
struct NearRoom {
    std::int32_t *blocks, *groups;
    float* distances;
};

// The functions that are worth compiling once per instruction set. Codes and queries given
// as float64 use their plain templates instead (cpu/canonical.h, cpu/affine.h).
struct ScanKernel {
    Isa isa;
    Isa base;           // of what is done in float32 and float64: portable, avx2 or avx512
    int queries;        // Q: panels are padded to a multiple of this
    int lanes;          // W
    int block_codes;    // V*W
    double root_error;  // relative, of the square root of scan_levels

    // Packs one block: out[d][j] = codes[j][d] * factors[j] - shift[d], squares[j] = sum_d out[d][j]^2 with a
    // relative error of at most (D/4 + 6) 2^-24.
    void (*pack)(const float* const* codes, const float* factors, const float* shift, int dim, float* out,
                 float* squares);

    // out[d] = shift[d] - x[d] * factor; returns the sum of their squares with a relative error of at most (D + 6)
    // 2^-24
    float (*negate)(const float* x, float factor, const float* shift, int dim, float* out);

    // the largest |v_i| as bits, which order like magnitudes, with infinity and NaN on top
    std::uint32_t (*largest)(const float* v, std::int64_t count);

    // Scores of `rows` negated queries [rows][D] against all codes, folded into `state`. The first block begins
    // section `section`.
    void (*scan)(const float* negated, int rows, const PackedCodes& codes, int section_blocks, std::int32_t section,
                 LaneState state);

    // The same against codes as they are given: base [rows] + bias + factor * sum of products with queries [rows][D],
    // summed in any order. `rows` is any number.
    void (*scan_plain)(const float* queries, const float* base, int rows, const PlainCodes& codes, int section_blocks,
                       std::int32_t section, LaneState state);

    // squares[i] = sum_d (codes[i][d] * factor - shift[d])^2 of `count` codes [count][D] with a relative error of at
    // most (D + 6) 2^-24; not finite if a code is not
    void (*squares)(const float* codes, std::int64_t count, float factor, const float* shift, int dim,
                    float* squares);

    // Like scan with a score of sum over levels of factor * sqrt(q), or of factor * q if `squared`,
    // q = |c'|^2/2 - x'.c' + half.
    void (*scan_levels)(const ScanLevel* levels, int count, bool squared, int rows, int section_blocks,
                        LaneState state);

    // Like scan, but each query only against the blocks that can hold its nearest code; sections are single blocks.
    // Query r starts at block home[r] and needs every code with |x' - c'|^2 <= 2 best + reach[r], where best is the
    // lowest score it has met; a negative reach: nothing. Returns how many blocks were scored, over all queries.
    std::int64_t (*scan_near)(const float* negated, int rows, const PackedCodes& codes, const BoxTree& boxes,
                              const std::int32_t* home, const double* reach, const NearRoom& room, LaneState state);

    // `band` [rows]: how far above the lowest score the nearest code's may be; negative: the row is passed over.
    // Returns the number of hits.
    int (*shortlist)(const LaneState& state, int rows, const double* band, const Shortlist& list);

    // positions of the codes in blocks [begin, end) whose score is <= threshold, ascending; returns how many
    std::int64_t (*collect)(const float* negated, const PackedCodes& codes, std::int64_t begin, std::int64_t end,
                            float threshold, std::int64_t* found);

    // appends the codes in blocks [begin, end) to the lists of `rows` negated queries; there must be room for all
    void (*append)(const float* negated, int rows, const PackedCodes& codes, std::int64_t begin, std::int64_t end,
                   const CandidateLists& lists);

    // bounds[i] -= shift[i], or a little more; lists those that are then <= limit, W places more are written
    int (*lower_bounds)(float* bounds, const float* shift, int count, float limit, std::int32_t* open);

    // Scores [count][V*W] of some of the negated queries against one block, and the lowest of each [count]; `rows`
    // names a multiple of Q of them.
    void (*score_listed)(const float* negated, const std::int32_t* rows, int count, const PackedCodes& codes,
                         std::int64_t block, float* scores, float* lowest);

    // out[i] <= unit * sqrt(2 lowest[i] + rest[i]), and nearly that; W at a time
    void (*bound_distances)(const float* lowest, const float* rest, int count, float unit, float* out);

    // collect for one row of a lookup in levels
    std::int64_t (*collect_levels)(const ScanLevel* levels, int count, bool squared, int row, std::int64_t begin,
                                   std::int64_t end, float threshold, std::int64_t* found);

    // cpu/canonical.h
    void (*sums)(const float* const* x, const float* const* codes, int quads, std::int64_t dim, bool l2,
                 double* sums);
    void (*norms)(const float* const* v, std::int64_t dim, double* norms);

    // cpu/integer_scan.h, in 16 and in 8 bits, where products of integers are the faster ones
    const IntegerScan *words = nullptr, *bytes = nullptr;
    const TileScan* tiles = nullptr;  // cpu/tile_scan.h, where the processor has a matrix unit

    const ScanKernel* narrow = nullptr;  // with blocks of 16 codes, where those of this kernel are larger

    // fused multiply-adds at full rate for about `rounds` iterations: the ceiling the scan is measured against
    double (*spin_fma)(std::int64_t rounds);
};

// the kernel with the smallest blocks, where blocks are scanned one by one
inline const ScanKernel& narrow(const ScanKernel& kernel) {
    return kernel.narrow ? *kernel.narrow : kernel;
}

// Not to be called where the processor lacks the instruction set: it is what they are compiled with themselves.
const ScanKernel& scan_portable();
#if VQK_X86
const ScanKernel& scan_avx2();
const ScanKernel& scan_int16_avx2();
const ScanKernel& scan_int8_avx2();
const ScanKernel& scan_avx512();
#endif
#if VQK_AVXVNNI
bool avxvnni_supported();  // once the system has AVX2's registers
const ScanKernel& scan_int16_avxvnni();
const ScanKernel& scan_int8_avxvnni();
#endif
#if VQK_AVX512VNNI
const ScanKernel& scan_int16_avx512vnni();
const ScanKernel& scan_int8_avx512vnni();
#endif
#if VQK_NEON
const ScanKernel& scan_neon();
#endif
#if VQK_NEONDOT
const ScanKernel& scan_int8_neon();
#endif
#if VQK_AMX
const ScanKernel& scan_amx();
bool amx_permitted();  // by the processor and the system
#endif
#if VQK_AMXINT8
const ScanKernel& scan_int8_amx();
bool amx_int8_permitted();
#endif

}  // namespace vqk
