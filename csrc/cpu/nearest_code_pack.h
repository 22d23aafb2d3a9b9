// The codes of one group as the scan wants them: shifted, scaled, in blocks, with bounding boxes if they are ordered
// by a tree.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/affine.h"
#include "cpu/aligned.h"
#include "cpu/canonical.h"
#include "cpu/code_tree.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {

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

template <class Value>
double affine(const ScanKernel& kernel, const Value* row, const double* shift, double factor, std::int64_t dim,
              float* out) {
    if constexpr (std::is_same_v<Value, float>) {
        return kernel.affine(row, shift, factor, dim, out);
    } else {
        return affine_row(row, shift, factor, dim, out);
    }
}

template <class Value>
class Codes {
  public:
    // `ordered`: by a tree, for scan_near
    Codes(const Value* values, std::int64_t k, std::int64_t dim, Metric metric, const ScanKernel& kernel,
          bool ordered, int threads)
        : values(values), dim(dim), metric(metric), block(kernel.block_codes), lanes(kernel.lanes) {
        inspect(k, threads);
        blocks = (std::int64_t(order.size()) + block - 1) / block;
        if (order.empty()) return;
        if (ordered) grow(kernel, threads);
        pack(kernel, threads);
    }

    PackedCodes view() const { return {packed.get(), bias.get(), blocks, int(dim)}; }
    BoxTree boxes() const { return {leaves.get(), groups.get(), blocks, int(dim)}; }
    bool empty() const { return order.empty(); }

    const Value* const values;  // [K, D]
    const std::int64_t dim;
    const Metric metric;
    std::vector<std::int32_t> order;  // packed position -> code; codes that are not finite are left out
    CodeTree tree;
    std::vector<double> shift;  // [D] m
    double scale = 1.0;         // s, a power of two
    double shift_norm = 0.0;    // |m| s
    double radius = 0.0;        // largest |c'|
    std::vector<double> norms;  // [K] canonical, cosine only

  private:
    const int block, lanes;
    std::int64_t blocks = 0;
    AlignedArray<float> packed, bias;    // see PackedCodes
    AlignedArray<float> leaves, groups;  // see BoxTree

    // of a block before it is transposed: a cache line more than a row, lest its columns share few cache sets
    std::int64_t row_stride() const { return dim + 16; }
    void inspect(std::int64_t k, int threads);
    double transform(const ScanKernel& kernel, std::int64_t code, float* row) const;
    void grow(const ScanKernel& kernel, int threads);
    double pack_block(const ScanKernel& kernel, std::int64_t b, float* rows);
    void pack(const ScanKernel& kernel, int threads);
    void box_leaf(std::int64_t b, const float* rows);
    void box_groups();
};

// which codes are finite, the shift and the scale
template <class Value>
void Codes<Value>::inspect(std::int64_t k, int threads) {
    constexpr std::int64_t chunk = 1024;
    constexpr std::int64_t mean_sample = 2048;  // codes that the shift is the mean of; any shift is correct
    const std::int64_t chunks = (k + chunk - 1) / chunk;
    std::vector<std::uint8_t> usable(k);
    if (metric == Metric::cosine) norms.resize(k);
    std::vector<double> largest(chunks, 0.0);
    parallel_for(chunks, useful_threads(threads, double(k) * double(dim)), [&](std::int64_t c) {
        for (std::int64_t i = c * chunk; i < std::min(k, (c + 1) * chunk); ++i) {
            const double magnitude = largest_magnitude(values + i * dim, dim);
            usable[i] = std::isfinite(magnitude);
            if (metric == Metric::cosine) {
                norms[i] = canonical_norm(values + i * dim, dim);
                usable[i] &= std::isfinite(norms[i]);
            }
            if (usable[i]) largest[c] = std::max(largest[c], magnitude);
        }
    });
    order.reserve(k);
    for (std::int64_t i = 0; i < k; ++i) {
        if (usable[i]) order.push_back(std::int32_t(i));
    }
    shift.assign(dim, 0.0);
    if (metric == Metric::cosine || order.empty()) return;  // unit vectors need neither shift nor scale
    const std::size_t stride = std::max<std::size_t>(1, order.size() / mean_sample);
    double sampled = 0;
    for (std::size_t i = 0; i < order.size(); i += stride) {
        sampled += 1;
        // a running mean cannot overflow where a sum could
        const Value* code = values + std::int64_t(order[i]) * dim;
        for (std::int64_t d = 0; d < dim; ++d) shift[d] += (double(code[d]) - shift[d]) / sampled;
    }
    int exponent = 0;
    std::frexp(*std::max_element(largest.begin(), largest.end()), &exponent);
    scale = std::ldexp(1.0, std::clamp(-exponent, -1000, 1000));
    // scaled before it is squared: the square of the shift alone could overflow
    const double square = std::accumulate(shift.begin(), shift.end(), 0.0,
                                          [&](double sum, double m) { return sum + (m * scale) * (m * scale); });
    shift_norm = std::sqrt(square) * (1 + 1e-6);
}

// c' of one code; returns |c'|^2
template <class Value>
double Codes<Value>::transform(const ScanKernel& kernel, std::int64_t code, float* row) const {
    double factor = scale;
    if (metric == Metric::cosine) factor = norms[code] > 0 ? 1 / norms[code] : 0;
    return affine(kernel, values + code * dim, shift.data(), factor, dim, row);
}

// orders the codes by a tree over c'
template <class Value>
void Codes<Value>::grow(const ScanKernel& kernel, int threads) {
    constexpr std::int64_t chunk = 1024;
    const std::int64_t count = std::int64_t(order.size());
    std::vector<float> points(std::size_t(count * dim));
    parallel_for((count + chunk - 1) / chunk, useful_threads(threads, double(count) * double(dim)),
                 [&](std::int64_t c) {
                     for (std::int64_t i = c * chunk; i < std::min(count, (c + 1) * chunk); ++i) {
                         transform(kernel, order[i], points.data() + i * dim);
                     }
                 });
    std::vector<std::int32_t> places(count);
    std::iota(places.begin(), places.end(), 0);
    tree = CodeTree(points.data(), dim, block, places, threads);
    for (std::int32_t& place : places) place = order[place];
    order = std::move(places);
}

// One block, transposed through `rows` [block][row_stride()]; returns the largest |c'|^2 in it.
template <class Value>
double Codes<Value>::pack_block(const ScanKernel& kernel, std::int64_t b, float* rows) {
    const std::int64_t stride = row_stride();
    double widest = 0;
    for (int j = 0; j < block; ++j) {
        const std::int64_t position = b * block + j;
        if (position >= std::int64_t(order.size())) {
            // padding: the last code again, never the lowest
            std::copy_n(rows + (j - 1) * stride, dim, rows + j * stride);
            bias[position] = std::numeric_limits<float>::infinity();
            continue;
        }
        const double square = transform(kernel, order[position], rows + j * stride);
        bias[position] = metric == Metric::l2 ? float(0.5 * square) : 0.0f;
        widest = std::max(widest, square);
    }
    float* out = packed.get() + b * block * dim;
    for (std::int64_t d = 0; d < dim; ++d) {
        for (int j = 0; j < block; ++j) *out++ = rows[j * stride + d];
    }
    return widest;
}

template <class Value>
void Codes<Value>::pack(const ScanKernel& kernel, int threads) {
    constexpr std::int64_t chunk = 16;  // blocks of a task
    packed = make_aligned<float>(std::size_t(blocks * block * dim));
    bias = make_aligned<float>(std::size_t(blocks * block));
    if (!tree.empty()) {
        const std::int64_t leaf_groups = (blocks + lanes - 1) / lanes;
        leaves = make_aligned<float>(std::size_t(leaf_groups * 2 * dim * lanes));
        groups = make_aligned<float>(std::size_t((leaf_groups + lanes - 1) / lanes * 2 * dim * lanes));
        // boxes behind the last block are empty: infinitely far from everything
        std::fill_n(leaves.get(), leaf_groups * 2 * dim * lanes, std::numeric_limits<float>::infinity());
    }
    std::vector<double> widest((blocks + chunk - 1) / chunk);
    const int useful = useful_threads(threads, double(order.size()) * double(dim));
    parallel_for(std::int64_t(widest.size()), useful, [&](std::int64_t c) {
        std::vector<float> rows(std::size_t(block * row_stride()));
        for (std::int64_t b = c * chunk; b < std::min(blocks, (c + 1) * chunk); ++b) {
            widest[c] = std::max(widest[c], pack_block(kernel, b, rows.data()));
            if (!tree.empty()) box_leaf(b, rows.data());
        }
    });
    if (!tree.empty()) box_groups();
    radius = std::sqrt(*std::max_element(widest.begin(), widest.end())) * (1 + 1e-6);
}

template <class Value>
void Codes<Value>::box_leaf(std::int64_t b, const float* rows) {
    float* box = leaves.get() + b / lanes * 2 * dim * lanes + b % lanes;
    for (std::int64_t d = 0; d < dim; ++d) {
        float low = rows[d], high = rows[d];
        for (int j = 1; j < block; ++j) {
            low = std::min(low, rows[j * row_stride() + d]);
            high = std::max(high, rows[j * row_stride() + d]);
        }
        box[(2 * d) * lanes] = low;
        box[(2 * d + 1) * lanes] = -high;
    }
}

template <class Value>
void Codes<Value>::box_groups() {
    const std::int64_t leaf_groups = (blocks + lanes - 1) / lanes, stride = 2 * dim * lanes;
    const std::int64_t padded = (leaf_groups + lanes - 1) / lanes * lanes;
    for (std::int64_t g = 0; g < padded; ++g) {
        float* box = groups.get() + g / lanes * stride + g % lanes;
        for (std::int64_t side = 0; side < 2 * dim; ++side) {
            float low = std::numeric_limits<float>::infinity();
            for (int l = 0; g < leaf_groups && l < lanes; ++l) {
                low = std::min(low, leaves[g * stride + side * lanes + l]);
            }
            box[side * lanes] = low;
        }
    }
}

}  // namespace vqk
