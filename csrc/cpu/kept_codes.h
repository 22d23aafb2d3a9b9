// Codes that come again, as those of a tokenizer at inference do, with what was made of them. They are the same if
// every byte is: what is kept holds a copy, compared on every call, so nothing written anywhere makes it stale.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cpu/nearest_code_frame.h"
#include "cpu/nearest_code_near.h"
#include "cpu/nearest_code_scan.h"

namespace vqk {

// A copy of the codes of one group, in the frame of the scan.
struct CodeCopy {
    CodeCopy(const float* codes, std::int64_t count, std::int64_t dim, Metric metric, const ScanKernel& kernel,
             int threads)
        : values(codes, codes + count * dim), frame(values.data(), count, dim, metric, kernel, threads) {}
    const std::vector<float> values;  // [K, D]
    const CodeFrame<float> frame;
};

struct KeptCodes {
    // what these codes are looked up by; `sample` of a few rows
    std::uint64_t sample = 0;
    std::int64_t count = 0, dim = 0;
    Metric metric = Metric::l2;
    const ScanKernel* kernel = nullptr;

    std::shared_ptr<const CodeCopy> codes;               // from the second call on
    std::shared_ptr<const OrderedCodes<float>> ordered;  // of `codes`, once scans without it would cost more
    bool plain = false;                                  // boxes rule out too little: never order
    double scanned = 0;                                  // ns, of the scans of `codes` so far

    std::int64_t bytes() const { return size(codes != nullptr, ordered != nullptr); }
    // with a copy of the codes, with a tree over them
    std::int64_t size(bool copied, bool tree) const;
};

// The codes kept by this process, those used last first.
class CodeShelf {
  public:
    static CodeShelf& instance();

    // What is known of these codes; nothing if they are new, but then they are next time. At most `limit` bytes are
    // kept.
    std::optional<KeptCodes> recall(const float* codes, std::int64_t count, std::int64_t dim, Metric metric,
                                    const ScanKernel& kernel, int threads, std::int64_t limit);
    // puts it in front, in the place of what was known of these codes before
    void keep(KeptCodes kept, std::int64_t limit);
    void clear();
    // {sets of codes, trees over them, bytes, sets remembered by a sample at least}
    std::array<std::int64_t, 4> size();

  private:
    std::unique_lock<std::mutex> lock();
    void keep_locked(KeptCodes kept, std::int64_t limit);

    std::mutex mutex_;
    std::list<KeptCodes> kept_;
};

}  // namespace vqk
