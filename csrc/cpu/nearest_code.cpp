// Exact lookup in two steps: a float32 scan leaves a few candidates per query and a bound that no other code can
// be the nearest; the canonical float64 evaluation of the candidates decides.
//
// The scan works on shifted and scaled copies x' and c' (nearest_code_frame.h). It minimises |c'|^2/2 - x'.c' (l2),
// -x.c' (dot) or -x.c/(|x||c|) (cosine): up to terms that are the same for all codes of a row, the metric itself.
#include "cpu/nearest_code.h"

#if VQK_NEONDOT && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/kept_codes.h"
#include "cpu/nearest_code_cost.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_near.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rounds.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/nearest_code_sweep.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

std::vector<std::int64_t> iota(std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> ids(last - first);
    std::iota(ids.begin(), ids.end(), first);
    return ids;
}

// in ns, of one vector against all codes
double scan_cost(const Lookup& call, const ScanKernel& kernel) {
    return vector_cost(call.k, call.d, precisions(call, kernel).front(), kernel);
}

constexpr double detour = 100;  // ns a vector, by way of home blocks

// Can a tree over the codes save anything?
bool may_order(const Lookup& call, const ScanKernel& kernel) {
    return call.metric != Metric::dot && call.d <= 16 && scan_cost(call, kernel) > detour;
}

// in ns, of packing the codes and scanning them
double spent(const Lookup& call, const ScanKernel& kernel) {
    return double(call.k) * double(call.d) * 2 + double(call.n) * scan_cost(call, kernel);
}

// Is it worth building, at about 6.5 ns per code and level? `scanned`: what scans of these codes have cost before.
bool worth_ordering(const Lookup& call, const ScanKernel& kernel, double scanned) {
    const double leaves = double(call.k) / narrow(kernel).block_codes;
    const double build = double(call.k) * std::log2(std::max(leaves, 2.0)) * 6.5;
    return build < 0.4 * (double(call.n) * scan_cost(call, kernel) + scanned);
}

// Orders the codes by a tree and tries it on a few vectors. Do boxes rule out enough codes? The answer decides the
// time taken, never the result.
template <class Value, class Input>
void try_ordering(Group<Value, Input>& group, const Lookup& call, const ScanKernel& kernel) {
    constexpr std::int64_t sample = 64;
    // the share of float32 scores that is as costly as the scan of everything: measured
    const double break_even = 0.3 * scan_cost(call, kernel) / vector_cost(call.k, call.d, {Unit::floats}, kernel);
    auto ordered = std::make_shared<const OrderedCodes<Value>>(group.frame, narrow(kernel), call.threads);
    std::vector<std::int64_t> ids(std::min(call.n, sample));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int64_t(i) * call.n / std::int64_t(ids.size());
    Rows<Value> rows = group.load(std::move(ids));
    const double left = 1 - detour / scan_cost(call, kernel);
    if (scan_near(rows, find_homes(rows, *ordered).data(), *ordered, narrow(kernel)) < break_even * left) {
        group.ordered = std::move(ordered);
    }
}

// The codes of a group, ordered where that is worth its while: now, or by codes that come again.
template <class Value, class Input>
std::unique_ptr<Group<Value, Input>> prepare(const Lookup& call, const ScanKernel& kernel, std::int64_t g,
                                             const Value* codebook, const Input* x) {
    constexpr std::int64_t fewest = 16;  // vectors that tell whether boxes rule out enough, or not
    const Value* codes = codebook + g * call.k * call.d;
    const bool orderable = may_order(call, kernel);
    std::optional<KeptCodes> kept;
    std::shared_ptr<const CodeFrame<Value>> frame;
    if constexpr (std::is_same_v<Value, float>) {
        if (orderable && call.kept_bytes > 0) {
            // comparing codes with those kept costs a tenth of packing them
            kept = CodeShelf::instance().recall(codes, call.k, call.d, call.metric, kernel, call.threads,
                                                call.kept_bytes);
        }
        if (kept) frame = {kept->codes, &kept->codes->frame};
    }
    if (!frame) {
        frame = std::make_shared<CodeFrame<Value>>(codes, call.k, call.d, call.metric, kernel, call.threads);
    }
    auto group = std::make_unique<Group<Value, Input>>(call, kernel, g, frame, x);
    if (!orderable || frame->empty() || (kept && kept->plain)) return group;
    if constexpr (std::is_same_v<Value, float>) {
        if (kept && kept->ordered) {
            group->ordered = kept->ordered;
            return group;
        }
    }
    const bool order = worth_ordering(call, kernel, kept ? kept->scanned : 0.0);
    if (order) try_ordering(*group, call, kernel);
    if constexpr (std::is_same_v<Value, float>) {
        if (!kept) return group;
        // a few vectors whom boxes do not serve say little: asked again after as much work
        const bool failed = order && !group->ordered;
        kept->scanned = failed ? 0 : kept->scanned + spent(call, kernel);
        kept->ordered = group->ordered;
        kept->plain = failed && call.n >= fewest;
        CodeShelf::instance().keep(*std::move(kept), call.kept_bytes);
    }
    return group;
}

// Takes the vectors in the order of their home blocks, so that those of a panel look in the same places: for codes
// that the L2 cache does not keep.
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
double scan_near_homes(Group<Value, Input>& group, const Lookup& call, const ScanKernel& kernel, int threads) {
    constexpr std::int64_t fewest = 64, most = 384;
    const std::int64_t panel = std::clamp((call.n + threads - 1) / threads, fewest, most);
    const OrderedCodes<Value>& codes = *group.ordered;
    std::vector<double> scored((call.n + panel - 1) / panel);
    std::vector<std::vector<Open>> open(scored.size());
    parallel_for(std::int64_t(scored.size()), threads, [&](std::int64_t task) {
        const std::int64_t first = task * panel, last = std::min(call.n, first + panel);
        const bool sorted = !group.rows.empty();
        Rows<Value> rows = group.load(sorted ? std::vector(group.rows.begin() + first, group.rows.begin() + last)
                                             : iota(first, last));
        const std::vector<std::int32_t> home =
            sorted ? std::vector(group.home.begin() + first, group.home.begin() + last) : find_homes(rows, codes);
        scored[task] = rows.count * scan_near(rows, home.data(), codes, narrow(kernel));
        const Decision decision = decide(rows, group.frame, narrow(kernel), {codes.radius}, 1, codes.order.data(),
                                         std::int64_t(codes.order.size()));
        group.write(rows, decision.winners);
        for (const int r : decision.open) open[task].push_back({rows.ids[r], decision.threshold[r]});
    });
    for (const auto& some : open) group.open.insert(group.open.end(), some.begin(), some.end());
    return std::accumulate(scored.begin(), scored.end(), 0.0) / double(call.n);
}

template <class Value, class Input>
void run(const std::vector<std::unique_ptr<Group<Value, Input>>>& groups, int threads, Precision way) {
    if (way.unit == Unit::bytes) return chase_round(groups, threads);
    scan_round(groups, threads, way);
}

// Does a way to scan leave so few vectors open, and list so few codes, that it pays, before the next? It is tried on
// some vectors, whose outcome stands. Asked for by name, its scan itself may cost what it will.
template <class Value, class Input>
bool pays(const std::vector<std::unique_ptr<Group<Value, Input>>>& groups, const Lookup& call,
          const ScanKernel& kernel, int threads, Precision way, Precision next) {
    constexpr std::int64_t apart = 16;  // every sixteenth
    std::vector<std::vector<Open>> others;
    std::int64_t sampled = 0, open = 0, evaluated = 0;
    for (const auto& group : groups) {
        std::vector<Open> sample, rest;
        for (std::size_t i = 0; i < group->open.size(); ++i) (i % apart ? rest : sample).push_back(group->open[i]);
        sampled += std::int64_t(sample.size());
        group->open = std::move(sample);
        group->evaluated = 0;
        others.push_back(std::move(rest));
    }
    run(groups, threads, way);
    for (std::size_t g = 0; g < groups.size(); ++g) {
        open += std::int64_t(groups[g]->open.size());
        evaluated += groups[g]->evaluated;
        groups[g]->open.insert(groups[g]->open.end(), others[g].begin(), others[g].end());
    }
    const double scan = call.isa == Isa::automatic ? vector_cost(call.k, call.d, way, kernel) : 0;
    const double cost = scan + listing_cost(call.d, evaluated, sampled);
    const double saved = 1 - cost / vector_cost(call.k, call.d, next, kernel);
    return double(open) <= saved * double(sampled);
}

// The ways to scan, without those that would not pay: codes that crowd, in the measure of the vectors' lengths, are
// told apart by a precise scan alone.
template <class Value, class Input>
std::vector<Precision> tried(const std::vector<std::unique_ptr<Group<Value, Input>>>& groups, const Lookup& call,
                             const ScanKernel& kernel, int threads) {
    constexpr std::int64_t fewest = 4096;  // vectors for a try
    std::vector<Precision> ways = precisions(call, kernel);
    if (groups.empty()) return ways;
    const auto integers = [](Precision way) { return way.unit == Unit::words || way.unit == Unit::bytes; };
    const auto pay = [&] {
        return enough_for_integers(call) &&
               (call.n < fewest || pays(groups, call, kernel, threads, ways[0], ways[1]));
    };
    while (integers(ways.front()) && !pay()) ways.erase(ways.begin());
    return ways;
}

// Few vectors against codes as they are given. Says whether that was possible; else nothing is decided.
template <class Value, class Input>
bool lookup_plain(const Lookup& call, const ScanKernel& kernel, const Value* codebook, const Input* x, int threads) {
    std::vector<std::unique_ptr<Group<Value, Input>>> groups;
    for (std::int64_t g = 0; g < call.g; ++g) {
        const Value* codes = codebook + g * call.k * call.d;
        auto frame = std::make_shared<CodeFrame<Value>>(codes, call.k, call.d, call.metric, kernel, threads, true);
        if (!scannable_plain(*frame)) return false;
        groups.push_back(std::make_unique<Group<Value, Input>>(call, kernel, g, std::move(frame), x));
        for (std::int64_t i = 0; i < call.n; ++i) groups.back()->open.push_back({i, 0.0f});
    }
    scan_round(groups, threads, {Unit::plain});
    if (!std::all_of(groups.begin(), groups.end(), [](const auto& group) { return group->sound.load(); }))
        return false;
    last_round(groups, threads);
    return true;
}

template <class Value, class Input>
double lookup(const Lookup& call, const Value* codebook, const Input* x) {
    constexpr std::int64_t cached_floats = 128 * 1024;  // of codes that stay in the L2 cache
    constexpr std::size_t fewest = 32;                  // vectors for which a closer scan is worth packing the codes
    const ScanKernel& kernel = scan_kernel(call.isa);
    const double work = double(call.n) * double(call.g) * double(call.k) * double(call.d) / 16;
    const int threads = useful_threads(call.threads, work);
    if (few_for_packing(call, kernel) && !may_order(call, kernel) &&
        lookup_plain(call, kernel, codebook, x, threads)) {
        return 1.0;
    }
    // threads share the groups if there are enough of them, else the work on each
    const bool share_groups = call.g >= threads;
    Lookup each = call;
    each.threads = share_groups ? 1 : threads;
    std::vector<std::unique_ptr<Group<Value, Input>>> all(call.g), plain, rest;
    std::vector<double> scored(call.g, 1.0);  // share of pairs
    std::vector<std::uint8_t> searched(call.g, 0);
    parallel_for(call.g, share_groups ? threads : 1, [&](std::int64_t g) {
        all[g] = prepare(each, kernel, g, codebook, x);
        Group<Value, Input>& group = *all[g];
        searched[g] = group.ordered != nullptr;
        if (searched[g]) {
            if (call.k * call.d > cached_floats) order_rows(group, each, each.threads);
            scored[g] = scan_near_homes(group, each, kernel, each.threads);
            group.ordered.reset();
        } else {
            group.open.reserve(call.n);
            for (std::int64_t i = 0; i < call.n; ++i) group.open.push_back({i, 0.0f});
        }
    });
    for (std::int64_t g = 0; g < call.g; ++g) (searched[g] ? rest : plain).push_back(std::move(all[g]));
    bool first = true;
    for (const Precision way : tried(plain, call, kernel, threads)) {
        const auto many = [&](const auto& group) { return group->open.size() >= fewest; };
        if (!first && std::none_of(plain.begin(), plain.end(), many)) break;
        if (!plain.empty()) run(plain, threads, way);
        first = false;
    }
    std::move(rest.begin(), rest.end(), std::back_inserter(plain));
    if (!plain.empty()) last_round(plain, threads);
    return std::accumulate(scored.begin(), scored.end(), 0.0) / double(call.g);
}

#if VQK_NEONDOT
// whether this AArch64 processor has those of 8-bit integers
bool dot_products() {
#if defined(__linux__)
    constexpr unsigned long asimddp = 1ul << 20;
    return (getauxval(AT_HWCAP) & asimddp) != 0;
#else
    return true;  // as every one of Apple's
#endif
}
#endif

}  // namespace

const ScanKernel& scan_kernel(Isa isa) {
#if VQK_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
#if VQK_AVX512VNNI
    const bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#if VQK_AVXVNNI
    const bool avxvnni = avx2 && avxvnni_supported();
#endif
    struct Way {
        Isa isa;
        bool supported;
        const ScanKernel& (*kernel)();
    };
    const Way ways[] = {
    // the best first
#if VQK_AMX && VQK_AMXINT8
        {Isa::amx_int8, avx512 && amx_int8_permitted(), scan_int8_amx},
#endif
#if VQK_AMX
        {Isa::amx, avx512 && amx_permitted(), scan_amx},
#endif
#if VQK_AVX512VNNI
        {Isa::avx512vnni_int8, avx512vnni, scan_int8_avx512vnni},
        {Isa::avx512vnni, avx512vnni, scan_int16_avx512vnni},
#endif
#if VQK_X86
        {Isa::avx512, avx512, scan_avx512},
#endif
#if VQK_AVXVNNI
        {Isa::avxvnni_int8, avxvnni, scan_int8_avxvnni},
        {Isa::avxvnni, avxvnni, scan_int16_avxvnni},
#endif
#if VQK_X86
        {Isa::avx2_int8, avx2, scan_int8_avx2},
        {Isa::avx2_int16, avx2, scan_int16_avx2},
        {Isa::avx2, avx2, scan_avx2},
#endif
#if VQK_NEONDOT
        {Isa::neon_int8, dot_products(), scan_int8_neon},
#endif
#if VQK_NEON
        {Isa::neon, true, scan_neon},
#endif
        {Isa::portable, true, scan_portable},
    };
    for (const Way& way : ways) {
        if (way.supported && (isa == way.isa || isa == Isa::automatic)) return way.kernel();
    }
    throw std::invalid_argument(std::string("instruction set ") + isa_name(isa) +
                                ": not supported by this processor, system or build");
}

double nearest_code(const Lookup& call) {
    double scored = 0;
    with_arrays(call, [&](auto* codebook, auto* x) { scored = lookup(call, codebook, x); });
    return scored;
}

}  // namespace vqk
