// A register tile of the passes, Q vectors x before a block of V vectors of W codes, and the way of all tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/soft_entropy_pass.h"

namespace vqk {
namespace {

// a difference of two t as one of log2 p
template <class L>
typename L::F to_bits(const SoftPass<typename L::Real>& pass, typename L::F difference) {
    using Real = typename L::Real;
    if constexpr (sizeof(Real) == 4) return difference;
    // a double t has no bound, and p = 0 times infinity is not 0
    return L::max(L::broadcast(pass.slope) * difference, L::broadcast(Real(-1500)));
}

template <class L, int Q, int V>
struct Tile {
    using Real = typename L::Real;
    using F = typename L::F;
    static constexpr int W = L::W;
    static constexpr std::int64_t block_size = V * W;

    const SoftPass<Real>& pass;
    const SoftBatch<Real>& batch;
    const bool keep;  // pairs where the batch has room for them; otherwise they are gone with the tile
    std::int64_t row = 0, block = 0;
    Real* pairs = scratch;  // [Q][V*W] what a body leaves
    Real* known = scratch;  // [Q][V*W] t
    alignas(64) Real scratch[Q * V * W];

    Tile(const SoftPass<Real>& pass, const SoftBatch<Real>& batch, bool keep)
        : pass(pass), batch(batch), keep(keep) {}

    void go(std::int64_t to_row, std::int64_t to_block) {
        row = to_row;
        block = to_block;
        if (keep) pairs = batch.pairs + place() * block_size;
        known = batch.remembered ? batch.remembered + (row / Q * pass.blocks + block) * Q * block_size : pairs;
    }
    std::int64_t place() const { return (block - batch.chunk) * batch.rows + row; }
    Real* pair(int q, int v) const { return pairs + (q * V + v) * W; }
    F load(int q, int v) const { return L::load(known + (q * V + v) * W); }
    F of_row(const Real* numbers, int q) const { return L::broadcast(numbers[row + q]); }
    F of_code(const Real* numbers, int v) const { return L::load(numbers + block * block_size + v * W); }

    // known = t, or what the dimensions before `to` make of it. Not inlined: the loop needs all registers.
    __attribute__((noinline)) void measure(int from, int to) const {
        F score[Q][V];
        for (int v = 0; v < V; ++v) {
            for (int q = 0; q < Q; ++q) {
                score[q][v] = from ? load(q, v) : of_code(pass.bias, v) + batch.bias[row + q];
            }
        }
        const Real* values = pass.codes + (block * pass.dim + from) * block_size;
        const std::int64_t stride = pass.dim + 1;
        const Real* negated = batch.negated + row * stride;
        for (int d = from; d < to; ++d, values += block_size) {
            F value[V];  // V + 1 registers beside the scores
            for (int v = 0; v < V; ++v) value[v] = L::load(values + v * W);
            for (int q = 0; q < Q; ++q) {
                const F factor = L::broadcast(negated[q * stride + d]);
                for (int v = 0; v < V; ++v) score[q][v] = L::in_turn(L::fma(factor, value[v], score[q][v]));
            }
        }
        const bool root = pass.root && to == pass.dim;
        for (int q = 0; q < Q; ++q) {
            for (int v = 0; v < V; ++v) {
                F t = score[q][v];
                if (root) t = L::sqrt(L::max(t + t, F{}));
                L::store(known + (q * V + v) * W, t);
            }
        }
    }

    // are all p of the tile 0? If not, the first comparison usually tells
    bool nothing() const {
        for (int q = 0; q < Q; ++q) {
            F nearest = load(q, 0);
            for (int v = 1; v < V; ++v) nearest = L::min(nearest, load(q, v));
            if (L::any_less(nearest, of_row(batch.reach, q))) return false;
        }
        return true;
    }

    // what the pairs of a vector have in common, in all lanes
    struct Row {
        F origin, rest, bit_gain, weight;
    };
    Row row_of(int q) const {
        return {of_row(batch.origin, q), of_row(batch.rest, q), of_row(batch.bit_gain, q), of_row(batch.weight, q)};
    }
    // log2 p up to a constant of the vector, which is its mean
    F relative(F t, const Row& of) const { return to_bits<L>(pass, of.origin - t); }
    static F p(F relative, const Row& of) { return exp2_of<L>(relative + of.rest); }
    // v: of the codes
    template <bool floored>
    F gain(F relative, const Row& of, F v) const {
        if constexpr (floored) {
            const F exact = relative + of.rest, floor = L::broadcast(pass.floor);
            relative = L::where(exact > floor, exact + Real(1.44269504088896340736), floor);
        }
        return L::fma(of.bit_gain, relative, of.weight * v);
    }
    // body(are logarithms floored?), not asked for every pair
    template <class Body>
    void as_floored(Body&& body) const {
        pass.floored ? body(std::true_type{}) : body(std::false_type{});
    }
};

// Takes a body through all tiles. The few blocks that a tile meets between start and finish stay in the L1 cache
// while all vectors of the batch meet them, and so does a slice of the dimensions if a block is larger than that.
template <class L, int Q, int V, class Body>
void sweep(const SoftPass<typename L::Real>& pass, const SoftBatch<typename L::Real>& batch, std::int64_t from,
           std::int64_t to, bool measured, Body& body) {
    constexpr std::int64_t cached = 32 << 10, numbers = cached / (V * L::W * sizeof(typename L::Real));
    const std::int64_t group = std::max<std::int64_t>(1, numbers / 2 / pass.dim);
    const int slice = pass.dim > numbers ? int(numbers) : pass.dim;
    const int last = (pass.dim - 1) / slice * slice;
    measured |= batch.known;
    Tile<L, Q, V> tile(pass, batch, batch.keep || last > 0);
    for (std::int64_t first = from; first < to; first += group) {
        const std::int64_t end = std::min(to, first + group);
        for (int d = 0; d < last && !measured; d += slice) {
            for (std::int64_t row = 0; row < batch.rows; row += Q) {
                tile.go(row, first);
                tile.measure(d, d + slice);
            }
        }
        for (std::int64_t row = 0; row < batch.rows; row += Q) {
            tile.go(row, first);
            body.start(tile);
            for (std::int64_t block = first; block < end; ++block) {
                tile.go(row, block);
                if (!measured) tile.measure(last, pass.dim);
                body.take(tile);
            }
            body.finish(tile);
        }
    }
}

}  // namespace
}  // namespace vqk
