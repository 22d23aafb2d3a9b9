// A stable counting sort of the rows by code, then every code's segment summed by one thread.
#include "cpu/code_stats.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"

namespace vqk {
namespace {

template <class Input>
using Total = std::conditional_t<std::is_same_v<Input, double>, double, float>;

template <class Input>
bool keep_row(const CodeStats& call, const Input* row, std::int64_t at) {
    if (call.indices[at] < 0) return false;
    if (!call.skip_nonfinite) return true;
    bool finite = call.weight == nullptr || std::isfinite(call.weight[at]);
    for (std::int64_t d = 0; d < call.d; ++d) finite &= std::isfinite(widen(row[d]));
    return finite;
}

template <class Input>
std::optional<std::int64_t> group_stats(const CodeStats& call, const Input* x, std::int64_t g) {
    // start[c] .. start[c + 1]: the rows of code c in `order`, ascending
    std::vector<std::int64_t> start(call.k + 1, 0), order(call.n);
    std::vector<std::uint8_t> keep(call.n);
    for (std::int64_t n = 0; n < call.n; ++n) {
        const std::int64_t at = n * call.g + g, index = call.indices[at];
        if (index < -1 || index >= call.k) return index;
        keep[n] = keep_row(call, x + at * call.d, at);
        if (keep[n]) ++start[index + 1];
    }
    for (std::int64_t c = 0; c < call.k; ++c) start[c + 1] += start[c];
    std::vector<std::int64_t> next(start.begin(), start.end() - 1);
    for (std::int64_t n = 0; n < call.n; ++n) {
        if (keep[n]) order[next[call.indices[n * call.g + g]]++] = n;
    }

    auto* total = static_cast<Total<Input>*>(call.total) + g * call.k * call.d;
    constexpr std::int64_t chunk = 256;
    const double work = double(start[call.k] + call.k) * double(call.d);
    parallel_for((call.k + chunk - 1) / chunk, useful_threads(call.threads, work), [&](std::int64_t c) {
        std::vector<double> sum(call.d);
        for (std::int64_t code = c * chunk; code < std::min(call.k, (c + 1) * chunk); ++code) {
            std::fill(sum.begin(), sum.end(), 0.0);
            double count = 0;
            for (std::int64_t i = start[code]; i < start[code + 1]; ++i) {
                const std::int64_t at = order[i] * call.g + g;
                const double weight = call.weight ? call.weight[at] : 1.0;
                const Input* row = x + at * call.d;
                count += weight;
                for (std::int64_t d = 0; d < call.d; ++d) sum[d] += double(widen(row[d])) * weight;
            }
            call.count[g * call.k + code] = float(count);
            for (std::int64_t d = 0; d < call.d; ++d) total[code * call.d + d] = Total<Input>(sum[d]);
        }
    });
    return std::nullopt;
}

}  // namespace

std::optional<std::int64_t> code_stats(const CodeStats& call) {
    std::optional<std::int64_t> bad;
    with_dtype(call.x_type, [&](auto* tag) {
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(tag)>>;
        for (std::int64_t g = 0; g < call.g && !bad; ++g) {
            bad = group_stats(call, static_cast<const Input*>(call.x), g);
        }
    });
    return bad;
}

}  // namespace vqk
