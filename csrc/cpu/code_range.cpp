#include "cpu/code_range.h"

#include <mutex>
#include <vector>

#include "cpu/finite_row.h"
#include "cpu/fixed_point.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

struct Largest {
    double entry = 0, weight = 0;
    std::int64_t vectors = 0, nonfinite = 0;

    void join(const Largest& other) {
        entry = std::max(entry, other.entry);
        weight = std::max(weight, other.weight);
        vectors += other.vectors;
        nonfinite += other.nonfinite;
    }
};

template <class Input>
void visit(const CodeRangeCall& call, const Input* row, std::int64_t at, Largest& found) {
    const double weight = call.weight ? call.weight[at] : 1.0;
    double largest = call.weight ? largest_magnitude(row, call.d, weight) : largest_magnitude(row, call.d);
    if (!std::isfinite(largest) || !std::isfinite(weight)) {
        ++found.nonfinite;
        if (call.skip_nonfinite) return;
        largest = largest_finite_magnitude(row, call.d, weight);
    }
    ++found.vectors;
    found.entry = std::max(found.entry, largest);
    found.weight = std::max(found.weight, std::fabs(weight));
}

// rows that lie together, all named, unweighted and finite, are one long row
template <class Input>
bool visit_together(const CodeRangeCall& call, const Input* x, std::int64_t begin, std::int64_t end, Largest& found) {
    if (call.g != 1 || call.weight) return false;
    std::int64_t signs = 0;
    for (std::int64_t n = begin; n < end; ++n) signs |= call.indices[n];
    if (signs < 0) return false;
    const double largest = largest_magnitude(x + begin * call.d, (end - begin) * call.d);
    if (!std::isfinite(largest)) return false;
    found.vectors += end - begin;
    found.entry = std::max(found.entry, largest);
    found.weight = 1;
    return true;
}

template <class Input>
void measure(const CodeRangeCall& call) {
    const auto* x = static_cast<const Input*>(call.x);
    constexpr std::int64_t chunk = 1024;
    std::vector<Largest> found(call.g);
    std::mutex lock;
    const double work = double(call.n) * double(call.g) * double(call.d);
    parallel_for((call.n + chunk - 1) / chunk, useful_threads(call.threads, work), [&](std::int64_t c) {
        const std::int64_t begin = c * chunk, end = std::min(call.n, begin + chunk);
        std::vector<Largest> here(call.g);
        if (!visit_together(call, x, begin, end, here[0])) {
            for (std::int64_t at = begin * call.g; at < end * call.g; ++at) {
                if (call.indices[at] >= 0) visit(call, x + at * call.d, at, here[at % call.g]);
            }
        }
        std::lock_guard<std::mutex> hold(lock);
        for (std::int64_t g = 0; g < call.g; ++g) found[g].join(here[g]);
    });
    for (std::int64_t g = 0; g < call.g; ++g) {
        call.range[g] = {exponent_above(found[g].entry), exponent_above(found[g].weight), found[g].vectors,
                         found[g].nonfinite};
    }
}

}  // namespace

void code_range(const CodeRangeCall& call) {
    with_dtype(call.x_type,
               [&](auto* tag) { measure<std::remove_cv_t<std::remove_pointer_t<decltype(tag)>>>(call); });
}

}  // namespace vqk
