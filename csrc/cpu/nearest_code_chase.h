// Vectors against all codes in integers of 8 bits, whose lower bounds leave several codes within reach of a vector
// more often than lanes can tell apart. So the nearest code met so far gives each vector a threshold, and the codes
// whose bounds are no higher are listed and decided chunk by chunk, in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/integer_pack.h"
#include "cpu/integer_scan.h"
#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_pack.h"
#include "cpu/nearest_code_rows.h"
#include "cpu/nearest_code_scan.h"
#include "cpu/parallel.h"

namespace vqk {

// What is known of some vectors, of which a share of the codes was met.
struct Chased {
    std::vector<Winner> winners;     // [rows] the nearest code of the share
    std::vector<std::uint8_t> open;  // [rows] but for these: too many codes were within reach
    double radius = 0.0;             // no code of the share is longer
    std::int64_t evaluated = 0;      // codes, of all rows together

    // takes over what was found among other codes
    void merge(const Chased& other) {
        radius = std::max(radius, other.radius);
        evaluated += other.evaluated;
        for (std::size_t r = 0; r < winners.size(); ++r) {
            winners[r].offer(other.winners[r].key, other.winners[r].index);
            open[r] |= other.open[r];
        }
    }
    // no code with a higher float32 score can be the nearest of an open row
    template <class Value>
    float threshold(const Rows<Value>& rows, int r, const CodeFrame<Value>& frame, const Tolerance& tolerance) const {
        if (!rows.scannable(r)) return std::numeric_limits<float>::max();
        const double length = rows.length[r], norm = rows.x_norm(r);
        const double reached = true_score(rows, r, frame, score_base(rows, r, frame), winners[r].key);
        return raised(float_above(reached + 2 * tolerance.canonical(length, norm)), tolerance(length, norm));
    }
};

// Packs blocks of codes in 8 bits; one packer per thread.
template <class Value>
class BytePacker {
  public:
    BytePacker(const CodeFrame<Value>& frame, const ScanKernel& kernel)
        : bytes_(*kernel.bytes), packer_(frame, kernel, nullptr, frame.count), block_(1, frame.dim, kernel) {}

    void pack(std::int64_t b, const IntegerCodes& out) {
        packer_.pack(b, block_.codes(0), block_.bias(0));
        bytes_.pack_codes(block_.codes(0), block_.bias(0), out);
    }
    // no code packed so far is longer
    double radius() const { return packer_.radius(); }

  private:
    const IntegerScan& bytes_;
    BlockPacker<Value> packer_;
    BlockBuffer block_;
};

// All codes of a group in 8 bits, packed once for everybody.
struct AllBytes {
    IntegerBuffer packed;
    double radius = 0.0;

    // few enough for the L2 cache
    static bool few(std::int64_t k, std::int64_t dim, const ScanKernel& kernel) {
        constexpr std::int64_t most = 384 << 10;
        return k * kernel.bytes->format.lanes(int(dim)) * 4 <= most;
    }

    template <class Value>
    AllBytes(const CodeFrame<Value>& frame, const ScanKernel& kernel, int threads)
        : packed(*kernel.bytes, (frame.count + kernel.block_codes - 1) / kernel.block_codes, frame.dim,
                 kernel.block_codes) {
        constexpr std::int64_t chunk = 16;  // blocks of a task
        const std::int64_t blocks = (frame.count + kernel.block_codes - 1) / kernel.block_codes;
        std::vector<double> longest((blocks + chunk - 1) / chunk);
        const int useful = useful_threads(threads, double(frame.count) * double(frame.dim));
        parallel_for(std::int64_t(longest.size()), useful, [&](std::int64_t c) {
            BytePacker<Value> packer(frame, kernel);
            for (std::int64_t b = c * chunk; b < std::min(blocks, (c + 1) * chunk); ++b) {
                packer.pack(b, packed.view(b, 1));
            }
            longest[c] = packer.radius();
        });
        radius = *std::max_element(longest.begin(), longest.end());
    }
};

template <class Value>
class Chase {
  public:
    // `all`: the codes, if somebody has packed them
    Chase(const Rows<Value>& rows, const CodeFrame<Value>& frame, const ScanKernel& kernel, const AllBytes* all)
        : rows_(rows),
          frame_(frame),
          kernel_(kernel),
          all_(all),
          bytes_(*kernel.bytes),
          panel_(bytes_, rows.negated.get(), rows.padded, int(rows.dim), true),
          evaluator_(rows, frame, kernel, Take{&chased_}),
          base_(score_bases(rows, frame, kernel)),
          evaluated_(rows.count, 0),
          high_(rows.count, std::numeric_limits<float>::infinity()),
          slack_(rows.padded, 0.0f),
          threshold_(rows.padded, nothing),
          list_(make_aligned<Candidate>(std::size_t(together) * capacity)),
          count_(together) {
        chased_.winners.resize(rows.count);
        chased_.open.resize(rows.count, 0);
    }

    // meets the codes in blocks [begin, end)
    Chased run(std::int64_t begin, std::int64_t end) {
        if (frame_.empty() || begin >= end) return std::move(chased_);
        const std::int64_t block = kernel_.block_codes, dim = rows_.dim;
        const std::int64_t block_bytes = block * bytes_.format.lanes(int(dim)) * 4;
        const std::int64_t step =
            all_ ? end - begin : std::clamp<std::int64_t>(chunk_bytes / block_bytes, 1, end - begin);
        stretch_ = std::clamp<std::int64_t>(stretch_bytes / block_bytes, 1, stretch_codes / block);
        most_ = most_evaluated + (end - begin) * block / 16;
        // a first bound for each vector, by blocks from everywhere
        const std::int64_t samples = std::max<std::int64_t>(1, step / sample_share);
        const auto sample = [&](std::int64_t i) { return begin + (end - begin) * i / samples; };
        const IntegerBuffer packed(bytes_, all_ ? samples : step, dim, block);
        BytePacker<Value> packer(frame_, kernel_);
        for (std::int64_t i = 0; i < samples; ++i) packer.pack(sample(i), packed.view(i, 1));
        start(packed.view(0, samples));
        for (std::int64_t first = begin; first < end; first += step) {
            const std::int64_t blocks = std::min(step, end - first);
            for (std::int64_t b = 0; b < blocks && !all_; ++b) packer.pack(first + b, packed.view(b, 1));
            reach(all_ ? all_->radius : packer.radius());
            const IntegerCodes codes = all_ ? all_->packed.view(first, blocks) : packed.view(0, blocks);
            for (int r = 0; r < rows_.padded; r += together) meet(r, codes, first);
        }
        chased_.evaluated = std::accumulate(evaluated_.begin(), evaluated_.end(), std::int64_t(0));
        return std::move(chased_);
    }

  private:
    static constexpr int together = 120;                     // rows, a multiple of every kernel's tile
    static constexpr std::int64_t chunk_bytes = 192 << 10;   // of codes that the L2 cache keeps
    static constexpr std::int64_t stretch_bytes = 16 << 10;  // and the L1 cache
    static constexpr std::int64_t stretch_codes = 256;       // between two looks at the lists
    static constexpr std::int64_t capacity = 2 * stretch_codes;
    static constexpr std::int64_t sample_share = 64;    // of a chunk: one block in so many
    static constexpr std::int64_t most_evaluated = 64;  // codes of a vector, and a sixteenth of all
    static constexpr float nothing = -std::numeric_limits<float>::infinity();

    // What an upper bound of a score lacks of one below which no lower bound of the nearest code is: the rounding of
    // both, and the errors of two canonical evaluations.
    float slack(int r) const {
        const double radius = chased_.radius, length = rows_.length[r];
        const double rounding = (integer_error(frame_.dim) + 0x1p-20) * radius * (radius + 2 * length);
        return float_above(rounding + 2 * Tolerance(frame_, radius).canonical(length, rows_.x_norm(r)));
    }
    // no code with a higher bound can be the nearest
    float reached(int r) const {
        if (!rows_.scannable(r) || chased_.open[r]) return nothing;
        return float_above(true_score(rows_, r, frame_, base_[r], chased_.winners[r].key) +
                           2 * Tolerance(frame_, chased_.radius).canonical(rows_.length[r], rows_.x_norm(r)));
    }

    // what the lowest score of a few codes may be at most
    void start(const IntegerCodes& codes) {
        Lookahead lanes(rows_.lanes);
        for (int r = 0; r < rows_.padded; r += together) {
            const int count = std::min(together, rows_.padded - r);
            lanes.clear();
            bytes_.scan(panel_.from(r), count, codes, 1, 0, lanes.state());
            for (int i = 0; i < std::min(count, rows_.count - r); ++i) {
                const float* best = lanes.best.data() + i * rows_.lanes;
                const std::int64_t lane = std::min_element(best, best + rows_.lanes) - best;
                const std::int64_t at = lanes.section[i * rows_.lanes + lane] * rows_.lanes + lane;
                high_[r + i] =
                    best[lane] + 2 * float(panel_.charge(r + i, codes.longest[at], codes.longest_rest[at]));
            }
        }
    }

    // the lanes of some rows
    struct Lookahead {
        std::vector<float> best, second;
        std::vector<std::int32_t> section;

        explicit Lookahead(int lanes)
            : best(std::size_t(together) * lanes), second(best.size()), section(best.size()) {}
        void clear() {
            std::fill(best.begin(), best.end(), std::numeric_limits<float>::infinity());
            std::fill(second.begin(), second.end(), std::numeric_limits<float>::infinity());
        }
        LaneState state() { return {best.data(), second.data(), section.data()}; }
    };

    // Thresholds for codes of up to this length, if there were none as long.
    void reach(double radius) {
        if (met_ && radius == chased_.radius) return;
        met_ = true;
        chased_.radius = radius;
        for (int r = 0; r < rows_.count; ++r) {
            slack_[r] = slack(r);
            threshold_[r] = std::min(reached(r), high_[r] + slack_[r]);
        }
    }

    // some rows and the codes of a chunk
    void meet(int row, const IntegerCodes& codes, std::int64_t first) {
        const int count = std::min(together, rows_.padded - row), real = std::min(count, rows_.count - row);
        std::fill_n(count_.begin(), count, 0);
        const CandidateLists lists = {threshold_.data() + row, list_.get(), count_.data(), capacity,
                                      slack_.data() + row};
        for (std::int64_t b = 0; b < codes.blocks; b += stretch_) {
            const std::int64_t end = std::min(codes.blocks, b + stretch_);
            bytes_.append(panel_.from(row), count, codes, b, end, lists);
            const bool full = *std::max_element(count_.begin(), count_.begin() + count) > capacity - stretch_codes;
            if (full || end == codes.blocks) decide(row, real, first);
        }
    }

    // empties the lists: the code with the lowest bound first, then those that are still within reach
    void decide(int row, int count, std::int64_t first) {
        const auto add = [&](int i, const Candidate& code) {
            ++evaluated_[row + i];
            evaluator_.add(row + i, first * kernel_.block_codes + code.position);
        };
        const auto lower = [](const Candidate& a, const Candidate& b) { return a.score < b.score; };
        const auto settle = [&] {
            evaluator_.flush();
            for (int i = 0; i < count; ++i) {
                if (count_[i] > 0) threshold_[row + i] = std::min(threshold_[row + i], reached(row + i));
            }
        };
        for (int i = 0; i < count; ++i) {
            if (count_[i] == 0) continue;
            Candidate* const list = list_.get() + i * capacity;
            std::iter_swap(list, std::min_element(list, list + count_[i], lower));
            add(i, *list);
        }
        settle();
        for (int i = 0; i < count; ++i) {
            const Candidate *list = list_.get() + i * capacity, *end = list + count_[i];
            for (const Candidate* code = list + 1; code < end && !chased_.open[row + i]; ++code) {
                if (code->score > threshold_[row + i]) continue;
                if (evaluated_[row + i] >= most_) chased_.open[row + i] = 1;
                add(i, *code);
            }
        }
        settle();
        std::fill_n(count_.begin(), count, 0);
    }

    struct Take {
        Chased* chased;
        void operator()(int r, double key, std::int64_t code) const { chased->winners[r].offer(key, code); }
    };

    const Rows<Value>& rows_;
    const CodeFrame<Value>& frame_;
    const ScanKernel& kernel_;
    const AllBytes* const all_;
    const IntegerScan& bytes_;
    IntegerPanel panel_;
    Chased chased_;
    Evaluator<Value, Take> evaluator_;
    std::vector<double> base_;             // [rows] score_bases
    std::vector<std::int64_t> evaluated_;  // [rows] codes
    std::vector<float> high_;              // [rows] a score of the sample is at most this, as computed
    std::vector<float> slack_;             // [padded] and so much more
    std::vector<float> threshold_;         // [padded]
    AlignedArray<Candidate> list_;         // [together][capacity]
    std::vector<std::int32_t> count_;      // [together]
    std::int64_t stretch_ = 1, most_ = 0;  // blocks, codes
    bool met_ = false;                     // any code
};

}  // namespace vqk
