// The scan of few vectors against codes as they are given, which nobody has packed.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/nearest_code_tile.inl"

namespace vqk {
namespace {

// Sums of products of Q queries and four codes, D after D in each lane: out[q][j] is that of query q and code j.
template <class Simd, int Q>
inline void plain_sums(const float* queries, const float* const (&code)[4], int dim, float* out, int stride) {
    constexpr int W = Simd::W;
    typename Simd::F sum[Q][4];
    for (int q = 0; q < Q; ++q) {
        for (int j = 0; j < 4; ++j) sum[q][j] = Simd::broadcast(0.0f);
    }
    const auto add = [&](const auto& load, int d) {
        typename Simd::F x[Q];
        for (int q = 0; q < Q; ++q) x[q] = load(queries + std::int64_t(q) * dim + d);
        for (int j = 0; j < 4; ++j) {
            const auto c = load(code[j] + d);
            for (int q = 0; q < Q; ++q) sum[q][j] = Simd::in_turn(Simd::fma(x[q], c, sum[q][j]));
        }
    };
    int d = 0;
    for (; d + W <= dim; d += W) add([](const float* p) { return Simd::load(p); }, d);
    if (d < dim) add([&](const float* p) { return Simd::load_part(p, dim - d); }, d);
    for (int q = 0; q < Q; ++q) Simd::store_sums(out + q * stride, sum[q]);
}

// Folds the scores of Q queries and one section of codes into their lanes.
template <class Simd, int Q, int V>
inline void plain_section(const float* queries, const float* base, const PlainCodes& codes, std::int64_t begin,
                          std::int64_t end, std::int32_t section, int row, LaneState state) {
    constexpr int W = Simd::W, block_codes = V * W, together = 8;  // blocks
    float sums[Q][together * block_codes];
    typename Simd::F low[Q];
    for (int q = 0; q < Q; ++q) low[q] = Simd::broadcast(std::numeric_limits<float>::infinity());
    for (; begin < end; begin += together) {
        const std::int64_t first = begin * block_codes;
        const int here = int((end - begin < together ? end - begin : together) * block_codes);
        for (int i = 0; i < here; i += 4) {
            const float* code[4];
            for (int j = 0; j < 4; ++j) {
                const std::int64_t at = first + i + j < codes.count ? first + i + j : codes.count - 1;
                code[j] = codes.codes + at * codes.dim;
            }
            plain_sums<Simd, Q>(queries, code, codes.dim, &sums[0][i], together * block_codes);
        }
        for (int i = 0; i < here; i += W) {
            const auto factor = Simd::load(codes.factor + first + i), bias = Simd::load(codes.bias + first + i);
            for (int q = 0; q < Q; ++q) low[q] = Simd::min(low[q], Simd::fma(factor, Simd::load(&sums[q][i]), bias));
        }
    }
    for (int q = 0; q < Q; ++q) {
        Lanes<Simd> lanes;
        lanes.load(state, row + q);
        lanes.take(Simd::add(low[q], Simd::broadcast(base[q])), section);
        lanes.store(state, row + q);
    }
}

// The rest of the queries, fewer than Q + 1, by the tile that has so many.
template <class Simd, int Q, int V>
inline void plain_rest(const float* queries, const float* base, int rest, const PlainCodes& codes, std::int64_t begin,
                       std::int64_t end, std::int32_t section, int row, LaneState state) {
    if (rest == Q) return plain_section<Simd, Q, V>(queries, base, codes, begin, end, section, row, state);
    if constexpr (Q > 1) plain_rest<Simd, Q - 1, V>(queries, base, rest, codes, begin, end, section, row, state);
}

template <class Simd, int V>
void scan_plain(const float* queries, const float* base, int rows, const PlainCodes& codes, int section_blocks,
                std::int32_t section, LaneState state) {
    constexpr int Q = Simd::plain_queries;
    for (std::int64_t begin = 0; begin < codes.blocks; begin += section_blocks, ++section) {
        const std::int64_t end = begin + section_blocks < codes.blocks ? begin + section_blocks : codes.blocks;
        for (int row = 0, some; row < rows; row += some) {
            // alone, a query waits for its own sums
            some = (rows - row) % Q == 1 && rows - row > 1 ? Q - 1 : rows - row < Q ? rows - row : Q;
            plain_rest<Simd, Q, V>(queries + std::int64_t(row) * codes.dim, base + row, some, codes, begin, end,
                                   section, row, state);
        }
    }
}

template <class Simd>
void squares(const float* codes, std::int64_t count, float factor, const float* shift, int dim, float* squares) {
    constexpr int W = Simd::W;
    const auto scale = Simd::broadcast(-factor);
    for (std::int64_t i = 0; i < count; i += 4) {
        const float* code[4];
        typename Simd::F sum[4];
        for (int j = 0; j < 4; ++j) {
            code[j] = codes + (i + j < count ? i + j : count - 1) * dim;
            sum[j] = Simd::broadcast(0.0f);
        }
        const auto add = [&](const auto& load, int d) {
            const auto offset = load(shift + d);
            for (int j = 0; j < 4; ++j) {
                const auto value = Simd::fma(load(code[j] + d), scale, offset);
                sum[j] = Simd::fma(value, value, sum[j]);
            }
        };
        int d = 0;
        for (; d + W <= dim; d += W) add([](const float* p) { return Simd::load(p); }, d);
        if (d < dim) add([&](const float* p) { return Simd::load_part(p, dim - d); }, d);
        float four[4];
        Simd::store_sums(four, sum);
        for (int j = 0; j < 4 && i + j < count; ++j) squares[i + j] = four[j];
    }
}

}  // namespace
}  // namespace vqk
