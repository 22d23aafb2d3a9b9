// A stable counting sort of the rows by code, then every code's segment summed by one thread.
#include "cpu/code_stats.h"

#include <atomic>
#include <limits>
#include <vector>

#include "cpu/fixed_point.h"

namespace vqk {
namespace {

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
    explicit OrderedSum(const CodeRows& rows) : sum_(rows.d) {}

    void start(const CodeRange&) {
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
    explicit FixedSum(const CodeRows& rows) : weighted_(rows.weight != nullptr), sum_(rows.d) {}

    void start(const CodeRange& range) {
        shift_ = fixed_point_shift(range.exponent, range.vectors);
        weight_shift_ = weighted_ ? fixed_point_shift(range.weight_exponent, range.vectors) : 0;
        entry_.scale = power_of_two(shift_);
        weight_.scale = power_of_two(weight_shift_);
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
    std::int64_t shift_ = 0, weight_shift_ = 0;
    FixedPoint entry_{1}, weight_{1};
    std::uint64_t count_ = 0, addends_ = 0;
    std::vector<std::uint64_t> sum_;
    std::vector<std::int64_t> lost_;
};

template <class Input>
bool finite_row(const CodeRows& rows, const Input* row, std::int64_t at) {
    if (rows.weight == nullptr) return std::isfinite(largest_magnitude(row, rows.d));
    return std::isfinite(rows.weight[at]) && std::isfinite(largest_magnitude(row, rows.d, rows.weight[at]));
}

// `vectors` is how many take part, where there is no range that tells; returns how many were found not to be finite
template <class Sum, class Row, class Input, class Count, class Total>
std::int64_t sum_segments(const CodeStats& call, const Input* x, std::int64_t g, const Segments<Row>& segments,
                          std::int64_t vectors, Count* count, Total* total) {
    const CodeRows& rows = call.rows;
    std::atomic<std::int64_t> nonfinite{0};
    for_codes(rows, segments, [&](std::int64_t begin, std::int64_t end) {
        Sum sum(rows);
        for (std::int64_t code = begin; code < end; ++code) {
            const std::int64_t slot = g * rows.k + code;
            if (segments.begin(code) == segments.end(code)) {
                count[slot] = 0;
                std::fill_n(total + slot * rows.d, rows.d, Total(0));
                continue;
            }
            Largest found;
            if (call.range == nullptr || call.range[slot].nonfinite != 0) {
                // the rows of a code then lie in the cache
                found = largest_of_code(rows, x, g, segments, code);
                nonfinite += found.nonfinite;
            }
            sum.start(call.range ? call.range[slot]
                                 : CodeRange{exponent_above(found.entry), exponent_above(found.weight), vectors, 0});
            for (std::int64_t i = segments.begin(code); i < segments.end(code); ++i) {
                const std::int64_t at = std::int64_t(segments.order[i]) * rows.g + g;
                const Input* row = x + at * rows.d;
                if (found.nonfinite != 0 && !finite_row(rows, row, at)) {
                    if (!rows.skip_nonfinite) sum.add_nonfinite(row, rows.weight ? rows.weight[at] : 1.0);
                } else if (rows.weight) {
                    sum.add(row, rows.weight[at]);
                } else {
                    sum.add(row);
                }
            }
            sum.write(count + slot, total + slot * rows.d);
        }
    });
    return nonfinite;
}

template <class Sum, class Row, class Input, class Count, class Total>
void sum_group(const CodeStats& call, const Input* x, std::int64_t g, const Segments<Row>& segments, Count* count,
               Total* total) {
    const std::int64_t vectors = segments.with_a_code();
    const std::int64_t nonfinite = sum_segments<Sum>(call, x, g, segments, vectors, count, total);
    // the grid is that of the vectors that take part; it is another one only where their number passes a power of two
    if (call.fixed && call.range == nullptr && call.rows.skip_nonfinite &&
        fixed_point_precision(vectors - nonfinite) != fixed_point_precision(vectors))
        sum_segments<Sum>(call, x, g, segments, vectors - nonfinite, count, total);
}

template <class Row, class Input>
std::optional<std::int64_t> run(const CodeStats& call) {
    using Total = std::conditional_t<std::is_same_v<Input, double>, double, float>;
    const auto* x = static_cast<const Input*>(call.rows.x);
    for (std::int64_t g = 0; g < call.rows.g; ++g) {
        Segments<Row> segments;
        if (const auto bad = sort_rows(call.rows, g, segments)) return bad;
        if (call.as_integers) {
            sum_group<FixedSum>(call, x, g, segments, static_cast<std::int64_t*>(call.count),
                                static_cast<std::int64_t*>(call.total));
        } else if (call.fixed) {
            sum_group<FixedSum>(call, x, g, segments, static_cast<float*>(call.count),
                                static_cast<Total*>(call.total));
        } else {
            sum_group<OrderedSum>(call, x, g, segments, static_cast<float*>(call.count),
                                  static_cast<Total*>(call.total));
        }
    }
    return std::nullopt;
}

}  // namespace

std::optional<std::int64_t> code_stats(const CodeStats& call) {
    std::optional<std::int64_t> bad;
    with_row_type(call.rows, [&](auto* row, auto* entry) {
        using Row = std::remove_pointer_t<decltype(row)>;
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(entry)>>;
        bad = run<Row, Input>(call);
    });
    return bad;
}

}  // namespace vqk
