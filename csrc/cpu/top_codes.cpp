// Exact top-M lookup in three steps: a scan of a few codes guesses a threshold for each query, the float32 scan of
// all codes lists those at or below it, and the canonical float64 evaluation of the list decides. A guess that turns
// out too low shows, and the query is scanned again with a threshold that only follows codes already met.
#include "cpu/top_codes.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/integer_pack.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/nearest_code_sweep.h"
#include "cpu/parallel.h"

namespace vqk {
namespace {

constexpr int section_codes = 512;                  // at most so many between two looks at the lists
constexpr std::int64_t sample_stride = 16;          // one block in so many makes the guess
constexpr std::int64_t panel_candidates = 1 << 17;  // room in all lists of a panel: 1 MiB
constexpr float nothing = -std::numeric_limits<float>::infinity();

// The nearest codes of one vector, by canonical key.
class Ranking {
  public:
    explicit Ranking(std::int64_t m) : m_(m) { pairs_.reserve(std::size_t(2 * m)); }

    void clear() {
        pairs_.clear();
        worst_ = DBL_MAX;
        lost_ = false;
    }

    // nothing is nearest
    void lose() { lost_ = true; }

    // keys that are not finite do not rank; below all of them is a dot product beyond float64
    void offer(double key, std::int64_t index) {
        if (key == -HUGE_VAL) lose();
        if (!(key <= worst_)) return;
        pairs_.emplace_back(key, index);
        if (std::int64_t(pairs_.size()) < 2 * m_) return;
        std::nth_element(pairs_.begin(), pairs_.begin() + (m_ - 1), pairs_.end());
        pairs_.resize(std::size_t(m_));
        worst_ = pairs_.back().first;
    }

    // takes in the nearest of other codes
    void merge(const Ranking& other) {
        if (other.lost_) lose();
        for (const auto& [key, index] : other.pairs_) offer(key, index);
    }

    // M places: the ranked codes, then the others by index
    void write(Metric metric, double x_norm, std::int64_t* indices, float* distance) {
        std::fill_n(indices, m_, 0);
        std::fill_n(distance, m_, std::nanf(""));
        if (lost_) return;
        std::sort(pairs_.begin(), pairs_.end());
        pairs_.resize(std::min(pairs_.size(), std::size_t(m_)));
        std::vector<std::int64_t> ranked;
        for (const auto& [key, index] : pairs_) {
            *indices++ = index;
            *distance++ = canonical_distance(metric, key, x_norm);
            if (std::int64_t(pairs_.size()) < m_) ranked.push_back(index);
        }
        std::sort(ranked.begin(), ranked.end());
        auto next = ranked.begin();
        for (std::int64_t code = 0, left = m_ - std::int64_t(pairs_.size()); left > 0; ++code) {
            if (next != ranked.end() && *next == code) {
                ++next;
            } else {
                *indices++ = code;
                --left;
            }
        }
    }

  private:
    std::int64_t m_;
    std::vector<std::pair<double, std::int64_t>> pairs_;  // (key, index)
    double worst_ = DBL_MAX;
    bool lost_ = false;
};

// One group of the call and its codebook, packed.
template <class Value>
struct Search {
    CodeFrame<Value> frame;
    const ScanKernel& kernel;
    const std::int64_t m;
    const std::int64_t capacity;  // of a list
    std::int64_t blocks;
    BlockBuffer packed;
    double radius;
    std::optional<IntegerBuffer> integers;  // the codes once more, where the scan of integers is faster
    double longest = 0, rest = 0;           // the largest |c| and |c_r|

    Search(const Value* codebook, const Lookup& call, std::int64_t m, const ScanKernel& kernel)
        : frame(codebook, call.k, call.d, call.metric, kernel, call.threads),
          kernel(kernel),
          m(m),
          capacity(4 * m + 2 * section_codes),
          blocks((call.k + kernel.block_codes - 1) / kernel.block_codes),
          packed(blocks, call.d, kernel) {
        if (enough_for_integers(call) && words_pay(call.k, call.d, kernel, call.isa != Isa::automatic, m)) {
            integers.emplace(*kernel.words, blocks, call.d, kernel.block_codes);
        }
        radius = pack_all(packed, frame, kernel, nullptr, call.k, call.threads, [&](std::int64_t b) {
            if (integers) kernel.words->pack_codes(packed.codes(b), packed.bias(b), integers->view(b, 1));
        });
        if (!integers) return;
        const IntegerCodes codes = integers->view(0, blocks);
        longest = *std::max_element(codes.length, codes.length + blocks * kernel.block_codes);
        rest = *std::max_element(codes.rest, codes.rest + blocks * kernel.block_codes);
    }

    // what the score of a row may be off by in integers
    double integer_tolerance(const IntegerPanel& rows, int r) const {
        return rows.charge(r, longest, rest) + (integer_error(frame.dim) + 0x1p-21) * longest * longest;
    }

    PackedCodes view() const { return packed.view(blocks); }

    // places for the finite codes of some blocks
    std::int64_t places(Blocks some) const {
        std::int64_t count = 0;
        const std::int64_t last = std::min(frame.count, some.end * kernel.block_codes);
        for (std::int64_t i = some.begin * kernel.block_codes; i < last && count < m; ++i) count += frame.usable(i);
        return count;
    }
};

// Some queries and the lists of their candidates.
template <class Value>
struct Panel {
    const Rows<Value> rows;
    std::vector<double> band;           // [rows] twice the tolerance
    std::vector<float> threshold;       // [padded] the list has all codes met up to this score
    std::vector<float> limit;           // [rows] all of the nearest codes score at most this
    std::vector<std::uint8_t> crowded;  // [rows] more codes than the list has room for are too close to tell apart
    std::vector<std::int32_t> count;    // [padded]
    std::int64_t capacity;
    const Blocks blocks;           // of codes, among which the nearest are sought
    const std::int64_t keep;       // so many
    AlignedArray<Candidate> list;  // [padded][capacity]
    std::optional<IntegerPanel> integers;

    Panel(Rows<Value> loaded, const Search<Value>& search, Blocks blocks)
        : rows(std::move(loaded)),
          band(rows.count),
          threshold(rows.padded, nothing),
          limit(rows.count, FLT_MAX),
          crowded(rows.count),
          count(rows.padded),
          capacity(search.capacity),
          blocks(blocks),
          keep(search.places(blocks)),
          list(make_aligned<Candidate>(std::size_t(rows.padded * capacity))) {
        if (search.integers) {
            integers.emplace(*search.kernel.words, rows.negated.get(), rows.padded, int(search.frame.dim), false);
        }
        const Tolerance tolerance(search.frame, search.radius);
        for (int r = 0; r < rows.count; ++r) {
            // rows that cannot be scanned never get a candidate
            if (!rows.scannable(r)) continue;
            band[r] = 2 * tolerance(rows.length[r], rows.x_norm(r));
            if (integers) band[r] += 2 * search.integer_tolerance(*integers, r);
            threshold[r] = FLT_MAX;
        }
    }

    // whether the list is what its row is decided by
    bool listed(int r) const { return rows.scannable(r) && !crowded[r]; }
    CandidateLists lists() { return {threshold.data(), list.get(), count.data(), capacity}; }
};

// Limits a list to codes that can be among the `keep` nearest.
template <class Value>
void tighten(Panel<Value>& panel, int r, std::int64_t keep) {
    Candidate* const begin = panel.list.get() + r * panel.capacity;
    Candidate* const end = begin + panel.count[r];
    if (end - begin < keep) return;
    std::nth_element(begin, begin + (keep - 1), end,
                     [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
    panel.limit[r] = std::min(panel.limit[r], float_above(double(begin[keep - 1].score) + panel.band[r]));
    const float threshold = panel.threshold[r] = std::min(panel.threshold[r], panel.limit[r]);
    const auto last = std::remove_if(begin + keep, end, [=](const Candidate& c) { return c.score > threshold; });
    panel.count[r] = std::int32_t(last - begin);
}

// lists the codes of every `stride`-th section; a list of more than `room` of them is tightened
template <class Value>
void scan(Panel<Value>& panel, const Search<Value>& search, std::int64_t keep, std::int64_t stride,
          std::int64_t room) {
    constexpr std::int64_t cached = 24 << 10;  // bytes of a section, to stay in the L1 cache
    const ScanKernel& kernel = search.kernel;
    const std::int64_t most = section_codes / kernel.block_codes;
    const std::int64_t fits = cached / (kernel.block_codes * search.frame.dim * std::int64_t(sizeof(float)));
    const std::int64_t section = stride > 1 ? 1 : std::clamp<std::int64_t>(fits, 1, most);
    for (std::int64_t begin = panel.blocks.begin; begin < panel.blocks.end; begin += section * stride) {
        const std::int64_t end = std::min(panel.blocks.end, begin + section);
        if (panel.integers) {
            kernel.words->append(panel.integers->from(0), panel.rows.padded, search.integers->view(0, search.blocks),
                                 begin, end, panel.lists());
        } else {
            kernel.append(panel.rows.negated.get(), panel.rows.padded, search.view(), begin, end, panel.lists());
        }
        for (int r = 0; r < panel.rows.count; ++r) {
            if (panel.count[r] > room) tighten(panel, r, keep);
            if (panel.count[r] <= panel.capacity - section_codes) continue;
            panel.crowded[r] = true;
            panel.threshold[r] = nothing;
            panel.count[r] = 0;
        }
    }
    for (int r = 0; r < panel.rows.count; ++r) tighten(panel, r, keep);
}

// Starts the thresholds: where M of K codes are expected, by what that share and some more of a sample score; a few
// rows in a thousand are guessed too low.
template <class Value>
void guess(Panel<Value>& panel, const Search<Value>& search) {
    const std::int64_t blocks = panel.blocks.end - panel.blocks.begin;
    const std::int64_t sampled = (blocks + sample_stride - 1) / sample_stride;
    const double expected = double(panel.keep) * double(sampled) / double(blocks);
    const auto rank = std::int64_t(std::ceil(expected + 3 * std::sqrt(expected) + 4));
    if (2 * rank > sampled * search.kernel.block_codes) return;
    // short lists: without a threshold, the first ones take in everything
    scan(panel, search, rank, sample_stride, 2 * rank + search.kernel.block_codes);
    for (int r = 0; r < panel.rows.count; ++r) {
        if (panel.rows.scannable(r)) panel.threshold[r] = panel.limit[r];
        panel.limit[r] = FLT_MAX;
        panel.crowded[r] = false;
        panel.count[r] = 0;
    }
}

// offers the codes that can be among the nearest of one row
template <class Value, class Evaluator>
void offer(const Panel<Value>& panel, int r, const Search<Value>& search, Evaluator& evaluator) {
    if (panel.listed(r)) {
        const Candidate* list = panel.list.get() + r * panel.capacity;
        for (std::int32_t i = 0; i < panel.count[r]; ++i) evaluator.add(r, list[i].position);
    } else {
        const std::int64_t section = section_codes / search.kernel.block_codes;
        const float* negated = panel.rows.negated.get() + r * search.frame.dim;
        std::int64_t found[section_codes];
        for (std::int64_t begin = panel.blocks.begin; begin < panel.blocks.end; begin += section) {
            const std::int64_t end = std::min(panel.blocks.end, begin + section);
            const std::int64_t count =
                search.kernel.collect(negated, search.view(), begin, end, panel.limit[r], found);
            for (std::int64_t i = 0; i < count; ++i) evaluator.add(r, found[i]);
        }
    }
    evaluator.flush();
}

// Finds the nearest codes of some vectors in some blocks, calling found(vector, ranking); returns the vectors whose
// guess was too low.
template <class Value, class Input, class Found>
std::vector<std::int64_t> find(std::vector<std::int64_t> ids, const Search<Value>& search, Blocks blocks,
                               bool guessing, std::int64_t row_stride, const Input* x, const Found& found) {
    Panel<Value> panel({std::move(ids), x, row_stride, search.frame, search.kernel}, search, blocks);
    const Rows<Value>& rows = panel.rows;
    if (panel.keep > 0) {
        if (guessing) guess(panel, search);
        scan(panel, search, panel.keep, 1, panel.capacity - section_codes);
    }
    std::vector<std::int64_t> again;
    Ranking ranking(search.m);
    Evaluator evaluator(rows, search.frame, search.kernel,
                        [&](int, double key, std::int64_t code) { ranking.offer(key, code); });
    for (int r = 0; r < rows.count; ++r) {
        if (panel.listed(r) && panel.threshold[r] < panel.limit[r]) {
            again.push_back(rows.ids[r]);
            continue;
        }
        ranking.clear();
        if (!rows.finite[r]) {
            ranking.lose();
        } else if (rows.x_norm(r) == 0) {
            // equally far from every code
            std::int64_t code = blocks.begin * search.kernel.block_codes;
            for (std::int64_t left = panel.keep; left > 0; ++code) {
                if (!search.frame.usable(code)) continue;
                ranking.offer(0.0, code);
                --left;
            }
        } else {
            offer(panel, r, search, evaluator);
        }
        found(rows.ids[r], rows.x_norm(r), ranking);
    }
    return again;
}

// what is known of one vector and some of the codes
struct Known {
    double x_norm = 1.0;
    std::optional<Ranking> ranking;
};

template <class Value, class Input>
void lookup(const Lookup& call, std::int64_t m, const Value* codebook, const Input* x) {
    const ScanKernel& kernel = scan_kernel(call.isa);
    std::vector<std::unique_ptr<Search<Value>>> groups;
    for (std::int64_t g = 0; g < call.g; ++g) {
        groups.push_back(std::make_unique<Search<Value>>(codebook + g * call.k * call.d, call, m, kernel));
    }
    // at least a panel for every thread
    const std::int64_t even = (call.n * call.g + call.threads - 1) / std::max(call.threads, 1) + 1;
    const std::int64_t room = panel_candidates / groups[0]->capacity;
    const std::int64_t rows = (std::min(even, room) + kernel.queries - 1) / kernel.queries * kernel.queries;
    const std::int64_t panels = (call.n + rows - 1) / rows;
    const double work = double(call.n) * double(call.g) * double(call.k) * double(call.d) / 16;
    const int threads = useful_threads(call.threads, work);
    const Shares shares(threads, panels * call.g, groups[0]->blocks, section_codes / kernel.block_codes);
    std::vector<Known> known(shares.count > 1 ? std::size_t(call.n * call.g * shares.count) : 0);
    const auto write = [&](std::int64_t at, double x_norm, Ranking& ranking) {
        ranking.write(call.metric, x_norm, call.indices + at * m, call.distance + at * m);
    };
    parallel_for(panels * call.g * shares.count, threads, [&](std::int64_t task) {
        const std::int64_t share = task % shares.count, part = task / shares.count;
        const std::int64_t g = part % call.g, start = part / call.g * rows;
        const auto found = [&](std::int64_t id, double x_norm, Ranking& ranking) {
            const std::int64_t at = id * call.g + g;
            if (shares.count == 1) return write(at, x_norm, ranking);
            known[at * shares.count + share] = {x_norm, ranking};
        };
        const auto search = [&](std::vector<std::int64_t> ids, bool guessing) {
            return find(std::move(ids), *groups[g], shares[share], guessing, call.g * call.d, x + g * call.d, found);
        };
        std::vector<std::int64_t> ids(std::min(rows, call.n - start));
        std::iota(ids.begin(), ids.end(), start);
        std::vector<std::int64_t> again = search(std::move(ids), true);
        if (!again.empty()) search(std::move(again), false);
    });
    for (std::size_t at = 0; at < known.size(); at += shares.count) {
        Ranking& ranking = *known[at].ranking;
        for (std::int64_t share = 1; share < shares.count; ++share) ranking.merge(*known[at + share].ranking);
        write(std::int64_t(at) / shares.count, known[at].x_norm, ranking);
    }
}

}  // namespace

void top_codes(const Lookup& call, std::int64_t m) {
    with_arrays(call, [&](auto* codebook, auto* x) { lookup(call, m, codebook, x); });
}

}  // namespace vqk
