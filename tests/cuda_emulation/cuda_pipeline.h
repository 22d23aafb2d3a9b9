// Asynchronous copies to shared memory: at the wait for them, or in every other block at once.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes) {
    if (emulation::block.opposite) {
        std::memcpy(to, from, bytes);
    } else {
        emulation::block.current->copies.push_back({to, from, bytes});
    }
}

inline void __pipeline_commit() {}

// the kernels wait for everything they have asked for
inline void __pipeline_wait_prior(int groups) {
    if (groups != 0) std::abort();
    for (const emulation::Copy& copy : emulation::block.current->copies) {
        std::memcpy(copy.to, copy.from, copy.bytes);
    }
    emulation::block.current->copies.clear();
}
