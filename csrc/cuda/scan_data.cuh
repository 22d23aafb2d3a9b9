// What the kernels of one lookup hand to each other: codes packed for the scan, what is known of them, and the
// records that the scan leaves per row. A row is one vector of one group; its number is n * G + g.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/canonical.cuh"
#include "cuda/nearest_code.h"

namespace vqk::cuda {

constexpr int max_dim = 16;      // the scan keeps its rows in registers
constexpr int tile_codes = 256;  // codes of a tile: what a block holds in shared memory
constexpr int code_lanes = 8;    // threads that share a row and divide a tile among them
constexpr int lane_codes = 4;    // neighbouring codes that a thread scores together
constexpr int step_codes = code_lanes * lane_codes;
constexpr int tile_steps = tile_codes / step_codes;

// Facts about the codes of one group. Non-negative floats and doubles order like their bits, so that integer atomics
// find extremes, in whatever order blocks arrive.
struct CodeFacts {
    double shift[max_dim];       // m, near the mean
    unsigned long long largest;  // bits of the largest |c_d|
    unsigned long long widest;   // bits of the largest |c'|^2
    unsigned long long least;    // bits of the smallest positive |c|, cosine only
    unsigned long long first;    // lowest index of a usable code, K if there is none
};

// What the scan found out about a row. A section is the part of a tile that one lane scores; only the winner of a
// section is compared with those of others.
struct Record {
    float best;            // lowest score
    float second;          // lowest score among the other sections' winners
    std::int32_t section;  // where best was seen: tile * code_lanes + lane

    __device__ void merge(const Record& other) {
        second = fminf(fminf(second, other.second), fmaxf(best, other.best));
        if (other.best < best) section = other.section;
        best = fminf(best, other.best);
    }
};

// a row that its record does not decide
struct OpenRow {
    std::int64_t row;
    double limit;  // no code with a higher score can be the nearest
};

struct Workspace {
    CodeFacts* facts;          // [G]
    unsigned long long* open;  // number of open rows
    float* packed;             // [G][tiles][D + 1][tile_codes]: c', then |c'|^2/2 (l2) or 0, +inf if not usable
    Record* records;           // [splits][N * G]
    OpenRow* rows;             // [N * G] in no particular order
    std::int64_t tiles;        // of a group
    int splits;                // parts of the codebook that are scanned apart
};

__device__ inline Vector vector_of(const Lookup& call, std::int64_t row) {
    return {call.x, call.x_type, row * call.d};
}

__device__ inline Vector code_of(const Lookup& call, std::int64_t group, std::int64_t code) {
    return {call.codebook, call.codebook_type, (group * call.k + code) * call.d};
}

__device__ inline double from_bits(unsigned long long bits) {
    return __longlong_as_double(static_cast<long long>(bits));
}

__device__ inline unsigned long long to_bits(double value) {
    return static_cast<unsigned long long>(__double_as_longlong(value));
}

// s, a power of two that brings the largest code entry near 1
__device__ inline double scale_of(const CodeFacts& facts, Metric metric) {
    if (metric == Metric::cosine) return 1.0;  // unit vectors need none
    const double largest = from_bits(facts.largest);
    int exponent = largest > 0 ? ilogb(largest) + 1 : 0;
    exponent = exponent < -1000 ? -1000 : exponent > 1000 ? 1000 : exponent;
    return ldexp(1.0, -exponent);
}

// x'_d = float((x_d - m_d) * factor), or c'_d
struct Affine {
    const double* shift;  // null: none
    double factor;

    __device__ float operator()(double value, std::int64_t d) const {
        return float((shift ? value - shift[d] : value) * factor);
    }
};

// of the vectors; `norm` is the canonical |x|, read for cosine only
__device__ inline Affine affine_of_vector(const CodeFacts& facts, Metric metric, double norm) {
    if (metric == Metric::cosine) return {nullptr, norm > 0 ? 1.0 / norm : 0.0};
    return {metric == Metric::l2 ? facts.shift : nullptr, scale_of(facts, metric)};
}

// of the codes
__device__ inline Affine affine_of_code(const CodeFacts& facts, Metric metric, double norm) {
    if (metric == Metric::cosine) return {nullptr, norm > 0 ? 1.0 / norm : 0.0};
    return {facts.shift, scale_of(facts, metric)};
}

}  // namespace vqk::cuda
