// Exact lookup in two steps: a float32 scan leaves a few candidates per query and a bound that no other code can
// be the nearest; the canonical float64 evaluation of the candidates decides.
//
// The scan works on shifted and scaled copies: x' = (x - m) s, c' = (c - m) s with m near the codebook mean and s a
// power of two. It minimises |c'|^2/2 - x'.c' (l2), -x.c' (dot; x is not shifted) or -x.c/(|x||c|) (cosine): up to
// terms that are the same for all codes of a row, the metric itself.
#include "cpu/nearest_code.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/canonical.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

// Queries that share one pass over the codes. The first of them to touch a section waits for memory, so many are
// good: with 384 instead of 192, D = 256 runs 10 % faster and D = 768 even more.
constexpr std::int64_t panel_rows = 384;
constexpr int max_section_blocks = 8;
constexpr double length_limit = 1e15;  // |x'| beyond which its square could overflow float

// Half the width of the band in which the scan cannot tell codes apart: |score - true score| <= tolerance.
// With u = 2^-24: rounding x' and c' to float costs 2u |x'||c'| and 3u |c'|^2/2, and a sum of D + 1 terms
// with (or without) fused multiply-add at most (D + 1) u times the sum of their magnitudes, which is at most
// |c'|^2/2 + |x'||c'|. The canonical evaluation itself is off by a like share of |x - c|^2 (l2), or of |x||c| before
// any shift. The last two terms are gradual underflow, of the scan and of the canonical evaluation.
template <class Value>
double scan_tolerance(const Codes<Value>& codes, double x_norm) {
    const double terms = double(codes.dim + 8), c_norm = codes.radius;
    const double canonical =
        codes.metric == Metric::l2 ? (x_norm + c_norm) * (x_norm + c_norm) : x_norm * (c_norm + codes.shift_norm);
    return 1.001 * terms * 0x1p-24 * (0.5 * c_norm * c_norm + x_norm * c_norm) + 2 * terms * 0x1p-53 * canonical +
           terms * 0x1p-120 + terms * 0x1p-1022 * codes.scale * codes.scale;
}

// Up to panel_rows queries and what the scan leaves of them.
template <class Value>
struct Panel {
    int rows, padded, lanes;
    const std::int64_t* ids;             // [rows] which vectors these are
    std::vector<Value> values;           // [rows][D] as given
    std::vector<float> negated;          // [padded][D] -x'
    std::vector<double> norm;            // [rows] canonical |x|, cosine only
    std::vector<double> length;          // [rows] |x'|
    std::vector<double> band;            // [rows] the nearest code's score is at most this above the lowest one
    std::vector<std::uint8_t> finite;    // [rows]
    AlignedArray<float> best, second;    // [padded][W]
    AlignedArray<std::int32_t> section;  // [padded][W]
    int section_blocks = 1;
    std::vector<double> wide;         // [D] the row being finished
    std::vector<std::int64_t> found;  // packed positions of its candidates

    Panel(const std::int64_t* ids, int rows, std::int64_t dim, const ScanKernel& kernel)
        : rows(rows),
          padded((rows + kernel.queries - 1) / kernel.queries * kernel.queries),
          lanes(kernel.lanes),
          ids(ids),
          values(std::size_t(rows * dim)),
          negated(std::size_t(padded * dim), 0.0f),
          norm(rows),
          length(rows),
          band(rows),
          finite(rows),
          best(make_aligned<float>(std::size_t(padded) * lanes)),
          second(make_aligned<float>(std::size_t(padded) * lanes)),
          section(make_aligned<std::int32_t>(std::size_t(padded) * lanes)),
          wide(std::size_t(dim)),
          found(std::size_t(kernel.block_codes) * max_section_blocks) {
        const int lane_count = padded * lanes;
        std::fill_n(best.get(), lane_count, std::numeric_limits<float>::infinity());
        std::fill_n(second.get(), lane_count, std::numeric_limits<float>::infinity());
        std::fill_n(section.get(), lane_count, 0);
    }

    bool scannable(int r) const { return finite[r] && length[r] < length_limit; }
    LaneState state() { return {best.get(), second.get(), section.get()}; }
};

// reads the panel's rows of one group's x and makes their shifted, scaled, negated float copies
template <class Value, class Input>
void load(Panel<Value>& panel, const Input* x, std::int64_t row_stride, const Codes<Value>& codes,
          const ScanKernel& kernel) {
    const std::int64_t dim = codes.dim;
    const std::vector<double> unshifted(codes.metric == Metric::l2 ? 0 : dim);
    const double* shift = codes.metric == Metric::l2 ? codes.shift.data() : unshifted.data();
    for (int r = 0; r < panel.rows; ++r) {
        Value* row = panel.values.data() + r * dim;
        const Input* given = x + panel.ids[r] * row_stride;
        for (std::int64_t d = 0; d < dim; ++d) row[d] = Value(widen(given[d]));
        panel.finite[r] = std::isfinite(largest_magnitude(row, dim));
        double factor = -codes.scale;
        if (codes.metric == Metric::cosine && panel.finite[r]) {
            panel.norm[r] = canonical_norm(row, dim);
            panel.finite[r] = std::isfinite(panel.norm[r]);
            factor = panel.norm[r] > 0 ? -1 / panel.norm[r] : 0;
        }
        if (!panel.finite[r]) continue;
        float* out = panel.negated.data() + r * dim;
        panel.length[r] = std::sqrt(affine(kernel, row, shift, factor, dim, out)) * (1 + 1e-6);
        panel.band[r] = 2 * scan_tolerance(codes, panel.length[r]);
        if (!panel.scannable(r)) std::fill_n(out, dim, 0.0f);  // see finish
    }
}

// every query against every code
template <class Value>
void scan_all(Panel<Value>& panel, const Codes<Value>& codes, const ScanKernel& kernel) {
    // a section costs every query an update of its lanes and leaves it 4 candidates per block to evaluate; measured,
    // the sum is least near sqrt(blocks / 4), up to 8 blocks that are small or 4 that fit into the L2 cache
    const std::int64_t fitting = (1 << 17) / (kernel.block_codes * codes.dim);
    const std::int64_t limit = codes.dim <= 8 ? max_section_blocks : std::clamp<std::int64_t>(fitting, 1, 4);
    const std::int64_t balanced = std::lround(std::sqrt(double(codes.view().blocks) / 4));
    panel.section_blocks = int(std::clamp<std::int64_t>(balanced, 1, limit));
    kernel.scan(panel.negated.data(), panel.padded, codes.view(), panel.section_blocks, panel.state());
}

// every query against the blocks near its home; returns the share of (query, block) pairs that were scored
template <class Value>
double scan_near(Panel<Value>& panel, const std::int32_t* home, bool crowded, const Codes<Value>& codes,
                 const ScanKernel& kernel) {
    // rows that are not scanned, and padding, stay with the others and ask for nothing
    std::vector<std::int32_t> start(panel.padded, home[0]);
    std::vector<double> reach(panel.padded, -HUGE_VAL);
    // |x'-c'|^2 = 2 score + |x'|^2, plus |c'|^2 where the score lacks it
    const double lacking = codes.metric == Metric::l2 ? 0.0 : codes.radius * codes.radius;
    for (int r = 0; r < panel.rows; ++r) {
        start[r] = home[r];
        if (panel.scannable(r)) reach[r] = 2 * panel.band[r] + panel.length[r] * panel.length[r] + lacking;
    }
    panel.section_blocks = 1;
    const auto scan = crowded ? kernel.scan_near : kernel.scan_near_single;
    const std::int64_t scored = scan(panel.negated.data(), panel.padded, codes.view(), codes.boxes(), start.data(),
                                     reach.data(), panel.state());
    return double(scored) / (double(panel.rows) * double(codes.view().blocks));
}

// offers the codes at the first `count` positions of panel.found
template <class Value>
void offer(Panel<Value>& panel, std::int64_t count, const Codes<Value>& codes, const ScanKernel& kernel,
           Winner& winner) {
    const bool l2 = codes.metric == Metric::l2;
    for (std::int64_t i = 0; i < count; i += canonical_batch) {
        const int here = int(std::min<std::int64_t>(count - i, canonical_batch));
        std::int64_t index[canonical_batch];
        const Value* batch[canonical_batch];
        double keys[canonical_batch];
        for (int j = 0; j < canonical_batch; ++j) {
            // a short last batch repeats its first code
            index[j] = codes.order[panel.found[i + (j < here ? j : 0)]];
            batch[j] = codes.values + index[j] * codes.dim;
        }
        if constexpr (std::is_same_v<Value, float>) {
            kernel.sums(panel.wide.data(), batch, codes.dim, l2, keys);
        } else {
            canonical_sums(panel.wide.data(), batch, codes.dim, l2, keys);
        }
        for (int j = 0; j < here; ++j) {
            if (codes.metric == Metric::cosine) {
                keys[j] = codes.norms[index[j]] > 0 ? keys[j] / codes.norms[index[j]] : 0.0;
            }
            winner.offer(keys[j], index[j]);
        }
    }
}

// evaluates the candidates of one row that the scan has left
template <class Value>
Winner decide(Panel<Value>& panel, int r, const Codes<Value>& codes, const ScanKernel& kernel) {
    Winner winner;
    if (codes.metric == Metric::cosine && panel.norm[r] == 0) {
        // equally far from every code
        winner.offer(0.0, *std::min_element(codes.order.begin(), codes.order.end()));
        return winner;
    }
    std::copy_n(panel.values.data() + r * codes.dim, codes.dim, panel.wide.begin());
    const std::int64_t at = std::int64_t(r) * panel.lanes;
    const PackedCodes packed = codes.view();
    Verdict verdict{FLT_MAX, 0, true};  // without a scan, every code may be the nearest
    if (panel.scannable(r)) verdict = kernel.verdict(panel.best.get() + at, panel.second.get() + at, panel.band[r]);
    if (verdict.ambiguous) {
        // the lanes do not name every candidate, a second pass does
        const float* negated = panel.negated.data() + r * codes.dim;
        for (std::int64_t begin = 0; begin < packed.blocks; begin += max_section_blocks) {
            const std::int64_t end = std::min(packed.blocks, begin + max_section_blocks);
            offer(panel, kernel.collect(negated, packed, begin, end, verdict.threshold, panel.found.data()), codes,
                  kernel, winner);
        }
        return winner;
    }
    const std::int64_t size = std::int64_t(panel.section_blocks) * kernel.block_codes;
    for (std::uint32_t lanes = verdict.lanes; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        const std::int64_t begin = std::int64_t(panel.section[at + lane]) * size;
        const std::int64_t end = std::min(std::int64_t(codes.order.size()), begin + size);
        std::int64_t count = 0;
        for (std::int64_t i = begin + lane; i < end; i += panel.lanes) panel.found[count++] = i;
        offer(panel, count, codes, kernel, winner);
    }
    return winner;
}

// Is a tree over the codes worth building? Its cost is about 8 ns per code and level, and it is wasted if the codes
// turn out to be too spread for boxes to rule anything out; the scan of everything runs near 10^11 multiply-adds a
// second.
bool worth_ordering(const Lookup& call, int block) {
    if (call.metric == Metric::dot || call.d > 16) return false;
    const double leaves = double(call.k) / block;
    const double build = double(call.k) * std::log2(std::max(leaves, 2.0)) * 8e-9;
    const double scan = double(call.n) * double(call.k) * double(call.d) * 1e-11;
    return leaves >= 32 && build < 0.3 * scan;
}

// One group: its codes, and the order in which its vectors are taken.
template <class Value>
struct Group {
    Codes<Value> codes;
    std::vector<std::int64_t> rows;  // [N]
    std::vector<std::int32_t> home;  // [N] of the rows in that order, if there is a tree
    // set once a panel has shown that too few blocks can be skipped; changes the time taken, never the result
    std::atomic<bool> scan_everything{false};
};

// takes the vectors in the order of their home blocks, so that the queries of a tile look in the same places
template <class Value, class Input>
void order_rows(Group<Value>& group, const Input* x, std::int64_t n, std::int64_t row_stride,
                const ScanKernel& kernel, int threads) {
    constexpr std::int64_t chunk = 1024;
    const Codes<Value>& codes = group.codes;
    std::vector<std::int32_t> home(n);
    parallel_for((n + chunk - 1) / chunk, useful_threads(threads, double(n) * 64), [&](std::int64_t c) {
        std::vector<std::int64_t> ids(std::min(n, (c + 1) * chunk) - c * chunk);
        std::iota(ids.begin(), ids.end(), c * chunk);
        Panel<Value> panel(ids.data(), int(ids.size()), codes.dim, kernel);
        load(panel, x, row_stride, codes, kernel);
        for (float& value : panel.negated) value = -value;
        for (int r = 0; r < panel.rows; ++r) home[ids[r]] = codes.tree.home(panel.negated.data() + r * codes.dim);
    });
    std::vector<std::int64_t> start(codes.view().blocks + 1, 0);
    for (const std::int32_t block : home) ++start[block + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    group.rows.resize(n);
    group.home.resize(n);
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t place = start[home[i]]++;
        group.rows[place] = i;
        group.home[place] = home[i];
    }
}

template <class Value, class Input>
double lookup(const Lookup& call, const Value* codebook, const Input* x) {
    constexpr double worth_skipping = 0.5;  // share of pairs scored beyond which boxes cost more than they save
    const ScanKernel& kernel = scan_kernel(call.isa);
    const bool ordered = worth_ordering(call, kernel.block_codes);
    const std::int64_t stride = call.g * call.d;

    std::vector<std::unique_ptr<Group<Value>>> groups;
    for (std::int64_t g = 0; g < call.g; ++g) {
        const Value* values = codebook + g * call.k * call.d;
        groups.emplace_back(
            new Group<Value>{{values, call.k, call.d, call.metric, kernel, ordered, call.threads}, {}, {}, {}});
        Group<Value>& group = *groups.back();
        if (group.codes.tree.empty()) {
            group.rows.resize(call.n);
            std::iota(group.rows.begin(), group.rows.end(), 0);
        } else {
            order_rows(group, x + g * call.d, call.n, stride, kernel, call.threads);
        }
    }

    // the same number of equal panels for every thread
    const std::int64_t share = (call.n * call.g + call.threads - 1) / std::max(call.threads, 1) + 1;
    const std::int64_t per_thread = (share + panel_rows - 1) / panel_rows;
    const std::int64_t even = (share + per_thread - 1) / per_thread;
    const std::int64_t rows = (even + kernel.queries - 1) / kernel.queries * kernel.queries;
    const std::int64_t panels = (call.n + rows - 1) / rows;
    const double work = double(call.n) * double(call.g) * double(call.k) * double(call.d) / 16;
    std::vector<double> scored(panels * call.g, 0.0);
    parallel_for(panels * call.g, useful_threads(call.threads, work), [&](std::int64_t task) {
        const std::int64_t g = task % call.g, start = task / call.g * rows;
        Group<Value>& group = *groups[g];
        const Codes<Value>& codes = group.codes;
        Panel<Value> panel(group.rows.data() + start, int(std::min(rows, call.n - start)), call.d, kernel);
        load(panel, x + g * call.d, stride, codes, kernel);
        if (!codes.empty() && (codes.tree.empty() || group.scan_everything)) {
            scan_all(panel, codes, kernel);
            scored[task] = panel.rows;
        } else if (!codes.empty()) {
            // with many queries to a block, those of a tile need much the same blocks
            const bool crowded = call.n >= 32 * codes.view().blocks;
            const double share = scan_near(panel, group.home.data() + start, crowded, codes, kernel);
            if (share > worth_skipping) group.scan_everything = true;
            scored[task] = share * panel.rows;
        }
        for (int r = 0; r < panel.rows; ++r) {
            const Winner winner = panel.finite[r] && !codes.empty() ? decide(panel, r, codes, kernel) : Winner{};
            // no finite code, or keys beyond float64: index 0, distance NaN
            const std::int64_t at = panel.ids[r] * call.g + g;
            call.indices[at] = std::isfinite(winner.key) ? winner.index : 0;
            call.distance[at] = canonical_distance(call.metric, winner.key, panel.norm[r]);
        }
    });
    return std::accumulate(scored.begin(), scored.end(), 0.0) / std::max(double(call.n) * double(call.g), 1.0);
}

template <class Value>
double with_vectors(const Lookup& call, const Value* codebook) {
    double scored = 0;
    with_dtype(call.x_type,
               [&](auto* tag) { scored = lookup<Value>(call, codebook, static_cast<decltype(tag)>(call.x)); });
    return scored;
}

// the codebook as Value: a view if it already is, else a copy (exact: halves widen, float widens to double)
template <class Value>
double with_codebook(const Lookup& call) {
    double scored = 0;
    with_dtype(call.codebook_type, [&](auto* tag) {
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(tag)>>;
        const auto* given = static_cast<const Input*>(call.codebook);
        if constexpr (std::is_same_v<Input, Value>) {
            scored = with_vectors<Value>(call, given);
        } else {
            std::vector<Value> copy(std::size_t(call.g * call.k * call.d));
            for (std::size_t i = 0; i < copy.size(); ++i) copy[i] = Value(widen(given[i]));
            scored = with_vectors<Value>(call, copy.data());
        }
    });
    return scored;
}

}  // namespace

const ScanKernel& scan_kernel(Isa isa) {
#if VQK_X86
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    if (isa == Isa::avx512 || (isa == Isa::automatic && has_avx512)) {
        if (!has_avx512) throw std::invalid_argument("instruction set avx512: not supported by this processor");
        return scan_avx512();
    }
    if (isa == Isa::avx2 || (isa == Isa::automatic && has_avx2)) {
        if (!has_avx2) throw std::invalid_argument("instruction set avx2: not supported by this processor");
        return scan_avx2();
    }
#else
    if (isa == Isa::avx512 || isa == Isa::avx2) {
        throw std::invalid_argument("instruction set: expected auto or portable on this processor, got an x86 one");
    }
#endif
    return scan_portable();
}

double nearest_code(const Lookup& call) {
    const bool wide = call.x_type == DType::f64 || call.codebook_type == DType::f64;
    return wide ? with_codebook<double>(call) : with_codebook<float>(call);
}

}  // namespace vqk
