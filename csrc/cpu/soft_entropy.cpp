// Takes batches of vectors through the passes: what is kept of their pairs, and who adds to the sums of the codes
// when.
//
// Every pass but the first needs what the one before it made of each pair. A batch that is short enough keeps it for
// all codes (`Plan`); before more codes than that, batches are long instead, meet the codes in chunks, and later
// passes compute the chunk again.
#include "cpu/soft_entropy.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/lanes.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"
#include "cpu/soft_entropy_batch.h"
#include "cpu/soft_entropy_pass.h"
#include "cpu/soft_entropy_sides.h"
#include "cpu/turns.h"

namespace vqk {
namespace {

constexpr std::int64_t least_dim = 96;  // to fetch a pair from memory costs what measuring it in about so many does
constexpr double ln2 = 0.69314718055994530942;

const SoftKernels& soft_kernels(Isa isa) {
    switch (scan_kernel(isa).base) {
#if VQK_X86
        case Isa::avx512:
            return soft_avx512();
        case Isa::avx2:
            return soft_avx2();
#endif
#if VQK_NEON
        case Isa::neon:
            return soft_neon();
#endif
        default:
            return soft_portable();
    }
}

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
        pass.blocks = blocks = (problem.k + kernel.block_codes - 1) / kernel.block_codes;
        pack_codes();
        pass.dim = int(problem.d);
        pass.root = problem.metric == SoftMetric::euclidean;
        pass.floored = std::isfinite(problem.floor);
        pass.floor = Real(pass.floored ? problem.floor / ln2 : 0);
        // nearer than what rounding can tell from 0
        pass.least_t = Real(scale * (found.x_length + found.code_length) * (sizeof(Real) == 4 ? 0x1p-12 : 0x1p-24));
    }

    void forward(const SoftForward& result) {
        const Plan plan = plan_for(kernel, problem.n, blocks, 12);
        remembered = room_for_pairs(result.pairs);
        const bool again = pass.floored || plan.blocks < blocks;
        std::vector<double> assigned(blocks * kernel.block_codes);
        Turns turns(problem.k / turn_codes + 1);
        over_batches(plan, [&](Work& work, std::int64_t number, std::int64_t begin) {
            auto& batch = work.batch;
            std::fill(work.total.begin(), work.total.end(), SoftTotal<Real>{absent<Real>, 0, 0});
            batch.keep = !again;
            over_chunks(plan, batch, [&](auto from, auto to) { kernel.normalize(pass, batch, from, to); });
            settle(work, begin, again, result);
            batch.keep = true;
            batch.known = remembered != nullptr;
            over_chunks(plan, batch, [&](auto from, auto to) {
                if (again) (pass.floored ? kernel.normalize_floored : kernel.normalize)(pass, batch, from, to);
                for (std::int64_t first = from; first < to; first += turn) {
                    const std::int64_t end = std::min(to, first + turn);
                    turns.take(first / turn, number,
                               [&] { kernel.assign(pass, batch, first, end, assigned.data()); });
                }
            });
            for (std::int64_t n = begin; n < std::min(begin + batch.rows, problem.n); ++n) {
                const auto& total = work.total[n - begin];
                const double entropy = std::max(0.0, std::log2(total.z) - total.l / total.z);
                result.entropy[at(n)] = counts(n) ? entropy * ln2 : 0;
            }
        });
        std::copy_n(assigned.begin(), problem.k, result.assigned + index * problem.k);
    }

    void backward(const SoftBackward& result) {
        const Plan plan = plan_for(kernel, problem.n, blocks, 48);
        const std::int64_t dim = problem.d, padded = blocks * kernel.block_codes;
        // what the forward has written is only read
        remembered = room_for_pairs(const_cast<void*>(result.pairs));
        if (result.grad_x) pack_for_pull_x();
        grad_assigned = make_aligned<Real>(std::size_t(padded));
        for (std::int64_t k = 0; k < padded; ++k) {
            grad_assigned[k] = k < problem.k ? Real(result.grad_assigned[index * problem.k + k]) : Real(0);
        }
        pass.grad_assigned = grad_assigned.get();
        const std::int64_t sums = result.grad_codebook ? padded * (dim + 1) : 0;
        const AlignedArray<double> pulled = make_aligned<double>(std::size_t(sums));
        std::fill_n(pulled.get(), sums, 0.0);
        Turns turns(problem.k / turn_codes + 1);
        over_batches(plan, [&](Work& work, std::int64_t number, std::int64_t begin) {
            auto& batch = work.batch;
            set_origin(work, begin, result);
            if (result.grad_codebook) work.turn_vectors(kernel.queries, dim + 1);
            batch.known = remembered != nullptr;
            for (auto* sums : {&work.gain, &work.h_sum, &work.grad_log}) std::fill(sums->begin(), sums->end(), 0.0);
            if (result.grad_x) std::fill_n(work.pulled.get(), work.pulled_size, 0.0);
            const bool kept = batch.keep = !remembered && plan.blocks == blocks;
            over_chunks(plan, batch,
                        [&](auto from, auto to) { kernel.mean_gain(pass, batch, from, to, work.gain.data()); });
            std::copy_n(work.gain.begin(), batch.rows, work.of(Work::mean_gain));
            batch.keep = true;
            // the codes of a turn at a time, so that their pairs are still near for the sums
            for (std::int64_t from = 0; from < blocks; from += turn) {
                const std::int64_t to = std::min(blocks, from + turn);
                batch.chunk = kept ? 0 : from;
                kernel.pull(pass, batch, from, to, kept, work.h_sum.data(), work.grad_log.data());
                if (result.grad_x) kernel.pull_x(pass, batch, from, to, work.pulled.get());
                if (!result.grad_codebook) continue;
                turns.take(from / turn, number, [&] { kernel.pull_codes(pass, batch, from, to, pulled.get()); });
            }
            finish_batch(work, begin, result);
        });
        if (result.grad_codebook) finish_codes(pulled.get(), result.grad_codebook);
    }

  private:
    using Work = Workspace<Real>;
    const SoftProblem& problem;
    const Survey& found;
    const std::int64_t index;
    const SoftKernel<Real>& kernel;
    double unit = 1;                                            // what 1 of t is to the passes
    double scale = 1;                                           // of the copies
    const std::int64_t turn = turn_codes / kernel.block_codes;  // blocks
    std::int64_t blocks;
    AlignedArray<Real> codes, turned, bias, grad_assigned;
    Real* remembered = nullptr;  // [N padded / Q][blocks][Q][V*W] t
    SoftPass<Real> pass{};

    std::int64_t at(std::int64_t n) const { return n * problem.g + index; }

    bool counts(std::int64_t n) const { return n < problem.n && found.takes_part(n); }

    int threads_for(double operations) const { return useful_threads(problem.threads, operations); }

    // this group's part of what the caller has room for, if it is enough for the precision that was chosen
    Real* room_for_pairs(void* room) const {
        const std::int64_t part = soft_pairs_bytes(problem) / problem.g, q = kernel.queries;
        const std::int64_t numbers = (problem.n + q - 1) / q * q * blocks * kernel.block_codes;
        if (!room || numbers * std::int64_t(sizeof(Real)) > part) return nullptr;
        return reinterpret_cast<Real*>(static_cast<char*>(room) + index * part);
    }

    // body(work, number, begin) for batches, started in rising order. It must not throw: others may wait for its
    // turns.
    template <class Body>
    void over_batches(const Plan& plan, Body&& body) const {
        const std::int64_t batches = (problem.n + plan.rows - 1) / plan.rows;
        const double operations = double(problem.n) * double(problem.k) * double(problem.d);
        const std::int64_t workers = std::min<std::int64_t>(batches, threads_for(operations));
        std::vector<Work> spaces;
        spaces.reserve(workers);
        for (std::int64_t w = 0; w < workers; ++w) spaces.emplace_back(plan, problem.d, kernel.block_codes);
        std::atomic<std::int64_t> next{0};
        parallel_for(workers, int(workers), [&](std::int64_t w) {
            for (std::int64_t number; (number = next.fetch_add(1, std::memory_order_relaxed)) < batches;) {
                const std::int64_t begin = number * plan.rows, rows = std::min(plan.rows, problem.n - begin);
                auto& batch = spaces[w].batch;
                batch.rows = (rows + kernel.queries - 1) / kernel.queries * kernel.queries;
                batch.remembered = remembered ? remembered + begin * blocks * kernel.block_codes : nullptr;
                batch.known = false;
                read(spaces[w], begin);
                body(spaces[w], number, begin);
            }
        });
    }

    template <class Body>
    void over_chunks(const Plan& plan, SoftBatch<Real>& batch, Body&& body) const {
        for (batch.chunk = 0; batch.chunk < blocks; batch.chunk += plan.blocks) {
            body(batch.chunk, std::min(blocks, batch.chunk + plan.blocks));
        }
        batch.chunk = 0;
    }

    // Copies of the vectors of a batch; zeros for those that take no part.
    void read(Work& work, std::int64_t begin) const {
        Real* negated = work.negated.get();
        for (std::int64_t i = 0; i < work.batch.rows; ++i) {
            const std::int64_t n = begin + i;
            const bool here = counts(n);
            if (here) {
                found.x.read(n, found.shift.data(), work.row.data());
            } else {
                std::fill(work.row.begin(), work.row.end(), 0.0);
            }
            for (double& value : work.row) {
                value = *negated++ = Real(-scale * value);
            }
            *negated++ = -1;
            work.of(Work::bias)[i] = here ? bias_of(work.row) : absent<Real>;
            work.of(Work::weight)[i] = here ? Real(problem.weight[at(n)]) : Real(0);
        }
    }

    Real bias_of(const std::vector<double>& copy) const {
        return centred(problem.metric) ? Real(0.5 * sum_of_squares(copy.data(), problem.d)) : Real(0);
    }

    // What the first pass found, for the caller and for the next.
    void settle(Work& work, std::int64_t begin, bool again, const SoftForward& result) const {
        for (std::int64_t i = 0; i < work.batch.rows; ++i) {
            const std::int64_t n = begin + i;
            auto& total = work.total[i];
            const double log_sum = std::log2(total.z);
            if (n < problem.n) {
                result.least[at(n)] = counts(n) ? double(total.least) / unit * distance_of_t(problem.metric) : 0;
                result.log_sum[at(n)] = counts(n) ? log_sum * ln2 : 0;
            }
            work.of(Work::least)[i] = total.least;
            work.of(Work::share)[i] = counts(n) ? Real(problem.weight[at(n)] / total.z) : Real(0);
            work.of(Work::cut)[i] = pass.floor + Real(log_sum);
            if (again) total.z = total.l = 0;
        }
    }

    // origin, rest and reach: see SoftBatch. The mean of log2 p is minus the entropy.
    void set_origin(Work& work, std::int64_t begin, const SoftBackward& result) const {
        const double slope = double(pass.slope);
        for (std::int64_t i = 0; i < work.batch.rows; ++i) {
            const std::int64_t n = begin + i;
            const bool here = counts(n);
            const double least = here ? result.least[at(n)] / distance_of_t(problem.metric) * unit : 0;
            const double log_sum = here ? result.log_sum[at(n)] / ln2 : 0;
            const double entropy = here ? result.entropy[at(n)] / ln2 : 0;
            const Real origin = work.of(Work::origin)[i] = Real(least + (entropy - log_sum) / slope);
            work.of(Work::rest)[i] = Real(slope * (least - double(origin)) - log_sum);
            // of huge t only the least may count
            const double reach = std::nextafter(least - (log_sum + log2_zero<Real>) / slope, HUGE_VAL);
            work.of(Work::reach)[i] = here ? Real(reach) : Real(0);
            work.of(Work::bit_gain)[i] = here ? Real(-ln2 * result.grad_entropy[at(n)]) : Real(0);
            work.of(Work::mean_gain)[i] = 0;
        }
    }

    void pack_codes() {
        const std::int64_t block = kernel.block_codes, dim = problem.d;
        codes = make_aligned<Real>(std::size_t(blocks * block * dim));
        bias = make_aligned<Real>(std::size_t(blocks * block));
        parallel_for(blocks, threads_for(double(problem.k) * double(dim)), [&](std::int64_t b) {
            Real* values = codes.get() + b * block * dim;
            std::vector<double> row(dim);
            for (std::int64_t j = 0; j < block; ++j) {
                const std::int64_t k = b * block + j;
                const bool here = k < problem.k && found.usable[k];
                if (here) {
                    found.codes.read(k, found.shift.data(), row.data());
                } else {
                    std::fill(row.begin(), row.end(), 0.0);
                }
                for (std::int64_t d = 0; d < dim; ++d) row[d] = values[d * block + j] = Real(scale * row[d]);
                bias[k] = here ? bias_of(row) : absent<Real>;
            }
        });
        pass.codes = codes.get();
        pass.bias = bias.get();
    }

    void pack_for_pull_x() {
        const std::int64_t block = kernel.block_codes, dim = problem.d;
        turned = make_aligned<Real>(std::size_t(blocks * block * dim));
        parallel_for(blocks, threads_for(double(problem.k) * double(dim)), [&](std::int64_t b) {
            const Real* values = codes.get() + b * block * dim;
            in_strips(
                kernel.queries, dim, blocks * block, b * block, block,
                [&](std::int64_t j, std::int64_t d) { return values[d * block + j]; }, turned.get());
        });
        pass.turned = turned.get();
    }

    void finish_batch(Work& work, std::int64_t begin, const SoftBackward& result) const {
        const std::int64_t w = kernel.block_codes / kernel.vectors, dim = problem.d;
        for (std::int64_t n = begin; n < std::min(begin + work.batch.rows, problem.n); ++n) {
            const std::int64_t i = n - begin;
            if (result.grad_log) result.grad_log[at(n)] = work.grad_log[i] * ln2;
            if (!result.grad_x) continue;
            const Real* negated = work.negated.get() + i * (dim + 1);
            const double* sums = work.pulled.get() + i / w * w * dim + i % w;
            chain(
                found.x, n, work.h_sum[i], work.row, [&](std::int64_t d) { return -double(negated[d]); },
                [&](std::int64_t d) { return sums[d * w]; }, result.grad_x, index * dim);
        }
    }

    // `pulled`: what pull_codes left
    void finish_codes(const double* pulled, void* gradient) const {
        const std::int64_t block = kernel.block_codes, dim = problem.d;
        parallel_for(blocks, threads_for(double(problem.k) * double(dim)), [&](std::int64_t b) {
            std::vector<double> row(dim);
            for (std::int64_t j = 0; j < std::min(block, problem.k - b * block); ++j) {
                const double* sums = pulled + b * block * (dim + 1) + j;
                const Real* own = codes.get() + b * block * dim + j;
                chain(
                    found.codes, b * block + j, sums[dim * block], row,
                    [&](std::int64_t d) { return double(own[d * block]); },
                    [&](std::int64_t d) { return sums[d * block]; }, gradient, index * problem.k * dim);
            }
        });
    }

    // Gradient of vector i of a side through dt/d(vector), from sums of h y and their total, the sum of h. `own`: its
    // copy.
    template <class Own, class Sum>
    void chain(const Given& given, std::int64_t i, double total, std::vector<double>& row, Own&& own, Sum&& sum,
               void* gradient, std::int64_t offset) const {
        double factor = ln2 * double(pass.slope) * scale, along = 0;
        if (problem.metric == SoftMetric::cosine) {
            const double length = given.read(i, found.shift.data(), row.data());
            for (std::int64_t d = 0; d < problem.d; ++d) along += sum(d) * own(d) / (scale * scale);
            factor = length > 0 && std::isfinite(length) ? factor / length : 0;
        } else if (centred(problem.metric)) {
            along = total;
        }
        for (std::int64_t d = 0; d < problem.d; ++d) {
            const double value = factor * (sum(d) - along * own(d));
            const std::int64_t to = offset + i * given.stride + d;
            if (given.type == DType::f64) {
                static_cast<double*>(gradient)[to] = value;
            } else {
                static_cast<float*>(gradient)[to] = float(value);
            }
        }
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

std::int64_t soft_pairs_bytes(const SoftProblem& problem) {
    if (problem.d < least_dim) return 0;
    const auto bytes = [&](const auto& kernel, std::int64_t size) {
        const std::int64_t q = kernel.queries, block = kernel.block_codes;
        const std::int64_t rows = (problem.n + q - 1) / q * q, blocks = (problem.k + block - 1) / block;
        return problem.g * rows * blocks * block * size;
    };
    const SoftKernels& kernels = soft_kernels(problem.isa);
    const bool wide = problem.x_type == DType::f64 || problem.codebook_type == DType::f64;
    return wide ? bytes(kernels.wide, sizeof(double)) : bytes(kernels.single, sizeof(float));
}

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
