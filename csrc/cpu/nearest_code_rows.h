// Some vectors of one group on their way to a decision: their float copies, what the scan leaves in their lanes, and
// the canonical evaluation of the codes that can still win.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/affine.h"
#include "cpu/aligned.h"
#include "cpu/canonical.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_scan.h"

namespace vqk {

constexpr double length_limit = 1e15;  // |x'| beyond which its square could overflow float

template <class Value>
class Rows {
  public:
    // `ids`: which vectors these are. `x` [N] rows of one group, `row_stride` apart
    template <class Input>
    Rows(std::vector<std::int64_t> ids, const Input* x, std::int64_t row_stride, const CodeFrame<Value>& frame,
         const ScanKernel& kernel);

    // whether scores tell anything about the row
    bool scannable(int r) const { return length[r] < length_limit && x_norm(r) > 0; }
    double x_norm(int r) const { return norm.empty() ? 1.0 : norm[r]; }
    // whether it is so long that every code may be the nearest, for all that a scan can tell
    bool beyond_scans(int r) const { return finite[r] && length[r] >= length_limit; }
    // whether it is equally far from every code
    bool without_direction(int r) const { return !norm.empty() && norm[r] == 0; }
    // the lanes of row `r` and those behind it
    LaneState state(int r) const {
        const std::int64_t at = std::int64_t(r) * lanes;
        return {best.get() + at, second.get() + at, section.get() + at};
    }
    // forgets what earlier scans have left in the lanes: a new array holds anything
    void clear_lanes();
    // takes over what another scan of the same vectors, over other sections, has found
    void merge(const Rows& other);

    const std::vector<std::int64_t> ids;
    const int count, padded, lanes;
    const std::int64_t dim;
    std::vector<const Value*> given;     // [rows] the vectors themselves, in x or in `widened`
    std::vector<Value> widened;          // [rows][D], if x is not of type Value
    AlignedArray<float> negated;         // [padded][D] -x'; zero where a row is not scannable
    std::vector<double> norm;            // [rows] canonical |x|, cosine only
    std::vector<double> length;          // [rows] |x'|, or a little more
    std::vector<std::uint8_t> finite;    // [rows]
    AlignedArray<float> best, second;    // [padded][W]
    AlignedArray<std::int32_t> section;  // [padded][W]

  private:
    void transform(int r, const CodeFrame<Value>& frame, const ScanKernel& kernel);
};

template <class Value>
template <class Input>
Rows<Value>::Rows(std::vector<std::int64_t> which, const Input* x, std::int64_t row_stride,
                  const CodeFrame<Value>& frame, const ScanKernel& kernel)
    : ids(std::move(which)),
      count(int(ids.size())),
      padded((count + kernel.queries - 1) / kernel.queries * kernel.queries),
      lanes(kernel.lanes),
      dim(frame.dim),
      given(count),
      negated(make_aligned<float>(std::size_t(padded) * dim)),
      length(count),
      finite(count, 1),
      best(make_aligned<float>(std::size_t(padded) * lanes)),
      second(make_aligned<float>(std::size_t(padded) * lanes)),
      section(make_aligned<std::int32_t>(std::size_t(padded) * lanes)) {
    if constexpr (!std::is_same_v<Value, Input>) widened.resize(std::size_t(count) * dim);
    for (int r = 0; r < count; ++r) {
        const Input* row = x + ids[r] * row_stride;
        if constexpr (std::is_same_v<Value, Input>) {
            given[r] = row;
        } else {
            Value* wide = widened.data() + r * dim;
            for (std::int64_t d = 0; d < dim; ++d) wide[d] = Value(widen(row[d]));
            given[r] = wide;
        }
    }
    if (frame.metric == Metric::cosine) {
        norm.resize(std::size_t(count) + quad);
        for (int r = 0; r < count; r += quad) {
            const Value* four[quad];
            for (int j = 0; j < quad; ++j) four[j] = given[std::min(r + j, count - 1)];
            norms_of(kernel, four, dim, norm.data() + r);
        }
    }
    for (int r = 0; r < count; ++r) transform(r, frame, kernel);
    std::fill_n(negated.get() + std::int64_t(count) * dim, std::int64_t(padded - count) * dim, 0.0f);
}

template <class Value>
void Rows<Value>::transform(int r, const CodeFrame<Value>& frame, const ScanKernel& kernel) {
    float* out = negated.get() + std::int64_t(r) * dim;
    const double x_norm = this->x_norm(r);
    double square;
    if constexpr (std::is_same_v<Value, float>) {
        if (float_reciprocal(x_norm)) {
            const float* offset = frame.metric == Metric::l2 ? frame.offset.data() : frame.zeros.data();
            square = kernel.negate(given[r], float(frame.factor(x_norm)), offset, int(dim), out);
        } else {
            square = affine_row(given[r], frame.unshifted.data(), -frame.factor(x_norm), dim, out);
        }
    } else {
        const double* shift = frame.metric == Metric::l2 ? frame.shift.data() : frame.unshifted.data();
        square = affine_row(given[r], shift, -frame.factor(x_norm), dim, out);
    }
    // squares of shorter vectors underflow; a square that is NaN stays one
    const double least = std::sqrt(double(dim)) * 0x1p-62;
    length[r] = std::max(std::sqrt(square) * (1 + double(dim + 16) * 0x1p-24), least);
    if (length[r] < length_limit && std::isfinite(x_norm)) return;
    // an entry that is not finite makes the length so, but so does a float overflow: look again
    finite[r] = std::isfinite(x_norm) && std::isfinite(largest_magnitude(kernel, given[r], dim));
    length[r] = HUGE_VAL;
    std::fill_n(out, dim, 0.0f);
}

template <class Value>
void Rows<Value>::clear_lanes() {
    std::fill_n(best.get(), padded * lanes, std::numeric_limits<float>::infinity());
    std::fill_n(second.get(), padded * lanes, std::numeric_limits<float>::infinity());
    std::fill_n(section.get(), padded * lanes, 0);
}

template <class Value>
void Rows<Value>::merge(const Rows& other) {
    for (int i = 0; i < count * lanes; ++i) {
        const float low = other.best[i], high = std::max(best[i], low);
        second[i] = std::min({second[i], other.second[i], high});
        if (low < best[i]) {
            best[i] = low;
            section[i] = other.section[i];
        }
    }
}

// Canonical evaluation of (row, code) pairs, several quads together; take(row, key, code) gets the results, in order.
template <class Value, class Take>
class Evaluator {
  public:
    Evaluator(const Rows<Value>& rows, const CodeFrame<Value>& frame, const ScanKernel& kernel, Take take)
        : rows_(rows), frame_(frame), kernel_(kernel), take_(take) {}

    void add(int r, std::int64_t code) {
        if (filled_ == batch * quad) flush();
        if (filled_ == 0 || row_[filled_ - 1] != r) prefetch(rows_.given[r], std::min(frame_.dim, ahead));
        prefetch(frame_.values + code * frame_.dim, std::min(frame_.dim, ahead));
        row_[filled_] = r;
        index_[filled_++] = code;
    }
    void flush() {
        if (filled_ == 0) return;
        const int quads = (filled_ + quad - 1) / quad;
        const Value *x[batch * quad], *codes[batch * quad];
        double keys[batch * quad];
        // a quad that is not full repeats the last pair
        for (int i = 0; i < quads * quad; ++i) {
            const int pair = std::min(i, filled_ - 1);
            x[i] = rows_.given[row_[pair]];
            codes[i] = frame_.values + index_[pair] * frame_.dim;
        }
        const bool l2 = frame_.metric == Metric::l2;
        if constexpr (std::is_same_v<Value, float>) {
            kernel_.sums(x, codes, quads, frame_.dim, l2, keys);
        } else {
            canonical_sums(x, codes, quads, frame_.dim, l2, keys);
        }
        for (int i = 0; i < filled_; ++i) {
            if (frame_.metric == Metric::cosine) {
                const double norm = frame_.norms[index_[i]];
                keys[i] = norm > 0 ? keys[i] / norm : 0.0;
            }
            take_(row_[i], keys[i], index_[i]);
        }
        filled_ = 0;
    }

  private:
    static constexpr int batch = 8;             // quads
    static constexpr std::int64_t ahead = 128;  // numbers of a row; what follows the processor fetches by itself
    const Rows<Value>& rows_;
    const CodeFrame<Value>& frame_;
    const ScanKernel& kernel_;
    Take take_;
    int filled_ = 0;
    int row_[batch * quad];
    std::int64_t index_[batch * quad];
};

// Evaluates, of the codes in blocks [begin, end), those whose scores are not above the row's threshold.
template <class Value>
void collect_all(const Rows<Value>& rows, const float* threshold, std::int64_t begin, std::int64_t end,
                 const CodeFrame<Value>& frame, const ScanKernel& kernel, std::vector<Winner>& winners) {
    Evaluator evaluator(rows, frame, kernel,
                        [&](int r, double key, std::int64_t code) { winners[r].offer(key, code); });
    BlockPacker<Value> packer(frame, kernel, nullptr, frame.count);
    std::vector<std::int64_t> found;
    for_each_chunk(packer, begin, end, 1, frame.dim, kernel, [&](const PackedCodes& packed, std::int64_t first) {
        found.resize(std::size_t(packed.blocks * kernel.block_codes));
        for (int r = 0; r < rows.count; ++r) {
            const float* negated = rows.negated.get() + std::int64_t(r) * frame.dim;
            const std::int64_t n = kernel.collect(negated, packed, 0, packed.blocks, threshold[r], found.data());
            for (std::int64_t i = 0; i < n; ++i) evaluator.add(r, first * kernel.block_codes + found[i]);
        }
    });
    evaluator.flush();
}

// no less than `value` + `more`, but for the largest number there is
inline float raised(float value, double more) {
    constexpr float most = std::numeric_limits<float>::max();
    const double sum = double(value) + more;
    return sum < double(most) ? std::nextafter(float(sum), most) : most;
}

// the lowest finite float that is not below `limit`; padding (+inf) stays above it
inline float float_above(double limit) {
    constexpr float most = std::numeric_limits<float>::max();
    if (!(limit < double(most))) return most;
    const auto nearest = float(limit);
    return double(nearest) < limit ? std::nextafter(nearest, most) : nearest;
}

// |x'|^2 (l2) or what the shift of the codes takes off x.c (dot), up to rounding in float64: what tells true scores
// from canonical keys
template <class Value>
double score_base(const Rows<Value>& rows, int r, const CodeFrame<Value>& frame) {
    if (frame.metric == Metric::cosine) return 0.0;
    constexpr int width = 4;  // sums that do not wait for each other
    double sums[width] = {};
    const double s = frame.scale;
    for (std::int64_t d = 0; d < frame.dim; ++d) {
        const double x = double(rows.given[r][d]) * s, m = double(frame.offset[d]);
        sums[d % width] += frame.metric == Metric::l2 ? (x - m) * (x - m) : x * m;
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// those of all rows [rows]
template <class Value>
std::vector<double> score_bases(const Rows<Value>& rows, const CodeFrame<Value>& frame, const ScanKernel& kernel) {
    constexpr int two = 2 * quad;
    std::vector<double> base(std::size_t(rows.count) + two, 0.0);
    if constexpr (std::is_same_v<Value, float>) {
        const std::vector<float> middle(frame.shift.begin(), frame.shift.end());
        if (frame.metric == Metric::l2 && std::equal(middle.begin(), middle.end(), frame.shift.begin())) {
            // m is a float, too: canonical sums are at hand
            for (int r = 0; r < rows.count; r += two) {
                const float *x[two], *m[two];
                std::fill_n(m, two, middle.data());
                for (int i = 0; i < two; ++i) x[i] = rows.given[std::min(r + i, rows.count - 1)];
                kernel.sums(m, x, 2, frame.dim, true, base.data() + r);
                for (int i = 0; i < two; ++i) base[r + i] *= frame.scale * frame.scale;
            }
            return base;
        }
    }
    for (int r = 0; r < rows.count; ++r) base[r] = score_base(rows, r, frame);
    return base;
}

// The true score of a code with this canonical key, up to rounding in float64: (|x' - c'|^2 - |x'|^2) / 2 (l2), x.c
// less what the shift of the codes takes off it (dot).
template <class Value>
double true_score(const Rows<Value>& rows, int r, const CodeFrame<Value>& frame, double base, double key) {
    if (frame.metric == Metric::cosine) return key / rows.x_norm(r);
    const double scaled = key * frame.scale * frame.scale;
    return frame.metric == Metric::l2 ? 0.5 * (scaled - base) : scaled + base;
}

// What the lanes of some rows tell: the nearest code of every row, but for those that need a closer look.
struct Decision {
    std::vector<Winner> winners;   // [rows]
    std::vector<int> open;         // rows that have candidates their lanes do not name
    std::vector<float> threshold;  // [rows] no code with a higher float32 score can be the nearest
};

// `order`: code of a packed position, if not the position itself; it holds
// `positions`.
template <class Value>
Decision decide(const Rows<Value>& rows, const CodeFrame<Value>& frame, const ScanKernel& kernel,
                const Scores& scores, int section_blocks, const std::int32_t* order, std::int64_t positions) {
    Decision decision{std::vector<Winner>(rows.count), {}, std::vector<float>(rows.count)};
    if (frame.empty()) return decision;
    auto& [winners, open, threshold] = decision;
    Evaluator evaluator(rows, frame, kernel,
                        [&winners = winners](int r, double key, std::int64_t code) { winners[r].offer(key, code); });
    const std::int64_t size = std::int64_t(section_blocks) * kernel.block_codes;
    // the codes of the section that a lane names
    const auto evaluate = [&](int r, int lane) {
        const std::int64_t begin = std::int64_t(rows.state(r).section[lane]) * size,
                           end = std::min(positions, begin + size);
        for (std::int64_t i = begin + lane; i < end; i += rows.lanes) {
            const std::int64_t code = order ? order[i] : i;
            if (frame.usable(code)) evaluator.add(r, code);
        }
    };
    const Tolerance tolerance(frame, scores.radius);
    std::vector<double> band(rows.count, -1.0);
    std::vector<int> first(rows.count, -1);  // lane that has been evaluated
    std::vector<double> base;
    if (scores.lower_bounds) {
        base = score_bases(rows, frame, kernel);
        for (int r = 0; r < rows.count; ++r) {
            if (!rows.scannable(r)) continue;
            const float* best = rows.state(r).best;
            first[r] = int(std::min_element(best, best + rows.lanes) - best);
            evaluate(r, first[r]);
        }
        evaluator.flush();
    }
    for (int r = 0; r < rows.count; ++r) {
        if (!rows.scannable(r)) continue;
        const double length = rows.length[r], norm = rows.x_norm(r);
        if (!scores.lower_bounds) {
            band[r] = 2 * tolerance(length, norm);
            continue;
        }
        // the nearest so far is as near as this
        const double reached =
            true_score(rows, r, frame, base[r], winners[r].key) + 2 * tolerance.canonical(length, norm);
        const double above = reached - double(rows.state(r).best[first[r]]);
        band[r] = std::isnan(above) ? HUGE_VAL : std::max(0.0, above);
    }
    std::vector<std::uint8_t> ambiguous(rows.count);
    std::vector<std::int32_t> hits(std::size_t(rows.count) * rows.lanes);
    const int count =
        kernel.shortlist(rows.state(0), rows.count, band.data(), {threshold.data(), ambiguous.data(), hits.data()});
    for (int h = 0; h < count; ++h) {
        const int r = hits[h] / rows.lanes, lane = hits[h] % rows.lanes;
        if (!ambiguous[r] && lane != first[r]) evaluate(r, lane);
    }
    evaluator.flush();
    for (int r = 0; r < rows.count; ++r) {
        if (rows.beyond_scans(r)) {
            ambiguous[r] = 1;
            threshold[r] = std::numeric_limits<float>::max();
        }
        if (ambiguous[r]) {
            open.push_back(r);
            // a true score is below it; computed in float32, it may be above
            if (scores.lower_bounds) threshold[r] = raised(threshold[r], tolerance(rows.length[r], rows.x_norm(r)));
        }
        if (rows.without_direction(r)) winners[r] = {0.0, frame.first_usable};
    }
    return decision;
}

}  // namespace vqk
