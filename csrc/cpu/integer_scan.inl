// Body of the scan by products of integers, written against a `Simd` type as cpu/nearest_code_scan.inl is, with
//
//   multiply_add(sum, a, b)  sum + a_0 b_0 + a_1 b_1, lanes of 32 bits that hold two integers of 16
//   from_integers(a)         lanes of 32 bits to float
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/integer_scan.h"
#include "cpu/nearest_code_scan.inl"

namespace vqk {
namespace {

// the integer nearest to a number below 2^22, as a float and as an integer: what is added leaves no bits below 1
struct Rounded {
    float value;
    std::int32_t integer;

    explicit Rounded(float v) {
        constexpr float shift = 0x1.8p23f;
        const float shifted = v + shift;
        value = shifted - shift;
        std::memcpy(&integer, &shifted, sizeof integer);
        integer -= 0x4b400000;
    }
};

inline std::int32_t pair_of(std::int32_t low, std::int32_t high) {
    return std::int32_t((std::uint32_t(high) << 16) | (std::uint32_t(low) & 0xffffu));
}

// l of a row: its length, or a little more. A sum of squares that underflows tells nothing: then sqrt(D) times the
// largest entry is no shorter. No row counts as shorter than 2^-80, whose factor is a normal number.
inline float length_over(float square, float largest, int dim) {
    const float length = square >= 0x1p-80f ? std::sqrt(square) : largest * std::sqrt(float(dim));
    return std::max(length * (1.0f + float(dim + 8) * 0x1p-24f), 0x1p-80f);
}

// |v_r| / l, or a little more: entries of the remainder are rounded by 2^-24 |v| twice. Where its squares may
// underflow, half a step in every dimension.
inline float rest_over(float rest_square, float length, int dim) {
    const float share =
        length < 0x1p-30f ? std::sqrt(float(dim)) * (0.51f / integer_range) : std::sqrt(rest_square) / length;
    return share * (1.0f + float(dim + 8) * 0x1p-24f) + 0x1p-22f;
}

template <class Simd, int V>
float pack_integer_codes(const float* codes, const float* bias, const IntegerCodes& out) {
    constexpr int block = V * Simd::W;
    const int dim = out.dim;
    float square[block] = {}, largest[block] = {}, rest[block] = {}, inverse[block], step[block];
    for (int d = 0; d < dim; ++d) {
        for (int j = 0; j < block; ++j) {
            const float v = codes[d * block + j];
            square[j] += v * v;
            largest[j] = std::max(largest[j], std::fabs(v));
        }
    }
    for (int j = 0; j < block; ++j) {
        out.length[j] = length_over(square[j], largest[j], dim);
        inverse[j] = integer_range / out.length[j];
        step[j] = out.length[j] * (1.0f / integer_range);
    }
    for (int d = 0; d < dim; d += 2) {
        std::int32_t* pairs = out.pairs + d / 2 * block;
        const float *even = codes + d * block, *odd = d + 1 < dim ? even + block : nullptr;
        for (int j = 0; j < block; ++j) {
            const Rounded q(even[j] * inverse[j]);
            const float left = even[j] - q.value * step[j];
            rest[j] += left * left;
            pairs[j] = pair_of(q.integer, 0);
        }
        for (int j = 0; odd && j < block; ++j) {
            const Rounded q(odd[j] * inverse[j]);
            const float left = odd[j] - q.value * step[j];
            rest[j] += left * left;
            pairs[j] |= pair_of(0, q.integer);
        }
    }
    const float less = float(1.0 - integer_error(dim) - 0x1p-22);
    float share = 0;
    for (int j = 0; j < block; ++j) {
        share = std::max(share, rest_over(rest[j], out.length[j], dim));
        out.bias[j] = bias[j] * less;
    }
    return share;
}

template <class Simd>
void pack_integer_row(const float* negated, int dim, std::int16_t* out, float* length, float* rest) {
    constexpr int W = Simd::W;
    const auto sum = [](const float (&part)[W]) {
        float total = 0;
        for (float one : part) total += one;
        return total;
    };
    float square[W] = {}, largest[W] = {}, left[W] = {};
    const auto measure = [&](int d, int count) {
        for (int j = 0; j < count; ++j) {
            square[j] += negated[d + j] * negated[d + j];
            largest[j] = std::max(largest[j], std::fabs(negated[d + j]));
        }
    };
    const int whole = dim / W * W;
    for (int d = 0; d < whole; d += W) measure(d, W);
    measure(whole, dim - whole);
    *length = length_over(sum(square), *std::max_element(largest, largest + W), dim);
    const float inverse = integer_range / *length, step = *length * (1.0f / integer_range);
    const auto round = [&](int d, int count) {
        for (int j = 0; j < count; ++j) {
            const Rounded q(negated[d + j] * inverse);
            const float rest_of = negated[d + j] - q.value * step;
            left[j] += rest_of * rest_of;
            out[d + j] = std::int16_t(q.integer);
        }
    };
    for (int d = 0; d < whole; d += W) round(d, W);
    round(whole, dim - whole);
    if (dim % 2) out[dim] = 0;
    *rest = rest_over(sum(left), *length, dim);
}

// Scores of Q vectors, from `row` on, against one block.
template <class Simd, int Q, int V>
inline void integer_scores(const IntegerRows& rows, int row, const IntegerCodes& codes, std::int64_t block,
                           typename Simd::F (&score)[Q][V]) {
    constexpr int W = Simd::W;
    const int depth = (codes.dim + 1) / 2;
    const std::int16_t* x = rows.numbers + std::int64_t(row) * depth * 2;
    const std::int32_t* c = codes.pairs + block * depth * V * W;
    typename Simd::I product[Q][V];
    for (int q = 0; q < Q; ++q) {
        for (int v = 0; v < V; ++v) product[q][v] = Simd::broadcast(std::int32_t(0));
    }
    for (int p = 0; p < depth; ++p) {
        typename Simd::I code[V];
        for (int v = 0; v < V; ++v) code[v] = Simd::load(c + (std::int64_t(p) * V + v) * W);
        for (int q = 0; q < Q; ++q) {
            std::int32_t pair;
            std::memcpy(&pair, x + (std::int64_t(q) * depth + p) * 2, sizeof pair);
            const auto entry = Simd::broadcast(pair);
            for (int v = 0; v < V; ++v) {
                product[q][v] = Simd::in_turn(Simd::multiply_add(product[q][v], entry, code[v]));
            }
        }
    }
    for (int v = 0; v < V; ++v) {
        const auto length = Simd::load(codes.length + (block * V + v) * W);
        const auto bias = Simd::load(codes.bias + (block * V + v) * W);
        for (int q = 0; q < Q; ++q) {
            const auto share = Simd::fma(Simd::from_integers(product[q][v]), Simd::broadcast(rows.factor[row + q]),
                                         Simd::broadcast(-rows.less[row + q]));
            score[q][v] = Simd::fma(share, length, bias);
        }
    }
}

template <class Simd, int Q, int V>
void scan_integers(const IntegerRows& rows, int count, const IntegerCodes& codes, int section_blocks,
                   std::int32_t section, LaneState state) {
    scan_sections<Simd, Q, V>(count, codes.blocks, section_blocks, section, state,
                              [&](int row, std::int64_t block, typename Simd::F(&score)[Q][V]) {
                                  integer_scores<Simd, Q, V>(rows, row, codes, block, score);
                              });
}

template <class Simd, int Q, int V>
void append_integers(const IntegerRows& rows, int count, const IntegerCodes& codes, std::int64_t begin,
                     std::int64_t end, const CandidateLists& lists) {
    append_scores<Simd, Q, V>(count, begin, end, lists,
                              [&](int row, std::int64_t block, typename Simd::F(&score)[Q][V]) {
                                  integer_scores<Simd, Q, V>(rows, row, codes, block, score);
                              });
}

template <class Simd>
double spin_integers(std::int64_t rounds) {
    constexpr int chains = 12;  // enough independent ones to hide the latency on two ports
    typename Simd::I sum[chains];
    auto a = Simd::broadcast(std::int32_t(0x00010003));
    for (int i = 0; i < chains; ++i) sum[i] = Simd::broadcast(std::int32_t(i));
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < chains; ++i) {
            a = Simd::in_turn(a);  // or the product would be formed once for all
            sum[i] = Simd::in_turn(Simd::multiply_add(sum[i], a, a));
        }
    }
    std::int32_t lanes[Simd::W], total = 0;
    for (int i = 0; i < chains; ++i) {
        Simd::store(lanes, sum[i]);
        for (std::int32_t lane : lanes) total ^= lane;
    }
    volatile std::int32_t keep = total;  // the loop must not be optimised away
    (void)keep;
    return 2.0 * 2 * double(rounds) * chains * Simd::W;
}

template <class Simd, int Q, int V>
constexpr IntegerScan make_integer_scan(double cost) {
    return {cost,
            pack_integer_codes<Simd, V>,
            pack_integer_row<Simd>,
            scan_integers<Simd, Q, V>,
            append_integers<Simd, Q, V>,
            spin_integers<Simd>};
}

// `kernel` with the scan of integers
inline ScanKernel with_integers(ScanKernel kernel, const IntegerScan& integers, Isa isa) {
    kernel.isa = isa;
    kernel.integers = &integers;
    return kernel;
}

}  // namespace
}  // namespace vqk
