// What the ways to scan cost, and which are worth their time: never a result depends on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/integer_scan.h"
#include "cpu/nearest_code.h"
#include "cpu/nearest_code_probe.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/tile_scan.h"

namespace vqk {

// How scores are computed. products: of bfloat16 parts on tiles (cpu/tile_scan.h).
struct Precision {
    Unit unit;
    int products = 0;
};

// in ns, of a pair of vector and code
inline double pair_cost(std::int64_t dim, Precision precision, const ScanKernel& kernel) {
    const bool tiles = precision.unit == Unit::tiles;
    const PairCost cost = pair_cost(kernel, precision.unit);
    return cost.number * double(tiles ? TileScan::steps(dim, precision.products) : dim + 1) + cost.end;
}

// in ns, of a vector against K codes, with what deciding about it takes longer than after a scan in floats: measured
inline double vector_cost(std::int64_t k, std::int64_t dim, Precision precision, const ScanKernel& kernel) {
    const double decision = precision.unit == Unit::bytes ? 210 : precision.unit == Unit::words ? 90 : 0;
    return double(k) * pair_cost(dim, precision, kernel) + decision;
}

// in ns, of a vector, for codes that a chase of some vectors has listed and evaluated beyond what a decision
// includes: measured in 64 dimensions
inline double listing_cost(std::int64_t dim, std::int64_t evaluated, std::int64_t vectors) {
    constexpr double included = 1.5;
    const double more = double(evaluated) / double(std::max<std::int64_t>(vectors, 1)) - included;
    return std::max(more, 0.0) * (50 + 0.5 * double(dim));
}

constexpr std::int64_t most_integers = 1 << 16;  // dimensions for which 32 bits hold any sum

// Is what packing codes as integers costs worth its while? Asked for by name, they serve any number of vectors.
inline bool enough_for_integers(const Lookup& call) {
    return call.n >= 256 || call.isa != Isa::automatic;
}

// `named`: a kernel asked for by name shows what it has, whatever it costs. `listed`: codes of a vector to be listed.
inline bool words_pay(std::int64_t k, std::int64_t dim, const ScanKernel& kernel, bool named,
                      std::int64_t listed = 0) {
    constexpr double listing = 4;  // ns that words take longer to list a code
    if (!kernel.words || dim > most_integers) return false;
    return named || vector_cost(k, dim, {Unit::words}, kernel) + listing * double(listed) <=
                        vector_cost(k, dim, {Unit::floats}, kernel);
}

// The ways worth their time for many vectors, coarse to fine.
inline std::vector<Precision> precisions(std::int64_t k, std::int64_t dim, const ScanKernel& kernel, bool named) {
    constexpr Precision floats{Unit::floats}, words{Unit::words}, bytes{Unit::bytes}, one{Unit::tiles, 1},
        three{Unit::tiles, 3};
    std::vector<Precision> ways = {floats};
    if (kernel.tiles && (named || pair_cost(dim, three, kernel) <= pair_cost(dim, floats, kernel))) {
        ways.insert(ways.begin(), three);
        if (TileScan::steps(dim, 1) != TileScan::steps(dim, 3)) ways.insert(ways.begin(), one);
    } else if (words_pay(k, dim, kernel, named)) {
        ways.insert(ways.begin(), words);
    }
    if (!kernel.bytes || dim > most_integers) return ways;
    if (named || vector_cost(k, dim, bytes, kernel) <= vector_cost(k, dim, ways.front(), kernel)) {
        ways.insert(ways.begin(), bytes);
    }
    return ways;
}

inline std::vector<Precision> precisions(const Lookup& call, const ScanKernel& kernel) {
    return precisions(call.k, call.d, kernel, call.isa != Isa::automatic);
}

// Are vectors so few, and codes so long, that packing would take longer than a scan of codes as they are saves?
// Packing costs a code 0.13 D ns, the sums over lanes at the end of each product a pair 0.6 ns: measured on AVX2.
inline bool few_for_packing(const Lookup& call, const ScanKernel& kernel) {
    constexpr std::int64_t dims = 5;
    if (call.isa != Isa::automatic && precisions(call, kernel).front().unit != Unit::floats) {
        return false;
    }
    return call.n * dims <= call.d;
}

}  // namespace vqk
