#include "cpu/group_bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/canonical.h"
#include "cpu/nearest_code.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/nearest_code_sweep.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

const ScanKernel& group_kernel(Isa isa) {
    return narrow(scan_kernel(isa));
}

// floats that are not below, or not above, a number
inline float above(double value) {
    constexpr double most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::min();
    return float(std::min(value + std::fabs(value) * 0x1p-22 + least, most));
}
inline float below(double value) {
    return -above(-value);
}

// The codes where they are now, packed group by group.
struct Moved {
    const CodeFrame<float> frame;
    const ScanKernel& kernel;
    BlockBuffer packed;
    double radius;             // no code is longer
    std::vector<float> shift;  // [groups] no code of the group has moved farther

    explicit Moved(const GroupBounds& call)
        : frame(call.codes, call.k, call.d, Metric::l2, group_kernel(call.isa), call.threads),
          kernel(group_kernel(call.isa)),
          packed((call.k + kernel.block_codes - 1) / kernel.block_codes, call.d, kernel),
          shift((call.k + kernel.block_codes - 1) / kernel.block_codes) {
        if (!frame.all_usable()) throw std::invalid_argument("codes: expected finite numbers, got others");
        radius = pack_all(packed, frame, kernel, call.order, call.k, call.threads,
                          [&](std::int64_t group) { shift[group] = farthest(call, group); });
    }

    std::int64_t groups() const { return std::int64_t(shift.size()); }

  private:
    float farthest(const GroupBounds& call, std::int64_t group) const {
        double most = 0;
        const std::int64_t begin = group * kernel.block_codes, end = std::min(call.k, begin + kernel.block_codes);
        for (std::int64_t i = begin; i < end; ++i) {
            const float* now = call.codes + call.order[i] * call.d;
            const float* before = call.before + call.order[i] * call.d;
            double square = 0;
            for (std::int64_t d = 0; d < call.d; ++d) {
                const double step = double(now[d]) - double(before[d]);
                square += step * step;
            }
            most = std::max(most, square);
        }
        return above(std::sqrt(most) * (1 + double(call.d + 8) * 0x1p-52));
    }
};

// The vectors sorted by the places of their codes: those of a panel are near each other and open the same groups.
std::vector<std::int64_t> by_code(const GroupBounds& call) {
    std::vector<std::int64_t> start(call.k + 1, 0), place(call.k), ids(call.n);
    for (std::int64_t i = 0; i < call.k; ++i) place[call.order[i]] = i;
    for (std::int64_t n = 0; n < call.n; ++n) ++start[place[call.indices[n]] + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    for (std::int64_t n = 0; n < call.n; ++n) ids[start[place[call.indices[n]]]++] = n;
    return ids;
}

// Some vectors on their way to a decision.
class Panel {
  public:
    template <class Input>
    Panel(const GroupBounds& call, const Moved& moved, std::vector<std::int64_t> ids, const Input* x)
        : call_(call),
          moved_(moved),
          rows_(std::move(ids), x, call.d, moved.frame, moved.kernel),
          winners_(rows_.count),
          limit_(rows_.count),
          rest_(rows_.count),
          tolerance_(rows_.count),
          lower_(make_aligned<float>(std::size_t(rows_.count) * moved.groups())),
          start_(moved.groups() + 2, 0),
          scores_(together * moved.kernel.block_codes),
          lowest_(together),
          rests_(together),
          bounds_(together) {}

    // returns how many pairs were scored
    std::int64_t decide() {
        Evaluator evaluator(
            rows_, moved_.frame, moved_.kernel,
            [&winners = winners_](int r, double key, std::int64_t code) { winners[r].offer(key, code); });
        measure_own();
        open_groups();
        std::int64_t scored = 0;
        for (std::int64_t g = 0; g < moved_.groups(); ++g) scored += score(g, evaluator);
        for (int r = 0; r < rows_.count; ++r) {
            if (rows_.scannable(r)) continue;
            for (std::int64_t code = 0; code < call_.k; ++code) evaluator.add(r, code);
            scored += call_.k;
        }
        evaluator.flush();
        for (int r = 0; r < rows_.count; ++r) {
            const float* lower = lower_.get() + r * moved_.groups();
            std::copy(lower, lower + moved_.groups(), call_.lower + rows_.ids[r] * moved_.groups());
            call_.indices[rows_.ids[r]] = winners_[r].index;
            call_.distance[rows_.ids[r]] = canonical_distance(Metric::l2, winners_[r].key, 1.0);
        }
        return scored;
    }

  private:
    static constexpr std::int64_t together = 96;  // a multiple of every kernel's tile; their scores stay in L1

    const GroupBounds& call_;
    const Moved& moved_;
    const Rows<float> rows_;
    std::vector<Winner> winners_;
    std::vector<float> limit_;          // no code with a higher score is the nearest
    std::vector<float> rest_;           // |x'|^2 less twice what a score may be wrong by
    std::vector<double> tolerance_;     // that
    AlignedArray<float> lower_;         // [rows, groups] a copy of their bounds: they lie anywhere in memory
    std::vector<std::int64_t> start_;   // [groups + 2] of the rows that have a group open,
    std::vector<std::int32_t> opened_;  // in here
    std::vector<float> scores_, lowest_, rests_, bounds_;  // of some of them

    // The canonical distances to the codes that were nearest. They are the same bits with the two sides exchanged: a
    // quad is mostly four vectors of one code.
    void measure_own() {
        constexpr int batch = 8 * quad;
        const float *codes[batch], *given[batch];
        double keys[batch];
        for (int first = 0; first < rows_.count; first += batch) {
            const int count = std::min(batch, rows_.count - first), quads = (count + quad - 1) / quad;
            for (int i = 0; i < quads * quad; ++i) {
                const int r = first + std::min(i, count - 1);
                codes[i] = call_.codes + call_.indices[rows_.ids[r]] * call_.d;
                given[i] = rows_.given[r];
            }
            moved_.kernel.sums(codes, given, quads, call_.d, true, keys);
            for (int i = 0; i < count; ++i) winners_[first + i] = {keys[i], call_.indices[rows_.ids[first + i]]};
        }
    }

    // Takes what the codes have moved off the bounds, and lists the vectors whose own code is not nearer than those.
    void open_groups() {
        constexpr int ahead = 4;  // vectors
        const std::int64_t groups = moved_.groups(), d = call_.d;
        const double s = moved_.frame.scale;
        const Tolerance tolerance(moved_.frame, moved_.radius);
        const auto open = make_aligned<std::int32_t>(std::size_t(rows_.count) * groups + rows_.lanes);
        std::vector<std::int64_t> end(rows_.count);
        std::int64_t count = 0;
        for (int r = 0; r < rows_.count; ++r) {
            prefetch(call_.lower + rows_.ids[std::min(r + ahead, rows_.count - 1)] * groups, groups);
            const double key = winners_[r].key, length = rows_.length[r];
            const float own = above(std::sqrt(key) * (1 + double(d + 8) * 0x1p-52));
            const float* given = call_.lower + rows_.ids[r] * groups;
            float* lower = std::copy(given, given + groups, lower_.get() + r * groups) - groups;
            const int listed =
                moved_.kernel.lower_bounds(lower, moved_.shift.data(), int(groups), own, open.get() + count);
            if (rows_.scannable(r)) {
                const double square = length * length * (1 - double(4 * d + 64) * 0x1p-24) - double(d) * 0x1p-120;
                tolerance_[r] = tolerance(length, 1.0);
                rest_[r] = below(square - 2 * tolerance_[r]);
                limit_[r] = above(0.5 * (key * s * s - square) + 2 * tolerance_[r]);
                count += listed;
            }
            end[r] = count;
        }
        for (std::int64_t i = 0; i < count; ++i) ++start_[open[i] + 2];
        std::partial_sum(start_.begin(), start_.end(), start_.begin());
        opened_.resize(count);
        for (std::int64_t r = 0, i = 0; r < rows_.count; ++r) {
            for (; i < end[r]; ++i) opened_[start_[open[i] + 1]++] = std::int32_t(r);
        }
    }

    template <class Evaluator>
    std::int64_t score(std::int64_t g, Evaluator& evaluator) {
        const int block = moved_.kernel.block_codes, queries = moved_.kernel.queries;
        const std::int64_t groups = moved_.groups();
        const std::int32_t* codes = call_.order + g * block;
        std::int32_t listed[together];
        for (std::int64_t first = start_[g]; first < start_[g + 1]; first += together) {
            const int count = int(std::min(together, start_[g + 1] - first));
            const int padded = (count + queries - 1) / queries * queries;
            std::copy_n(opened_.begin() + first, count, listed);
            std::fill(listed + count, listed + padded, listed[0]);
            moved_.kernel.score_listed(rows_.negated.get(), listed, padded, moved_.packed.view(groups), g,
                                       scores_.data(), lowest_.data());
            for (int i = 0; i < count; ++i) rests_[i] = rest_[listed[i]];
            moved_.kernel.bound_distances(lowest_.data(), rests_.data(), count, float(1 / moved_.frame.scale),
                                          bounds_.data());
            for (int i = 0; i < count; ++i) {
                const int r = listed[i];
                lower_[r * groups + g] = bounds_[i];
                if (lowest_[i] > limit_[r]) continue;
                const float* scores = scores_.data() + std::int64_t(i) * block;
                for (int j = 0; j < block; ++j) {
                    if (scores[j] <= limit_[r] && codes[j] != winners_[r].index) evaluator.add(r, codes[j]);
                }
                limit_[r] = std::min(limit_[r], above(double(lowest_[i]) + 2 * tolerance_[r]));
            }
        }
        const std::int64_t count = start_[g + 1] - start_[g];
        return count * std::min<std::int64_t>(block, call_.k - g * block);
    }
};

template <class Input>
double run(const GroupBounds& call, const Input* x) {
    constexpr std::int64_t floats = 1 << 16, fewest = 64, most = 512;
    const int threads = useful_threads(call.threads, double(call.n) * double(call.k) / 16);
    const std::vector<std::int64_t> ids = by_code(call);
    const Moved moved(call);
    const std::int64_t panel = std::clamp(floats / std::max(call.d, moved.groups()), fewest, most);
    std::vector<std::int64_t> scored((call.n + panel - 1) / panel);
    parallel_for(std::int64_t(scored.size()), threads, [&](std::int64_t p) {
        const auto first = ids.begin() + p * panel, last = ids.begin() + std::min(call.n, (p + 1) * panel);
        for (auto id = first; id != last; ++id) prefetch(x + *id * call.d, call.d);
        scored[p] = Panel(call, moved, {first, last}, x).decide();
    });
    return double(std::accumulate(scored.begin(), scored.end(), std::int64_t(0))) /
           (double(std::max<std::int64_t>(call.n, 1)) * double(call.k));
}

}  // namespace

int group_size(Isa isa) {
    return group_kernel(isa).block_codes;
}

double plain_cost(std::int64_t k, std::int64_t d, Isa isa) {
    const ScanKernel& kernel = scan_kernel(isa);
    const auto cost = [&](Precision way) { return vector_cost(k, d, way, kernel); };
    return cost(precisions(k, d, kernel, false).front()) / cost({Unit::floats});
}

double nearest_by_bounds(const GroupBounds& call) {
    double scored = 0;
    with_dtype(call.x_type, [&](auto* type) {
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(type)>>;
        if constexpr (std::is_same_v<Input, double>) {
            throw std::invalid_argument("x: expected float32, float16 or bfloat16, got float64");
        } else {
            scored = run(call, static_cast<const Input*>(call.x));
        }
    });
    return scored;
}

}  // namespace vqk
