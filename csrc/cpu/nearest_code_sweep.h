// All codes, or a range of them, against some vectors: in float32, or on tiles of bfloat16 where there is a matrix
// unit. What one way cannot decide the next, more precise, one takes up.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/tile_scan.h"

namespace vqk {

// How scores are computed. products: of bfloat16 parts (cpu/tile_scan.h), or 0: float32.
struct Precision {
    int products;
};

// measured, in ns a pair of vector and code: what the float32 scan and tiles with so many products take
inline double pair_cost(std::int64_t dim, Precision precision) {
    if (precision.products == 0) return 0.0095 * double(dim + 1);
    return 0.036 + 0.025 * TileScan::steps(dim, precision.products);
}

// the ways worth their time, coarse to fine
inline std::vector<Precision> precisions(std::int64_t dim, const ScanKernel& kernel) {
    if (!kernel.tiles || pair_cost(dim, {3}) > pair_cost(dim, {0})) return {{0}};
    if (TileScan::steps(dim, 1) == TileScan::steps(dim, 3)) return {{3}, {0}};
    return {{1}, {3}, {0}};
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

// returns what is known of the scores
template <class Value>
Scores sweep(Rows<Value>& rows, std::int64_t begin, std::int64_t end, int section_blocks,
             const CodeFrame<Value>& frame, const ScanKernel& kernel, Precision precision) {
    rows.clear_lanes();
    BlockPacker<Value> packer(frame, kernel, nullptr, frame.count);
    if (precision.products == 0) {
        sweep_floats(rows, begin, end, section_blocks, packer, kernel);
    } else {
        sweep_tiles(rows, begin, end, section_blocks, packer, kernel, precision.products);
    }
    return {packer.radius(), precision.products > 0};
}

}  // namespace vqk
