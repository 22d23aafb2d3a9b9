// Uninitialised arrays that start on a cache line: a vector load that straddles two costs twice.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace vqk {

struct AlignedDelete {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

template <class T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete>;

template <class T>
AlignedArray<T> make_aligned(std::size_t count) {
    return AlignedArray<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))));
}

}  // namespace vqk
