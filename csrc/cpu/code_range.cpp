#include "cpu/code_range.h"

#include <atomic>

#include "cpu/fixed_point.h"

namespace vqk {
namespace {

template <class Row, class Input>
std::optional<std::int64_t> measure(const CodeRows& rows, CodeRange* range) {
    const auto* x = static_cast<const Input*>(rows.x);
    for (std::int64_t g = 0; g < rows.g; ++g) {
        Segments<Row> segments;
        if (const auto bad = sort_rows(rows, g, segments)) return bad;
        CodeRange* of_group = range + g * rows.k;
        std::atomic<std::int64_t> vectors{0}, nonfinite{0};
        for_codes(rows, segments, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t code = begin; code < end; ++code) {
                const Largest found = largest_of_code(rows, x, g, segments, code);
                of_group[code] = {exponent_above(found.entry), exponent_above(found.weight), 0, 0};
                vectors += found.vectors;
                nonfinite += found.nonfinite;
            }
        });
        for (std::int64_t code = 0; code < rows.k; ++code) {
            of_group[code].vectors = vectors;
            of_group[code].nonfinite = nonfinite;
        }
    }
    return std::nullopt;
}

}  // namespace

std::optional<std::int64_t> code_range(const CodeRows& rows, CodeRange* range) {
    std::optional<std::int64_t> bad;
    with_row_type(rows, [&](auto* row, auto* entry) {
        using Row = std::remove_pointer_t<decltype(row)>;
        using Input = std::remove_cv_t<std::remove_pointer_t<decltype(entry)>>;
        bad = measure<Row, Input>(rows, range);
    });
    return bad;
}

}  // namespace vqk
