#include "cpu/nearest_code_probe.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/integer_pack.h"
#include "cpu/integer_scan.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/tile_scan.h"

namespace vqk {
namespace {

constexpr int rows = 96;             // a multiple of every kernel's tile
constexpr std::int64_t codes = 128;  // and of every block: few enough for the caches
constexpr int units = 5;
constexpr double least = 1e-5;  // ns: a clock may stand still

// Vectors and a section of codes, all zero: what they hold takes no time.
struct Zeros {
    const std::int64_t blocks;
    std::vector<float> negated;
    BlockBuffer packed;
    std::vector<float> best, second;
    std::vector<std::int32_t> section;

    Zeros(const ScanKernel& kernel, std::int64_t dim)
        : blocks(codes / kernel.block_codes),
          negated(rows * dim),
          packed(blocks, dim, kernel),
          best(std::size_t(rows) * kernel.lanes, std::numeric_limits<float>::infinity()),
          second(best),
          section(best.size()) {
        std::fill_n(packed.codes(0), dim * codes, 0.0f);
        std::fill_n(packed.bias(0), codes, 0.0f);
    }
    LaneState state() { return {best.data(), second.data(), section.data()}; }
};

// ns of a pair, in the best of a few scans
template <class Scan>
double best_of(const Scan& scan) {
    constexpr int tries = 6;
    using Clock = std::chrono::steady_clock;
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < tries; ++i) {
        const auto begin = Clock::now();
        scan();
        best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - begin).count());
    }
    return best / double(rows * codes);
}

double time_floats(const ScanKernel& kernel, std::int64_t dim) {
    Zeros zeros(kernel, dim);
    const PackedCodes packed = zeros.packed.view(zeros.blocks);
    return best_of([&] { kernel.scan(zeros.negated.data(), rows, packed, int(zeros.blocks), 0, zeros.state()); });
}

double time_integers(const ScanKernel& kernel, Unit unit, std::int64_t dim) {
    Zeros zeros(kernel, dim);
    const IntegerScan& integers = unit == Unit::words ? *kernel.words : *kernel.bytes;
    const IntegerPanel panel(integers, zeros.negated.data(), rows, int(dim), true);
    const IntegerBuffer buffer(integers, zeros.blocks, dim, kernel.block_codes);
    for (std::int64_t b = 0; b < zeros.blocks; ++b) {
        integers.pack_codes(zeros.packed.codes(b), zeros.packed.bias(b), buffer.view(b, 1));
    }
    const IntegerCodes packed = buffer.view(0, zeros.blocks);
    if (unit == Unit::words) {
        return best_of([&] { integers.scan(panel.from(0), rows, packed, int(zeros.blocks), 0, zeros.state()); });
    }
    std::vector<float> nothing(rows, -std::numeric_limits<float>::infinity());
    std::vector<std::int32_t> count(rows);
    const CandidateLists lists = {nothing.data(), nullptr, count.data(), 0};
    return best_of([&] { integers.append(panel.from(0), rows, packed, 0, zeros.blocks, lists); });
}

double time_tiles(const ScanKernel& kernel, std::int64_t dim) {
    Zeros zeros(kernel, dim);
    const TileScan& tiles = *kernel.tiles;
    constexpr int products = 1;
    const int steps = TileScan::steps(dim, products);
    const std::int64_t numbers = std::int64_t(steps) * TileScan::slots, block_numbers = kernel.block_codes * numbers;
    const auto packed = make_aligned<std::uint16_t>(std::size_t(codes * numbers)),
               x = make_aligned<std::uint16_t>(std::size_t(rows * numbers));
    for (std::int64_t b = 0; b < zeros.blocks; ++b) {
        tiles.pack_codes(zeros.packed.codes(b), zeros.packed.bias(b), int(dim), products,
                         packed.get() + b * block_numbers);
    }
    tiles.pack_rows(zeros.negated.data(), rows, int(dim), products, x.get());
    return best_of(
        [&] { tiles.scan(x.get(), rows, packed.get(), zeros.blocks, steps, int(zeros.blocks), 0, zeros.state()); });
}

PairCost measure(const ScanKernel& kernel, Unit unit) {
    const auto time = [&](std::int64_t dim) {
        if (unit == Unit::tiles) return time_tiles(kernel, dim);
        return unit == Unit::floats ? time_floats(kernel, dim) : time_integers(kernel, unit, dim);
    };
    const auto numbers = [&](std::int64_t dim) {
        return unit == Unit::tiles ? double(TileScan::steps(dim, 1)) : double(dim + 1);
    };
    constexpr std::int64_t few = 32, many = 96;
    const double short_time = time(few);
    // floats have nothing to do beside
    if (unit == Unit::floats) return {std::max(short_time / numbers(few), least), 0};
    const double number = std::max((time(many) - short_time) / (numbers(many) - numbers(few)), least);
    return {number, std::max(short_time - number * numbers(few), 0.0)};
}

}  // namespace

PairCost pair_cost(const ScanKernel& kernel, Unit unit) {
    static std::once_flag once[isas][units];
    static PairCost known[isas][units];
    const int isa = int(kernel.isa), way = int(unit);
    std::call_once(once[isa][way], [&] { known[isa][way] = measure(kernel, unit); });
    return known[isa][way];
}

}  // namespace vqk
