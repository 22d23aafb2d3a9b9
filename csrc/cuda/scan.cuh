// The float32 scan: scores of all codes for every row, D fused multiply-adds and one minimum per pair.
//
// A thread holds `thread_rows` rows in registers and scores `lane_codes` neighbouring codes at a time, one 16-byte
// load of shared memory per dimension. Eight threads share their rows and divide each tile; their 32-code sections
// compete only when the tile is done, so that tracking where a minimum was seen costs next to nothing.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/scan_data.cuh"

namespace vqk::cuda {

constexpr int thread_rows = 8;
constexpr int scan_threads = 128;
constexpr int block_rows = scan_threads / code_lanes * thread_rows;

// blocks that fit on a multiprocessor of 64K registers, given those for rows, scores and records
constexpr int resident_blocks(int dim) {
    return dim <= 4 ? 4 : dim <= 9 ? 3 : 2;
}

// starts the copy of a packed tile to shared memory
template <int D>
__device__ inline void fetch_tile(float* tile, const float* packed) {
    constexpr int piece = 16 / sizeof(float);
    for (int i = threadIdx.x * piece; i < (D + 1) * tile_codes; i += scan_threads * piece) {
        __pipeline_memcpy_async(tile + i, packed + i, 16);
    }
    __pipeline_commit();
}

// low[r]: lowest score of row r among this thread's codes of a tile
template <int D>
__device__ inline void score_tile(const float* tile, const float (&negated)[thread_rows][D],
                                  float (&low)[thread_rows]) {
#pragma unroll 1
    for (int step = 0; step < tile_steps; ++step, tile += step_codes) {
        const float4 start = *reinterpret_cast<const float4*>(tile + D * tile_codes);
        float4 score[thread_rows];
#pragma unroll
        for (int r = 0; r < thread_rows; ++r) score[r] = start;
#pragma unroll
        for (int d = 0; d < D; ++d) {
            const float4 code = *reinterpret_cast<const float4*>(tile + d * tile_codes);
#pragma unroll
            for (int r = 0; r < thread_rows; ++r) {
                score[r].x = __fmaf_rn(negated[r][d], code.x, score[r].x);
                score[r].y = __fmaf_rn(negated[r][d], code.y, score[r].y);
                score[r].z = __fmaf_rn(negated[r][d], code.z, score[r].z);
                score[r].w = __fmaf_rn(negated[r][d], code.w, score[r].w);
            }
        }
#pragma unroll
        for (int r = 0; r < thread_rows; ++r) {
            // a NaN, from a row that is not finite, is passed over
            low[r] = fminf(low[r], fminf(fminf(score[r].x, score[r].y), fminf(score[r].z, score[r].w)));
        }
    }
}

// A block takes `block_rows` vectors of one group and one part of its codes.
template <int D>
__global__ void __launch_bounds__(scan_threads, resident_blocks(D)) scan(Lookup call, Workspace work) {
    alignas(16) __shared__ float tiles[2][(D + 1) * tile_codes];
    const int lane = threadIdx.x % code_lanes;
    const std::int64_t group = blockIdx.x % call.g;
    const std::int64_t first = blockIdx.x / call.g * block_rows + threadIdx.x / code_lanes * thread_rows;
    const std::int64_t begin = work.tiles * blockIdx.y / work.splits;
    const std::int64_t end = work.tiles * (blockIdx.y + 1) / work.splits;
    const float* packed = work.packed + group * work.tiles * (D + 1) * tile_codes;
    fetch_tile<D>(tiles[begin % 2], packed + begin * (D + 1) * tile_codes);

    float negated[thread_rows][D];
    Record record[thread_rows];
#pragma unroll
    for (int r = 0; r < thread_rows; ++r) {
        const std::int64_t n = first + r < call.n ? first + r : call.n - 1;
        const Vector x = vector_of(call, n * call.g + group);
        const double norm = call.metric == Metric::cosine ? canonical_norm(x, D) : 0.0;
        const Affine affine = affine_of_vector(work.facts[group], call.metric, norm);
#pragma unroll
        for (int d = 0; d < D; ++d) negated[r][d] = -affine(x[d], d);
        record[r] = {HUGE_VALF, HUGE_VALF, 0};
    }

    for (std::int64_t tile = begin; tile < end; ++tile) {
        __pipeline_wait_prior(0);
        __syncthreads();  // the tile is complete, and nobody reads the one before it any more
        if (tile + 1 < end) fetch_tile<D>(tiles[(tile + 1) % 2], packed + (tile + 1) * (D + 1) * tile_codes);
        float low[thread_rows];
#pragma unroll
        for (int r = 0; r < thread_rows; ++r) low[r] = HUGE_VALF;
        score_tile<D>(tiles[tile % 2] + lane * lane_codes, negated, low);
#pragma unroll
        for (int r = 0; r < thread_rows; ++r) {
            record[r].merge({low[r], HUGE_VALF, std::int32_t(tile * code_lanes + lane)});
        }
    }

#pragma unroll
    for (int r = 0; r < thread_rows; ++r) {
        for (int mask = code_lanes / 2; mask > 0; mask /= 2) {
            record[r].merge({__shfl_xor_sync(0xffffffffu, record[r].best, mask),
                             __shfl_xor_sync(0xffffffffu, record[r].second, mask),
                             __shfl_xor_sync(0xffffffffu, record[r].section, mask)});
        }
        if (lane == r && first + r < call.n) {
            work.records[(blockIdx.y * call.n + first + r) * call.g + group] = record[r];
        }
    }
}

}  // namespace vqk::cuda
