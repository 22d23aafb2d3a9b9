// All codes, or a range of them, against some vectors: in float32, in integers of 16 bits where the processor
// multiplies those faster (those of 8 bits are in cpu/nearest_code_chase.h), or on tiles of bfloat16 where there is a
// matrix unit. What one way cannot decide the next, more precise, one takes up. Few vectors meet codes as they are
// given, which nobody packs for them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/integer_pack.h"
#include "cpu/integer_scan.h"
#include "cpu/nearest_code.h"
#include "cpu/nearest_code_cost.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/tile_scan.h"

namespace vqk {

// Can codes be scanned as they are? Only if no product leaves the range of floats, and no offset of the codes, which
// stays in them, would widen the error bound.
template <class Value>
bool scannable_plain(const CodeFrame<Value>& frame) {
    if (!std::is_same_v<Value, float> || !frame.all_usable()) return false;
    if (frame.metric == Metric::cosine) {
        const auto fits = [](double norm) { return norm == 0 || (norm > 0x1p-6 && norm < 0x1p40); };
        return std::all_of(frame.norms.begin(), frame.norms.end(), fits);
    }
    const bool fits = frame.scale > 0x1p-40 && frame.scale < 0x1p40;
    return fits && frame.shift_norm < 0.1 * std::sqrt(double(frame.dim));
}

// Scans the blocks [begin, end) for all of some rows. Codes are packed as they are needed; of the rows, as many pass
// over them together as fit in the L1 cache with their lanes.
template <class Value>
void sweep_floats(Rows<Value>& rows, std::int64_t begin, std::int64_t end, int section_blocks,
                  BlockPacker<Value>& packer, const ScanKernel& kernel) {
    constexpr int together = 120;  // a multiple of every kernel's tile
    for_each_chunk(
        packer, begin, end, section_blocks, rows.dim, kernel, [&](const PackedCodes& packed, std::int64_t first) {
            const auto section = std::int32_t(first / section_blocks);
            for (int r = 0; r < rows.padded; r += together) {
                kernel.scan(rows.negated.get() + std::int64_t(r) * rows.dim, std::min(together, rows.padded - r),
                            packed, section_blocks, section, rows.state(r));
            }
        });
}

// The same against codes as they are given. With c' = c s - m s, a score |c'|^2/2 - x'.c' is |c'|^2/2 + x'.m s - x'.c
// s. Returns what stands for the radius in error bounds: each of |c s| and |c'| + |m| s is at most as long. It is
// infinite, and scores are anything, if a code is not finite or out of all proportion to those that the scale is made
// for.
template <class Value>
double sweep_plain(Rows<Value>& rows, std::int64_t begin, std::int64_t end, int section_blocks,
                   const CodeFrame<Value>& frame, const ScanKernel& kernel) {
    constexpr std::int64_t chunk_floats = 64 * 1024;  // of codes that the L2 cache keeps beside the vectors
    const std::int64_t dim = rows.dim, block = kernel.block_codes;
    const bool cosine = frame.metric == Metric::cosine;
    // the scale goes where products become neither too large nor too small for a float
    const float up = cosine ? 1.0f : float(std::max(frame.scale, 1.0)),
                down = cosine ? 1.0f : float(frame.scale) / up;
    const auto queries = make_aligned<float>(std::size_t(rows.count * dim));
    std::vector<float> base(rows.count, 0.0f);
    for (int r = 0; r < rows.count; ++r) {
        const float* negated = rows.negated.get() + r * dim;
        double product = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
            queries[r * dim + d] = negated[d] * up;
            product -= double(negated[d]) * double(frame.offset[d]);
        }
        base[r] = float(product);
    }
    const std::int64_t sections = std::max<std::int64_t>(1, chunk_floats / (section_blocks * block * dim));
    const std::int64_t step = sections * section_blocks;
    std::vector<float> factor(std::size_t(step * block)), bias(factor.size());
    constexpr float most = 0x1p40f;
    float widest = 0;
    bool sound = true;
    for (std::int64_t first = begin; first < end; first += step) {
        const std::int64_t blocks = std::min(step, end - first), at = first * block;
        const std::int64_t count = std::min(blocks * block, frame.count - at);
        std::fill(factor.begin(), factor.end(), down);
        std::fill(bias.begin(), bias.end(), std::numeric_limits<float>::infinity());
        if constexpr (std::is_same_v<Value, float>) {
            const float* codes = frame.values + at * dim;
            if (cosine) {
                for (std::int64_t i = 0; i < count; ++i) factor[i] = float(frame.factor(frame.norms[at + i]));
                widest = 1;
            } else {
                kernel.squares(codes, count, float(frame.scale), frame.offset.data(), int(dim), bias.data());
                for (std::int64_t i = 0; i < count; ++i) {
                    widest = std::max(widest, bias[i]);
                    sound &= bias[i] < most;  // not a NaN either
                }
            }
            for (std::int64_t i = 0; i < count; ++i) bias[i] = frame.metric == Metric::l2 ? 0.5f * bias[i] : 0.0f;
            kernel.scan_plain(queries.get(), base.data(), rows.count,
                              {codes, factor.data(), bias.data(), count, blocks, int(dim)}, section_blocks,
                              std::int32_t(first / section_blocks), rows.state(0));
        }
    }
    if (!sound) return HUGE_VAL;
    return std::sqrt(double(widest)) * (1 + double(dim + 16) * 0x1p-24) + 2 * frame.shift_norm;
}

template <class Value>
void sweep_tiles(Rows<Value>& rows, std::int64_t begin, std::int64_t end, int section_blocks,
                 BlockPacker<Value>& packer, const ScanKernel& kernel, int products) {
    constexpr std::int64_t chunk_numbers = 192 * 1024;  // bfloat16 numbers that the L2 cache keeps
    const TileScan& tiles = *kernel.tiles;
    const int dim = int(rows.dim), steps = TileScan::steps(dim, products);
    constexpr int pair = 2 * TileScan::rows;  // tiles of rows are scanned two by two
    const std::int64_t tile_rows = (rows.count + pair - 1) / pair * 2;
    const auto packed_rows = make_aligned<std::uint16_t>(std::size_t(tile_rows * steps * TileScan::tile));
    tiles.pack_rows(rows.negated.get(), rows.count, dim, products, packed_rows.get());

    const std::int64_t block_numbers = std::int64_t(kernel.block_codes) * steps * TileScan::slots;
    const std::int64_t section_numbers = section_blocks * block_numbers;
    const std::int64_t step = std::min(std::max<std::int64_t>(1, chunk_numbers / section_numbers) * section_blocks,
                                       std::max<std::int64_t>(end - begin, 1));
    const auto packed = make_aligned<std::uint16_t>(std::size_t(step * block_numbers));
    BlockBuffer block(1, dim, kernel);
    for (std::int64_t first = begin; first < end; first += step) {
        const std::int64_t blocks = std::min(step, end - first);
        for (std::int64_t b = 0; b < blocks; ++b) {
            packer.pack(first + b, block.codes(0), block.bias(0));
            tiles.pack_codes(block.codes(0), block.bias(0), dim, products, packed.get() + b * block_numbers);
        }
        tiles.scan(packed_rows.get(), rows.count, packed.get(), blocks, steps, section_blocks,
                   std::int32_t(first / section_blocks), rows.state(0));
    }
}

template <class Value>
void sweep_words(Rows<Value>& rows, std::int64_t begin, std::int64_t end, int section_blocks,
                 BlockPacker<Value>& packer, const ScanKernel& kernel) {
    constexpr int together = 120;                       // a multiple of every kernel's tile
    constexpr std::int64_t chunk_numbers = 192 * 1024;  // integers that the L2 cache keeps
    const IntegerScan& words = *kernel.words;
    const int dim = int(rows.dim);
    const IntegerPanel panel(words, rows.negated.get(), rows.padded, dim, true);
    const std::int64_t section_numbers = section_blocks * kernel.block_codes * std::int64_t(dim);
    const std::int64_t step = std::min(std::max<std::int64_t>(1, chunk_numbers / section_numbers) * section_blocks,
                                       std::max<std::int64_t>(end - begin, 1));
    const IntegerBuffer packed(words, step, dim, kernel.block_codes);
    BlockBuffer block(1, dim, kernel);
    for (std::int64_t first = begin; first < end; first += step) {
        const std::int64_t blocks = std::min(step, end - first);
        for (std::int64_t b = 0; b < blocks; ++b) {
            packer.pack(first + b, block.codes(0), block.bias(0));
            words.pack_codes(block.codes(0), block.bias(0), packed.view(b, 1));
        }
        for (int r = 0; r < rows.padded; r += together) {
            words.scan(panel.from(r), std::min(together, rows.padded - r), packed.view(0, blocks), section_blocks,
                       std::int32_t(first / section_blocks), rows.state(r));
        }
    }
}

// returns what is known of the scores
template <class Value>
Scores sweep(Rows<Value>& rows, std::int64_t begin, std::int64_t end, int section_blocks,
             const CodeFrame<Value>& frame, const ScanKernel& kernel, Precision precision) {
    rows.clear_lanes();
    BlockPacker<Value> packer(frame, kernel, nullptr, frame.count);
    switch (precision.unit) {
        case Unit::floats:
            sweep_floats(rows, begin, end, section_blocks, packer, kernel);
            break;
        case Unit::plain:
            return {sweep_plain(rows, begin, end, section_blocks, frame, kernel)};
        case Unit::words:
            sweep_words(rows, begin, end, section_blocks, packer, kernel);
            break;
        case Unit::bytes:  // never: they are chased
            break;
        case Unit::tiles:
            sweep_tiles(rows, begin, end, section_blocks, packer, kernel, precision.products);
    }
    return {packer.radius(), precision.unit != Unit::floats};
}

}  // namespace vqk
