// The passes over all pairs behind the soft assignment entropies. A batch of vectors x meets the codes chunk by
// chunk; what a pass computes of each pair of batch and chunk stays in the cache for the passes that follow.
#pragma once

#include <cstdint>

namespace vqk {

// The codes of a group, and what is the same for all pairs.
//
// The score of a pair is half a squared distance or a negated product; t = score, or its square root if `root`.
// In float both sides are given in a scale in which slope = 1. All logarithms and entropies here are in bits.
template <class Real>
struct SoftPass {
    const Real* codes;          // [block][D][V*W]
    const Real* bias;           // [block][V*W] half the squared length (l2, euclidean) or 0; `absent` if not there
    const Real* grad_assigned;  // [block][V*W] v
    const Real* turned;  // [D / Q][block][V*W][Q] the codes as `pull_x` meets them; the last D may be fewer than Q
    std::int64_t blocks;
    int dim;
    bool root;
    Real slope;    // 1 in float
    bool floored;  // log2 p is not taken below the floor
    Real floor;
    Real least_t;  // pairs with a smaller t are the same point: no gradient (root)
};

// What is known of a vector after some chunks.
template <class Real>
struct SoftTotal {
    Real least;   // t
    double z, l;  // sums of e = 2^(slope (least - t)) and of e log2 e, the logarithm not taken below `cut`
};

// Vectors x, a multiple of Q of them, and room for their pairs with a chunk of codes.
//
// log2 p = slope (origin - t) + rest. The origin of a vector is near the mean of its t, weighted with p; rest is what
// its log partition then asks for. So the difference is small wherever p is not, and tiny if all p are alike.
template <class Real>
struct SoftBatch {
    std::int64_t rows;
    const Real* negated;  // [rows][D + 1] -x, then -1
    const Real* turned;  // [(D + 1) / Q][rows][Q] x, then 1, as `pull_codes` meets it; the last D may be fewer than Q
    const Real* bias;    // [rows]
    const Real* weight;  // [rows] w

    SoftTotal<Real>* total;  // [rows]
    const Real* cut;         // [rows]
    const Real* least;       // [rows padded] t, of all codes
    const Real* share;       // [rows padded] w / z, with e relative to `least`
    Real* factor;            // [rows padded] scratch of `assign`

    const Real* origin;     // [rows]
    const Real* rest;       // [rows]
    const Real* reach;      // [rows] p is 0 unless t is less
    const Real* bit_gain;   // [rows] -a ln 2
    const Real* mean_gain;  // [rows] sum_k p gain

    bool keep;           // does a later pass want the pairs of this one?
    std::int64_t chunk;  // first block of the chunk that the arrays below are about
    Real* pairs;         // [block][rows][V*W]
    Real* low;           // [block][rows] the least t known when e was computed
    std::uint8_t* live;  // [block][rows / Q] is there any p > 0?

    Real* remembered;  // [rows / Q][blocks][Q][V*W] t of the pairs with all codes, or null: then they lie in `pairs`
    bool known;        // are they there already?
};

// All functions take blocks [from, to) of the chunk. Sums are of Real over at most a chunk of codes or a batch of
// vectors, of double beyond. "gain" is d loss / d p = a A(log p) + w v, A = -(log p + 1) without a floor, up to a
// constant of the vector.
template <class Real>
struct SoftKernel {
    using Pass = const SoftPass<Real>&;
    using Batch = const SoftBatch<Real>&;
    std::int64_t queries;      // Q
    std::int64_t block_codes;  // V*W
    std::int64_t vectors;      // V

    // pairs = e relative to `low`; adds to `total`. The second is for a floor, when the least t are known.
    void (*normalize)(Pass, Batch, std::int64_t from, std::int64_t to);
    void (*normalize_floored)(Pass, Batch, std::int64_t from, std::int64_t to);
    // sums [K padded] += sum_n w p, of pairs = e
    void (*assign)(Pass, Batch, std::int64_t from, std::int64_t to, double* sums);

    // pairs = t; sums [rows] += sum_k p gain
    void (*mean_gain)(Pass, Batch, std::int64_t from, std::int64_t to, double* sums);
    // With g = p (gain - mean gain): pairs = h, that is g or g / t (root), from pairs = t if `measured`;
    // total [rows] += sum_k h, grad_log [rows] += sum_k g log2 p
    void (*pull)(Pass, Batch, std::int64_t from, std::int64_t to, bool measured, double* total, double* grad_log);
    // sums [rows padded / W][D][W] += sum_k h c, of pairs = h
    void (*pull_x)(Pass, Batch, std::int64_t from, std::int64_t to, double* sums);
    // sums [block][D + 1][V*W] += sum_n h x, sum_n h, of pairs = h
    void (*pull_codes)(Pass, Batch, std::int64_t from, std::int64_t to, double* sums);

    // exponentials at full rate for about `rounds` iterations: the ceiling the passes are measured against
    double (*spin_exp)(std::int64_t rounds);
};

// t of pairs that exist stays below 2^13 in float (see single_suffices in soft_entropy_sides.h)
template <class Real>
constexpr Real absent = sizeof(Real) == 4 ? Real(0x1p20) : Real(1e300);

// [rows padded] and [rows] arrays reach so far past a batch: the widest vector
constexpr std::int64_t batch_padding = 16;

struct SoftKernels {
    SoftKernel<float> single;
    SoftKernel<double> wide;
};

const SoftKernels& soft_portable();
#if VQK_X86
const SoftKernels& soft_avx2();
const SoftKernels& soft_avx512();
#endif
#if VQK_NEON
const SoftKernels& soft_neon();
#endif

}  // namespace vqk
