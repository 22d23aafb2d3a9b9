// The codebook as the scan wants it, in three launches: a shift, the extremes that fix the scale, the packed tiles.
#pragma once

#include "cuda/scan_data.cuh"

namespace vqk::cuda {

// One warp per group and dimension: the mean of a sample. Any shift is correct, a mean makes the error bound small.
__global__ void sample_shift(Lookup call, Workspace work) {
    constexpr std::int64_t sample = 2048;
    const std::int64_t group = blockIdx.x / call.d, d = blockIdx.x % call.d;
    const std::int64_t stride = call.k > sample ? call.k / sample : 1;
    double mean = 0, count = 0;
    for (std::int64_t code = threadIdx.x * stride; code < call.k; code += warp_lanes * stride) {
        const double value = code_of(call, group, code)[d];
        if (!isfinite(value)) continue;
        count += 1;
        mean += value / count - mean / count;  // a running mean cannot overflow where a sum could
    }
    double total = count;
    for (int mask = warp_lanes / 2; mask > 0; mask /= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
    mean *= total > 0 ? count / total : 0.0;
    for (int mask = warp_lanes / 2; mask > 0; mask /= 2) mean += __shfl_xor_sync(0xffffffffu, mean, mask);
    if (threadIdx.x != 0) return;
    CodeFacts& facts = work.facts[group];
    facts.shift[d] = mean;
    if (d != 0) return;
    facts.largest = facts.widest = 0;
    facts.least = to_bits(HUGE_VAL);
    facts.first = static_cast<unsigned long long>(call.k);
    if (group == 0) *work.open = 0;
}

// a thread of a block per code of a tile; the block's extremes go to the group's facts with one atomic each
__global__ void __launch_bounds__(tile_codes) inspect_codes(Lookup call, Workspace work) {
    __shared__ unsigned long long largest, least, first;
    const std::int64_t group = blockIdx.x / work.tiles;
    const std::int64_t index = blockIdx.x % work.tiles * tile_codes + threadIdx.x;
    if (threadIdx.x == 0) {
        largest = 0;
        least = to_bits(HUGE_VAL);
        first = static_cast<unsigned long long>(call.k);
    }
    __syncthreads();
    if (index < call.k) {
        const Vector code = code_of(call, group, index);
        double magnitude = 0;
        bool usable = true;
        for (std::int64_t d = 0; d < call.d; ++d) {
            usable &= isfinite(code[d]);
            magnitude = fmax(magnitude, fabs(code[d]));
        }
        const double norm = call.metric == Metric::cosine ? canonical_norm(code, call.d) : 0.0;
        if (usable && isfinite(norm)) {
            atomicMax(&largest, to_bits(magnitude));
            atomicMin(&first, static_cast<unsigned long long>(index));
            if (norm > 0) atomicMin(&least, to_bits(norm));
        }
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    atomicMax(&work.facts[group].largest, largest);
    atomicMin(&work.facts[group].least, least);
    atomicMin(&work.facts[group].first, first);
}

// the same blocks and threads: c' and the score of the zero query
__global__ void __launch_bounds__(tile_codes) pack_codes(Lookup call, Workspace work) {
    __shared__ unsigned long long widest;
    const std::int64_t group = blockIdx.x / work.tiles;
    const std::int64_t index = blockIdx.x % work.tiles * tile_codes + threadIdx.x;
    if (threadIdx.x == 0) widest = 0;
    __syncthreads();
    float* column = work.packed + std::int64_t(blockIdx.x) * (call.d + 1) * tile_codes + threadIdx.x;
    bool usable = index < call.k;
    double square = 0;
    if (usable) {
        const Vector code = code_of(call, group, index);
        const double norm = call.metric == Metric::cosine ? canonical_norm(code, call.d) : 0.0;
        const Affine affine = affine_of_code(work.facts[group], call.metric, norm);
        usable = isfinite(norm);
        for (std::int64_t d = 0; d < call.d; ++d) {
            usable &= isfinite(code[d]);
            const float value = affine(code[d], d);
            column[d * tile_codes] = value;
            square += double(value) * double(value);
        }
    }
    if (!usable) {
        for (std::int64_t d = 0; d < call.d; ++d) column[d * tile_codes] = 0.0f;
    } else {
        atomicMax(&widest, to_bits(square));
    }
    const double zero_score = call.metric == Metric::l2 ? 0.5 * square : 0.0;
    column[call.d * tile_codes] = usable ? float(zero_score) : HUGE_VALF;
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(&work.facts[group].widest, widest);
}

}  // namespace vqk::cuda
