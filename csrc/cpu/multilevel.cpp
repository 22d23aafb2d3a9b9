// A float32 scan computes a lower bound of the distance to every code; the canonical float64 distance to the codes
// where it is lowest is an upper bound of the least; what lies between is evaluated in float64 and decides.
// csrc/README.md has the proof.
//
// Level l is scanned in a frame of its own, s its scale. With q_l a little less than |x' - c'|^2 / 2, the score of a
// code is sum_l f_l sqrt(q_l), f_l = w_l / s F, or sum_l f_l q_l, f_l = w_l / s^2 F, if squared. F is the power of
// two that brings the largest f_l into [1/2, 1).
#include "cpu/multilevel.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/canonical.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

constexpr std::int64_t panel_rows = 384;  // queries that share one pass over the codes
constexpr double farthest = 0x1p40;       // |x'| beyond which a scan can tell nothing

template <class Value>
struct Level {
    const Value* x;  // [N, D_l]
    double weight;
    CodeFrame<Value> frame;
    BlockBuffer packed;
    double radius = 0;  // no code is longer
    double factor = 0;  // f, as a float holds it
};

template <class Value>
struct Levels {
    const MultilevelLookup& call;
    const ScanKernel& kernel;
    const std::int64_t blocks;
    std::vector<Level<Value>> levels;  // those of positive weight
    std::vector<std::uint8_t> usable;  // [K] whether a code is finite in every level
    std::int64_t dims = 0;             // of the levels together
    int section_blocks = 1;

    Levels(const MultilevelLookup& call, const ScanKernel& kernel);
    double threshold(double key) const;

  private:
    int exponent = 0;    // of 1 / F
    double floor = 0.0;  // by which a score can exceed its distance, whatever that is
};

template <class Value>
Levels<Value>::Levels(const MultilevelLookup& call, const ScanKernel& kernel)
    : call(call), kernel(kernel), blocks((call.k + kernel.block_codes - 1) / kernel.block_codes), usable(call.k, 1) {
    std::vector<int> exponents;
    for (std::size_t l = 0; l < call.d.size(); ++l) {
        const auto* values = static_cast<const Value*>(call.codebook[l]);
        CodeFrame<Value> frame(values, call.k, call.d[l], Metric::l2, kernel, call.threads);
        for (std::int64_t i = 0; i < call.k && !frame.all_usable(); ++i) usable[i] &= frame.usable(i);
        if (call.weight[l] == 0) continue;
        int power = 0;
        const double fraction = std::frexp(call.weight[l], &power);
        exponents.push_back(power - (call.squared ? 2 : 1) * std::ilogb(frame.scale));
        levels.push_back({static_cast<const Value*>(call.x[l]), call.weight[l], std::move(frame),
                          BlockBuffer(blocks, call.d[l], kernel), 0.0, fraction});
        dims += call.d[l];
    }
    exponent = *std::max_element(exponents.begin(), exponents.end());
    floor = std::ldexp(double(levels.size()), -1074 - exponent);
    for (std::size_t l = 0; l < levels.size(); ++l) {
        Level<Value>& level = levels[l];
        level.radius =
            pack_all(level.packed, level.frame, kernel, nullptr, call.k, call.threads, [](std::int64_t) {});
        // not 0, so that infinity times it stays infinity
        level.factor = std::max(float(std::ldexp(level.factor, exponents[l] - exponent)), FLT_MIN);
        const double terms = double(level.frame.dim), scale = level.frame.scale;
        const double underflow =
            call.squared ? terms * 0x1p-1073 * scale * scale : std::sqrt(terms) * 0x1p-536 * scale;
        floor += level.factor * underflow + 0x1p-40;
    }
    section_blocks = blocks_of_section(blocks, dims, kernel);
}

// No code with a higher score can have a canonical key as low as this one.
template <class Value>
double Levels<Value>::threshold(double key) const {
    const double count = double(levels.size()), scaled = std::ldexp(key, -exponent);
    const double distance = call.squared ? 0.5 * scaled : std::sqrt(0.5) * scaled;
    const double relative = kernel.root_error + (count + 4) * 0x1p-24 + (double(dims) + count + 8) * 0x1p-51;
    return distance * (1 + 1.001 * relative) + 2 * floor;
}

// A lower bound of |x'|^2 / 2, so much lower that rounding cannot lift |x' - c'|^2 / 2 as the scan computes it above
// the true one. To the error of a score in plain lookups (class Tolerance) come that of |x'|, (2 D + 22) u, and a
// sum.
inline float lower_half(double length, double radius, std::int64_t dim) {
    const double terms = 3 * double(dim) + 48, reach = length + radius;
    return float(0.5 * length * length - (1.001 * terms * 0x1p-24 * 0.5 * reach * reach + terms * 0x1p-120));
}

// Some vectors and some blocks of codes in all levels: the vectors' float copies, what the scan leaves in their
// lanes, and the decision.
template <class Value>
class Panel {
  public:
    Panel(const Levels<Value>& lookup, std::int64_t first, std::int64_t last, Blocks blocks);
    std::vector<Winner> search();

  private:
    void offer(int r, std::int64_t count);
    void offer_lane(int r, int lane);
    void offer_all(int r, float threshold);
    LaneState state(int r) const { return levels[0]->state(r); }
    bool finite(int r) const {
        return std::all_of(levels.begin(), levels.end(), [&](const auto& rows) { return rows->finite[r]; });
    }
    bool scannable(int r) const {
        return std::all_of(levels.begin(), levels.end(),
                           [&](const auto& rows) { return rows->length[r] < farthest; });
    }

    const Levels<Value>& lookup;
    const ScanKernel& kernel;
    const Blocks blocks;
    std::vector<std::unique_ptr<Rows<Value>>> levels;  // [L]; the lanes are those of the first
    std::vector<std::vector<float>> half;              // [L] -> [padded]
    std::vector<ScanLevel> scanned;                    // [L] views of them
    std::vector<Winner> winners;                       // [rows]
    std::vector<std::int64_t> found;                   // codes to be offered
};

template <class Value>
Panel<Value>::Panel(const Levels<Value>& lookup, std::int64_t first, std::int64_t last, Blocks blocks)
    : lookup(lookup),
      kernel(lookup.kernel),
      blocks(blocks),
      winners(last - first),
      found(kernel.block_codes * lookup.section_blocks) {
    std::vector<std::int64_t> ids(last - first);
    std::iota(ids.begin(), ids.end(), first);
    for (const Level<Value>& level : lookup.levels) {
        const std::int64_t dim = level.frame.dim;
        levels.push_back(std::make_unique<Rows<Value>>(ids, level.x, dim, level.frame, kernel));
        half.emplace_back(levels.back()->padded);
    }
    for (std::size_t l = 0; l < levels.size(); ++l) {
        const Level<Value>& level = lookup.levels[l];
        for (int r = 0; r < levels[l]->count; ++r) {
            if (scannable(r)) half[l][r] = lower_half(levels[l]->length[r], level.radius, level.frame.dim);
        }
        scanned.push_back({level.packed.view(blocks), levels[l]->negated.get(), half[l].data(), float(level.factor)});
    }
}

// offers the first `count` of the codes found
template <class Value>
void Panel<Value>::offer(int r, std::int64_t count) {
    constexpr int batch = 8;  // quads
    for (std::int64_t start = 0; start < count; start += batch * quad) {
        const int here = int(std::min<std::int64_t>(count - start, batch * quad)), quads = (here + quad - 1) / quad;
        const std::int64_t* index = found.data() + start;
        double keys[batch * quad] = {};
        for (std::size_t l = 0; l < levels.size(); ++l) {
            const Level<Value>& level = lookup.levels[l];
            const Value *x[batch * quad], *codes[batch * quad];
            double sums[batch * quad];
            std::fill_n(x, quads * quad, levels[l]->given[r]);
            // a quad that is not full repeats the last code
            for (int j = 0; j < quads * quad; ++j) {
                codes[j] = level.frame.values + index[std::min(j, here - 1)] * level.frame.dim;
            }
            if constexpr (std::is_same_v<Value, float>) {
                kernel.sums(x, codes, quads, level.frame.dim, true, sums);
            } else {
                canonical_sums(x, codes, quads, level.frame.dim, true, sums);
            }
            for (int j = 0; j < here; ++j) {
                keys[j] += level.weight * (lookup.call.squared ? sums[j] : std::sqrt(sums[j]));
            }
        }
        for (int j = 0; j < here; ++j) winners[r].offer(keys[j], index[j]);
    }
}

// offers the codes of a lane in its recorded section
template <class Value>
void Panel<Value>::offer_lane(int r, int lane) {
    const std::int64_t size = std::int64_t(lookup.section_blocks) * kernel.block_codes;
    const std::int64_t begin = blocks.begin * kernel.block_codes + std::int64_t(state(r).section[lane]) * size,
                       end = std::min({lookup.call.k, blocks.end * kernel.block_codes, begin + size});
    std::int64_t count = 0;
    for (std::int64_t i = begin + lane; i < end; i += kernel.lanes) {
        if (lookup.usable[i]) found[count++] = i;
    }
    offer(r, count);
}

// offers all codes whose score is at most the threshold
template <class Value>
void Panel<Value>::offer_all(int r, float threshold) {
    const std::int64_t count_blocks = blocks.end - blocks.begin, first = blocks.begin * kernel.block_codes;
    for (std::int64_t begin = 0; begin < count_blocks; begin += lookup.section_blocks) {
        const std::int64_t end = std::min(count_blocks, begin + lookup.section_blocks);
        const std::int64_t count = kernel.collect_levels(scanned.data(), int(scanned.size()), lookup.call.squared, r,
                                                         begin, end, threshold, found.data());
        std::for_each_n(found.begin(), count, [&](std::int64_t& code) { code += first; });
        const auto last = std::remove_if(found.begin(), found.begin() + count,
                                         [&](std::int64_t code) { return !lookup.usable[code]; });
        offer(r, last - found.begin());
    }
}

// the nearest code of every row
template <class Value>
std::vector<Winner> Panel<Value>::search() {
    const int rows = levels[0]->count, lanes = kernel.lanes;
    levels[0]->clear_lanes();
    kernel.scan_levels(scanned.data(), int(scanned.size()), lookup.call.squared, levels[0]->padded,
                       lookup.section_blocks, state(0));
    std::vector<double> band(rows, -1.0);
    std::vector<int> lowest(rows);
    for (int r = 0; r < rows; ++r) {
        if (!scannable(r)) continue;
        const float* lows = state(r).best;
        lowest[r] = int(std::min_element(lows, lows + lanes) - lows);
        offer_lane(r, lowest[r]);
        band[r] = std::max(0.0, lookup.threshold(winners[r].key) - double(lows[lowest[r]]));
    }
    std::vector<float> threshold(rows, FLT_MAX);  // without a scan, every code may be the nearest
    std::vector<std::uint8_t> ambiguous(rows);
    std::vector<std::int32_t> hits(std::size_t(rows) * lanes);
    const int count =
        kernel.shortlist(state(0), rows, band.data(), {threshold.data(), ambiguous.data(), hits.data()});
    for (int h = 0; h < count; ++h) {
        const int r = hits[h] / lanes, lane = hits[h] % lanes;
        if (!ambiguous[r] && lane != lowest[r]) offer_lane(r, lane);
    }
    for (int r = 0; r < rows; ++r) {
        // the lanes do not name every candidate, a second pass does
        if (ambiguous[r] || (!scannable(r) && finite(r))) offer_all(r, threshold[r]);
    }
    return std::move(winners);
}

template <class Value>
bool finite_row(const MultilevelLookup& call, const ScanKernel& kernel, std::int64_t n) {
    for (std::size_t l = 0; l < call.d.size(); ++l) {
        const Value* row = static_cast<const Value*>(call.x[l]) + n * call.d[l];
        if (!std::isfinite(largest_magnitude(kernel, row, call.d[l]))) return false;
    }
    return true;
}

template <class Value>
void lookup(const MultilevelLookup& call) {
    const ScanKernel& kernel = scan_kernel(call.isa);
    const Levels<Value> levels(call, kernel);
    // the same number of equal panels for every thread
    const std::int64_t share = (call.n + call.threads - 1) / std::max(call.threads, 1) + 1;
    const std::int64_t per_thread = (share + panel_rows - 1) / panel_rows;
    const std::int64_t even = (share + per_thread - 1) / per_thread;
    const std::int64_t size = (even + kernel.queries - 1) / kernel.queries * kernel.queries;
    const double work = double(call.n) * double(call.k) * double(levels.dims) / 16;
    const int threads = useful_threads(call.threads, work);
    const std::int64_t panels = (call.n + size - 1) / size;
    const Shares shares(threads, panels, levels.blocks, levels.section_blocks);
    std::vector<std::vector<Winner>> found(std::size_t(panels * shares.count));
    const auto finish = [&](std::int64_t panel) {
        for (std::int64_t n = panel * size; n < std::min(call.n, (panel + 1) * size); ++n) {
            // no finite code, or keys beyond float64: index 0, distance NaN
            Winner winner;
            const bool finite = finite_row<Value>(call, kernel, n);
            for (std::int64_t share = 0; finite && share < shares.count; ++share) {
                const Winner& other = found[panel * shares.count + share][n - panel * size];
                winner.offer(other.key, other.index);
            }
            call.indices[n] = std::isfinite(winner.key) ? winner.index : 0;
            call.distance[n] = canonical_distance(Metric::l2, winner.key, 0);
        }
    };
    parallel_for(panels * shares.count, threads, [&](std::int64_t task) {
        const std::int64_t panel = task / shares.count, first = panel * size, last = std::min(call.n, first + size);
        found[task] = Panel<Value>(levels, first, last, shares[task % shares.count]).search();
        if (shares.count == 1) finish(panel);
    });
    for (std::int64_t panel = 0; shares.count > 1 && panel < panels; ++panel) finish(panel);
}

}  // namespace

void multilevel_nearest_code(const MultilevelLookup& call) {
    if (call.type == DType::f64) return lookup<double>(call);
    lookup<float>(call);
}

}  // namespace vqk
