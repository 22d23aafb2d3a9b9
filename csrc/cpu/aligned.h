// Memory by cache lines. Uninitialised arrays start on one: a vector load that straddles two costs twice.
#pragma once

#include <cstddef>
#include <cstdint>
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

// what lies anywhere in memory, all of it at once
template <class Value>
inline void prefetch(const Value* first, std::int64_t count) {
    constexpr std::int64_t line = 64 / sizeof(Value);
    for (std::int64_t i = 0; i < count; i += line) __builtin_prefetch(first + i);
}

}  // namespace vqk
