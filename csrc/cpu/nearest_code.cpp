// Exact lookup in two steps: a float32 scan leaves a few candidates per query and a bound that no other code can
// be the nearest; the canonical float64 evaluation of the candidates decides.
//
// The scan works on shifted and scaled copies x' and c' (nearest_code_frame.h). It minimises |c'|^2/2 - x'.c' (l2),
// -x.c' (dot) or -x.c/(|x||c|) (cosine): up to terms that are the same for all codes of a row, the metric itself.
#include "cpu/nearest_code.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_near.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

// one group of the call
template <class Value, class Input>
struct Group {
    const Lookup& call;
    const ScanKernel& kernel;
    const std::int64_t g;
    const Input* x;  // [N] rows, G * D apart
    CodeFrame<Value> frame;
    std::unique_ptr<OrderedCodes<Value>> ordered;  // if boxes are worth their while, then
    std::vector<std::int64_t> rows;                // [N] the vectors in the order of their homes
    std::vector<std::int32_t> home;                // [N] home blocks, in that order

    Group(const Lookup& call, const ScanKernel& kernel, std::int64_t g, const Value* codebook, const Input* x)
        : call(call),
          kernel(kernel),
          g(g),
          x(x + g * call.d),
          frame(codebook + g * call.k * call.d, call.k, call.d, call.metric, kernel, call.threads) {}

    Rows<Value> load(std::vector<std::int64_t> ids) const {
        return Rows<Value>(std::move(ids), x, call.g * call.d, frame, kernel);
    }
    // no finite code, or keys beyond float64: index 0, distance NaN
    void write(const Rows<Value>& rows, const std::vector<Winner>& winners) const {
        for (int r = 0; r < rows.count; ++r) {
            const std::int64_t at = rows.ids[r] * call.g + g;
            const Winner& winner = winners[r];
            call.indices[at] = std::isfinite(winner.key) ? winner.index : 0;
            call.distance[at] = canonical_distance(call.metric, winner.key, rows.x_norm(r));
        }
    }
};

std::vector<std::int64_t> iota(std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> ids(last - first);
    std::iota(ids.begin(), ids.end(), first);
    return ids;
}

// A section costs every query an update of its lanes, about 5 cycles, and leaves it 4 candidates per block, of about
// 12 + 0.75 D cycles each: the sum is least at this many blocks. A section has to stay in the L1 cache, too.
int blocks_of_section(std::int64_t blocks, std::int64_t dim, const ScanKernel& kernel) {
    constexpr double l1_floats = 4096;
    const double balanced = std::sqrt(double(blocks) * 5 / (48 + 3 * double(dim)));
    const double most = l1_floats / (double(dim) * kernel.block_codes);
    return int(std::max(1.0, std::min({std::round(balanced), most, 8.0})));
}

// Scans the blocks [begin, end) for all of some rows. Codes are packed as they are needed; of the rows, as many pass
// over them together as fit in the L1 cache with their lanes.
template <class Value>
double sweep(Rows<Value>& rows, std::int64_t begin, std::int64_t end, int section_blocks,
             const CodeFrame<Value>& frame, const ScanKernel& kernel) {
    constexpr int together = 120;  // a multiple of every kernel's tile
    BlockPacker<Value> packer(frame, kernel, nullptr, frame.count);
    for_each_chunk(
        packer, begin, end, section_blocks, frame.dim, kernel, [&](const PackedCodes& packed, std::int64_t first) {
            const auto section = std::int32_t(first / section_blocks);
            for (int r = 0; r < rows.padded; r += together) {
                kernel.scan(rows.negated.get() + std::int64_t(r) * frame.dim, std::min(together, rows.padded - r),
                            packed, section_blocks, section, rows.state(r));
            }
        });
    return packer.radius();
}

// How one group's part of the work is divided: rows first, which costs nothing but that every task packs the codes;
// codes, too, if the rows are too few for that to be cheap.
struct Division {
    std::int64_t rows;        // of a task
    std::int64_t row_parts;   // of a group
    std::int64_t code_parts;  // of a row part

    Division(const Lookup& call, int threads, std::int64_t blocks, int section_blocks, int tile) {
        constexpr std::int64_t most_floats = 1 << 20, most_rows = 4096, fewest_rows = 1024, fewest_sections = 8;
        const std::int64_t most = std::clamp(most_floats / call.d, std::int64_t(512), most_rows);
        // the same number of equal parts for every thread
        const std::int64_t share = (call.n * call.g + threads - 1) / threads + 1;
        const std::int64_t per_thread = (share + most - 1) / most;
        const std::int64_t even = std::max((share + per_thread - 1) / per_thread, std::min(fewest_rows, most));
        rows = (std::min(even, std::max<std::int64_t>(call.n, 1)) + tile - 1) / tile * tile;
        row_parts = (call.n + rows - 1) / rows;
        const std::int64_t sections = (blocks + section_blocks - 1) / section_blocks;
        const std::int64_t idle = threads / std::max<std::int64_t>(1, row_parts * call.g);
        code_parts = std::max<std::int64_t>(1, std::min(idle, sections / fewest_sections));
    }
};

template <class Value, class Input>
void scan_all(const std::vector<std::unique_ptr<Group<Value, Input>>>& groups, const Lookup& call,
              const ScanKernel& kernel, int threads) {
    struct Part {
        std::unique_ptr<Rows<Value>> rows;
        double radius;
    };
    const std::int64_t blocks = (call.k + kernel.block_codes - 1) / kernel.block_codes;
    const int section_blocks = blocks_of_section(blocks, call.d, kernel);
    const std::int64_t sections = (blocks + section_blocks - 1) / section_blocks;
    const Division division(call, threads, blocks, section_blocks, kernel.queries);
    const std::int64_t parts = division.row_parts * std::int64_t(groups.size());
    const auto group_of = [&](std::int64_t part) -> const auto& { return *groups[part % groups.size()]; };

    const auto scan_part = [&](std::int64_t part, std::int64_t c) {
        const auto& group = group_of(part);
        const std::int64_t first = part / std::int64_t(groups.size()) * division.rows;
        Part scanned{std::make_unique<Rows<Value>>(group.load(iota(first, std::min(call.n, first + division.rows)))),
                     0};
        const std::int64_t begin = sections * c / division.code_parts, end = sections * (c + 1) / division.code_parts;
        scanned.radius = sweep(*scanned.rows, begin * section_blocks, std::min(blocks, end * section_blocks),
                               section_blocks, group.frame, kernel);
        return scanned;
    };
    const auto finish = [&](std::int64_t part, const Part& scanned) {
        const auto& group = group_of(part);
        group.write(*scanned.rows,
                    decide(*scanned.rows, group.frame, kernel, scanned.radius, section_blocks, nullptr, call.k));
    };
    if (division.code_parts == 1) {
        parallel_for(parts, threads, [&](std::int64_t part) { finish(part, scan_part(part, 0)); });
        return;
    }
    std::vector<Part> scanned(parts * division.code_parts);
    parallel_for(std::int64_t(scanned.size()), threads, [&](std::int64_t task) {
        scanned[task] = scan_part(task / division.code_parts, task % division.code_parts);
    });
    parallel_for(parts, threads, [&](std::int64_t part) {
        Part& whole = scanned[part * division.code_parts];
        for (std::int64_t c = 1; c < division.code_parts; ++c) {
            const Part& other = scanned[part * division.code_parts + c];
            whole.rows->merge(*other.rows);
            whole.radius = std::max(whole.radius, other.radius);
        }
        finish(part, whole);
    });
}

// Is a tree over the codes worth building? It costs about 8 ns per code and level, and the detour by way of home
// blocks about 100 ns per vector; the scan of everything runs near 10^11 multiply-adds a second.
bool worth_ordering(const Lookup& call, int block) {
    if (call.metric == Metric::dot || call.d > 16) return false;
    const double leaves = double(call.k) / block;
    const double build = double(call.k) * std::log2(std::max(leaves, 2.0)) * 8e-9;
    const double scan_vector = double(call.k) * double(call.d) * 1e-11;
    return scan_vector > 200e-9 && build < 0.3 * double(call.n) * scan_vector;
}

// Orders the codes by a tree and tries it on a few vectors. Do boxes rule out enough codes? The answer decides the
// time taken, never the result.
template <class Value, class Input>
void try_ordering(Group<Value, Input>& group, const Lookup& call, const ScanKernel& kernel) {
    constexpr std::int64_t sample = 64;
    constexpr double break_even = 0.3;  // measured
    auto ordered = std::make_unique<OrderedCodes<Value>>(group.frame, kernel, call.threads);
    std::vector<std::int64_t> ids(std::min(call.n, sample));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int64_t(i) * call.n / std::int64_t(ids.size());
    Rows<Value> rows = group.load(std::move(ids));
    if (scan_near(rows, find_homes(rows, *ordered).data(), *ordered, kernel) < break_even) {
        group.ordered = std::move(ordered);
    }
}

// takes the vectors in the order of their home blocks, so that those of a panel look in the same places
template <class Value, class Input>
void order_rows(Group<Value, Input>& group, const Lookup& call, int threads) {
    constexpr std::int64_t chunk = 1024;
    std::vector<std::int32_t> home(call.n);
    parallel_for((call.n + chunk - 1) / chunk, threads, [&](std::int64_t c) {
        const Rows<Value> rows = group.load(iota(c * chunk, std::min(call.n, (c + 1) * chunk)));
        const std::vector<std::int32_t> found = find_homes(rows, *group.ordered);
        std::copy(found.begin(), found.end(), home.begin() + c * chunk);
    });
    std::vector<std::int64_t> start(group.ordered->view().blocks + 1, 0);
    for (const std::int32_t block : home) ++start[block + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    group.home.resize(home.size());
    group.rows.resize(home.size());
    for (std::size_t i = 0; i < home.size(); ++i) {
        const std::int64_t place = start[home[i]]++;
        group.rows[place] = std::int64_t(i);
        group.home[place] = home[i];
    }
}

// returns the share of pairs that were scored
template <class Value, class Input>
double scan_near_homes(const Group<Value, Input>& group, const Lookup& call, const ScanKernel& kernel, int threads) {
    constexpr std::int64_t panel = 384;
    const OrderedCodes<Value>& codes = *group.ordered;
    std::vector<double> scored((call.n + panel - 1) / panel);
    parallel_for(std::int64_t(scored.size()), threads, [&](std::int64_t task) {
        const auto first = group.rows.begin() + task * panel;
        Rows<Value> rows = group.load({first, first + std::min(panel, call.n - task * panel)});
        scored[task] = rows.count * scan_near(rows, group.home.data() + task * panel, codes, kernel);
        group.write(rows, decide(rows, group.frame, kernel, codes.radius, 1, codes.order.data(),
                                 std::int64_t(codes.order.size())));
    });
    return std::accumulate(scored.begin(), scored.end(), 0.0) / double(call.n);
}

template <class Value, class Input>
double lookup(const Lookup& call, const Value* codebook, const Input* x) {
    const ScanKernel& kernel = scan_kernel(call.isa);
    const double work = double(call.n) * double(call.g) * double(call.k) * double(call.d) / 16;
    const int threads = useful_threads(call.threads, work);
    const bool order = worth_ordering(call, kernel.block_codes);
    std::vector<std::unique_ptr<Group<Value, Input>>> plain;
    double scored = 0;  // share of pairs, summed over groups
    for (std::int64_t g = 0; g < call.g; ++g) {
        auto group = std::make_unique<Group<Value, Input>>(call, kernel, g, codebook, x);
        if (order && !group->frame.empty()) try_ordering(*group, call, kernel);
        if (group->ordered) {
            order_rows(*group, call, threads);
            scored += scan_near_homes(*group, call, kernel, threads);
        } else {
            scored += 1;
            plain.push_back(std::move(group));
        }
    }
    if (!plain.empty()) scan_all(plain, call, kernel, threads);
    return scored / double(call.g);
}

}  // namespace

const ScanKernel& scan_kernel(Isa isa) {
#if VQK_X86
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    if (isa == Isa::avx512 || (isa == Isa::automatic && has_avx512)) {
        if (!has_avx512) throw std::invalid_argument("instruction set avx512: not supported by this processor");
        return scan_avx512();
    }
    if (isa == Isa::avx2 || (isa == Isa::automatic && has_avx2)) {
        if (!has_avx2) throw std::invalid_argument("instruction set avx2: not supported by this processor");
        return scan_avx2();
    }
#else
    if (isa == Isa::avx512 || isa == Isa::avx2) {
        throw std::invalid_argument("instruction set: expected auto or portable on this processor, got an x86 one");
    }
#endif
    return scan_portable();
}

double nearest_code(const Lookup& call) {
    double scored = 0;
    with_arrays(call, [&](auto* codebook, auto* x) { scored = lookup(call, codebook, x); });
    return scored;
}

}  // namespace vqk
