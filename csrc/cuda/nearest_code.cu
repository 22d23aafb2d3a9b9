// Exact lookup in a fixed sequence of kernels on one stream, without a host synchronisation:
//
//   sample_shift, inspect_codes, pack_codes   the codebook, shifted and scaled, in tiles
//   scan<D>                                   float32 scores, reduced to a record per row
//   decide                                    float64 evaluation of the codes that the record leaves
//   decide_open                               the rows where it leaves too many
//
// Beyond `max_dim` dimensions there is no scan, and decide_open evaluates every code for every row.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <utility>

#include "cuda/decide.cuh"
#include "cuda/nearest_code.h"
#include "cuda/pack_codes.cuh"
#include "cuda/scan.cuh"

namespace vqk::cuda {
namespace {

std::int64_t blocks_of(std::int64_t items, std::int64_t size) {
    return (items + size - 1) / size;
}

// The workspace with its parts at their places behind `base`; returns its size.
std::int64_t lay_out(const Lookup& call, int multiprocessors, char* base, Workspace& work) {
    if (call.d > max_dim) return 0;
    constexpr std::int64_t waves = 16;       // blocks per multiprocessor that keep it busy to the end
    constexpr std::int64_t split_tiles = 8;  // fewer do not pay for loading the rows once more
    const std::int64_t rows = call.n * call.g;
    const std::int64_t row_blocks = std::max<std::int64_t>(1, blocks_of(call.n, block_rows) * call.g);
    work.tiles = blocks_of(call.k, tile_codes);
    const std::int64_t wanted = blocks_of(waves * multiprocessors, row_blocks);
    work.splits = int(std::clamp<std::int64_t>(work.tiles / split_tiles, 1, std::min<std::int64_t>(wanted, 64)));

    std::int64_t size = 0;
    auto take = [&](auto*& part, std::int64_t count) {
        part = reinterpret_cast<std::decay_t<decltype(part)>>(base + size);
        size += blocks_of(count * std::int64_t(sizeof *part), 16) * 16;
    };
    take(work.facts, call.g);
    take(work.open, 1);
    take(work.packed, call.g * work.tiles * (call.d + 1) * tile_codes);
    take(work.records, work.splits * rows);
    take(work.rows, rows);
    return size;
}

using Kernel = void (*)(Lookup, Workspace);

template <std::size_t... D>
constexpr std::array<Kernel, sizeof...(D)> scan_kernels(std::index_sequence<D...>) {
    return {scan<int(D) + 1>...};
}

// Launches kernels one after the other until one fails.
struct Queue {
    const Lookup& call;
    const Workspace& work;
    cudaStream_t stream;
    cudaError_t error = cudaSuccess;

    void launch(Kernel kernel, std::int64_t blocks, int threads, int splits = 1) {
        if (error != cudaSuccess) return;
        if (blocks > 0x7fffffff) {
            error = cudaErrorInvalidConfiguration;
            return;
        }
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(unsigned(blocks), unsigned(splits));
        config.blockDim = dim3(unsigned(threads));
        config.stream = stream;
        error = cudaLaunchKernelEx(&config, kernel, call, work);
    }
};

}  // namespace

std::int64_t workspace_bytes(const Lookup& call, int multiprocessors) {
    Workspace work{};
    return lay_out(call, multiprocessors, nullptr, work);
}

const char* nearest_code(const Lookup& call, void* workspace, const Place& place) {
    static constexpr auto scans = scan_kernels(std::make_index_sequence<max_dim>{});
    const std::int64_t rows = call.n * call.g;
    if (rows == 0) return nullptr;
    if (const cudaError_t error = cudaSetDevice(place.device)) return cudaGetErrorString(error);
    Workspace work{};
    lay_out(call, place.multiprocessors, static_cast<char*>(workspace), work);
    Queue queue{call, work, static_cast<cudaStream_t>(place.stream)};
    const std::int64_t resident = 4 * std::int64_t(place.multiprocessors);
    if (call.d > max_dim) {
        queue.launch(decide_open<false>, std::min(rows, 64 * resident), open_threads);
    } else {
        queue.launch(sample_shift, call.g * call.d, warp_lanes);
        queue.launch(inspect_codes, call.g * work.tiles, tile_codes);
        queue.launch(pack_codes, call.g * work.tiles, tile_codes);
        queue.launch(scans[call.d - 1], blocks_of(call.n, block_rows) * call.g, scan_threads, work.splits);
        queue.launch(decide, blocks_of(rows * code_lanes, decide_threads), decide_threads);
        queue.launch(decide_open<true>, resident, open_threads);
    }
    return queue.error == cudaSuccess ? nullptr : cudaGetErrorString(queue.error);
}

}  // namespace vqk::cuda
