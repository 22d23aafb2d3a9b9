// The scan on AMX tiles of bfloat16; everything else is that of AVX-512.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/amx_tiles.h"
#include "cpu/tile_scan.h"

namespace vqk {
namespace {

constexpr int W = 16, V = 4;  // lanes, vectors of a block
constexpr int scores_of_tile = TileScan::rows * W;

// the nearest bfloat16, as a float
inline __m512 high_part(__m512 v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16));
}

// A vector's length and that of its remainder, in every lane, both a little more than they are: by more than their
// own errors and that of rounding them to bfloat16. A square may underflow, or a part of it: then sqrt(D) times the
// largest entry stands in for the length, and 2^-8 of it for the remainder's. A larger vector's E |x| covers what is
// lost of its remainder, with 2^-22 |x| to spare.
struct Lengths {
    __m512 square = _mm512_setzero_ps(), rest_square = _mm512_setzero_ps(), largest = _mm512_setzero_ps();

    // of entries and their remainders
    void add(__m512 entry, __m512 rest) {
        square = _mm512_fmadd_ps(entry, entry, square);
        rest_square = _mm512_fmadd_ps(rest, rest, rest_square);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(entry));
    }
    // lanes are dimensions of one vector, not vectors
    void reduce() {
        square = _mm512_set1_ps(_mm512_reduce_add_ps(square));
        rest_square = _mm512_set1_ps(_mm512_reduce_add_ps(rest_square));
        largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    }
    struct Pair {
        __m512 length, rest;
    };
    Pair widened(int dim) const {
        const __mmask16 tiny = _mm512_cmp_ps_mask(square, _mm512_set1_ps(0x1p-80f), _CMP_LT_OQ);
        const __m512 most = _mm512_mul_ps(largest, _mm512_set1_ps(std::sqrt(float(dim))));
        const __m512 length = _mm512_mask_mov_ps(_mm512_sqrt_ps(square), tiny, most);
        const __m512 least_rest = _mm512_mul_ps(length, _mm512_set1_ps(0x1p-22f));
        const __m512 rest = _mm512_mask_mul_ps(_mm512_max_ps(_mm512_sqrt_ps(rest_square), least_rest), tiny, most,
                                               _mm512_set1_ps(0x1p-8f));
        const __m512 wider = _mm512_set1_ps(1.0f + 0x1p-7f + float(dim) * 0x1p-24f);
        return {_mm512_mul_ps(length, wider), _mm512_mul_ps(rest, wider)};
    }
};

// 16 codes of a block
struct Lane16 {
    const float *codes, *bias;  // [D][V*W], [V*W]
    int dim, products;
    Lengths::Pair lengths;

    Lane16(const float* codes, const float* bias, int dim, int products)
        : codes(codes), bias(bias), dim(dim), products(products) {
        Lengths found;
        for (int d = 0; d < dim; ++d) {
            const __m512 entry = _mm512_loadu_ps(codes + d * V * W);
            found.add(entry, _mm512_sub_ps(entry, high_part(entry)));
        }
        lengths = found.widened(dim);
    }

    // what a slot holds, before it is rounded to bfloat16
    __m512 slot(int number) const {
        if (number < products * dim) {
            const __m512 v = _mm512_loadu_ps(codes + number % dim * V * W);
            return number / dim == 1 ? _mm512_sub_ps(v, high_part(v)) : v;
        }
        number -= products * dim;
        if (number == 3) return lengths.length;
        if (number == 4) return lengths.rest;
        if (number > 4) return _mm512_setzero_ps();
        // less, by what it may be wrong by and the rounding of this
        const float less = 1.0f - float(tile_error(dim, products)) - 0x1p-22f;
        __m512 part = _mm512_mul_ps(_mm512_loadu_ps(bias), _mm512_set1_ps(less));
        part = _mm512_min_ps(part, _mm512_set1_ps(TileScan::absent));
        for (; number > 0; --number) part = _mm512_sub_ps(part, high_part(part));
        return part;
    }
};

void pack_codes(const float* codes, const float* bias, int dim, int products, std::uint16_t* out) {
    // a row of a tile of codes holds two slots of each of 16 codes, side by side
    alignas(64) std::uint16_t places[32];
    for (int i = 0; i < 32; ++i) places[i] = std::uint16_t(i / 2 + i % 2 * 16);
    const __m512i side_by_side = _mm512_load_si512(places);
    const int slots = TileScan::steps(dim, products) * TileScan::slots;
    for (int v = 0; v < V; ++v) {
        const Lane16 lane(codes + v * W, bias + v * W, dim, products);
        for (int slot = 0; slot < slots; slot += 2, out += 2 * W) {
            const auto both = (__m512i)_mm512_cvtne2ps_pbh(lane.slot(slot + 1), lane.slot(slot));
            _mm512_storeu_si512(out, _mm512_permutexvar_epi16(side_by_side, both));
        }
    }
}

void pack_rows(const float* negated, int count, int dim, int products, std::uint16_t* out) {
    constexpr std::uint16_t one = 0x3f80;
    const int steps = TileScan::steps(dim, products), slots = steps * TileScan::slots;
    std::uint16_t* line = static_cast<std::uint16_t*>(_mm_malloc(std::size_t(slots + W) * 2, 64));
    std::fill_n(line, slots + W, std::uint16_t(0));
    for (int r = 0; r < count; ++r, negated += dim) {
        Lengths found;
        for (int d = 0; d < dim; d += W) {
            const __mmask16 there = d + W <= dim ? 0xffff : __mmask16((1u << (dim - d)) - 1);
            const __m512 v = _mm512_maskz_loadu_ps(there, negated + d);
            const auto high = (__m256i)_mm512_cvtneps_pbh(v);
            const __m512 low = _mm512_sub_ps(v, high_part(v));
            found.add(v, low);
            _mm256_mask_storeu_epi16(line + d, there, high);
            if (products == 1) continue;
            _mm256_mask_storeu_epi16(line + dim + d, there, high);
            _mm256_mask_storeu_epi16(line + 2 * dim + d, there, (__m256i)_mm512_cvtneps_pbh(low));
        }
        std::fill_n(line + products * dim, 3, one);
        found.reduce();
        const auto [length, rest] = found.widened(dim);
        const auto [of_code, of_rest] = margins(dim, products, _mm512_cvtss_f32(length), _mm512_cvtss_f32(rest));
        const __m512 less = _mm512_mask_mov_ps(_mm512_set1_ps(-float(of_rest)), 1, _mm512_set1_ps(-float(of_code)));
        _mm256_mask_storeu_epi16(line + products * dim + 3, 3, (__m256i)_mm512_cvtneps_pbh(less));
        std::uint16_t* tile =
            out + std::int64_t(r / TileScan::rows) * steps * TileScan::tile + r % TileScan::rows * TileScan::slots;
        for (int step = 0; step < steps; ++step) {
            _mm512_store_si512(tile + step * TileScan::tile, _mm512_load_si512(line + step * TileScan::slots));
        }
    }
    _mm_free(line);
}

// Scores of some tiles of vectors against some tiles of codes at a time, on their way into the vectors' state.
template <int row_tiles, int code_tiles>
class Fold {
  public:
    Fold(const LaneState& state, std::int32_t first_section, int parts_of_section)
        : state_(state), first_(first_section), parts_of_section_(parts_of_section) {}

    // a part is what was multiplied together; two of them are under way
    float* part(std::int64_t number) { return scores_[number & 1]; }

    // Takes in a part of vectors [row, row + count); parts come in order.
    void take(std::int64_t number, bool last, int row, int count) {
        within_ == 0 ? fold<true>(part(number)) : fold<false>(part(number));
        if (++within_ < parts_of_section_ && !last) return;
        within_ = 0;
        if (++sections_ < room && !last) return;
        for (int q = 0; q < count; ++q) update(q, row + q);
        folded_ = last ? 0 : folded_ + sections_;
        sections_ = 0;
    }

  private:
    static constexpr int rows = row_tiles * TileScan::rows;
    // sections until the state is brought up to date: in registers that takes a few cycles each, in memory three
    // times as many
    static constexpr int room = 8;

    // the lowest of each lane in the tiles of scores and, unless a section begins, in what it has so far
    template <bool begins>
    void fold(const float* scores) {
        float* low = lowest_[sections_][0];
        for (int r = 0; r < row_tiles; ++r, scores += (code_tiles - 1) * scores_of_tile) {
            for (int q = 0; q < TileScan::rows; ++q, scores += W, low += W) {
                __m512 lowest = _mm512_load_ps(scores);
                for (int t = 1; t < code_tiles; ++t) {
                    lowest = _mm512_min_ps(lowest, _mm512_load_ps(scores + t * scores_of_tile));
                }
                if constexpr (!begins) lowest = _mm512_min_ps(lowest, _mm512_load_ps(low));
                _mm512_store_ps(low, lowest);
            }
        }
    }

    void update(int q, int row) const {
        const std::int64_t at = std::int64_t(row) * W;
        __m512 best = _mm512_loadu_ps(state_.best + at), second = _mm512_loadu_ps(state_.second + at);
        __m512i section = _mm512_loadu_si512(state_.section + at);
        for (int s = 0; s < sections_; ++s) {
            const __m512 low = _mm512_load_ps(lowest_[s][q]);
            section = _mm512_mask_mov_epi32(section, _mm512_cmp_ps_mask(low, best, _CMP_LT_OQ),
                                            _mm512_set1_epi32(first_ + folded_ + s));
            second = _mm512_min_ps(second, _mm512_max_ps(best, low));
            best = _mm512_min_ps(best, low);
        }
        _mm512_storeu_ps(state_.best + at, best);
        _mm512_storeu_ps(state_.second + at, second);
        _mm512_storeu_si512(state_.section + at, section);
    }

    const LaneState state_;
    const std::int32_t first_;
    const int parts_of_section_;
    int within_ = 0, sections_ = 0, folded_ = 0;
    alignas(64) float scores_[2][row_tiles * code_tiles * scores_of_tile];
    alignas(64) float lowest_[room][rows][W];
};

// Scores of the vectors in tile 4 against two tiles of codes of one step, into tiles C and E. Macros, because tiles
// are named in the instruction.
#define VQK_MULTIPLY_STEP(C, E, codes)                  \
    do {                                                \
        _tile_zero(C);                                  \
        _tile_zero(E);                                  \
        _tile_loadd(5, codes, line);                    \
        _tile_dpbf16ps(C, 4, 5);                        \
        _tile_loadd(6, (codes) + TileScan::tile, line); \
        _tile_dpbf16ps(E, 4, 6);                        \
    } while (false)

#define VQK_KEEP(C, E, scores)                            \
    do {                                                  \
        _tile_stored(C, scores, line);                    \
        _tile_stored(E, (scores) + scores_of_tile, line); \
    } while (false)

// Scores of one step: a tile of vectors stays, codes stream past it. The matrix unit multiplies one half of a block
// while scores of the half before it are stored and those of the block before it are folded.
void scan_step(const std::uint16_t* rows, int count, const std::uint16_t* codes, std::int64_t blocks,
               int section_blocks, std::int32_t section, const LaneState& state) {
    constexpr int half = V / 2;
    Fold<1, V> fold(state, section, section_blocks);
    for (int row = 0; row < count; row += TileScan::rows) {
        const int valid = std::min(TileScan::rows, count - row);
        _tile_loadd(4, rows + row / TileScan::rows * TileScan::tile, line);
        const std::uint16_t* at = codes;
        for (std::int64_t block = 0; block < blocks; ++block, at += V * TileScan::tile) {
            VQK_MULTIPLY_STEP(0, 1, at);
            if (block > 0) VQK_KEEP(2, 3, fold.part(block - 1) + half * scores_of_tile);
            VQK_MULTIPLY_STEP(2, 3, at + half * TileScan::tile);
            VQK_KEEP(0, 1, fold.part(block));
            if (block > 0) fold.take(block - 1, false, row, valid);
        }
        VQK_KEEP(2, 3, fold.part(blocks - 1) + half * scores_of_tile);
        fold.take(blocks - 1, true, row, valid);
    }
}

// Scores of several steps: two tiles of vectors meet two of codes, so that each is loaded once for two products.
// Scores are folded while the next ones are multiplied.
void scan_steps(const std::uint16_t* rows, int count, const std::uint16_t* codes, std::int64_t blocks, int steps,
                int section_blocks, std::int32_t section, const LaneState& state) {
    const std::int64_t score_tiles = std::int64_t(steps) * TileScan::tile, parts = blocks * (V / 2);
    Fold<2, 2> fold(state, section, section_blocks * (V / 2));
    for (int row = 0; row < count; row += 2 * TileScan::rows) {
        const int valid = std::min(2 * TileScan::rows, count - row);
        const std::uint16_t *x = rows + row / TileScan::rows * score_tiles, *c = codes;
        for (std::int64_t part = 0; part < parts; ++part, c += 2 * score_tiles) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (std::int64_t at = 0; at < score_tiles; at += TileScan::tile) {
                _tile_loadd(4, x + at, line);
                _tile_loadd(6, c + at, line);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, c + score_tiles + at, line);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, x + score_tiles + at, line);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            if (part > 0) fold.take(part - 1, false, row, valid);
            VQK_KEEP(0, 1, fold.part(part));
            VQK_KEEP(2, 3, fold.part(part) + 2 * scores_of_tile);
        }
        fold.take(parts - 1, true, row, valid);
    }
}

void scan(const std::uint16_t* rows, int count, const std::uint16_t* codes, std::int64_t blocks, int steps,
          int section_blocks, std::int32_t section, LaneState state) {
    const TileUse use;
    if (steps == 1) return scan_step(rows, count, codes, blocks, section_blocks, section, state);
    scan_steps(rows, count, codes, blocks, steps, section_blocks, section, state);
}

double spin(std::int64_t rounds) {
    const TileUse use;
    for (std::int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    return 2.0 * 4 * double(rounds) * scores_of_tile * TileScan::slots;
}

}  // namespace

bool amx_permitted() {
#if defined(__linux__)
    // processor: AMX-TILE, AMX-BF16, AVX512-BF16; system: the use of tiles has to be asked for, once per process
    static const bool permitted = [] {
        constexpr unsigned amx = (1u << 22) | (1u << 24), avx512_bf16 = 1u << 5;
        constexpr long request_permission = 0x1023, tile_data = 18;
        unsigned a, b, c, d;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & amx) != amx) return false;
        if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & avx512_bf16)) return false;
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return permitted;
#else
    return false;
#endif
}

const ScanKernel& scan_amx() {
    static const TileScan tiles = {pack_codes, pack_rows, scan, spin};
    static const ScanKernel kernel = [] {
        ScanKernel with_tiles = scan_avx512();
        with_tiles.isa = Isa::amx;
        with_tiles.tiles = &tiles;
        return with_tiles;
    }();
    return kernel;
}

}  // namespace vqk
