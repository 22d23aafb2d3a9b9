// The passes over all pairs behind the soft assignment entropies. One side owns a pass: each of its vectors meets the
// whole other side, which streams by in a fixed order, so that a result never depends on threads or tiles.
#pragma once

#include <cstdint>

namespace vqk {

// The vectors of one side in blocks of V*W, [block][D][V*W].
template <class Real>
struct PackedSide {
    const Real* values;
    const Real* bias;  // [block][V*W] half the squared length (l2, euclidean) or 0; `absent` for what takes no part
    std::int64_t blocks;
};

// The score of a pair, half a squared distance or a negated product; t = score, or its square root if `root`.
// log2 p = slope (origin - t) + rest. The origin of a vector x is near the mean of its t, weighted with p; rest is
// what its log partition then asks for. So the difference is small wherever p is not, and tiny if all p are alike.
// In float the sides are packed in a scale in which slope = 1. All logarithms and entropies here are in bits.
template <class Real>
struct SoftPass {
    PackedSide<Real> x, codes;
    int dim;
    bool root;
    Real slope;                 // 1 in float
    Real floor;                 // log2 p is not taken below it
    bool floored;               // whether there is one
    Real least_t;               // pairs with a smaller t are the same point: no gradient (root)
    const Real* origin;         // [N padded]
    const Real* rest;           // [N padded]
    const Real* reach;          // [N padded] p is 0 unless t is less
    const Real* weight;         // [N padded] w
    const Real* bit_gain;       // [N padded] -a ln 2
    const Real* mean_gain;      // [N padded] sum_k p gain
    const Real* grad_assigned;  // [K padded] v
};

// All functions take owners [begin, end) and write one result for each; sums are of Real over a section of the
// streaming side, of double over sections. "gain" is d loss / d p = a A(log p) + w v, A = -(log p + 1) without a
// floor, up to a constant of the row.
template <class Real>
struct SoftKernel {
    int queries;      // Q: arrays reach this far past the last owner
    int block_codes;  // V*W

    // x owns: least t, log2 sum_k 2^(least - t) and entropy
    void (*normalize)(const SoftPass<Real>&, std::int64_t begin, std::int64_t end, double* least, double* log_sum,
                      double* entropy);
    // x owns: -sum_k p max(log2 p, floor)
    void (*floored_entropy)(const SoftPass<Real>&, std::int64_t begin, std::int64_t end, double* entropy);
    // x owns: sum_k p gain
    void (*mean_gain)(const SoftPass<Real>&, std::int64_t begin, std::int64_t end, double* sum);
    // codes own: sum_n w p
    void (*assign)(const SoftPass<Real>&, std::int64_t begin, std::int64_t end, double* sum);

    // With g = p (gain - mean gain), and h = g or g / t (root): sum h y over the streaming y [owners][D], sum h and
    // sum g log2 p, the last if x owns.
    using Pull = void (*)(const SoftPass<Real>&, std::int64_t begin, std::int64_t end, double* sums, double* total,
                          double* grad_log);
    Pull pull_x;      // x owns
    Pull pull_codes;  // codes own

    // exponentials at full rate for about `rounds` iterations: the ceiling the passes are measured against
    double (*spin_exp)(std::int64_t rounds);
};

// t of pairs that exist stays below 2^13 in float (see single_suffices in soft_entropy.cpp)
template <class Real>
constexpr Real absent = sizeof(Real) == 4 ? Real(0x1p20) : Real(1e300);

struct SoftKernels {
    SoftKernel<float> single;
    SoftKernel<double> wide;
};

const SoftKernels& soft_portable();
#if VQK_X86
const SoftKernels& soft_avx2();
const SoftKernels& soft_avx512();
#endif

}  // namespace vqk
