// Exact lookup in two steps: a float32 scan leaves a few candidates per query and a bound that no other code can
// be the nearest; the canonical float64 evaluation of the candidates decides.
//
// The scan works on shifted and scaled copies: x' = (x - m) s, c' = (c - m) s with m near the codebook mean and s a
// power of two. It minimises |c'|^2/2 - x'.c' (l2), -x.c' (dot; x is not shifted) or -x.c/(|x||c|) (cosine): up to
// terms that are the same for all codes of a row, the metric itself.
#include "cpu/nearest_code.h"

#include <algorithm>
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
    std::vector<const Value*> row;       // [rows] the vectors as given, in x or in `widened`
    std::vector<Value> widened;          // [rows][D], if x is not of type Value
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
          row(rows),
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

// takes the panel's rows of one group's x and makes their shifted, scaled, negated float copies
template <class Value, class Input>
void load(Panel<Value>& panel, const Input* x, std::int64_t row_stride, const Codes<Value>& codes,
          const ScanKernel& kernel) {
    const std::int64_t dim = codes.dim;
    const std::vector<double> unshifted(codes.metric == Metric::l2 ? 0 : dim);
    const double* shift = codes.metric == Metric::l2 ? codes.shift.data() : unshifted.data();
    if constexpr (!std::is_same_v<Value, Input>) panel.widened.resize(std::size_t(panel.rows * dim));
    for (int r = 0; r < panel.rows; ++r) {
        const Input* given = x + panel.ids[r] * row_stride;
        if constexpr (std::is_same_v<Value, Input>) {
            panel.row[r] = given;
        } else {
            Value* row = panel.widened.data() + r * dim;
            for (std::int64_t d = 0; d < dim; ++d) row[d] = Value(widen(given[d]));
            panel.row[r] = row;
        }
        double factor = -codes.scale;
        if (codes.metric == Metric::cosine) {
            panel.norm[r] = canonical_norm(panel.row[r], dim);
            factor = panel.norm[r] > 0 ? -1 / panel.norm[r] : 0;
        }
        float* out = panel.negated.data() + r * dim;
        panel.length[r] = std::sqrt(affine(kernel, panel.row[r], shift, factor, dim, out)) * (1 + 1e-6);
        // an entry that is not finite makes the length so, but so does a float overflow: look again then
        panel.finite[r] = std::isfinite(panel.norm[r]) &&
                          (std::isfinite(panel.length[r]) || std::isfinite(largest_magnitude(panel.row[r], dim)));
        panel.band[r] = 2 * scan_tolerance(codes, panel.length[r]);
        if (!panel.scannable(r)) std::fill_n(out, dim, 0.0f);  // see decide
    }
}

// every query against every code
template <class Value>
void scan_all(Panel<Value>& panel, const Codes<Value>& codes, const ScanKernel& kernel) {
    // a section costs every query an update of its lanes, about 9 cycles, and leaves it 4 candidates per block, of
    // about 10 + 1.2 D cycles each: the sum is least at this many blocks
    const double balanced = std::sqrt(double(codes.view().blocks) * 9 / (40 + 4.8 * double(codes.dim)));
    panel.section_blocks = std::clamp(int(std::lround(balanced)), 1, max_section_blocks);
    kernel.scan(panel.negated.data(), panel.padded, codes.view(), panel.section_blocks, panel.state());
}

// Every query against the blocks near its home; returns the share of blocks that were scored. If that is large, boxes
// cost more than they save.
template <class Value>
double scan_near(Panel<Value>& panel, const std::int32_t* home, const Codes<Value>& codes, const ScanKernel& kernel) {
    std::vector<double> reach(panel.rows, -1.0);
    // |x'-c'|^2 = 2 score + |x'|^2, plus |c'|^2 where the score lacks it
    const double lacking = codes.metric == Metric::l2 ? 0.0 : codes.radius * codes.radius;
    for (int r = 0; r < panel.rows; ++r) {
        if (panel.scannable(r)) reach[r] = 2 * panel.band[r] + panel.length[r] * panel.length[r] + lacking;
    }
    panel.section_blocks = 1;
    const std::int64_t scored = kernel.scan_near(panel.negated.data(), panel.rows, codes.view(), codes.boxes(), home,
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
        if (codes.metric == Metric::cosine) {
            for (int j = 0; j < canonical_batch; ++j) {
                keys[j] = codes.norms[index[j]] > 0 ? keys[j] / codes.norms[index[j]] : 0.0;
            }
        }
        // one branch for the batch, which most do not pass; a NaN does not stop the others
        const double low = std::fmin(std::fmin(keys[0], keys[1]), std::fmin(keys[2], keys[3]));
        if (low > winner.key) continue;
        for (int j = 0; j < here; ++j) winner.offer(keys[j], index[j]);
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
    std::copy_n(panel.row[r], codes.dim, panel.wide.begin());
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

// Is a tree over the codes worth building? It costs about 8 ns per code and level, and the detour by way of home
// blocks about 100 ns per vector; the scan of everything runs near 10^11 multiply-adds a second.
bool worth_ordering(const Lookup& call, int block) {
    if (call.metric == Metric::dot || call.d > 16) return false;
    const double leaves = double(call.k) / block;
    const double build = double(call.k) * std::log2(std::max(leaves, 2.0)) * 8e-9;
    const double scan_vector = double(call.k) * double(call.d) * 1e-11;
    return scan_vector > 200e-9 && build < 0.3 * double(call.n) * scan_vector;
}

// One group: its codes, and the order in which its vectors are taken.
template <class Value>
struct Group {
    Codes<Value> codes;
    std::vector<std::int64_t> rows;  // [N]
    std::vector<std::int32_t> home;  // [N] home blocks of the rows in that order; empty: score everything
};

// home blocks of the vectors `ids`
template <class Value, class Input>
std::vector<std::int32_t> find_homes(const std::vector<std::int64_t>& ids, const Input* x, std::int64_t row_stride,
                                     const Codes<Value>& codes, const ScanKernel& kernel, int threads) {
    constexpr std::int64_t chunk = 1024;
    const auto count = std::int64_t(ids.size());
    std::vector<std::int32_t> home(ids.size());
    parallel_for((count + chunk - 1) / chunk, useful_threads(threads, double(count) * 64), [&](std::int64_t c) {
        const std::int64_t begin = c * chunk;
        Panel<Value> panel(ids.data() + begin, int(std::min(count - begin, chunk)), codes.dim, kernel);
        load(panel, x, row_stride, codes, kernel);
        for (float& value : panel.negated) value = -value;
        for (int r = 0; r < panel.rows; ++r) home[begin + r] = codes.tree.home(panel.negated.data() + r * codes.dim);
    });
    return home;
}

// Do boxes rule out enough codes? Tried on a few vectors; the answer decides the time taken, never the result.
template <class Value, class Input>
bool worth_skipping(const Input* x, std::int64_t n, std::int64_t row_stride, const Codes<Value>& codes,
                    const ScanKernel& kernel) {
    constexpr std::int64_t sample = 64;
    constexpr double break_even = 0.3;  // measured
    std::vector<std::int64_t> ids(std::min(n, sample));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int64_t(i) * n / std::int64_t(ids.size());
    const std::vector<std::int32_t> home = find_homes(ids, x, row_stride, codes, kernel, 1);
    Panel<Value> panel(ids.data(), int(ids.size()), codes.dim, kernel);
    load(panel, x, row_stride, codes, kernel);
    return scan_near(panel, home.data(), codes, kernel) < break_even;
}

// takes the vectors in the order of their home blocks, so that those of a panel look in the same places
template <class Value, class Input>
void order_rows(Group<Value>& group, const Input* x, std::int64_t row_stride, const ScanKernel& kernel, int threads) {
    const std::vector<std::int32_t> home = find_homes(group.rows, x, row_stride, group.codes, kernel, threads);
    std::vector<std::int64_t> start(group.codes.view().blocks + 1, 0);
    for (const std::int32_t block : home) ++start[block + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    group.home.resize(home.size());
    for (std::size_t i = 0; i < home.size(); ++i) {
        const std::int64_t place = start[home[i]]++;
        group.rows[place] = std::int64_t(i);
        group.home[place] = home[i];
    }
}

template <class Value, class Input>
double lookup(const Lookup& call, const Value* codebook, const Input* x) {
    const ScanKernel& kernel = scan_kernel(call.isa);
    const bool ordered = worth_ordering(call, kernel.block_codes);
    const std::int64_t stride = call.g * call.d;

    std::vector<std::unique_ptr<Group<Value>>> groups;
    for (std::int64_t g = 0; g < call.g; ++g) {
        const Value* values = codebook + g * call.k * call.d;
        groups.emplace_back(
            new Group<Value>{{values, call.k, call.d, call.metric, kernel, ordered, call.threads}, {}, {}});
        Group<Value>& group = *groups.back();
        group.rows.resize(call.n);
        std::iota(group.rows.begin(), group.rows.end(), 0);
        const Input* vectors = x + g * call.d;
        if (!group.codes.tree.empty() && worth_skipping(vectors, call.n, stride, group.codes, kernel)) {
            order_rows(group, vectors, stride, kernel, call.threads);
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
        double scored_share = 1.0;
        if (!group.home.empty()) {
            scored_share = scan_near(panel, group.home.data() + start, codes, kernel);
        } else if (!codes.empty()) {
            scan_all(panel, codes, kernel);
        }
        scored[task] = scored_share * panel.rows;
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
