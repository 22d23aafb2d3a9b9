// The rows of a group sorted by code, and how large those of one code are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/finite_row.h"
#include "cpu/parallel.h"
#include "types.h"

namespace vqk {

struct CodeRows {
    const void* x;  // [N, G, D]
    DType x_type;
    const std::int64_t* indices;  // [N, G], -1: no code
    const double* weight;         // [N, G] or null: 1
    std::int64_t n, g, k, d;
    bool skip_nonfinite;  // leave out vectors and weights that are not finite; else their finite entries take part
    int threads;
};

// the rows of one group sorted by code, ascending within a code; those without one come first
template <class Row>
struct Segments {
    std::vector<Row> start;  // [K + 2]
    std::vector<Row> order;  // [N]

    std::int64_t begin(std::int64_t code) const { return start[code + 1]; }
    std::int64_t end(std::int64_t code) const { return start[code + 2]; }
    std::int64_t with_a_code() const { return std::int64_t(order.size()) - begin(0); }
};

// a stable counting sort of the rows of a group; returns an index out of range, if there is one
template <class Row>
std::optional<std::int64_t> sort_rows(const CodeRows& rows, std::int64_t g, Segments<Row>& segments) {
    std::vector<Row> next(rows.k + 2, 0);
    for (std::int64_t n = 0; n < rows.n; ++n) {
        const std::int64_t index = rows.indices[n * rows.g + g];
        if (index < -1 || index >= rows.k) return index;
        ++next[index + 1];
    }
    Row before = 0;
    for (Row& bin : next) before += std::exchange(bin, before);
    segments.start = next;
    segments.order.resize(rows.n);
    for (std::int64_t n = 0; n < rows.n; ++n) segments.order[next[rows.indices[n * rows.g + g] + 1]++] = Row(n);
    return std::nullopt;
}

// calls f(begin, end) for parts of the codes of a group, on several threads if there is much to do
template <class Row, class F>
void for_codes(const CodeRows& rows, const Segments<Row>& segments, F&& f) {
    constexpr std::int64_t chunk = 256;
    const double work = double(segments.order.size() + rows.k) * double(rows.d);
    parallel_for((rows.k + chunk - 1) / chunk, useful_threads(rows.threads, work),
                 [&](std::int64_t c) { f(c * chunk, std::min(rows.k, (c + 1) * chunk)); });
}

// calls f(tag of the integers that number rows, tag of the entries): half the memory, unless there are too many rows
template <class F>
void with_row_type(const CodeRows& rows, F&& f) {
    with_dtype(rows.x_type, [&](auto* entry) {
        if (rows.n <= std::numeric_limits<std::uint32_t>::max()) {
            f(static_cast<std::uint32_t*>(nullptr), entry);
        } else {
            f(static_cast<std::int64_t*>(nullptr), entry);
        }
    });
}

struct Largest {
    double entry = 0, weight = 0;  // magnitudes, of the vectors that take part
    std::int64_t vectors = 0;      // that take part
    std::int64_t nonfinite = 0;    // with an entry or a weight that is not finite
};

template <class Row, class Input>
Largest largest_of_code(const CodeRows& rows, const Input* x, std::int64_t g, const Segments<Row>& segments,
                        std::int64_t code) {
    Largest found;
    for (std::int64_t i = segments.begin(code); i < segments.end(code); ++i) {
        const std::int64_t at = std::int64_t(segments.order[i]) * rows.g + g;
        const Input* row = x + at * rows.d;
        const double weight = rows.weight ? rows.weight[at] : 1.0;
        double largest = rows.weight ? largest_magnitude(row, rows.d, weight) : largest_magnitude(row, rows.d);
        if (!std::isfinite(largest) || !std::isfinite(weight)) {
            ++found.nonfinite;
            if (rows.skip_nonfinite) continue;
            largest = largest_finite_magnitude(row, rows.d, weight);
        }
        ++found.vectors;
        found.entry = std::max(found.entry, largest);
        // no number for a weight that is none
        if (std::isfinite(weight)) found.weight = std::max(found.weight, std::fabs(weight));
    }
    return found;
}

}  // namespace vqk
