// Body of the pass, once for all instruction sets. L: lanes (cpu/lanes.h) of float, with `any`. A register tile is Q
// codes x V vectors of W rows.
#include <cstdint>
#include <cstring>

#include "cpu/draw_rows_pass.h"
#include "cpu/lanes.h"

namespace vqk {
namespace {

template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class L, int Q, int V>
struct DrawTile {
    using F = typename L::F;
    using I = typename L::I;
    using U = typename VectorOf<std::uint32_t, L::W>::type;
    static constexpr int W = L::W;

    F excess[Q][V];  // distance less the bound of the noise

    void measure(const DrawPass& pass, std::int64_t code, std::int64_t block) {
        for (int l = 0; l < pass.count; ++l) add_level(pass.levels[l], l == 0, code, block);
        for (int v = 0; v < V; ++v) {
            U row;
            std::memcpy(&row, pass.row_number + (block * V + v) * W, sizeof row);
            for (int q = 0; q < Q; ++q) excess[q][v] = excess[q][v] - most_noise(row + pass.code_number[code + q]);
        }
    }

    // The noise is at most -ln v, v = (r + 1/2) / 2^32, r the scattered number. With f = floor(r / 256) as a float,
    // 2^24 v >= f; and the bits of f, an integer, over 2^23 less 127 are a chord of log2 f, never above it. For f = 0
    // they are 0, which bounds nothing and is right.
    static F most_noise(U sum) {
        constexpr float ln2 = 0.693147182f;
        const F f = __builtin_convertvector(same_bits<I>(scattered(sum) >> 8), F);
        const F bits = __builtin_convertvector(same_bits<I>(f), F);
        return L::fma(bits, L::broadcast(-ln2 * 0x1p-23f), L::broadcast(151 * ln2 + 1e-4f));
    }

  private:
    void add_level(const DrawLevel& level, bool first, std::int64_t code, std::int64_t block) {
        F score[Q][V];  // in registers
        for (int v = 0; v < V; ++v) {
            const F bias = L::load(level.x_bias + (block * V + v) * W);
            for (int q = 0; q < Q; ++q) score[q][v] = bias + level.code_bias[code + q];
        }
        const float* x = level.x + block * level.dim * V * W;
        const float* negated = level.negated + code * level.dim;
        for (int d = 0; d < level.dim; ++d, x += V * W) {
            F value[V];
            for (int v = 0; v < V; ++v) value[v] = L::load(x + v * W);
            for (int q = 0; q < Q; ++q) {
                const F factor = L::broadcast(negated[std::int64_t(q) * level.dim + d]);
                for (int v = 0; v < V; ++v) score[q][v] = L::fma(factor, value[v], score[q][v]);
            }
        }
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                const F distance = level.root ? L::sqrt(L::max(score[q][v], F{})) : score[q][v];
                excess[q][v] = first ? distance * level.factor : excess[q][v] + distance * level.factor;
            }
        }
    }
};

template <class L, int Q, int V>
void scan_pairs(const DrawPass& pass, std::int64_t begin, std::int64_t end, std::int64_t from, std::int64_t to,
                float* bound, Offer offer, void* judge) {
    DrawTile<L, Q, V> tile;
    for (std::int64_t code = begin; code < end; code += Q) {
        for (std::int64_t block = from; block < to; ++block) {
            tile.measure(pass, code, block);
            typename L::I within{};
            for (int q = 0; q < Q; ++q) {
                const auto limit = L::broadcast(bound[code + q]);
                for (int v = 0; v < V; ++v) within |= tile.excess[q][v] <= limit;
            }
            if (!L::any(within)) continue;
            for (int q = 0; q < Q; ++q) {
                float& limit = bound[code + q];
                for (int i = 0; i < V * L::W; ++i) {
                    // the bound moves: the next of the tile may no longer be within
                    if (!(tile.excess[q][i / L::W][i % L::W] <= limit)) continue;
                    limit = offer(judge, code + q, block * V * L::W + i);
                }
            }
        }
    }
}

template <class L, int Q, int V>
DrawKernel make_draw_kernel() {
    return {Q, V * L::W, scan_pairs<L, Q, V>};
}

}  // namespace
}  // namespace vqk
