// The only file that knows Python. Pointers arrive as integers, already checked by vqkernels/ops/*/cpu.py;
// the interpreter lock is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#if defined(__unix__)
#include <pthread.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/arithmetic.h"
#include "cpu/code_range.h"
#include "cpu/code_stats.h"
#include "cpu/draw_rows.h"
#include "cpu/ema_update.h"
#include "cpu/gather_codes.h"
#include "cpu/group_bounds.h"
#include "cpu/integer_pack.h"
#include "cpu/integer_scan.h"
#include "cpu/kept_codes.h"
#include "cpu/multilevel.h"
#include "cpu/nearest_code.h"
#include "cpu/nearest_code_cost.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"
#include "cpu/soft_entropy.h"
#include "cpu/tile_scan.h"
#include "cpu/top_codes.h"
#include "cpu/transport.h"
#include "cuda/nearest_code.h"

namespace py = pybind11;
using address = std::uintptr_t;

namespace {

template <class T>
T* pointer(address a) {
    return reinterpret_cast<T*>(a);
}

template <class T>
std::vector<T*> pointers(const std::vector<address>& addresses) {
    std::vector<T*> found;
    for (const address a : addresses) found.push_back(pointer<T>(a));
    return found;
}

// what spin(rounds) says it has done per second, all threads busy with it for about `seconds`, at least once
template <class Spin>
double peak(Spin&& spin, int threads, double seconds) {
    using clock = std::chrono::steady_clock;
    std::vector<double> done(threads, 0.0);
    const auto start = clock::now();
    auto elapsed = [&] { return std::chrono::duration<double>(clock::now() - start).count(); };
    vqk::parallel_for(threads, threads, [&](std::int64_t i) {
        do done[i] += spin(100000);
        while (elapsed() < seconds);
    });
    double total = 0;
    for (double each : done) total += each;
    return total / elapsed();
}

double fma_peak(int threads, double seconds, int isa) {
    return peak(vqk::scan_kernel(vqk::Isa(isa)).spin_fma, threads, seconds);
}

double exp_peak(int threads, double seconds, int isa) {
    return peak([isa](std::int64_t rounds) { return vqk::spin_exp(vqk::Isa(isa), rounds / 10); }, threads, seconds);
}

// of the matrix unit, or 0 where the lookup has none to use
double tile_peak(int threads, double seconds) {
    const vqk::TileScan* tiles = vqk::scan_kernel(vqk::Isa::automatic).tiles;
    return tiles ? peak(tiles->spin, threads, seconds) : 0.0;
}

// Lower bounds [N, 16] of the scores of n negated vectors [N, D] against 16 codes of bias [16] as the matrix unit
// computes them.
void tile_scores(address negated, std::int64_t n, address codes, address bias, std::int64_t d, int products,
                 address scores) {
    const vqk::ScanKernel& kernel = vqk::scan_kernel(vqk::Isa::amx);
    const vqk::TileScan& tiles = *kernel.tiles;
    const std::int64_t steps = vqk::TileScan::steps(d, products), block = kernel.block_codes, lanes = kernel.lanes;
    // the other codes of the block stay out of the lanes' minima
    std::vector<float> block_codes(d * block, 0.0f), block_bias(block, vqk::TileScan::absent);
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
        block_bias[lane] = pointer<const float>(bias)[lane];
        for (std::int64_t i = 0; i < d; ++i) {
            block_codes[i * block + lane] = pointer<const float>(codes)[lane * d + i];
        }
    }
    const auto zeros = [](std::int64_t count) {
        auto array = vqk::make_aligned<std::uint16_t>(count);
        std::fill_n(array.get(), count, std::uint16_t(0));
        return array;
    };
    const auto packed_codes = zeros(block * steps * vqk::TileScan::slots);
    const auto packed_rows = zeros((n + 2 * vqk::TileScan::rows) * steps * vqk::TileScan::slots);
    tiles.pack_codes(block_codes.data(), block_bias.data(), int(d), products, packed_codes.get());
    tiles.pack_rows(pointer<const float>(negated), int(n), int(d), products, packed_rows.get());
    std::vector<float> second(n * lanes);
    std::vector<std::int32_t> section(n * lanes);
    std::fill_n(pointer<float>(scores), n * lanes, std::numeric_limits<float>::infinity());
    tiles.scan(packed_rows.get(), int(n), packed_codes.get(), 1, int(steps), 1, 0,
               {pointer<float>(scores), second.data(), section.data()});
}

const vqk::IntegerScan* integers_of(const vqk::ScanKernel& kernel, int bits) {
    return bits == 8 ? kernel.bytes : kernel.words;
}

// rate of multiply-adds of integers, or 0 where the lookup has none to use
double integer_peak(int threads, double seconds, int isa, int bits) {
    const vqk::IntegerScan* integers = integers_of(vqk::scan_kernel(vqk::Isa(isa)), bits);
    return integers ? peak(integers->spin, threads, seconds) : 0.0;
}

// Bounds of the scores of n negated vectors [N, D] against up to V W codes [count, D] of bias [count], a block, as
// products of integers give them: low [N, W], no score of a lane is lower; high [N], nor are all higher.
void integer_bounds(address negated, std::int64_t n, address codes, address bias, std::int64_t count, std::int64_t d,
                    int isa, int bits, address low, address high) {
    const vqk::ScanKernel& kernel = vqk::scan_kernel(vqk::Isa(isa));
    const vqk::IntegerScan& integers = *integers_of(kernel, bits);
    const std::int64_t block = kernel.block_codes, lanes = kernel.lanes;
    const std::int64_t padded = (n + kernel.queries - 1) / kernel.queries * kernel.queries;
    // the other codes of the block stay out of the lanes' minima
    std::vector<float> block_codes(d * block, 0.0f), block_bias(block, std::numeric_limits<float>::infinity());
    for (std::int64_t code = 0; code < count; ++code) {
        block_bias[code] = pointer<const float>(bias)[code];
        for (std::int64_t i = 0; i < d; ++i) {
            block_codes[i * block + code] = pointer<const float>(codes)[code * d + i];
        }
    }
    std::vector<float> rows(padded * d, 0.0f);
    std::copy_n(pointer<const float>(negated), n * d, rows.data());
    const vqk::IntegerPanel panel(integers, rows.data(), int(padded), int(d), true);
    const vqk::IntegerBuffer packed(integers, 1, d, block);
    integers.pack_codes(block_codes.data(), block_bias.data(), packed.view(0, 1));
    std::vector<float> best(padded * lanes, std::numeric_limits<float>::infinity()), second(best);
    std::vector<std::int32_t> section(padded * lanes);
    integers.scan(panel.from(0), int(padded), packed.view(0, 1), 1, 0, {best.data(), second.data(), section.data()});
    std::copy_n(best.data(), n * lanes, pointer<float>(low));
    std::vector<float> threshold(padded, std::numeric_limits<float>::max()), slack(padded, 0.0f);
    std::vector<vqk::Candidate> list(padded * block);
    std::vector<std::int32_t> listed(padded);
    integers.append(panel.from(0), int(padded), packed.view(0, 1), 0, 1,
                    {threshold.data(), list.data(), listed.data(), block, slack.data()});
    std::copy_n(threshold.data(), n, pointer<float>(high));
}

// ns that lookups count a pair of vector and code, or 0 if the kernel has no such unit
double scan_cost(int isa, const std::string& unit, std::int64_t dim) {
    const vqk::ScanKernel& kernel = vqk::scan_kernel(vqk::Isa(isa));
    const auto cost = [&](bool there, vqk::Precision way) { return there ? vqk::pair_cost(dim, way, kernel) : 0.0; };
    if (unit == "words") return cost(kernel.words, {vqk::Unit::words});
    if (unit == "bytes") return cost(kernel.bytes, {vqk::Unit::bytes});
    if (unit == "tiles") return cost(kernel.tiles, {vqk::Unit::tiles, 1});
    if (unit == "floats") return cost(true, {vqk::Unit::floats});
    throw std::invalid_argument("unit: expected floats, words, bytes or tiles, got " + unit);
}

}  // namespace

// Tasks run on the threads of an OpenMP runtime from now on: `address` is that of its GOMP_parallel. A forked process
// has none of them.
void use_team(std::uintptr_t address) {
    vqk::team = reinterpret_cast<vqk::Team>(address);
#if defined(__unix__)
    static const int watched = pthread_atfork(nullptr, nullptr, [] { vqk::team = nullptr; });
    if (watched != 0) vqk::team = nullptr;
#endif
}

PYBIND11_MODULE(_C, m) {
    using release = py::call_guard<py::gil_scoped_release, vqk::DefaultArithmetic>;

    m.def("build_info", [] {
        py::dict info;
        info["compiler"] = __VERSION__;
        info["cuda"] = bool(VQK_WITH_CUDA);
        info["isa"] = vqk::isa_name(vqk::scan_kernel(vqk::Isa::automatic).isa);
        info["threads"] = vqk::team.load() ? "of torch" : "of each call";
        return info;
    });
    m.def("use_team", &use_team);
    m.def("tile_peak", &tile_peak, py::arg("threads"), py::arg("seconds") = 0.3, release());
    m.def("tile_scores", &tile_scores, release());
    m.def("scan_cost", &scan_cost, release());
    m.def("tile_error", &vqk::tile_error);
    m.def("integer_peak", &integer_peak, py::arg("threads"), py::arg("seconds") = 0.3, py::arg("isa") = 0,
          py::arg("bits") = 16, release());
    m.def("integer_bounds", &integer_bounds, release());
    m.def("integer_error", &vqk::integer_error);
    m.def("fma_peak", &fma_peak, py::arg("threads"), py::arg("seconds") = 0.3, py::arg("isa") = 0, release());
    m.def("exp_peak", &exp_peak, py::arg("threads"), py::arg("seconds") = 0.3, py::arg("isa") = 0, release());

    m.def(
        "nearest_code",
        [](address x, int x_type, address codebook, int codebook_type, std::int64_t n, std::int64_t g, std::int64_t k,
           std::int64_t d, int metric, int threads, int isa, std::int64_t kept_bytes, address indices,
           address distance) {
            return vqk::nearest_code({pointer<const void>(x), vqk::DType(x_type), pointer<const void>(codebook),
                                      vqk::DType(codebook_type), n, g, k, d, vqk::Metric(metric), threads,
                                      vqk::Isa(isa), pointer<std::int64_t>(indices), pointer<float>(distance),
                                      kept_bytes});
        },
        release());

    m.def("forget_codes", [] { vqk::CodeShelf::instance().clear(); });
    m.def("kept_codes", [] {
        const auto [codes, trees, bytes, remembered] = vqk::CodeShelf::instance().size();
        py::dict size;
        size["codes"] = codes;
        size["trees"] = trees;
        size["bytes"] = bytes;
        size["remembered"] = remembered;
        return size;
    });

    m.def(
        "top_codes",
        [](address x, int x_type, address codebook, int codebook_type, std::int64_t n, std::int64_t g, std::int64_t k,
           std::int64_t d, std::int64_t top, int metric, int threads, int isa, address indices, address distance) {
            vqk::top_codes({pointer<const void>(x), vqk::DType(x_type), pointer<const void>(codebook),
                            vqk::DType(codebook_type), n, g, k, d, vqk::Metric(metric), threads, vqk::Isa(isa),
                            pointer<std::int64_t>(indices), pointer<float>(distance)},
                           top);
        },
        release());

    m.def(
        "multilevel_nearest_code",
        [](const std::vector<address>& x, const std::vector<address>& codebook, int type,
           const std::vector<std::int64_t>& d, const std::vector<double>& weight, std::int64_t n, std::int64_t k,
           bool squared, int threads, int isa, address indices, address distance) {
            vqk::multilevel_nearest_code({pointers<const void>(x), pointers<const void>(codebook), vqk::DType(type),
                                          d, weight, n, k, squared, threads, vqk::Isa(isa),
                                          pointer<std::int64_t>(indices), pointer<float>(distance)});
        },
        release());

    m.def(
        "draw_rows",
        [](const std::vector<address>& codes, const std::vector<address>& x, int type,
           const std::vector<std::int64_t>& d, const std::vector<double>& weight, address usable, address row_number,
           address code_number, std::int64_t n, std::int64_t k, int metric, int threads, int isa, address rows,
           address key) {
            vqk::draw_rows({pointers<const void>(codes), pointers<const void>(x), vqk::DType(type), d, weight,
                            pointer<const std::uint8_t>(usable), pointer<const std::int64_t>(row_number),
                            pointer<const std::int64_t>(code_number), n, k, vqk::DrawMetric(metric), threads,
                            vqk::Isa(isa), pointer<std::int64_t>(rows), pointer<double>(key)});
        },
        release());

    py::class_<vqk::Transport>(m, "Transport")
        .def(py::init([](address codes, address cost, std::int64_t n, std::int64_t listed, std::int64_t k,
                         std::int64_t capacity, address place, address spare, address prices, address reached) {
            return vqk::Transport({pointer<const std::int32_t>(codes), pointer<const double>(cost), n, listed, k,
                                   capacity, pointer<std::int32_t>(place), pointer<std::int64_t>(spare),
                                   pointer<double>(prices), pointer<std::uint8_t>(reached)});
        }));
    m.def(
        "transport_run", [](vqk::Transport& transport, std::int64_t rounds) { return int(transport.run(rounds)); },
        release());

    m.def("group_size", [](int isa) { return vqk::group_size(vqk::Isa(isa)); });
    m.def("plain_cost", [](std::int64_t k, std::int64_t d, int isa) { return vqk::plain_cost(k, d, vqk::Isa(isa)); });
    m.def(
        "nearest_by_bounds",
        [](address x, int x_type, address codes, address before, address order, std::int64_t n, std::int64_t k,
           std::int64_t d, int threads, int isa, address lower, address indices, address distance) {
            return vqk::nearest_by_bounds({pointer<const void>(x), vqk::DType(x_type), pointer<const float>(codes),
                                           pointer<const float>(before), pointer<const std::int32_t>(order), n, k, d,
                                           threads, vqk::Isa(isa), pointer<float>(lower),
                                           pointer<std::int64_t>(indices), pointer<float>(distance)});
        },
        release());

    m.def(
        "gather_codes",
        [](address codebook, std::int64_t element_size, address indices, std::int64_t n, std::int64_t g,
           std::int64_t k, std::int64_t d, int threads, address codes) {
            return vqk::gather_codes(pointer<const void>(codebook), element_size,
                                     pointer<const std::int64_t>(indices), n, g, k, d, threads, pointer<void>(codes));
        },
        release());

    m.def(
        "code_range",
        [](address x, int x_type, address indices, address weight, std::int64_t n, std::int64_t g, std::int64_t k,
           std::int64_t d, bool skip_nonfinite, int threads, address range) {
            return vqk::code_range({pointer<const void>(x), vqk::DType(x_type), pointer<const std::int64_t>(indices),
                                    pointer<const double>(weight), n, g, k, d, skip_nonfinite, threads},
                                   pointer<vqk::CodeRange>(range));
        },
        release());

    m.def(
        "code_stats",
        [](address x, int x_type, address indices, address weight, std::int64_t n, std::int64_t g, std::int64_t k,
           std::int64_t d, bool skip_nonfinite, int threads, address range, bool fixed, bool as_integers,
           address count, address total) {
            return vqk::code_stats({{pointer<const void>(x), vqk::DType(x_type), pointer<const std::int64_t>(indices),
                                     pointer<const double>(weight), n, g, k, d, skip_nonfinite, threads},
                                    pointer<const vqk::CodeRange>(range),
                                    fixed,
                                    as_integers,
                                    pointer<void>(count),
                                    pointer<void>(total)});
        },
        release());

    m.def(
        "ema_update",
        [](address codebook, address cluster_size, address embed_sum, address count, address total, int type,
           std::int64_t g, std::int64_t k, std::int64_t d, double decay, double eps, bool normalize, int threads) {
            vqk::ema_update({pointer<void>(codebook), pointer<void>(cluster_size), pointer<void>(embed_sum),
                             pointer<const void>(count), pointer<const void>(total), vqk::DType(type), g, k, d, decay,
                             eps, normalize, threads});
        },
        release());

    using vqk::SoftProblem;
    py::class_<SoftProblem>(m, "SoftProblem")
        .def(py::init([](address x, int x_type, address codebook, int codebook_type, address weight, std::int64_t n,
                         std::int64_t g, std::int64_t k, std::int64_t d, int metric, double temperature, double floor,
                         int threads, int isa) {
            return SoftProblem{pointer<const void>(x),
                               vqk::DType(x_type),
                               pointer<const void>(codebook),
                               vqk::DType(codebook_type),
                               pointer<const double>(weight),
                               n,
                               g,
                               k,
                               d,
                               vqk::SoftMetric(metric),
                               temperature,
                               floor,
                               threads,
                               vqk::Isa(isa)};
        }));
    m.def("soft_pairs_bytes", vqk::soft_pairs_bytes);
    m.def(
        "soft_forward",
        [](const SoftProblem& problem, address least, address log_sum, address entropy, address assigned,
           address pairs) {
            return vqk::soft_forward(problem,
                                     {pointer<double>(least), pointer<double>(log_sum), pointer<double>(entropy),
                                      pointer<double>(assigned), pointer<void>(pairs)});
        },
        release());
    m.def(
        "soft_backward",
        [](const SoftProblem& problem, address least, address log_sum, address entropy, address grad_entropy,
           address grad_assigned, address pairs, address grad_x, address grad_codebook, address grad_log) {
            vqk::soft_backward(
                problem, {pointer<const double>(least), pointer<const double>(log_sum),
                          pointer<const double>(entropy), pointer<const double>(grad_entropy),
                          pointer<const double>(grad_assigned), pointer<const void>(pairs), pointer<void>(grad_x),
                          pointer<void>(grad_codebook), pointer<double>(grad_log)});
        },
        release());

#if VQK_WITH_CUDA
    m.def("nearest_code_cuda_workspace",
          [](std::int64_t n, std::int64_t g, std::int64_t k, std::int64_t d, int multiprocessors) {
              return vqk::cuda::workspace_bytes({nullptr, {}, nullptr, {}, n, g, k, d, {}, nullptr, nullptr},
                                                multiprocessors);
          });

    m.def(
        "nearest_code_cuda",
        [](address x, int x_type, address codebook, int codebook_type, std::int64_t n, std::int64_t g, std::int64_t k,
           std::int64_t d, int metric, address indices, address distance, address workspace, int device,
           int multiprocessors, address stream) {
            const char* error = vqk::cuda::nearest_code(
                {pointer<const void>(x), vqk::DType(x_type), pointer<const void>(codebook), vqk::DType(codebook_type),
                 n, g, k, d, vqk::Metric(metric), pointer<std::int64_t>(indices), pointer<float>(distance)},
                pointer<void>(workspace), {device, multiprocessors, pointer<void>(stream)});
            if (error) throw std::runtime_error(std::string("CUDA: ") + error);
        },
        release());
#endif
}
