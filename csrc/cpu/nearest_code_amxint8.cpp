// The scan by products of 8-bit integers on AMX tiles; everything else is that of AMX.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#if defined(__linux__)
#include <cpuid.h>
#endif

#include "cpu/amx_tiles.h"
#include "cpu/integer_scan.inl"
#include "cpu/simd_avx512.inl"

namespace vqk {
namespace {

struct AmxBytes : Avx512 {
    static constexpr IntegerFormat format = {4, 1, 0, 0, 127, 127, unbounded, unbounded, 16, 32};
    static F from_integers(I a) { return _mm512_cvtepi32_ps(a); }
};

constexpr int W = AmxBytes::W, V = 4;                        // lanes, vectors of a block
constexpr int tile_rows = 16, pair = AmxBytes::format.rows;  // vectors of a tile, and of two
constexpr int block_line = V * W * 4;                        // bytes of a lane of a block, and of its sums

// The sums of two tiles of vectors and a block of codes, [vector][V*W], two tiles of codes at a time.
void block_sums(const std::uint8_t* x, std::int64_t stride, const std::int32_t* c, int groups, std::int32_t* sums) {
    for (int half = 0; half < V; half += 2, c += 2 * W, sums += 2 * W) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int p = 0; p < groups; p += AmxBytes::format.together) {
            const std::uint8_t* rows = x + p * 4;
            const std::int32_t* codes = c + std::int64_t(p) * V * W;
            _tile_loadd(4, rows, stride);
            _tile_loadd(6, codes, block_line);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, codes + W, block_line);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(5, rows + tile_rows * stride, stride);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
        _tile_stored(0, sums, block_line);
        _tile_stored(1, sums + W, block_line);
        _tile_stored(2, sums + tile_rows * V * W, block_line);
        _tile_stored(3, sums + tile_rows * V * W + W, block_line);
    }
}

// of so many vectors: they share what is loaded of codes
template <int Q>
using Scores = ChargedScores<AmxBytes, Q, V>;

// Calls visit(row, block, score) for the scores [Q][V], yet to be charged, of Q rows from `row` on and every block of
// [begin, end), two tiles of rows after the other, block by block. Q is 4, or 1 for the last few rows. The matrix
// unit is at the next sums meanwhile.
template <class Visit>
void over_scores(const IntegerRows& rows, int count, const IntegerCodes& codes, std::int64_t begin, std::int64_t end,
                 const Visit& visit) {
    if (begin >= end || count <= 0) return;
    const TileUse use;
    alignas(64) std::int32_t sums[2][pair][V * W];
    const int groups = AmxBytes::format.groups(codes.dim);
    const std::int64_t stride = std::int64_t(groups) * 4, blocks = end - begin,
                       parts = (count + pair - 1) / pair * blocks;
    const auto multiply = [&](std::int64_t part) {
        block_sums(rows.numbers + part / blocks * pair * stride, stride,
                   codes.lanes + (begin + part % blocks) * groups * V * W, groups, sums[part & 1][0]);
    };
    const auto meet = [&](auto together, int row, std::int64_t block, const std::int32_t (*from)[V* W]) {
        constexpr int Q = decltype(together)::value;
        AmxBytes::I sum[Q][V];
        unrolled<Q>([&](auto q) { unrolled<V>([&](auto v) { sum[q][v] = AmxBytes::load(from[q] + v * W); }); });
        AmxBytes::F score[Q][V];
        known<AmxBytes, Q, V>(sum, rows, row, codes, block, score);
        visit(row, block, score);
    };
    multiply(0);
    for (std::int64_t part = 0; part < parts; ++part) {
        if (part + 1 < parts) multiply(part + 1);
        const int first = int(part / blocks) * pair, last = std::min(first + pair, count);
        const std::int32_t (*from)[V * W] = sums[part & 1];
        int row = first;
        for (; row + 4 <= last; row += 4, from += 4) {
            meet(std::integral_constant<int, 4>{}, row, begin + part % blocks, from);
        }
        for (; row < last; ++row) meet(std::integral_constant<int, 1>{}, row, begin + part % blocks, from++);
    }
}

void scan(const IntegerRows& rows, int count, const IntegerCodes& codes, int section_blocks, std::int32_t section,
          LaneState state) {
    alignas(64) float lowest[pair][W];  // of the section so far
    over_scores(rows, count, codes, 0, codes.blocks, [&](int first, std::int64_t block, const auto& score) {
        constexpr int Q = std::extent_v<std::remove_reference_t<decltype(score)>>;
        const Scores<Q> scores{rows, codes};
        unrolled<Q>([&](auto q) {
            const int row = first + q;
            float* low = lowest[row % pair];
            auto now = scores.low(row, block, score[q]);
            if (block % section_blocks != 0) now = AmxBytes::min(now, AmxBytes::load(low));
            AmxBytes::store(low, now);
            if ((block + 1) % section_blocks != 0 && block + 1 != codes.blocks) return;
            Lanes<AmxBytes> lanes;
            lanes.load(state, row);
            lanes.take(now, section + std::int32_t(block / section_blocks));
            lanes.store(state, row);
        });
    });
}

void append(const IntegerRows& rows, int count, const IntegerCodes& codes, std::int64_t begin, std::int64_t end,
            const CandidateLists& lists) {
    over_scores(rows, count, codes, begin, end, [&](int row, std::int64_t block, const auto& score) {
        constexpr int Q = std::extent_v<std::remove_reference_t<decltype(score)>>;
        append_within<AmxBytes, Q, V>(Scores<Q>{rows, codes}, row, block, score, lists);
    });
}

double spin(std::int64_t rounds) {
    const TileUse use;
    for (std::int64_t round = 0; round < rounds; ++round) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    return 2.0 * 4 * double(rounds) * tile_rows * W * line;
}

constexpr IntegerScan bytes = {
    AmxBytes::format, W, pack_integer_codes<AmxBytes, V>, pack_integer_row<AmxBytes>, scan, append, spin};

}  // namespace

bool amx_int8_permitted() {
#if defined(__linux__)
    static const bool permitted = [] {
        constexpr unsigned amx_int8 = 1u << 25;
        unsigned a, b, c, d;
        return amx_permitted() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_int8) != 0;
    }();
    return permitted;
#else
    return false;
#endif
}

const ScanKernel& scan_int8_amx() {
    static const ScanKernel kernel = with_integers(scan_amx(), Isa::amx_int8, nullptr, &bytes);
    return kernel;
}

}  // namespace vqk
