// Code k draws the vector n whose key, distance(k, n) - noise(k, n), is least. With noise of Gumbel's distribution
// that is n with a probability proportional to exp(-distance): one stream of vectors, no sum, no sort.
//
// The key is canonical (float64, no fused multiply-add, a logarithm of our own), so a draw is the same on every
// device and whatever the other vectors are. A float32 scan bounds it from below and leaves a few vectors per code to
// evaluate.
//
// The scan sees copies x' = x - m, c' = c - m (m near the mean code; l2 and levels), unit vectors (cosine) or the
// vectors themselves (dot). With X = max |x'|, C = max |c'|, u = 2^-24, q = |x' - c'|^2 / 2 or -x'.c' errs by at most
// (D + 8) u (X + C)^2 / 2 or (D + 8) u X C: 2u of each factor is the rounding of the copies, (D + 1) u the sum, with
// or without fused multiply-add. The root of 2 q errs by at most the root of twice that.
#include "cpu/draw_rows.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/canonical.h"
#include "cpu/draw_rows_pass.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

constexpr std::int64_t panel_codes = 96;
constexpr std::int64_t section_bytes = 192 << 10;  // of vectors, which stay in the cache while a panel meets them
constexpr double infinity = std::numeric_limits<double>::infinity();

const DrawKernel& draw_kernel(Isa isa) {
    switch (scan_kernel(isa).base) {
#if VQK_X86
        case Isa::avx512:
            return draw_avx512();
        case Isa::avx2:
            return draw_avx2();
#endif
#if VQK_NEON
        case Isa::neon:
            return draw_neon();
#endif
        default:
            return draw_portable();
    }
}

// The natural logarithm of a normal number, by the same operations as vqkernels/_core/canonical.py: with y = 2^e m, m
// in [1/2, 1), and s = (m - 1) / (m + 1), it is e ln 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...), to 2^-50.
double canonical_log(double y) {
    constexpr int terms = 17;
    int exponent = 0;
    const double m = std::frexp(y, &exponent), s = (m - 1.0) / (m + 1.0), square = s * s;
    double sum = 1.0 / (2 * terms - 1);
    for (int i = terms - 2; i >= 0; --i) sum = sum * square + 1.0 / (2 * i + 1);
    return double(exponent) * 0x1.62e42fefa39efp-1 + 2.0 * s * sum;
}

// a number of Gumbel's distribution
double canonical_noise(std::uint32_t row_number, std::uint32_t code_number) {
    // 1 - v for v = (r + 1/2) / 2^32; the noise is large where v is small
    const double rest = (4294967295.5 - double(scattered(row_number + code_number))) * 0x1p-32;
    return -canonical_log(-canonical_log(rest));
}

bool squares(DrawMetric metric) {
    return metric == DrawMetric::l2 || metric == DrawMetric::levels;
}

// The canonical evaluation, and what each code would draw so far.
template <class Value>
class Judge {
  public:
    explicit Judge(const RowDraw& call) : call(call) {
        std::fill_n(call.rows, call.k, 0);
        std::fill_n(call.key, call.k, infinity);
        if (call.metric != DrawMetric::cosine) return;
        for (std::int64_t n = 0; n < call.n; ++n) x_norm.push_back(canonical_norm(x(0, n), call.d[0]));
        for (std::int64_t k = 0; k < call.k; ++k) code_norm.push_back(canonical_norm(code(0, k), call.d[0]));
    }

    const Value* x(std::size_t l, std::int64_t n) const {
        return static_cast<const Value*>(call.x[l]) + n * call.d[l];
    }
    const Value* code(std::size_t l, std::int64_t k) const {
        return static_cast<const Value*>(call.codes[l]) + k * call.d[l];
    }

    void offer(std::int64_t k, std::int64_t n) const {
        if (n >= call.n || !call.usable[n]) return;
        if (call.key[k] < infinity && n > call.rows[k] && same_vector(n, call.rows[k])) return;
        const double far = distance(k, n);
        if (!std::isfinite(far)) return;
        const double noise = canonical_noise(std::uint32_t(call.row_number[n]), std::uint32_t(call.code_number[k]));
        const double key = without_last_bits(far - noise);
        if (key < call.key[k] || (key == call.key[k] && n < call.rows[k])) call.key[k] = key, call.rows[k] = n;
    }

  private:
    // a flat part of an image is one vector many times
    bool same_vector(std::int64_t n, std::int64_t other) const {
        bool same = call.row_number[n] == call.row_number[other];
        for (std::size_t l = 0; l < call.d.size() && same; ++l) {
            same = std::memcmp(x(l, n), x(l, other), call.d[l] * sizeof(Value)) == 0;
        }
        return same;
    }
    double distance(std::int64_t k, std::int64_t n) const {
        switch (call.metric) {
            case DrawMetric::l2:
                return square(0, k, n);
            case DrawMetric::dot:
                return negated_product(k, n);
            case DrawMetric::cosine:
                if (!std::isfinite(x_norm[n] + code_norm[k])) return infinity;
                return x_norm[n] > 0 && code_norm[k] > 0 ? negated_product(k, n) / x_norm[n] / code_norm[k] : 0.0;
            default:
                break;
        }
        double total = 0;
        for (std::size_t l = 0; l < call.d.size(); ++l) {
            // the number 0 times an overflow would not be a number
            if (call.weight[l] > 0) total += call.weight[l] * std::sqrt(square(l, k, n));
        }
        return total;
    }
    double square(std::size_t l, std::int64_t k, std::int64_t n) const {
        const Value *a = x(l, n), *b = code(l, k);
        double total = 0;
        for (std::int64_t d = 0; d < call.d[l]; ++d) {
            const double difference = double(b[d]) - double(a[d]);
            total += difference * difference;
        }
        return total;
    }
    double negated_product(std::int64_t k, std::int64_t n) const {
        const Value *a = x(0, n), *b = code(0, k);
        double total = 0;
        for (std::int64_t d = 0; d < call.d[0]; ++d) total -= double(b[d]) * double(a[d]);
        return total;
    }
    // they are left to the rank of a process (vqkernels/distributed.py)
    static double without_last_bits(double key) {
        std::uint64_t bits;
        std::memcpy(&bits, &key, sizeof bits);
        bits &= ~std::uint64_t(0xffff);
        std::memcpy(&key, &bits, sizeof key);
        return key;
    }

    const RowDraw& call;
    std::vector<double> x_norm, code_norm;  // cosine
};

// Float copies of all vectors and codes in one level, for the scan.
template <class Value>
class LevelCopies {
  public:
    LevelCopies(const RowDraw& call, const Judge<Value>& judge, std::size_t l, const DrawKernel& kernel,
                std::int64_t blocks, std::int64_t padded_codes)
        : dim(call.d[l]),
          x(make_aligned<float>(std::size_t(blocks * kernel.block_rows * dim))),
          x_bias(make_aligned<float>(std::size_t(blocks * kernel.block_rows))),
          negated(make_aligned<float>(std::size_t(padded_codes * dim))),
          code_bias(make_aligned<float>(std::size_t(padded_codes))) {
        const bool centred = squares(call.metric), unit = call.metric == DrawMetric::cosine;
        std::vector<double> shift(dim);
        for (std::int64_t k = 0; k < call.k && centred; ++k) {
            const Value* code = judge.code(l, k);
            for (std::int64_t d = 0; d < dim; ++d) {
                if (std::isfinite(code[d])) shift[d] += double(code[d]) / double(call.k);
            }
        }
        std::vector<float> copy(dim);
        // returns half the squared length of the copy, and keeps the greatest length
        const auto read = [&](const Value* given, double& longest) {
            double square = 0;
            const double norm = unit ? canonical_norm(given, dim) : 1.0;
            for (std::int64_t d = 0; d < dim; ++d) {
                copy[d] = norm > 0 ? float((double(given[d]) - shift[d]) / norm) : 0.0f;
                square += double(copy[d]) * double(copy[d]);
            }
            // a code that is not finite draws nothing, whatever the scan makes of it
            const bool counts =
                std::isfinite(square) || std::all_of(given, given + dim, [](Value v) { return std::isfinite(v); });
            if (counts) longest = std::max(longest, std::isfinite(square) ? std::sqrt(square) : infinity);
            return centred ? float(square / 2) : 0.0f;
        };
        double x_length = 0, code_length = 0;
        const std::int64_t width = kernel.block_rows;
        for (std::int64_t n = 0; n < blocks * width; ++n) {
            const bool here = n < call.n && call.usable[n];
            x_bias[n] = here ? read(judge.x(l, n), x_length) : std::numeric_limits<float>::infinity();
            float* to = x.get() + n / width * width * dim + n % width;
            for (std::int64_t d = 0; d < dim; ++d) to[d * width] = here ? copy[d] : 0.0f;
        }
        for (std::int64_t k = 0; k < padded_codes; ++k) {
            code_bias[k] = k < call.k ? read(judge.code(l, k), code_length) : 0.0f;
            for (std::int64_t d = 0; d < dim; ++d) negated[k * dim + d] = k < call.k ? -copy[d] : 0.0f;
        }
        const bool root = call.metric == DrawMetric::levels;
        factor = root ? call.weight[l] * std::sqrt(2.0) : call.metric == DrawMetric::l2 ? 2.0 : 1.0;
        view = {x.get(), x_bias.get(), negated.get(), code_bias.get(), int(dim), float(factor), root};
        bound_error(x_length, code_length, centred);
    }

    DrawLevel view;
    double farthest = 0;  // no distance of this level is greater
    double error = 0;     // of a scanned one

  private:
    void bound_error(double x_length, double code_length, bool centred) {
        const double reach = x_length + code_length, size = centred ? reach * reach / 2 : x_length * code_length;
        // 8 more for the products with factors, the sums over levels and the second order; FLT_MIN: underflow
        const double of_q = double(dim + 16) * (0x1p-24 * size + FLT_MIN);
        farthest = factor * (view.root ? std::sqrt(size) : size);
        error = factor * (view.root ? std::sqrt(of_q) : of_q) + 0x1p-20 * farthest;
    }

    std::int64_t dim;
    double factor = 1;
    AlignedArray<float> x, x_bias, negated, code_bias;
};

template <class Value>
struct Scan {
    const RowDraw& call;
    const Judge<Value>& judge;
    double error;  // of a scanned distance

    static float offer(void* self, std::int64_t k, std::int64_t n) {
        const Scan& scan = *static_cast<Scan*>(self);
        scan.judge.offer(k, n);
        const double key = scan.call.key[k], least = key + 1.001 * scan.error + 1e-4 + 1e-6 * std::fabs(key);
        return least < FLT_MAX ? float(least) : FLT_MAX;
    }
};

template <class Value>
void draw(const RowDraw& call) {
    const DrawKernel& kernel = draw_kernel(call.isa);
    const Judge<Value> judge(call);
    const std::int64_t blocks = (call.n + kernel.block_rows - 1) / kernel.block_rows;
    const std::int64_t padded = (call.k + kernel.codes - 1) / kernel.codes * kernel.codes;
    std::vector<LevelCopies<Value>> levels;
    std::vector<DrawLevel> views;
    double farthest = 0, error = 0;
    std::int64_t dims = 0;
    for (std::size_t l = 0; l < call.d.size(); ++l) {
        if (call.weight[l] == 0) continue;
        levels.emplace_back(call, judge, l, kernel, blocks, padded);
        views.push_back(levels.back().view);
        farthest += levels.back().farthest;
        error += levels.back().error;
        dims += call.d[l];
    }
    std::vector<std::uint32_t> row_number(blocks * kernel.block_rows), code_number(padded);
    std::copy(call.row_number, call.row_number + call.n, row_number.begin());
    std::copy(call.code_number, call.code_number + call.k, code_number.begin());
    const DrawPass pass{views.data(), int(views.size()), row_number.data(), code_number.data()};

    const bool scannable = !views.empty() && farthest < 1e30;
    const std::int64_t row_bytes = kernel.block_rows * std::max<std::int64_t>(dims, 1) * 4;
    const std::int64_t section = std::clamp<std::int64_t>(section_bytes / row_bytes, 8, 512);
    const std::int64_t panel = panel_codes / kernel.codes * kernel.codes;
    std::vector<float> bound(padded, std::numeric_limits<float>::infinity());
    std::fill(bound.begin() + call.k, bound.end(), -std::numeric_limits<float>::infinity());
    const double work = double(call.n) * double(call.k) * double(dims + 16) / 16;
    parallel_for((padded + panel - 1) / panel, useful_threads(call.threads, work), [&](std::int64_t task) {
        const std::int64_t begin = task * panel, end = std::min(padded, begin + panel);
        if (!scannable) {
            for (std::int64_t k = begin; k < std::min(end, call.k); ++k) {
                for (std::int64_t n = 0; n < call.n; ++n) judge.offer(k, n);
            }
            return;
        }
        Scan<Value> scan{call, judge, error};
        for (std::int64_t from = 0; from < blocks; from += section) {
            kernel.scan(pass, begin, end, from, std::min(blocks, from + section), bound.data(), Scan<Value>::offer,
                        &scan);
        }
    });
}

}  // namespace

void draw_rows(const RowDraw& call) {
    if (call.type == DType::f64) return draw<double>(call);
    draw<float>(call);
}

}  // namespace vqk
