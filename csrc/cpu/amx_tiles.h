// The configuration of AMX tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace vqk {
namespace {

constexpr int line = 64;  // bytes of a row of a tile

// eight tiles of 16 rows x 64 bytes
struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles are state of the thread that the system saves and restores with every switch: they are given back at once.
struct TileUse {
    TileUse() {
        // static: GCC takes the intrinsic to read 8 bytes, and would not write the others to the stack
        static constexpr TileShapes shapes;
        _tile_loadconfig(&shapes);
    }
    ~TileUse() { _tile_release(); }
};

}  // namespace
}  // namespace vqk
