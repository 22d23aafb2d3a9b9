// A stable counting sort of the rows by code, then every code's segment summed by one thread.
#include "cpu/code_stats.h"

#include <limits>
#include <utility>
#include <vector>

#include "cpu/finite_row.h"
#include "cpu/fixed_point.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

// the rows of one group sorted by code, ascending within a code; those left out come first
template <class Row>
struct Segments {
    std::vector<Row> start;  // [K + 2]
    std::vector<Row> order;  // [N]

    std::int64_t begin(std::int64_t code) const { return start[code + 1]; }
    std::int64_t end(std::int64_t code) const { return start[code + 2]; }
};

// calls f(d) for d in [0, dim), eight at a time: fixed counts become straight vector code
template <class F>
void for_entries(std::int64_t dim, F&& f) {
    std::int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
        for (int i = 0; i < 8; ++i) f(d + i);
    }
    for (; d < dim; ++d) f(d);
}

// One code's sums in float64, in row order.
class OrderedSum {
  public:
    OrderedSum(const CodeStats& call, std::int64_t) : sum_(call.d) {}

    void clear() {
        std::fill(sum_.begin(), sum_.end(), 0.0);
        count_ = 0;
    }
    template <class Input>
    void add(const Input* row) {
        count_ += 1;
        double* sum = sum_.data();
        for_entries(std::int64_t(sum_.size()), [&](std::int64_t d) { sum[d] += double(widen(row[d])); });
    }
    template <class Input>
    void add(const Input* row, double weight) {
        count_ += weight;
        double* sum = sum_.data();
        for_entries(std::int64_t(sum_.size()), [&](std::int64_t d) { sum[d] += double(widen(row[d])) * weight; });
    }
    template <class Input>
    void add_nonfinite(const Input* row, double weight) {
        add(row, weight);
    }
    template <class Count, class Total>
    void write(Count* count, Total* total) const {
        *count = Count(count_);
        for (std::size_t d = 0; d < sum_.size(); ++d) total[d] = Total(sum_[d]);
    }

  private:
    double count_ = 0;
    std::vector<double> sum_;
};

// One code's sums as multiples of 2^-shift.
class FixedSum {
  public:
    FixedSum(const CodeStats& call, std::int64_t g)
        : weighted_(call.weight != nullptr),
          shift_(fixed_point_shift(call.range[g].exponent, call.range[g].vectors)),
          weight_shift_(weighted_ ? fixed_point_shift(call.range[g].weight_exponent, call.range[g].vectors) : 0),
          entry_{power_of_two(shift_)},
          weight_{power_of_two(weight_shift_)},
          sum_(call.d) {}

    void clear() {
        std::fill(sum_.begin(), sum_.end(), 0);
        lost_.clear();
        count_ = addends_ = 0;
    }
    template <class Input>
    void add(const Input* row) {
        ++addends_;
        const FixedPoint entry = entry_;
        std::uint64_t* sum = sum_.data();
        for_entries(std::int64_t(sum_.size()), [&](std::int64_t d) { sum[d] += entry(double(widen(row[d]))); });
    }
    template <class Input>
    void add(const Input* row, double weight) {
        ++addends_;
        count_ += weight_(weight);
        const FixedPoint entry = entry_;
        std::uint64_t* sum = sum_.data();
        for_entries(std::int64_t(sum_.size()),
                    [&](std::int64_t d) { sum[d] += entry(double(widen(row[d])) * weight); });
    }
    // an entry that is no number makes the sum none
    template <class Input>
    void add_nonfinite(const Input* row, double weight) {
        ++addends_;
        count_ += weight_(std::isfinite(weight) ? weight : 0.0);
        for (std::int64_t d = 0; d < std::int64_t(sum_.size()); ++d) {
            const double value = double(widen(row[d])) * weight;
            const bool finite = std::isfinite(value);
            sum_[d] += entry_(finite ? value : 0.0);
            if (!finite) lost_.push_back(d);
        }
    }
    void write(std::int64_t* count, std::int64_t* total) const {
        *count = count_of();
        for (std::size_t d = 0; d < sum_.size(); ++d) total[d] = multiple(sum_[d]);
    }
    template <class Total>
    void write(float* count, Total* total) const {
        *count = float(double(count_of()) * power_of_two(-weight_shift_));
        const double unit = power_of_two(-shift_);
        for (std::size_t d = 0; d < sum_.size(); ++d) total[d] = Total(double(multiple(sum_[d])) * unit);
        for (std::int64_t d : lost_) total[d] = std::numeric_limits<Total>::quiet_NaN();
    }

  private:
    std::int64_t multiple(std::uint64_t sum) const {
        return std::int64_t(sum - addends_ * FixedPoint::offset_bits());
    }
    std::int64_t count_of() const { return weighted_ ? multiple(count_) : std::int64_t(addends_); }

    bool weighted_;
    std::int64_t shift_, weight_shift_;
    FixedPoint entry_, weight_;
    std::uint64_t count_ = 0, addends_ = 0;
    std::vector<std::uint64_t> sum_;
    std::vector<std::int64_t> lost_;
};

template <class Input>
bool finite_row(const CodeStats& call, const Input* row, std::int64_t at) {
    if (call.weight == nullptr) return std::isfinite(largest_magnitude(row, call.d));
    return std::isfinite(call.weight[at]) && std::isfinite(largest_magnitude(row, call.d, call.weight[at]));
}

// a row that the range knows to be finite need not be looked at again
bool all_finite(const CodeStats& call, std::int64_t g) {
    return call.range != nullptr && call.range[g].nonfinite == 0;
}

// sorts the rows of a group; returns an index out of range, if there is one
template <class Row, class Input>
std::optional<std::int64_t> sort_rows(const CodeStats& call, const Input* x, std::int64_t g,
                                      Segments<Row>& segments) {
    const std::int64_t* indices = call.indices + g;
    std::int64_t step = call.g;
    std::vector<std::int64_t> finite;
    if (call.skip_nonfinite && !all_finite(call, g)) {
        finite.resize(call.n);
        for (std::int64_t n = 0; n < call.n; ++n) {
            const std::int64_t at = n * call.g + g, index = call.indices[at];
            finite[n] = index < 0 || index >= call.k || finite_row(call, x + at * call.d, at) ? index : -1;
        }
        indices = finite.data();
        step = 1;
    }
    std::vector<Row> next(call.k + 2, 0);
    for (std::int64_t n = 0; n < call.n; ++n) {
        const std::int64_t index = indices[n * step];
        if (index < -1 || index >= call.k) return index;
        ++next[index + 1];
    }
    Row before = 0;
    for (Row& bin : next) before += std::exchange(bin, before);
    segments.start = next;
    segments.order.resize(call.n);
    for (std::int64_t n = 0; n < call.n; ++n) segments.order[next[indices[n * step] + 1]++] = Row(n);
    return std::nullopt;
}

template <class Sum, class Row, class Input, class Count, class Total>
void sum_segments(const CodeStats& call, const Input* x, std::int64_t g, const Segments<Row>& segments, Count* count,
                  Total* total) {
    const bool look = !call.skip_nonfinite && !all_finite(call, g);
    constexpr std::int64_t chunk = 256;
    const double work = double(segments.order.size() + call.k) * double(call.d);
    parallel_for((call.k + chunk - 1) / chunk, useful_threads(call.threads, work), [&](std::int64_t c) {
        Sum sum(call, g);
        for (std::int64_t code = c * chunk; code < std::min(call.k, (c + 1) * chunk); ++code) {
            Total* of_code = total + (g * call.k + code) * call.d;
            if (segments.begin(code) == segments.end(code)) {
                count[g * call.k + code] = 0;
                std::fill_n(of_code, call.d, Total(0));
                continue;
            }
            sum.clear();
            for (std::int64_t i = segments.begin(code); i < segments.end(code); ++i) {
                const std::int64_t at = std::int64_t(segments.order[i]) * call.g + g;
                const Input* row = x + at * call.d;
                if (look && !finite_row(call, row, at)) {
                    sum.add_nonfinite(row, call.weight ? call.weight[at] : 1.0);
                } else if (call.weight) {
                    sum.add(row, call.weight[at]);
                } else {
                    sum.add(row);
                }
            }
            sum.write(count + g * call.k + code, of_code);
        }
    });
}

template <class Row, class Input>
std::optional<std::int64_t> run(const CodeStats& call) {
    using Total = std::conditional_t<std::is_same_v<Input, double>, double, float>;
    const auto* x = static_cast<const Input*>(call.x);
    for (std::int64_t g = 0; g < call.g; ++g) {
        Segments<Row> segments;
        if (const auto bad = sort_rows(call, x, g, segments)) return bad;
        if (call.as_integers) {
            sum_segments<FixedSum>(call, x, g, segments, static_cast<std::int64_t*>(call.count),
                                   static_cast<std::int64_t*>(call.total));
        } else if (call.range) {
            sum_segments<FixedSum>(call, x, g, segments, static_cast<float*>(call.count),
                                   static_cast<Total*>(call.total));
        } else {
            sum_segments<OrderedSum>(call, x, g, segments, static_cast<float*>(call.count),
                                     static_cast<Total*>(call.total));
        }
    }
    return std::nullopt;
}

}  // namespace

std::optional<std::int64_t> code_stats(const CodeStats& call) {
    std::optional<std::int64_t> bad;
    with_dtype(call.x_type, [&](auto* tag) {
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(tag)>>;
        // half the memory for the sort, unless there are too many rows
        bad = call.n <= std::numeric_limits<std::uint32_t>::max() ? run<std::uint32_t, Input>(call)
                                                                  : run<std::int64_t, Input>(call);
    });
    return bad;
}

}  // namespace vqk
