// Exact lookup in two steps: a float32 scan leaves a few candidates per query and a bound that no other code can
// be the nearest; the canonical float64 evaluation of the candidates decides.
//
// The scan works on shifted and scaled copies: x' = (x - m) s, c' = (c - m) s with m the codebook mean and s a power
// of two. It minimises |c'|^2/2 - x'.c' (l2), -x.c' (dot; x is not shifted) or -x.c/(|x||c|) (cosine): up to terms
// that are the same for all codes of a row, the metric itself.
#include "cpu/nearest_code.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "cpu/affine.h"
#include "cpu/aligned.h"
#include "cpu/canonical.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

constexpr int panel_rows = 192;  // queries that share one pass over the codes
constexpr int max_section_blocks = 8;
constexpr double reach_limit = 1e30;        // |x'| beyond which float products could overflow
constexpr std::int64_t mean_sample = 2048;  // codes that the shift is the mean of; any shift is correct

// Half the width of the band in which the scan cannot tell codes apart: |score - true score| <= tolerance.
// With u = 2^-24: rounding x' and c' to float costs 2u |x'||c'| and 3u |c'|^2/2, and a sum of D + 1 terms
// with (or without) fused multiply-add at most (D + 1) u times the sum of their magnitudes, which is at most
// |c'|^2/2 + |x'||c'|. The second term covers the rounding of the canonical evaluation itself, which is relative
// to |x - c|^2; the last one gradual underflow.
double scan_tolerance(std::int64_t dim, double x_norm, double code_norm) {
    const double single = 1.001 * double(dim + 8) * 0x1p-24;
    const double canonical = 2.0 * double(dim + 8) * 0x1p-53;
    const double reach = x_norm + code_norm;
    return single * (0.5 * code_norm * code_norm + x_norm * code_norm) + canonical * reach * reach +
           double(dim + 8) * 0x1p-120;
}

// Largest |v_d|; not finite if an entry is not. Magnitudes order like their bit patterns, with infinity and NaN on
// top, and an integer maximum vectorises.
template <class Value>
double largest_magnitude(const Value* v, std::int64_t dim) {
    using Bits = std::conditional_t<sizeof(Value) == 4, std::uint32_t, std::uint64_t>;
    Bits high = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
        Bits bits;
        std::memcpy(&bits, v + d, sizeof bits);
        high = std::max(high, Bits(bits << 1) >> 1);
    }
    Value magnitude;
    std::memcpy(&magnitude, &high, sizeof high);
    return double(magnitude);
}

// One group's codes, packed for the scan.
template <class Value>
struct Codes {
    const Value* values;  // [K, D]
    std::int64_t k, d;
    std::vector<double> shift;         // [D]
    double scale = 1.0;                // power of two
    double radius = 0.0;               // largest |c'| (1 for cosine)
    std::vector<double> norms;         // [K], cosine only
    std::vector<std::uint8_t> usable;  // [K]: finite
    AlignedArray<float> packed;        // [blocks][D][block]
    AlignedArray<float> bias;          // [blocks][block]
    std::int64_t first_usable = -1;

    PackedCodes view(int block) const { return {packed.get(), bias.get(), (k + block - 1) / block, int(d)}; }
};

template <class Value>
void inspect_codes(Codes<Value>& codes, Metric metric, int threads) {
    constexpr std::int64_t chunk = 1024;
    const std::int64_t chunks = (codes.k + chunk - 1) / chunk;
    codes.usable.resize(codes.k);
    if (metric == Metric::cosine) codes.norms.resize(codes.k);
    std::vector<double> largest(chunks, 0.0);
    parallel_for(chunks, useful_threads(threads, double(codes.k) * double(codes.d)), [&](std::int64_t c) {
        for (std::int64_t i = c * chunk; i < std::min(codes.k, (c + 1) * chunk); ++i) {
            const Value* code = codes.values + i * codes.d;
            const double magnitude = largest_magnitude(code, codes.d);
            codes.usable[i] = std::isfinite(magnitude);
            if (metric == Metric::cosine) {
                codes.norms[i] = canonical_norm(code, codes.d);
                codes.usable[i] &= std::isfinite(codes.norms[i]);
            }
            if (codes.usable[i]) largest[c] = std::max(largest[c], magnitude);
        }
    });
    const auto first = std::find(codes.usable.begin(), codes.usable.end(), 1);
    if (first != codes.usable.end()) codes.first_usable = first - codes.usable.begin();

    codes.shift.assign(codes.d, 0.0);
    if (metric == Metric::cosine) return;  // unit vectors need neither shift nor scale
    const std::int64_t stride = std::max<std::int64_t>(1, codes.k / mean_sample);
    double sampled = 0;
    for (std::int64_t i = 0; i < codes.k; i += stride) {
        if (!codes.usable[i]) continue;
        sampled += 1;
        // a running mean cannot overflow where a sum could
        for (std::int64_t d = 0; d < codes.d; ++d) {
            codes.shift[d] += (double(codes.values[i * codes.d + d]) - codes.shift[d]) / sampled;
        }
    }
    int exponent = 0;
    std::frexp(*std::max_element(largest.begin(), largest.end()), &exponent);
    codes.scale = std::ldexp(1.0, std::clamp(-exponent, -1000, 1000));
}

template <class Value>
double affine(const ScanKernel& kernel, const Value* row, const double* shift, double factor, std::int64_t dim,
              float* out) {
    if constexpr (std::is_same_v<Value, float>) {
        return kernel.affine(row, shift, factor, dim, out);
    } else {
        return affine_row(row, shift, factor, dim, out);
    }
}

// One block of codes, transposed through `rows` [block][D]; returns the largest |c'|^2 in it.
template <class Value>
double pack_block(Codes<Value>& codes, Metric metric, const ScanKernel& kernel, std::int64_t b, float* rows) {
    const int block = kernel.block_codes;
    float* out = codes.packed.get() + b * block * codes.d;
    float* bias = codes.bias.get() + b * block;
    double widest = 0;
    for (int j = 0; j < block; ++j) {
        const std::int64_t i = b * block + j;
        float* row = rows + j * codes.d;
        if (i >= codes.k || !codes.usable[i]) {
            std::fill_n(row, codes.d, 0.0f);
            bias[j] = std::numeric_limits<float>::infinity();
            continue;
        }
        double factor = codes.scale;
        if (metric == Metric::cosine) factor = codes.norms[i] > 0 ? 1 / codes.norms[i] : 0;
        const double square = affine(kernel, codes.values + i * codes.d, codes.shift.data(), factor, codes.d, row);
        bias[j] = metric == Metric::l2 ? float(0.5 * square) : 0.0f;
        widest = std::max(widest, square);
    }
    // a strip of dimensions at a time: its reads and writes stay in the L1 cache
    constexpr std::int64_t strip = 16;
    for (std::int64_t begin = 0; begin < codes.d; begin += strip) {
        const std::int64_t end = std::min(codes.d, begin + strip);
        for (int j = 0; j < block; ++j) {
            for (std::int64_t d = begin; d < end; ++d) out[d * block + j] = rows[j * codes.d + d];
        }
    }
    return widest;
}

template <class Value>
void pack_codes(Codes<Value>& codes, Metric metric, const ScanKernel& kernel, int threads) {
    constexpr std::int64_t chunk = 16;  // blocks of a task
    const int block = kernel.block_codes;
    const std::int64_t blocks = (codes.k + block - 1) / block;
    codes.packed = make_aligned<float>(std::size_t(blocks * block * codes.d));
    codes.bias = make_aligned<float>(std::size_t(blocks * block));
    std::vector<double> widest((blocks + chunk - 1) / chunk);
    const int useful = useful_threads(threads, double(codes.k) * double(codes.d));
    parallel_for(std::int64_t(widest.size()), useful, [&](std::int64_t c) {
        std::vector<float> rows(std::size_t(block * codes.d));
        for (std::int64_t b = c * chunk; b < std::min(blocks, (c + 1) * chunk); ++b) {
            widest[c] = std::max(widest[c], pack_block(codes, metric, kernel, b, rows.data()));
        }
    });
    codes.radius = std::sqrt(*std::max_element(widest.begin(), widest.end())) * (1 + 1e-6);
}

// Scratch of one panel of queries.
template <class Value>
struct Panel {
    int rows, padded, lanes;
    std::vector<Value> values;           // [rows][D] as given
    std::vector<float> negated;          // [padded][D] -x'
    std::vector<double> norm, reach;     // canonical |x| (cosine), |x'|
    std::vector<std::uint8_t> finite;    // [rows]
    AlignedArray<float> best, second;    // [padded][W]
    AlignedArray<std::int32_t> section;  // [padded][W]
    std::vector<double> wide;            // [D] the row being finished
    std::vector<std::int64_t> found;     // indices returned by collect

    Panel(int rows_, std::int64_t dim, const ScanKernel& kernel)
        : rows(rows_),
          padded((rows_ + kernel.queries - 1) / kernel.queries * kernel.queries),
          lanes(kernel.lanes),
          values(std::size_t(rows * dim)),
          negated(std::size_t(padded * dim), 0.0f),
          norm(rows),
          reach(rows),
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
};

// reads rows [start, start + panel.rows) of group g and makes their shifted, scaled, negated float copies
template <class Value, class Input>
void load_panel(Panel<Value>& panel, const Input* x, std::int64_t row_stride, const Codes<Value>& codes,
                const ScanKernel& kernel, Metric metric) {
    const std::int64_t dim = codes.d;
    const std::vector<double> unshifted(metric == Metric::l2 ? 0 : dim);
    const double* shift = metric == Metric::l2 ? codes.shift.data() : unshifted.data();
    for (int r = 0; r < panel.rows; ++r) {
        Value* row = panel.values.data() + r * dim;
        for (std::int64_t d = 0; d < dim; ++d) row[d] = Value(widen(x[r * row_stride + d]));
        panel.finite[r] = std::isfinite(largest_magnitude(row, dim));
        double factor = -codes.scale;
        if (metric == Metric::cosine && panel.finite[r]) {
            panel.norm[r] = canonical_norm(row, dim);
            panel.finite[r] = std::isfinite(panel.norm[r]);
            factor = panel.norm[r] > 0 ? -1 / panel.norm[r] : 0;
        }
        if (!panel.finite[r]) continue;
        float* out = panel.negated.data() + r * dim;
        panel.reach[r] = std::sqrt(affine(kernel, row, shift, factor, dim, out)) * (1 + 1e-6);
        // products with it could overflow: such a row skips the scan (see finish_row)
        if (!(panel.reach[r] < reach_limit)) std::fill_n(out, dim, 0.0f);
    }
}

// offers the first `count` of panel.found
template <class Value>
void offer_found(Panel<Value>& panel, std::int64_t count, const Codes<Value>& codes, const ScanKernel& kernel,
                 Metric metric, Winner& winner) {
    for (std::int64_t i = 0; i < count; i += canonical_batch) {
        const int here = int(std::min<std::int64_t>(count - i, canonical_batch));
        const Value* batch[canonical_batch];
        double keys[canonical_batch];
        // a short last batch repeats its first code
        for (int j = 0; j < canonical_batch; ++j)
            batch[j] = codes.values + panel.found[i + (j < here ? j : 0)] * codes.d;
        if constexpr (std::is_same_v<Value, float>) {
            kernel.sums(panel.wide.data(), batch, codes.d, metric == Metric::l2, keys);
        } else {
            canonical_sums(panel.wide.data(), batch, codes.d, metric == Metric::l2, keys);
        }
        for (int j = 0; j < here; ++j) {
            const std::int64_t index = panel.found[i + j];
            if (metric == Metric::cosine) keys[j] = codes.norms[index] > 0 ? keys[j] / codes.norms[index] : 0.0;
            winner.offer(keys[j], index);
        }
    }
}

template <class Value>
void finish_row(Panel<Value>& panel, int r, const Codes<Value>& codes, const ScanKernel& kernel, Metric metric,
                int section_blocks, std::int64_t* index, float* distance) {
    *index = 0;
    *distance = std::nanf("");
    if (!panel.finite[r] || codes.first_usable < 0) return;
    const PackedCodes packed = codes.view(kernel.block_codes);
    const Value* x = panel.values.data() + std::int64_t(r) * codes.d;
    std::copy(x, x + codes.d, panel.wide.begin());
    const float* negated = panel.negated.data() + std::int64_t(r) * codes.d;
    Winner winner;
    auto offer = [&](std::int64_t count) { offer_found(panel, count, codes, kernel, metric, winner); };

    const float* best = panel.best.get() + std::int64_t(r) * panel.lanes;
    const float* second = panel.second.get() + std::int64_t(r) * panel.lanes;
    const std::int32_t* section = panel.section.get() + std::int64_t(r) * panel.lanes;
    Verdict verdict{FLT_MAX, 0, true};  // every code may be the nearest
    if (panel.reach[r] < reach_limit) {
        // two errors of one tolerance each lie between the lowest score and the nearest code's
        verdict = kernel.verdict(best, second, 2 * scan_tolerance(codes.d, panel.reach[r], codes.radius));
    }
    if (metric == Metric::cosine && panel.norm[r] == 0) {
        winner.offer(0.0, codes.first_usable);  // equally far from every code
    } else if (verdict.ambiguous) {
        // the lanes do not name every candidate, a second pass does
        for (std::int64_t begin = 0; begin < packed.blocks; begin += max_section_blocks) {
            const std::int64_t end = std::min(packed.blocks, begin + max_section_blocks);
            offer(kernel.collect(negated, packed, begin, end, verdict.threshold, panel.found.data()));
        }
    } else {
        for (std::uint32_t lanes = verdict.lanes; lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            const std::int64_t begin = std::int64_t(section[lane]) * section_blocks * kernel.block_codes;
            const std::int64_t end = std::min(codes.k, begin + std::int64_t(section_blocks) * kernel.block_codes);
            std::int64_t count = 0;
            for (std::int64_t i = begin + lane; i < end; i += panel.lanes) {
                if (codes.usable[i]) panel.found[count++] = i;
            }
            offer(count);
        }
    }
    if (winner.index < 0) return;  // every key overflowed float64
    *index = winner.index;
    *distance = canonical_distance(metric, winner.key, panel.norm[r]);
}

template <class Value>
void lookup(const Lookup& call, const Value* codebook) {
    const ScanKernel& kernel = scan_kernel(call.isa);
    // a section costs every query an update of its lanes and leaves it 4 candidates per block to evaluate; measured,
    // the sum is least near sqrt(blocks / 4), and with large blocks never beyond 4
    const double blocks = double(call.k) / kernel.block_codes;
    const int section_limit = call.d <= 8 ? max_section_blocks : max_section_blocks / 2;
    const int section_blocks = std::clamp(int(std::lround(std::sqrt(blocks / 4))), 1, section_limit);

    std::vector<Codes<Value>> groups(call.g);
    for (std::int64_t g = 0; g < call.g; ++g) {
        groups[g].values = codebook + g * call.k * call.d;
        groups[g].k = call.k;
        groups[g].d = call.d;
        inspect_codes(groups[g], call.metric, call.threads);
        pack_codes(groups[g], call.metric, kernel, call.threads);
    }

    // panels as large as still gives every thread a few of them
    const std::int64_t share = call.n * call.g / (4 * std::int64_t(std::max(call.threads, 1))) + 1;
    const std::int64_t padded_share = (share + kernel.queries - 1) / kernel.queries * kernel.queries;
    const std::int64_t rows = std::min<std::int64_t>(panel_rows, padded_share);
    const std::int64_t panels = (call.n + rows - 1) / rows;
    const double work = double(call.n) * double(call.g) * double(call.k) * double(call.d) / 16;
    parallel_for(panels * call.g, useful_threads(call.threads, work), [&](std::int64_t task) {
        const std::int64_t g = task % call.g, start = task / call.g * rows;
        Panel<Value> panel(int(std::min(rows, call.n - start)), call.d, kernel);
        with_dtype(call.x_type, [&](auto* tag) {
            using Input = std::remove_pointer_t<decltype(tag)>;
            const auto* x = static_cast<Input*>(call.x) + (start * call.g + g) * call.d;
            load_panel(panel, x, call.g * call.d, groups[g], kernel, call.metric);
        });
        kernel.scan(panel.negated.data(), panel.padded, groups[g].view(kernel.block_codes), section_blocks,
                    {panel.best.get(), panel.second.get(), panel.section.get()});
        for (int r = 0; r < panel.rows; ++r) {
            const std::int64_t at = (start + r) * call.g + g;
            finish_row(panel, r, groups[g], kernel, call.metric, section_blocks, call.indices + at,
                       call.distance + at);
        }
    });
}

// the codebook as Value: a view if it already is, else a copy (exact: halves widen, float widens to double)
template <class Value>
void with_codebook(const Lookup& call) {
    with_dtype(call.codebook_type, [&](auto* tag) {
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(tag)>>;
        const auto* given = static_cast<const Input*>(call.codebook);
        if constexpr (std::is_same_v<Input, Value>) {
            lookup<Value>(call, given);
        } else {
            std::vector<Value> copy(std::size_t(call.g * call.k * call.d));
            for (std::size_t i = 0; i < copy.size(); ++i) copy[i] = Value(widen(given[i]));
            lookup<Value>(call, copy.data());
        }
    });
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

void nearest_code(const Lookup& call) {
    const bool wide = call.x_type == DType::f64 || call.codebook_type == DType::f64;
    wide ? with_codebook<double>(call) : with_codebook<float>(call);
}

}  // namespace vqk
