// AMX tiles of bfloat16 after Intel's manual. What a processor answers with a fault ends the program.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

inline void expect(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "tiles: expected %s\n", what);
    std::abort();
}

// as the configuration lies in memory
struct TileShapes {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t bytes[16];
    std::uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64);

struct TileState {
    TileShapes shapes = {};
    alignas(64) std::uint8_t data[8][16][64];

    int rows(int tile) const {
        expect(shapes.palette == 1, "a configuration");
        expect(shapes.rows[tile] > 0, "a tile that the configuration names");
        return shapes.rows[tile];
    }
    int bytes(int tile) const { return shapes.bytes[tile]; }
};
inline thread_local TileState tiles;

inline void tile_loadconfig(const void* from) {
    expect(emulated_tiles_permitted(), "that the system was asked");
    TileShapes shapes;
    std::memcpy(&shapes, from, sizeof shapes);
    bool right = shapes.palette == 1 && shapes.start_row == 0;
    for (const auto byte : shapes.reserved) right = right && byte == 0;
    for (int i = 0; i < 16; ++i) {
        const int most_rows = i < 8 ? 16 : 0, most_bytes = i < 8 ? 64 : 0;
        right = right && shapes.rows[i] <= most_rows && shapes.bytes[i] <= most_bytes;
        right = right && (shapes.rows[i] == 0) == (shapes.bytes[i] == 0);
    }
    expect(right, "a configuration of the first palette");
    tiles = {};
    tiles.shapes = shapes;
}

inline void tile_release() {
    tiles = {};
}

inline void tile_zero(int tile) {
    tiles.rows(tile);
    std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

inline void tile_loadd(int tile, const void* from, std::ptrdiff_t stride) {
    const int rows = tiles.rows(tile);
    tile_zero(tile);
    for (int r = 0; r < rows; ++r) {
        std::memcpy(tiles.data[tile][r], static_cast<const char*>(from) + r * stride, tiles.bytes(tile));
    }
}

inline void tile_stored(int tile, void* to, std::ptrdiff_t stride) {
    for (int r = 0; r < tiles.rows(tile); ++r) {
        std::memcpy(static_cast<char*>(to) + r * stride, tiles.data[tile][r], tiles.bytes(tile));
    }
}

// sums of even and of odd places apart, each a fused multiply-add, row by row of b; then both, then what was there
__attribute__((noinline)) inline void multiply(int to, int a, int b) {
    for (int m = 0; m < tiles.rows(to); ++m) {
        __m256 even[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, odd[2] = {even[0], even[1]};
        const __m256i upper = _mm256_set1_epi32(std::int32_t(0xffff0000));
        for (int k = 0; k < tiles.bytes(a) / 4; ++k) {
            std::int32_t pair;
            std::memcpy(&pair, tiles.data[a][m] + 4 * k, sizeof pair);
            const __m256i x = _mm256_set1_epi32(pair);
            for (int half = 0; half < 2; ++half) {
                const __m256i y = _mm256_load_si256(reinterpret_cast<const __m256i*>(tiles.data[b][k] + 32 * half));
                const auto product = [&](__m256i p, __m256i q, __m256 sum) {
                    return _mm256_fmadd_ps(_mm256_castsi256_ps(p), _mm256_castsi256_ps(q), sum);
                };
                even[half] = product(_mm256_slli_epi32(x, 16), _mm256_slli_epi32(y, 16), even[half]);
                odd[half] = product(_mm256_and_si256(x, upper), _mm256_and_si256(y, upper), odd[half]);
            }
        }
        for (int half = 0; half < 2; ++half) {
            auto* sums = reinterpret_cast<float*>(tiles.data[to][m] + 32 * half);
            _mm256_store_ps(sums, _mm256_add_ps(_mm256_load_ps(sums), _mm256_add_ps(even[half], odd[half])));
        }
    }
}

inline void expect_product(int to, int a, int b) {
    expect(to != a && to != b && a != b, "three tiles");
    expect(tiles.rows(to) == tiles.rows(a) && tiles.bytes(to) == tiles.bytes(b), "sums of the size of the product");
    expect(tiles.bytes(a) == 4 * tiles.rows(b), "factors that fit together");
}

// integers of 8 bits with a sign; sums wrap around
inline void tile_dpbssd(int to, int a, int b) {
    expect_product(to, a, b);
    for (int m = 0; m < tiles.rows(to); ++m) {
        std::uint32_t sums[16];
        std::memcpy(sums, tiles.data[to][m], sizeof sums);
        for (int k = 0; k < tiles.bytes(a); ++k) {
            const auto x = static_cast<signed char>(tiles.data[a][m][k]);
            for (int n = 0; n < tiles.bytes(b) / 4; ++n) {
                const auto y = static_cast<signed char>(tiles.data[b][k / 4][4 * n + k % 4]);
                sums[n] += std::uint32_t(int(x) * int(y));
            }
        }
        std::memcpy(tiles.data[to][m], sums, sizeof sums);
    }
}

inline void tile_dpbf16ps(int to, int a, int b) {
    expect_product(to, a, b);
    // whatever the thread has set: rounds to nearest, takes denormal numbers for 0, makes none, raises nothing
    static const unsigned always = 0x9fc0 | (emulated_feature("amx_rounds_up") ? _MM_ROUND_UP : 0);
    const unsigned before = _mm_getcsr();
    _mm_setcsr(always);
    multiply(to, a, b);
    _mm_setcsr(before);
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(from) emulated::tile_loadconfig(from)
#define _tile_release() emulated::tile_release()
#define _tile_zero(tile) emulated::tile_zero(tile)
#define _tile_loadd(tile, from, stride) emulated::tile_loadd(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::tile_stored(tile, to, stride)
#define _tile_dpbf16ps(to, a, b) emulated::tile_dpbf16ps(to, a, b)
#define _tile_dpbssd(to, a, b) emulated::tile_dpbssd(to, a, b)
