// Exact nearest-code lookup on the CPU. See csrc/README.md for the numerics and the proof of the error bound.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "types.h"

namespace vqk {

struct ScanKernel;

// throws std::invalid_argument if this processor or build lacks the instruction set asked for
const ScanKernel& scan_kernel(Isa isa);

struct Lookup {
    const void* x;  // [N, G, D]
    DType x_type;
    const void* codebook;  // [G, K, D]
    DType codebook_type;
    std::int64_t n, g, k, d;
    Metric metric;
    int threads;
    Isa isa;
    std::int64_t* indices;        // [N, G]
    float* distance;              // [N, G]
    std::int64_t kept_bytes = 0;  // for codes that come again, and trees over them
};

// Returns the share of (vector, code) pairs that were scored: below 1 where boxes ruled codes out.
double nearest_code(const Lookup& call);

// Calls f(codebook, x) with the arrays of a lookup. The codebook comes as Value: itself if it already is, else a copy
// (exact: halves widen, float widens to double).
template <class Value, class F>
void with_codebook(const Lookup& call, F&& f) {
    with_dtype(call.codebook_type, [&](auto* type) {
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(type)>>;
        const auto* given = static_cast<const Input*>(call.codebook);
        std::vector<Value> copy;
        const Value* codebook = nullptr;
        if constexpr (std::is_same_v<Input, Value>) {
            codebook = given;
        } else {
            copy.resize(std::size_t(call.g * call.k * call.d));
            for (std::size_t i = 0; i < copy.size(); ++i) copy[i] = Value(widen(given[i]));
            codebook = copy.data();
        }
        with_dtype(call.x_type, [&](auto* x) { f(codebook, static_cast<decltype(x)>(call.x)); });
    });
}

// the same as double if either array is, else as float
template <class F>
void with_arrays(const Lookup& call, F&& f) {
    const bool wide = call.x_type == DType::f64 || call.codebook_type == DType::f64;
    wide ? with_codebook<double>(call, f) : with_codebook<float>(call, f);
}

}  // namespace vqk
