// Runs CUDA kernels on the host, for tests: the part of the CUDA language that csrc/cuda uses, as plain C++.
//
// Blocks run one after the other. Every thread of a block is a fiber (a stack of its own, switched by hand), which
// runs until it waits for others: at __syncthreads, or in a warp shuffle. So a forgotten barrier is not a matter of
// luck: a thread reads what its neighbours have not yet written, the same way in every run. Every other block takes
// the opposite extremes: its threads run from last to first, and asynchronous copies happen at once instead of at the
// wait. A barrier that not all threads reach ends the program.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // one block at a time
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

namespace emulation {

constexpr std::size_t stack_bytes = 64 * 1024;
constexpr unsigned warp_size = 32;

struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    bool done = false;
    std::vector<Copy> copies;  // asynchronous ones that nobody has waited for yet
};

struct Barrier {
    unsigned expected = 0, arrived = 0;
    unsigned long phase = 0;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Barrier> warps;
    std::vector<std::uint64_t> exchanged;  // a value per thread, for shuffles
    Barrier all;
    Fiber* current = nullptr;
    ucontext_t scheduler;
    bool progress = false;
    bool opposite = false;  // see above
    std::function<void()> kernel;
};
inline Block block;

inline void yield() {
    swapcontext(&block.current->context, &block.scheduler);
}

inline void wait(Barrier& barrier) {
    const unsigned long phase = barrier.phase;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.phase;
        block.progress = true;
    }
    while (barrier.phase == phase) yield();
}

inline void fiber_main() {
    block.kernel();
    block.current->done = block.progress = true;
    yield();
}

// lets every thread of a warp run until it waits; whether there was one that had not finished
inline bool resume(unsigned warp) {
    bool running = false;
    const unsigned begin = warp * warp_size, count = block.warps[warp].expected;
    for (unsigned i = 0; i < count; ++i) {
        threadIdx.x = begin + (block.opposite ? count - 1 - i : i);
        Fiber& fiber = block.fibers[threadIdx.x];
        if (fiber.done) continue;
        running = true;
        block.current = &fiber;
        swapcontext(&block.scheduler, &fiber.context);
    }
    return running;
}

// the threads of one block, from first to last instruction; a warp goes as far as it can alone
inline void run_block() {
    const unsigned threads = unsigned(block.fibers.size());
    block.opposite = !block.opposite;
    block.all = {threads};
    block.warps.assign((threads + warp_size - 1) / warp_size, {});
    for (unsigned t = 0; t < threads; ++t) ++block.warps[t / warp_size].expected;
    for (Fiber& fiber : block.fibers) {
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        makecontext(&fiber.context, fiber_main, 0);
    }
    for (bool running = true; running;) {
        running = false;
        bool progress = false;
        for (unsigned w = 0; w < block.warps.size(); ++w) {
            const unsigned warp = block.opposite ? unsigned(block.warps.size()) - 1 - w : w;
            do {
                block.progress = false;
                running |= resume(warp);
                progress |= block.progress;
            } while (block.progress);
        }
        if (running && !progress) {
            std::fprintf(stderr, "threads of a block wait for each other at different places\n");
            std::abort();
        }
    }
}

template <class T>
T shuffle(T value, unsigned lane) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    const unsigned thread = threadIdx.x, warp = thread / warp_size;
    std::memcpy(&block.exchanged[thread], &value, sizeof value);
    wait(block.warps[warp]);
    std::memcpy(&value, &block.exchanged[warp * warp_size + lane], sizeof value);
    wait(block.warps[warp]);  // nobody overwrites what another has yet to read
    return value;
}

}  // namespace emulation

inline void __syncthreads() {
    emulation::wait(emulation::block.all);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulation::shuffle(value, (threadIdx.x % emulation::warp_size) ^ unsigned(mask));
}

template <class T>
T atomicAdd(T* to, T value) {
    return std::exchange(*to, *to + value);
}
template <class T>
T atomicMax(T* to, T value) {
    return std::exchange(*to, std::max(*to, value));
}
template <class T>
T atomicMin(T* to, T value) {
    return std::exchange(*to, std::min(*to, value));
}

// correctly rounded, given a compiler that does not contract; fminf and the like come from <cmath>
inline double __dadd_rn(double a, double b) {
    return a + b;
}
inline double __dsub_rn(double a, double b) {
    return a - b;
}
inline double __dmul_rn(double a, double b) {
    return a * b;
}
inline double __ddiv_rn(double a, double b) {
    return a / b;
}
inline double __dsqrt_rn(double a) {
    return std::sqrt(a);
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline long long __double_as_longlong(double value) {
    long long bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
using std::isfinite;
using std::isnan;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

inline cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
    return "invalid configuration argument";
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    using emulation::block;
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    block.fibers = std::vector<emulation::Fiber>(blockDim.x);
    block.exchanged.assign((blockDim.x + 31) / 32 * 32, 0);
    block.kernel = [&] { kernel(arguments...); };
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) emulation::run_block();
    }
    return cudaSuccess;
}
