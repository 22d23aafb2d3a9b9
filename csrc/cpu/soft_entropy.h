// Soft assignments p_nk = softmax_k(-distance(x_n, c_k) / temperature): their entropies, their sums per code, and the
// gradients of both, without the N x K matrix. See vqkernels/ops/soft_assignment_entropy/README.md for the maths.
#pragma once

#include <cstdint>

#include "cpu/nearest_code.h"
#include "types.h"

namespace vqk {

enum class SoftMetric : int { l2 = 0, cosine = 1, dot = 2, euclidean = 3 };

// what both directions work on
struct SoftProblem {
    const void* x;  // [N, G, D]
    DType x_type;
    const void* codebook;  // [G, K, D]
    DType codebook_type;
    const double* weight;  // [N, G] >= 0; a vector of weight 0 is left out
    std::int64_t n, g, k, d;
    SoftMetric metric;
    double temperature;
    double floor;  // log p is not taken below it; -inf for plain entropies
    int threads;
    Isa isa;
};

struct SoftForward {
    double* least;     // [N, G] least distance (cosine: of -cos), as the passes see it
    double* log_sum;   // [N, G] log sum_k exp((least - distance) / temperature)
    double* entropy;   // [N, G] -sum_k p log max(p, e^floor)
    double* assigned;  // [G, K] sum_n weight p
    void* pairs;       // room for the distances of all pairs, `soft_pairs_bytes`, which the backward then need not
                       // measure again; or null
};

// What remembering all pairs takes: in float, unless an input is float64. 0 where to measure them again is as fast.
std::int64_t soft_pairs_bytes(const SoftProblem& problem);

// Returns how many groups needed float64 arithmetic.
int soft_forward(const SoftProblem& problem, const SoftForward& result);

struct SoftBackward {
    const double *least, *log_sum, *entropy;  // [N, G] as returned
    const double* grad_entropy;               // [N, G]
    const double* grad_assigned;              // [G, K]
    const void* pairs;                        // as the forward of the same problem left it, or null
    void* grad_x;                             // [N, G, D] float, or double for double x; or null
    void* grad_codebook;                      // [G, K, D] float, or double for a double codebook; or null
    double* grad_log;                         // [N, G] sum_k (d loss / d logit_k) logit_k; or null
};

void soft_backward(const SoftProblem& problem, const SoftBackward& result);

// Computes exponentials, float, for about `rounds` iterations as fast as the passes could; returns how many.
double spin_exp(Isa isa, std::int64_t rounds);

}  // namespace vqk
