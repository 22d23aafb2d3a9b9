// Body of the scan by products of integers, written against a `Simd` type as cpu/nearest_code_scan.inl is, with
//
//   format                   an IntegerFormat
//   multiply_add(sum, a, b)  lanes of 32 bits: to each sum of a lane, the products of its numbers of a, of a vector,
//                            and b, of a code
//   widened(sum)             the sums of a lane, added in 32 bits, where they come in segments
//   from_integers(a)         lanes of 32 bits to float
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/integer_scan.h"
#include "cpu/nearest_code_scan.inl"
#include "cpu/unrolled.h"

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

// Root of a sum of squares, or a little more. One that underflows tells nothing: then sqrt(n) times the largest entry
// is no less.
inline float root_over(float square, float largest, int terms) {
    const float root = square >= 0x1p-80f ? std::sqrt(square) : largest * std::sqrt(float(terms));
    return root * (1.0f + float(terms + 8) * 0x1p-24f);
}

// the length of a row, or a little more: none counts as shorter than 2^-80, so that steps are normal numbers
inline float length_over(float square, float largest, int dim) {
    return std::max(root_over(square, largest, dim), 0x1p-80f);
}

// Such a step that neither a number nor those of one sum, taken as a vector, are larger than a format allows:
// rounding makes a vector of n numbers longer by up to sqrt(n) / 2. `longest`: of the sums of squares.
inline float step_over(float longest, float largest, int terms, float most, float length) {
    const float of_sum = root_over(longest, largest, terms) / (length - 0.5f * std::sqrt(float(terms)));
    return std::max({largest / most, of_sum, 0x1p-95f}) * (1.0f + 0x1p-20f);
}

// |v_r| / l, or a little more: entries of the remainder are rounded by 2^-24 |v| twice. Where its squares may
// underflow, half a step in every dimension.
inline float rest_over(float rest_square, float length, float step, int dim) {
    const float share = (length < 0x1p-30f ? std::sqrt(float(dim)) * 0.51f * step : std::sqrt(rest_square)) / length;
    return share * (1.0f + float(dim + 8) * 0x1p-24f) + 0x1p-22f;
}

template <class Simd, int V>
void pack_integer_codes(const float* codes, const float* bias, const IntegerCodes& out) {
    constexpr IntegerFormat format = Simd::format;
    constexpr int block = V * Simd::W;
    const int dim = out.dim;
    float square[block] = {}, part[format.sums][block] = {}, longest[block] = {}, largest[block] = {};
    for (int d = 0; d < dim; ++d) {
        float (&sum)[block] = part[format.sum_of(d)];
        for (int j = 0; j < block; ++j) {
            const float v = codes[d * block + j];
            sum[j] += v * v;
            largest[j] = std::max(largest[j], std::fabs(v));
        }
        for (int i = 0; format.ends(d, dim) && i < format.sums; ++i) {
            for (int j = 0; j < block; ++j) {
                square[j] += part[i][j];
                longest[j] = std::max(longest[j], part[i][j]);
                part[i][j] = 0;
            }
        }
    }
    float rest[block] = {}, inverse[block], step[block];
    for (int j = 0; j < block; ++j) {
        step[j] = step_over(longest[j], largest[j], format.terms(dim), format.code_most, format.code_length);
        inverse[j] = 1.0f / step[j];
    }
    std::int32_t *lane = out.lanes, *start = nullptr, total[format.sums][block] = {};
    for (int d = 0; d < dim; ++d) {
        const int place = d % format.numbers;
        if (format.offset != 0 && start == nullptr) {
            start = lane;
            lane += block;
        }
        if (place == 0) std::fill_n(lane, block, 0);
        std::int32_t (&sum)[block] = total[format.sum_of(d)];
        for (int j = 0; j < block; ++j) {
            constexpr std::uint32_t mask = (1u << format.bits()) - 1;
            const Rounded q(codes[d * block + j] * inverse[j]);
            const float left = codes[d * block + j] - q.value * step[j];
            rest[j] += left * left;
            sum[j] += q.integer;
            lane[j] |= std::int32_t((std::uint32_t(q.integer) & mask) << (place * format.bits()));
        }
        const bool ends = format.ends(d, dim);
        if (ends || place + 1 == format.numbers) lane += block;
        if (format.offset == 0 || !ends) continue;
        // what the offset of the vectors adds, in as many bits as there are
        for (int j = 0; j < block; ++j) {
            std::uint32_t low = std::uint32_t(-format.offset * total[0][j]);
            if (format.sums == 2) {
                low = (low & 0xffffu) | std::uint32_t(-format.offset * total[format.sums - 1][j]) << 16;
            }
            start[j] = std::int32_t(low);
        }
        for (auto& sums : total) std::fill_n(sums, block, 0);
        start = nullptr;
    }
    std::fill(lane, out.lanes + format.lanes(dim) * block, 0);
    const float less = float(1.0 - integer_error(dim) - 0x1p-22);
    for (int j = 0; j < block; ++j) {
        out.step[j] = step[j];
        out.length[j] = length_over(square[j], largest[j], dim);
        out.rest[j] = out.length[j] * rest_over(rest[j], out.length[j], step[j], dim) * (1.0f + 0x1p-22f);
        out.bias[j] = bias[j] * less;
    }
    for (int lane = 0; lane < Simd::W; ++lane) {
        float length_of = 0, rest_of = 0;
        for (int j = lane; j < block; j += Simd::W) {
            length_of = std::max(length_of, out.length[j]);
            rest_of = std::max(rest_of, out.rest[j]);
        }
        out.longest[lane] = length_of;
        out.longest_rest[lane] = rest_of;
    }
}

template <class Simd>
void pack_integer_row(const float* negated, int dim, std::uint8_t* out, float* step, float* length, float* rest) {
    constexpr IntegerFormat format = Simd::format;
    constexpr int W = Simd::W;
    static_assert(W % format.numbers == 0 && format.segment * format.numbers % W == 0);
    float squares[W] = {}, largest[W] = {}, square = 0, longest = 0, left[W] = {};
    const auto measure = [&](int d, int count) {
        for (int j = 0; j < count; ++j) {
            squares[j] += negated[d + j] * negated[d + j];
            largest[j] = std::max(largest[j], std::fabs(negated[d + j]));
        }
        if (!format.ends(d + count - 1, dim)) return;
        float part[format.sums] = {};
        for (int j = 0; j < W; ++j) part[format.sum_of(j)] += squares[j];
        for (const float sum : part) {
            square += sum;
            longest = std::max(longest, sum);
        }
        std::fill_n(squares, W, 0.0f);
    };
    const int whole = dim / W * W;
    for (int d = 0; d < whole; d += W) measure(d, W);
    if (whole < dim) measure(whole, dim - whole);
    const float most = *std::max_element(largest, largest + W);
    *length = length_over(square, most, dim);
    *step = step_over(longest, most, format.terms(dim), format.row_most, format.row_length);
    const float s = *step, inverse = 1.0f / s;
    using Number = std::conditional_t<format.numbers == 4, std::uint8_t, std::int16_t>;
    const auto put = [&](int d, std::int32_t q) {
        const auto number = Number(q + format.offset);
        std::memcpy(out + d * sizeof number, &number, sizeof number);
    };
    const auto round = [&](int d, int count) {
        std::int32_t numbers[W];
        for (int j = 0; j < count; ++j) {
            const Rounded q(negated[d + j] * inverse);
            const float rest_of = negated[d + j] - q.value * s;
            left[j] += rest_of * rest_of;
            numbers[j] = q.integer;
        }
        for (int j = 0; j < count; ++j) put(d + j, numbers[j]);
    };
    for (int d = 0; d < whole; d += W) round(d, W);
    round(whole, dim - whole);
    for (int d = dim; d < format.groups(dim) * format.numbers; ++d) put(d, 0);
    float rest_square = 0;
    for (const float one : left) rest_square += one;
    *rest = rest_over(rest_square, *length, s, dim);
}

// The sums of Q vectors, `stride` bytes apart, and a block of codes over `groups` lanes.
template <class Simd, int Q, int V>
inline __attribute__((always_inline)) void integer_sums(const std::uint8_t* x, std::int64_t stride,
                                                        const std::int32_t* c, int groups,
                                                        typename Simd::I (&sum)[Q][V]) {
    constexpr int W = Simd::W;
    unrolled<V>([&](auto v) {
        const auto start = Simd::format.offset == 0 ? Simd::broadcast(std::int32_t(0)) : Simd::load(c + v * W);
        unrolled<Q>([&](auto q) { sum[q][v] = start; });
    });
    if (Simd::format.offset != 0) c += V * W;
    // at least one: sums that might not be formed would be kept in memory
    int p = 0;
    do {
        typename Simd::I code[V];
        unrolled<V>([&](auto v) { code[v] = Simd::load(c + (std::int64_t(p) * V + v) * W); });
        unrolled<Q>([&](auto q) {
            std::int32_t numbers;
            std::memcpy(&numbers, x + q * stride + std::int64_t(p) * 4, sizeof numbers);
            const auto entry = Simd::broadcast(numbers);
            unrolled<V>([&](auto v) { sum[q][v] = Simd::in_turn(Simd::multiply_add(sum[q][v], entry, code[v])); });
        });
    } while (++p < groups);
}

// The sums of all segments, in 32 bits; a function of its own, so that short rows need no memory for their sums.
template <class Simd, int Q, int V>
__attribute__((noinline)) void segment_sums(const std::uint8_t* x, std::int64_t stride, const std::int32_t* c,
                                            int groups, typename Simd::I (&total)[Q][V]) {
    constexpr IntegerFormat format = Simd::format;
    for (int first = 0; first < groups; first += format.segment) {
        typename Simd::I sum[Q][V];
        integer_sums<Simd, Q, V>(x + first * 4, stride, c, std::min(format.segment, groups - first), sum);
        unrolled<Q>([&](auto q) {
            unrolled<V>([&](auto v) {
                const auto wide = Simd::widened(sum[q][v]);
                total[q][v] = first == 0 ? wide : Simd::add(total[q][v], wide);
            });
        });
        c += (format.segment + (format.offset != 0)) * V * Simd::W;
    }
}

// the same place, of which the compiler does not know that it has been read
inline const float* again(const float* place) {
    asm volatile("" : "+r"(place));
    return place;
}

// What is known of the scores of Q vectors, from `row` on, and one block whose products have these sums.
template <class Simd, int Q, int V>
inline __attribute__((always_inline)) void known(const typename Simd::I (&sum)[Q][V], const IntegerRows& rows,
                                                 int row, const IntegerCodes& codes, std::int64_t block,
                                                 typename Simd::F (&score)[Q][V]) {
    constexpr int W = Simd::W;
    unrolled<V>([&](auto v) {
        const std::int64_t at = (block * V + v) * W;
        const auto step = Simd::load(codes.step + at), bias = Simd::load(codes.bias + at);
        // the numbers of vectors are read again for every v, since sums need the registers
        const float* row_step = again(rows.step + row);
        unrolled<Q>([&](auto q) {
            const auto product = Simd::mul(Simd::from_integers(sum[q][v]), Simd::broadcast(row_step[q]));
            score[q][v] = Simd::fma(product, step, bias);
        });
    });
}

// The scores of Q vectors and one block. To find out that a block has none within reach takes a charge a lane, that
// of the longest of its codes; each code's own is for those that may have.
template <class Simd, int Q, int V>
struct ChargedScores {
    static constexpr int W = Simd::W;
    const IntegerRows& rows;
    const IntegerCodes& codes;

    // yet to be charged
    inline __attribute__((always_inline)) void operator()(int row, std::int64_t block,
                                                          typename Simd::F (&score)[Q][V]) const {
        constexpr IntegerFormat format = Simd::format;
        const int groups = format.groups(codes.dim);
        const std::int64_t stride = std::int64_t(groups) * 4;
        const std::uint8_t* x = rows.numbers + row * stride;
        const std::int32_t* c = codes.lanes + block * format.lanes(codes.dim) * V * W;
        typename Simd::I sum[Q][V];
        if constexpr (format.segment == 0) {
            integer_sums<Simd, Q, V>(x, stride, c, groups, sum);
        } else if (groups <= format.segment) {
            integer_sums<Simd, Q, V>(x, stride, c, groups, sum);
            unrolled<Q>([&](auto q) { unrolled<V>([&](auto v) { sum[q][v] = Simd::widened(sum[q][v]); }); });
        } else {
            typename Simd::I total[Q][V];
            segment_sums<Simd, Q, V>(x, stride, c, groups, total);
            unrolled<Q>([&](auto q) { unrolled<V>([&](auto v) { sum[q][v] = total[q][v]; }); });
        }
        known<Simd, Q, V>(sum, rows, row, codes, block, score);
    }
    typename Simd::F low(int row, std::int64_t block, const typename Simd::F (&score)[V]) const {
        return Simd::add(fold<Simd, V>(score), less(row, codes.longest + block * W, codes.longest_rest + block * W));
    }
    float high(int row, std::int64_t block, const typename Simd::F (&score)[V]) const {
        typename Simd::F high[V];
        unrolled<V>([&](auto v) { high[v] = Simd::sub(score[v], own(row, block, v)); });
        return Simd::lowest_lane(fold<Simd, V>(high));
    }
    void complete(int row, std::int64_t block, typename Simd::F (&score)[V]) const {
        unrolled<V>([&](auto v) { score[v] = Simd::add(score[v], own(row, block, v)); });
    }

  private:
    // a charge
    typename Simd::F less(int row, const float* length, const float* rest) const {
        const auto some = Simd::mul(Simd::broadcast(rows.less_rest[row]), Simd::load(rest));
        return Simd::fma(Simd::broadcast(rows.less[row]), Simd::load(length), some);
    }
    typename Simd::F own(int row, std::int64_t block, int v) const {
        const std::int64_t at = (block * V + v) * W;
        return less(row, codes.length + at, codes.rest + at);
    }
};

template <class Simd, int Q, int V>
void scan_integers(const IntegerRows& rows, int count, const IntegerCodes& codes, int section_blocks,
                   std::int32_t section, LaneState state) {
    scan_sections<Simd, Q, V>(count, codes.blocks, section_blocks, section, state,
                              ChargedScores<Simd, Q, V>{rows, codes});
}

template <class Simd, int Q, int V>
void append_integers(const IntegerRows& rows, int count, const IntegerCodes& codes, std::int64_t begin,
                     std::int64_t end, const CandidateLists& lists) {
    append_scores<Simd, Q, V>(count, begin, end, lists, ChargedScores<Simd, Q, V>{rows, codes});
}

template <class Simd>
double spin_integers(std::int64_t rounds) {
    constexpr int chains = 12;  // enough independent ones to hide the latency on two ports
    typename Simd::I sum[chains];
    auto a = Simd::broadcast(std::int32_t(0x01020304));
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
    return 2.0 * Simd::format.numbers * double(rounds) * chains * Simd::W;
}

template <class Simd, int Q, int V>
constexpr IntegerScan make_integer_scan() {
    return {Simd::format,
            Simd::W,
            pack_integer_codes<Simd, V>,
            pack_integer_row<Simd>,
            scan_integers<Simd, Q, V>,
            append_integers<Simd, Q, V>,
            spin_integers<Simd>};
}

// `kernel` with scans of integers
inline ScanKernel with_integers(ScanKernel kernel, Isa isa, const IntegerScan* words, const IntegerScan* bytes) {
    kernel.isa = isa;
    kernel.words = words;
    kernel.bytes = bytes;
    return kernel;
}

}  // namespace
}  // namespace vqk
