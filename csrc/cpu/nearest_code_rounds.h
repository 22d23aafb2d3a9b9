// Every vector of some groups against all codes, in rounds: a fast scan decides most vectors, a more precise one
// those it leaves open, and the canonical evaluation of all codes within reach the rest.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/nearest_code.h"
#include "cpu/nearest_code_chase.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_near.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/nearest_code_sweep.h"
#include "cpu/parallel.h"

namespace vqk {

// A vector that is not decided yet, and the score above which none of its candidates is.
struct Open {
    std::int64_t id;
    float threshold;
};

// one group of the call
template <class Value, class Input>
struct Group {
    const Lookup& call;
    const ScanKernel& kernel;
    const std::int64_t g;
    const Input* x;  // [N] rows, G * D apart
    const std::shared_ptr<const CodeFrame<Value>> codes;
    const CodeFrame<Value>& frame;
    std::vector<Open> open;                              // vectors to be decided
    std::shared_ptr<const OrderedCodes<Value>> ordered;  // if boxes are worth their while, then
    std::vector<std::int64_t> rows;                      // [N] the vectors in the order of their homes
    std::vector<std::int32_t> home;                      // [N] home blocks, in that order
    std::unique_ptr<const AllBytes> bytes;               // if a chase has been through, and they are few
    std::atomic<std::int64_t> evaluated{0};              // by chases: codes that they had to look at closely
    std::atomic<bool> sound{true};                       // not if a scan found codes that it cannot take as they are

    Group(const Lookup& call, const ScanKernel& kernel, std::int64_t g, std::shared_ptr<const CodeFrame<Value>> codes,
          const Input* x)
        : call(call), kernel(kernel), g(g), x(x + g * call.d), codes(std::move(codes)), frame(*this->codes) {}

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

// How a round is divided over threads. Every task packs its codes and copies its vectors: rows are divided where they
// outnumber the codes, codes where they outnumber the rows.
struct Division {
    std::int64_t rows;        // of a part
    std::int64_t code_parts;  // of a part

    // Packing for tiles costs a task as much as scanning up to 1400 vectors, packing for floats 50. The copies of
    // fewer vectors stay in the cache.
    static std::int64_t most_rows(const Lookup& call, bool tiles) {
        const std::int64_t floats = tiles ? 1 << 22 : 1 << 20, rows = tiles ? 16384 : 4096;
        return std::clamp(floats / call.d, std::int64_t(512), rows);
    }

    // up to `n` vectors in each of `g` groups, in parts of at most `most`
    Division(const Lookup& call, std::int64_t n, std::int64_t g, int threads, std::int64_t sections,
             std::int64_t most) {
        constexpr std::int64_t fewest_rows = 1024, fewest_sections = 8;
        // the same number of equal parts for every thread
        const std::int64_t share = (n * g + threads - 1) / threads;
        const std::int64_t per_thread = (share + most - 1) / most;
        const std::int64_t even = std::max((share + per_thread - 1) / per_thread, std::min(fewest_rows, most));
        const bool few = n <= std::min(call.k, most) && g < threads;
        rows = few ? n : std::min(even, n);
        const std::int64_t idle = threads / (g * ((n + rows - 1) / rows));
        code_parts = std::max<std::int64_t>(1, std::min(idle, sections / fewest_sections));
    }
};

// some open vectors of a group
template <class Group>
struct Part {
    Group* group;
    std::vector<std::int64_t> ids;
    std::vector<float> threshold;
    std::vector<Open> open;  // those still open after the round
};

// One round over the open vectors of all groups, `most` at a time. task(part, first block, last) does a share of the
// codes for a part and returns what it found; finish(part, found) gets that of all shares, in order, and sets
// part.open.
template <class Group, class Task, class Finish>
void run_round(const std::vector<std::unique_ptr<Group>>& groups, int threads, int section_blocks,
               std::int64_t most_rows, const Task& task, const Finish& finish) {
    std::int64_t most = 0, active = 0;
    for (const auto& group : groups) {
        most = std::max(most, std::int64_t(group->open.size()));
        active += !group->open.empty();
    }
    if (active == 0) return;
    const Lookup& call = groups.front()->call;
    const std::int64_t block = groups.front()->kernel.block_codes, blocks = (call.k + block - 1) / block;
    const std::int64_t sections = (blocks + section_blocks - 1) / section_blocks;
    const Division division(call, most, active, threads, sections, most_rows);

    std::vector<Part<Group>> parts;
    // parts of different groups take turns: neighbours in memory belong to different tasks of the same time
    for (std::int64_t first = 0; first < most; first += division.rows) {
        for (const auto& group : groups) {
            const std::int64_t last = std::min(first + division.rows, std::int64_t(group->open.size()));
            if (first >= last) continue;
            parts.push_back({group.get(), {}, {}, {}});
            for (std::int64_t i = first; i < last; ++i) {
                parts.back().ids.push_back(group->open[i].id);
                parts.back().threshold.push_back(group->open[i].threshold);
            }
        }
    }
    const auto share = [&](std::int64_t p, std::int64_t c) {
        const auto border = [&](std::int64_t at) {
            return std::min(blocks, sections * at / division.code_parts * section_blocks);
        };
        return task(parts[p], border(c), border(c + 1));
    };
    using Found = decltype(share(0, 0));
    if (division.code_parts == 1) {
        parallel_for(std::int64_t(parts.size()), threads, [&](std::int64_t p) {
            std::vector<Found> found;
            found.push_back(share(p, 0));
            finish(parts[p], found);
        });
    } else {
        std::vector<Found> found(parts.size() * division.code_parts);
        parallel_for(std::int64_t(found.size()), threads,
                     [&](std::int64_t at) { found[at] = share(at / division.code_parts, at % division.code_parts); });
        parallel_for(std::int64_t(parts.size()), threads, [&](std::int64_t p) {
            const auto begin = std::make_move_iterator(found.begin() + p * division.code_parts);
            std::vector<Found> of_part(begin, begin + division.code_parts);
            finish(parts[p], of_part);
        });
    }
    for (const auto& group : groups) group->open.clear();
    for (const Part<Group>& part : parts) {
        part.group->open.insert(part.group->open.end(), part.open.begin(), part.open.end());
    }
}

// Scans one way, decides what the lanes tell and leaves the rest open.
template <class Value, class Input>
void scan_round(const std::vector<std::unique_ptr<Group<Value, Input>>>& groups, int threads, Precision way) {
    struct Scanned {
        std::unique_ptr<Rows<Value>> rows;
        Scores scores;
    };
    using Part = Part<Group<Value, Input>>;
    const Lookup& call = groups.front()->call;
    const ScanKernel& kernel = groups.front()->kernel;
    const int section_blocks =
        blocks_of_section((call.k + kernel.block_codes - 1) / kernel.block_codes, call.d, kernel);
    const auto scan = [&](const Part& part, std::int64_t begin, std::int64_t end) {
        Scanned found{std::make_unique<Rows<Value>>(part.group->load(part.ids)), {}};
        found.scores = sweep(*found.rows, begin, end, section_blocks, part.group->frame, kernel, way);
        return found;
    };
    const auto finish = [&](Part& part, std::vector<Scanned>& found) {
        Rows<Value>& rows = *found.front().rows;
        Scores scores = found.front().scores;
        for (std::size_t c = 1; c < found.size(); ++c) {
            rows.merge(*found[c].rows);
            scores.radius = std::max(scores.radius, found[c].scores.radius);
        }
        if (!std::isfinite(scores.radius)) {
            part.group->sound = false;
            return;
        }
        const Decision decision = decide(rows, part.group->frame, kernel, scores, section_blocks, nullptr, call.k);
        part.group->write(rows, decision.winners);
        for (const int r : decision.open) part.open.push_back({rows.ids[r], decision.threshold[r]});
    };
    run_round(groups, threads, section_blocks, Division::most_rows(call, way.unit == Unit::tiles), scan, finish);
}

// Lists the codes within reach of each vector, decides among them, and leaves open what has too many.
template <class Value, class Input>
void chase_round(const std::vector<std::unique_ptr<Group<Value, Input>>>& groups, int threads) {
    struct Found {
        std::unique_ptr<Rows<Value>> rows;
        Chased chased;
    };
    using Part = Part<Group<Value, Input>>;
    constexpr std::int64_t panels = 480;  // vectors: copies of them and few codes stay in the cache
    const Lookup& call = groups.front()->call;
    const bool few = AllBytes::few(call.k, call.d, groups.front()->kernel);
    for (const auto& group : groups) {
        if (!few || group->bytes || group->frame.empty()) continue;
        group->bytes = std::make_unique<AllBytes>(group->frame, group->kernel, threads);
    }
    const auto chase = [&](const Part& part, std::int64_t begin, std::int64_t end) {
        Found found{std::make_unique<Rows<Value>>(part.group->load(part.ids)), {}};
        const Group<Value, Input>& group = *part.group;
        found.chased = Chase<Value>(*found.rows, group.frame, group.kernel, group.bytes.get()).run(begin, end);
        return found;
    };
    const auto finish = [&](Part& part, std::vector<Found>& found) {
        const CodeFrame<Value>& frame = part.group->frame;
        const Rows<Value>& rows = *found.front().rows;
        Chased chased = std::move(found.front().chased);
        for (std::size_t c = 1; c < found.size(); ++c) chased.merge(found[c].chased);
        part.group->evaluated += chased.evaluated;
        const Tolerance tolerance(frame, chased.radius);
        for (int r = 0; r < rows.count; ++r) {
            if (rows.without_direction(r)) chased.winners[r] = {0.0, frame.first_usable};
            if (frame.empty() || !(chased.open[r] || rows.beyond_scans(r))) continue;
            part.open.push_back({rows.ids[r], chased.threshold(rows, r, frame, tolerance)});
        }
        part.group->write(rows, chased.winners);
    };
    run_round(groups, threads, 1, few ? panels : Division::most_rows(call, false), chase, finish);
}

// Evaluates every code that is within the threshold of an open vector.
template <class Value, class Input>
void last_round(const std::vector<std::unique_ptr<Group<Value, Input>>>& groups, int threads) {
    struct Collected {
        std::unique_ptr<Rows<Value>> rows;
        std::vector<Winner> winners;
    };
    using Part = Part<Group<Value, Input>>;
    const auto collect = [&](const Part& part, std::int64_t begin, std::int64_t end) {
        Collected found{std::make_unique<Rows<Value>>(part.group->load(part.ids)),
                        std::vector<Winner>(part.ids.size())};
        collect_all(*found.rows, part.threshold.data(), begin, end, part.group->frame, part.group->kernel,
                    found.winners);
        return found;
    };
    const auto finish = [&](Part& part, std::vector<Collected>& found) {
        for (std::size_t c = 1; c < found.size(); ++c) {
            for (std::size_t r = 0; r < part.ids.size(); ++r) {
                const Winner& other = found[c].winners[r];
                found.front().winners[r].offer(other.key, other.index);
            }
        }
        part.group->write(*found.front().rows, found.front().winners);
    };
    run_round(groups, threads, 1, Division::most_rows(groups.front()->call, false), collect, finish);
}

}  // namespace vqk
