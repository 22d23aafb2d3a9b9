// Prepares the two sides of a soft assignment, chooses the precision, runs the passes over panels of owners.
//
// Precision. A pass sees logits -slope t with t computed from copies x' = x - m, c' = c - m (m near the codebook
// mean; l2 and euclidean) or from the vectors themselves. With X = max |x'|, C = max |c'|, u = 2^-24, in float:
//   l2         t = |x'-c'|^2 / 2    errs by at most e = (D + 8) u (X + C)^2 / 2    slope = 2 / temperature
//   cosine     t = -x'.c'           e = (D + 8) u                                  slope = 1 / temperature
//   dot        t = -x.c             e = (D + 8) u X C                              slope = 1 / temperature
//   euclidean  t = |x'-c'|          e = sqrt((D + 8) u) (X + C)                    slope = 1 / temperature
// where 2u of each factor is the rounding of the copies, (D + 1) u the sum, with or without fused multiply-add. If
// slope times e exceeds `logit_tolerance`, or an input is float64, the group is computed in float64, with the same
// errors for u = 2^-53.
//
// In float both copies are scaled, before they are rounded, so that t comes out multiplied by slope log2(e): a logit
// in bits, which the passes need not multiply any more. It is bounded: slope e <= 2^-9 says |t| < 2^13 bits. In
// float64 it need not be, and far vectors are told apart by exact differences of t before anything is multiplied.
#include "cpu/soft_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/lanes.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"
#include "cpu/soft_entropy_pass.h"

namespace vqk {
namespace {

constexpr double logit_tolerance = 0x1p-9;
constexpr double largest_length = 1e10;  // beyond, `absent` would not be far away
constexpr std::int64_t panel_owners = 96;
constexpr double ln2 = 0.69314718055994530942;

const SoftKernels& soft_kernels(Isa isa) {
    const ScanKernel& scan = scan_kernel(isa);
#if VQK_X86
    if (&scan == &scan_avx512() || scan.tiles) return soft_avx512();
    if (&scan == &scan_avx2()) return soft_avx2();
#endif
    (void)scan;
    return soft_portable();
}

// The vectors of one side and group as given.
struct Given {
    const void* values;
    DType type;
    std::int64_t count, stride, dim;  // `stride` elements from one vector to the next
    bool unit;                        // to be scaled to length 1

    // out_d = value_d - shift_d, scaled if unit; returns the length of the result before scaling
    double read(std::int64_t i, const double* shift, double* out) const {
        double square = 0;
        with_dtype(type, [&](auto* tag) {
            const auto* row = static_cast<decltype(tag)>(values) + i * stride;
            for (std::int64_t d = 0; d < dim; ++d) {
                const double value = double(widen(row[d])) - shift[d];
                square += value * value;
                out[d] = value;
            }
            if (!unit || !std::isfinite(square)) return;
            const double factor = square > 0 ? 1 / std::sqrt(square) : 0;
            for (std::int64_t d = 0; d < dim; ++d) out[d] = double(widen(row[d])) * factor;
        });
        return std::sqrt(square);
    }
};

// What is known of a group before its precision is chosen.
struct Survey {
    Given x, codes;
    const double* weight;  // [N], stride g
    std::int64_t g;
    std::vector<double> shift;         // [D] m
    std::vector<std::uint8_t> usable;  // [K] finite codes
    double x_length = 0, code_length = 0;
    bool any_code = false;

    bool takes_part(std::int64_t n) const { return any_code && weight[n * g] > 0; }
};

bool centred(SoftMetric metric) {
    return metric == SoftMetric::l2 || metric == SoftMetric::euclidean;
}

Survey survey(const SoftProblem& problem, std::int64_t group) {
    const auto offset = [](const void* values, DType type, std::int64_t elements) {
        const void* moved = nullptr;
        with_dtype(type, [&](auto* tag) { moved = static_cast<decltype(tag)>(values) + elements; });
        return moved;
    };
    const std::int64_t d = problem.d, k = problem.k;
    const bool unit = problem.metric == SoftMetric::cosine;
    Survey found{
        {offset(problem.x, problem.x_type, group * d), problem.x_type, problem.n, problem.g * d, d, unit},
        {offset(problem.codebook, problem.codebook_type, group * k * d), problem.codebook_type, k, d, d, unit},
        problem.weight + group,
        problem.g,
        std::vector<double>(d),
        std::vector<std::uint8_t>(k)};
    const std::vector<double> origin(d);
    std::vector<double> row(d);
    double finite = 0;
    for (std::int64_t i = 0; i < k; ++i) {
        found.usable[i] = std::isfinite(found.codes.read(i, origin.data(), row.data()));
        if (!found.usable[i]) continue;
        finite += 1;
        found.any_code = true;
        if (!centred(problem.metric)) continue;
        for (std::int64_t j = 0; j < d; ++j) found.shift[j] += (row[j] - found.shift[j]) / finite;
    }
    for (std::int64_t i = 0; i < k; ++i) {
        if (!found.usable[i]) continue;
        found.code_length = std::max(found.code_length, found.codes.read(i, found.shift.data(), row.data()));
    }
    for (std::int64_t n = 0; n < problem.n; ++n) {
        if (!found.takes_part(n)) continue;
        found.x_length = std::max(found.x_length, found.x.read(n, found.shift.data(), row.data()));
    }
    if (unit) found.x_length = found.code_length = 1;
    return found;
}

// t is half of what l2 means by distance
double distance_of_t(SoftMetric metric) {
    return metric == SoftMetric::l2 ? 2 : 1;
}

double slope_of(const SoftProblem& problem) {
    return distance_of_t(problem.metric) / problem.temperature;
}

bool single_suffices(const SoftProblem& problem, const Survey& found) {
    if (problem.x_type == DType::f64 || problem.codebook_type == DType::f64) return false;
    const double x = found.x_length, c = found.code_length, slope = slope_of(problem);
    const double size = centred(problem.metric) ? (x + c) * (x + c) / 2 : x * c;
    double error = double(problem.d + 8) * 0x1p-24 * size + double(problem.d + 8) * 0x1p-149;
    if (problem.metric == SoftMetric::euclidean) error = std::sqrt(2 * error);
    return std::max(x, c) < largest_length && slope > 1e-10 && slope < 1e10 && slope * error <= logit_tolerance;
}

// Numbers of all vectors of a side, with zeros for what pads the last block and tile.
template <class Real>
using Numbers = AlignedArray<Real>;

template <class Real>
struct Packed {
    Numbers<Real> values, bias;
    std::int64_t blocks;
    PackedSide<Real> view() const { return {values.get(), bias.get(), blocks}; }
};

// One group in the precision that was chosen.
template <class Real>
class Group {
  public:
    Group(const SoftProblem& problem, const Survey& found, std::int64_t index, const SoftKernel<Real>& kernel)
        : problem(problem), found(found), index(index), kernel(kernel) {
        const double bits = slope_of(problem) / ln2;
        pass.slope = 1;
        if (sizeof(Real) == 4) {
            unit = bits;
            scale = problem.metric == SoftMetric::euclidean ? bits : std::sqrt(bits);
        } else {
            pass.slope = Real(bits);
        }
        x = pack(found.x, [&](std::int64_t n) { return found.takes_part(n); });
        codes = pack(found.codes, [&](std::int64_t k) { return bool(found.usable[k]); });
        pass.x = x.view();
        pass.codes = codes.view();
        pass.dim = int(problem.d);
        pass.root = problem.metric == SoftMetric::euclidean;
        pass.floored = std::isfinite(problem.floor);
        pass.floor = Real(pass.floored ? problem.floor / ln2 : 0);
        // nearer than what rounding can tell from 0
        pass.least_t = Real(scale * (found.x_length + found.code_length) * (sizeof(Real) == 4 ? 0x1p-12 : 0x1p-24));
        weight = of_x([&](std::int64_t n) { return problem.weight[at(n)]; });
        pass.weight = weight.get();
    }

    void forward(const SoftForward& result) {
        std::vector<double> least(problem.n), log_sum(problem.n), entropy(problem.n), assigned(problem.k);
        over_owners(problem.n, [&](std::int64_t begin, std::int64_t end) {
            kernel.normalize(pass, begin, end, least.data(), log_sum.data(), entropy.data());
        });
        set_origin([&](std::int64_t n) { return Row{least[n], log_sum[n], entropy[n]}; });
        if (pass.floored) {
            over_owners(problem.n, [&](std::int64_t begin, std::int64_t end) {
                kernel.floored_entropy(pass, begin, end, entropy.data());
            });
        }
        over_owners(problem.k,
                    [&](std::int64_t begin, std::int64_t end) { kernel.assign(pass, begin, end, assigned.data()); });
        for (std::int64_t n = 0; n < problem.n; ++n) {
            const bool counts = found.takes_part(n);
            result.least[at(n)] = counts ? least[n] / unit * distance_of_t(problem.metric) : 0;
            result.log_sum[at(n)] = counts ? log_sum[n] * ln2 : 0;
            result.entropy[at(n)] = counts ? entropy[n] * ln2 : 0;
        }
        std::copy(assigned.begin(), assigned.end(), result.assigned + index * problem.k);
    }

    void backward(const SoftBackward& result) {
        set_origin([&](std::int64_t n) {
            const double least = result.least[at(n)] / distance_of_t(problem.metric) * unit;
            return Row{least, result.log_sum[at(n)] / ln2, result.entropy[at(n)] / ln2};
        });
        bit_gain = of_x([&](std::int64_t n) { return -ln2 * result.grad_entropy[at(n)]; });
        grad_assigned = numbers(problem.k, codes.blocks,
                                [&](std::int64_t k) { return result.grad_assigned[index * problem.k + k]; });
        pass.bit_gain = bit_gain.get();
        pass.grad_assigned = grad_assigned.get();
        std::vector<double> gain(problem.n);
        over_owners(problem.n,
                    [&](std::int64_t begin, std::int64_t end) { kernel.mean_gain(pass, begin, end, gain.data()); });
        mean_gain = of_x([&](std::int64_t n) { return gain[n]; });
        pass.mean_gain = mean_gain.get();
        if (result.grad_x || result.grad_log) {
            pull(kernel.pull_x, found.x, x, result.grad_x, index * problem.d, result.grad_log);
        }
        if (result.grad_codebook) {
            pull(kernel.pull_codes, found.codes, codes, result.grad_codebook, index * problem.k * problem.d, nullptr);
        }
    }

  private:
    const SoftProblem& problem;
    const Survey& found;
    const std::int64_t index;
    const SoftKernel<Real>& kernel;
    double unit = 1;   // what 1 of t is to the passes
    double scale = 1;  // of the copies
    Packed<Real> x, codes;
    Numbers<Real> weight, origin, rest, reach, bit_gain, mean_gain, grad_assigned;
    SoftPass<Real> pass{};

    std::int64_t at(std::int64_t n) const { return n * problem.g + index; }

    template <class Number>
    Numbers<Real> numbers(std::int64_t count, std::int64_t blocks, Number&& number) const {
        const std::int64_t padded = blocks * kernel.block_codes + kernel.queries;
        auto made = make_aligned<Real>(std::size_t(padded));
        for (std::int64_t i = 0; i < padded; ++i) made[i] = i < count ? Real(number(i)) : Real(0);
        return made;
    }
    // of the vectors that take part; 0 for the others
    template <class Number>
    Numbers<Real> of_x(Number&& number) const {
        return numbers(problem.n, x.blocks, [&](std::int64_t n) { return found.takes_part(n) ? number(n) : 0.0; });
    }

    struct Row {
        double least, log_sum, entropy;  // least t; bits
    };
    // origin, rest and reach: see SoftPass. The mean of log2 p is minus the entropy.
    template <class RowOf>
    void set_origin(RowOf&& row) {
        const double slope = double(pass.slope);
        origin = of_x([&](std::int64_t n) { return row(n).least + (row(n).entropy - row(n).log_sum) / slope; });
        rest = of_x([&](std::int64_t n) { return slope * (row(n).least - double(origin[n])) - row(n).log_sum; });
        // of huge t only the least may count
        reach = of_x([&](std::int64_t n) {
            return std::nextafter(row(n).least - (row(n).log_sum + log2_zero<Real>) / slope, HUGE_VAL);
        });
        pass.origin = origin.get();
        pass.rest = rest.get();
        pass.reach = reach.get();
    }

    template <class Present>
    Packed<Real> pack(const Given& given, Present&& present) const {
        const std::int64_t block = kernel.block_codes, dim = problem.d, blocks = (given.count + block - 1) / block;
        Packed<Real> out{make_aligned<Real>(std::size_t(blocks * block * dim)),
                         make_aligned<Real>(std::size_t(blocks * block + kernel.queries)), blocks};
        std::fill_n(out.bias.get(), blocks * block + kernel.queries, absent<Real>);
        const int threads = useful_threads(problem.threads, double(given.count) * double(dim));
        parallel_for(blocks, threads, [&](std::int64_t b) {
            Real* values = out.values.get() + b * block * dim;
            std::vector<double> row(dim);
            for (std::int64_t j = 0; j < block; ++j) {
                const std::int64_t i = b * block + j;
                const bool here = i < given.count && present(i);
                if (here) {
                    given.read(i, found.shift.data(), row.data());
                } else {
                    std::fill(row.begin(), row.end(), 0.0);
                }
                double square = 0;
                for (std::int64_t d = 0; d < dim; ++d) {
                    const Real value = values[d * block + j] = Real(scale * row[d]);
                    square += double(value) * double(value);
                }
                if (here) out.bias[i] = centred(problem.metric) ? Real(0.5 * square) : Real(0);
            }
        });
        return out;
    }

    // body(begin, end) over panels of owners; results do not depend on how they are cut
    template <class Body>
    void over_owners(std::int64_t owners, Body&& body) const {
        const std::int64_t tiles = (owners + kernel.queries - 1) / kernel.queries;
        const int threads =
            useful_threads(problem.threads, double(problem.n) * double(problem.k) * double(problem.d));
        const std::int64_t fair = (tiles + 4 * threads - 1) / (4 * threads);
        const std::int64_t panel = std::clamp<std::int64_t>(fair * kernel.queries, 1, panel_owners);
        parallel_for((owners + panel - 1) / panel, threads,
                     [&](std::int64_t p) { body(p * panel, std::min(owners, (p + 1) * panel)); });
    }

    void pull(typename SoftKernel<Real>::Pull function, const Given& given, const Packed<Real>& packed,
              void* gradient, std::int64_t offset, double* grad_log) {
        over_owners(given.count, [&](std::int64_t begin, std::int64_t end) {
            std::vector<double> sums((end - begin) * problem.d), total(end - begin), log_sum(end - begin);
            function(pass, begin, end, sums.data(), total.data(), log_sum.data());
            for (std::int64_t i = begin; i < end; ++i) {
                double* sum = sums.data() + (i - begin) * problem.d;
                if (grad_log) grad_log[at(i)] = log_sum[i - begin] * ln2;
                if (!gradient) continue;
                chain(given, packed, i, total[i - begin], sum);
                for (std::int64_t d = 0; d < problem.d; ++d) {
                    const std::int64_t to = offset + i * given.stride + d;
                    if (given.type == DType::f64) {
                        static_cast<double*>(gradient)[to] = sum[d];
                    } else {
                        static_cast<float*>(gradient)[to] = float(sum[d]);
                    }
                }
            }
        });
    }

    // turns sums of h y into the gradient of the owner, through dt/d(owner)
    void chain(const Given& given, const Packed<Real>& packed, std::int64_t i, double total, double* sum) const {
        const std::int64_t block = kernel.block_codes, dim = problem.d;
        const Real* own = packed.values.get() + i / block * block * dim + i % block;
        double factor = ln2 * double(pass.slope) * scale, along = 0;
        if (problem.metric == SoftMetric::cosine) {
            std::vector<double> row(dim);
            const double length = given.read(i, found.shift.data(), row.data());
            for (std::int64_t d = 0; d < dim; ++d) along += sum[d] * double(own[d * block]) / (scale * scale);
            factor = length > 0 && std::isfinite(length) ? factor / length : 0;
        } else if (centred(problem.metric)) {
            along = total;
        }
        for (std::int64_t d = 0; d < dim; ++d) sum[d] = factor * (sum[d] - along * double(own[d * block]));
    }
};

// calls body with each group in its precision; returns how many are float64
template <class Body>
int over_groups(const SoftProblem& problem, Body&& body) {
    const SoftKernels& kernels = soft_kernels(problem.isa);
    int wide = 0;
    for (std::int64_t index = 0; index < problem.g; ++index) {
        const Survey found = survey(problem, index);
        if (single_suffices(problem, found)) {
            Group<float> group(problem, found, index, kernels.single);
            body(group);
        } else {
            Group<double> group(problem, found, index, kernels.wide);
            body(group);
            ++wide;
        }
    }
    return wide;
}

}  // namespace

int soft_forward(const SoftProblem& problem, const SoftForward& result) {
    return over_groups(problem, [&](auto& group) { group.forward(result); });
}

void soft_backward(const SoftProblem& problem, const SoftBackward& result) {
    over_groups(problem, [&](auto& group) { group.backward(result); });
}

double spin_exp(Isa isa, std::int64_t rounds) {
    return soft_kernels(isa).single.spin_exp(rounds);
}

}  // namespace vqk
