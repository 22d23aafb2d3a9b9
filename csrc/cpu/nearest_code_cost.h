// What the ways to scan cost, and which are worth their time: never a result depends on it.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/integer_scan.h"
#include "cpu/nearest_code.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/tile_scan.h"

namespace vqk {

enum class Unit { floats, plain, words, bytes, tiles };

// How scores are computed. products: of bfloat16 parts on tiles (cpu/tile_scan.h).
struct Precision {
    Unit unit;
    int products = 0;
};

// The ns that a fused multiply-add of one number takes this processor at full rate: the best of some short runs, once
// per process. Processors differ in it by a factor of two with the same instructions, and less in what waits for
// memory and branches, which is given in ns below.
inline double multiply_add(const ScanKernel& kernel) {
    constexpr int tries = 20;
    constexpr std::int64_t rounds = 250;  // of a try, a microsecond or two
    static std::atomic<double> known[isas];
    std::atomic<double>& found = known[int(kernel.base)];
    if (const double time = found.load(); time > 0) return time;
    using Clock = std::chrono::steady_clock;
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < tries; ++i) {
        const auto begin = Clock::now();
        const double numbers = kernel.spin_fma(rounds) / 2;
        best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / numbers);
    }
    best = std::max(best, 1e-4);  // a clock may stand still
    found.store(best);
    return best;
}

// of a pair of vector and code, in multiply-adds of floats; what a pair costs at its end is measured, as are tiles
inline double pair_products(std::int64_t dim, Precision precision, const ScanKernel& kernel) {
    const auto integers = [&](const IntegerScan& scan) { return scan.cost * double(dim + 1) + scan.end; };
    switch (precision.unit) {
        case Unit::tiles:
            return 3.8 + 2.6 * TileScan::steps(dim, precision.products);
        case Unit::words:
            return integers(*kernel.words);
        case Unit::bytes:
            return integers(*kernel.bytes);
        default:
            return double(dim + 1);
    }
}

// in ns, of a vector against K codes, with what deciding about it takes longer than after a scan in floats: measured
inline double vector_cost(std::int64_t k, std::int64_t dim, Precision precision, const ScanKernel& kernel) {
    const double decision = precision.unit == Unit::bytes ? 210 : precision.unit == Unit::words ? 90 : 0;
    return double(k) * multiply_add(kernel) * pair_products(dim, precision, kernel) + decision;
}

constexpr std::int64_t most_integers = 1 << 16;  // dimensions for which 32 bits hold any sum

// Is what packing codes as integers costs worth its while? Asked for by name, they serve any number of vectors.
inline bool enough_for_integers(const Lookup& call) {
    return call.n >= 256 || call.isa != Isa::automatic;
}

inline bool words_pay(std::int64_t k, std::int64_t dim, const ScanKernel& kernel) {
    return kernel.words && dim <= most_integers &&
           vector_cost(k, dim, {Unit::words}, kernel) <= vector_cost(k, dim, {Unit::floats}, kernel);
}

// The ways worth their time for many vectors, coarse to fine. `named`: a kernel asked for by name shows what it has,
// however few the codes are.
inline std::vector<Precision> precisions(std::int64_t k, std::int64_t dim, const ScanKernel& kernel, bool named) {
    constexpr Precision floats{Unit::floats}, words{Unit::words}, bytes{Unit::bytes}, one{Unit::tiles, 1},
        three{Unit::tiles, 3};
    const double cost = pair_products(dim, floats, kernel);
    std::vector<Precision> ways = {floats};
    if (kernel.tiles && pair_products(dim, three, kernel) <= cost) {
        ways.insert(ways.begin(), three);
        if (TileScan::steps(dim, 1) != TileScan::steps(dim, 3)) ways.insert(ways.begin(), one);
    } else if (words_pay(k, dim, kernel)) {
        ways.insert(ways.begin(), words);
    }
    if (!kernel.bytes || dim > most_integers) return ways;
    const bool shown = named && pair_products(dim, bytes, kernel) <= cost;
    if (shown || vector_cost(k, dim, bytes, kernel) <= vector_cost(k, dim, ways.front(), kernel)) {
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
