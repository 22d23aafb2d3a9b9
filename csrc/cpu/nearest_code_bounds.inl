// Bounds of distances that outlive a lookup (cpu/group_bounds.h).
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/nearest_code_tile.inl"

namespace vqk {
namespace {

// Takes `shift` off some bounds, and lists those that are then not above a limit.
template <class Simd>
int lower_bounds(float* bounds, const float* shift, int count, float limit, std::int32_t* open) {
    constexpr int W = Simd::W;
    // a difference that is rounded up is made smaller again, one that is not above 0 bounds nothing
    const auto less = Simd::broadcast(1 - 0x1p-22f), nothing = Simd::broadcast(0.0f);
    int listed = 0, i = 0;
    for (; i + W <= count; i += W) {
        const auto left = Simd::fma(Simd::sub(Simd::load(bounds + i), Simd::load(shift + i)), less, nothing);
        Simd::store(bounds + i, left);
        if (const auto kept = Simd::at_most(left, limit)) listed += Simd::pick(kept, i, open + listed);
    }
    if (i < count) {
        const auto before = Simd::load_part(bounds + i, count - i), by = Simd::load_part(shift + i, count - i);
        const auto left = Simd::fma(Simd::sub(before, by), less, nothing);
        Simd::store_part(bounds + i, left, count - i);
        const auto kept = Simd::at_most(left, limit) & ((1u << (count - i)) - 1);
        listed += Simd::pick(kept, i, open + listed);
    }
    return listed;
}

template <class Simd, int Q, int V>
void score_listed(const float* negated, const std::int32_t* rows, int count, const PackedCodes& codes,
                  std::int64_t block, float* scores, float* lowest) {
    constexpr int W = Simd::W;
    const int dim = codes.dim;
    const float *packed = codes.codes + block * dim * V * W, *bias = codes.bias + block * V * W;
    for (int i = 0; i < count; i += Q) {
        const float* x[Q];
        for (int q = 0; q < Q; ++q) x[q] = negated + std::int64_t(rows[i + q]) * dim;
        typename Simd::F score[Q][V];
        scores_of<Simd, Q, V>([&](int q, int d) { return x[q][d]; }, dim, packed, bias, score);
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) Simd::store(scores + std::int64_t(i + q) * V * W + v * W, score[q][v]);
            lowest[i + q] = Simd::lowest_lane(fold<Simd, V>(score[q]));
        }
    }
}

template <class Simd>
void bound_distances(const float* lowest, const float* rest, int count, float unit, float* out) {
    constexpr int W = Simd::W;
    // a root of nothing is sqrt(2^-126), or less; then three roundings, and one by the unit of a tiny number
    const auto two = Simd::broadcast(2.0f), some = Simd::broadcast(-0x1p-62f), nothing = Simd::broadcast(0.0f);
    const auto factor = Simd::broadcast(unit * float(1 - Simd::root_error - 0x1p-21));
    const auto least = Simd::broadcast(-std::numeric_limits<float>::min());
    const auto most = Simd::broadcast(std::numeric_limits<float>::max());
    for (int i = 0; i < count; i += W) {
        const auto square = Simd::fma(two, Simd::load(lowest + i), Simd::load(rest + i));
        const auto root = Simd::max(Simd::add(Simd::root(square), some), nothing);
        Simd::store(out + i, Simd::min(Simd::max(Simd::fma(root, factor, least), nothing), most));
    }
}

}  // namespace
}  // namespace vqk
