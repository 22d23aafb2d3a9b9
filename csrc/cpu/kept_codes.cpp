#include "cpu/kept_codes.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "cpu/parallel.h"

namespace vqk {
namespace {

// Of some rows: an optimizer step or an update changes some of them, so that codes in training cost no more than
// this.
std::uint64_t sample_of(const float* codes, std::int64_t count, std::int64_t dim) {
    constexpr std::int64_t rows = 64;
    std::uint64_t hash = 0x9E3779B97F4A7C15u;
    for (std::int64_t i = 0; i < std::min(count, rows); ++i) {
        const float* row = codes + (count <= rows ? i : i * (count - 1) / (rows - 1)) * dim;
        for (std::int64_t d = 0; d < dim; ++d) {
            std::uint32_t bits;
            std::memcpy(&bits, row + d, sizeof bits);
            hash = (hash ^ bits) * 0x100000001B3u;
            hash ^= hash >> 29;
        }
    }
    return hash;
}

bool same(const float* a, const float* b, std::int64_t count, int threads) {
    constexpr std::int64_t chunk = 1 << 16;
    const std::int64_t chunks = (count + chunk - 1) / chunk;
    std::vector<std::uint8_t> equal(std::size_t(chunks), 0);
    parallel_for(chunks, useful_threads(threads, double(count)), [&](std::int64_t c) {
        const std::int64_t begin = c * chunk, length = std::min(chunk, count - begin);
        equal[std::size_t(c)] = std::memcmp(a + begin, b + begin, std::size_t(length) * sizeof(float)) == 0;
    });
    return std::find(equal.begin(), equal.end(), 0) == equal.end();
}

bool same_key(const KeptCodes& a, const KeptCodes& b) {
    return a.sample == b.sample && a.count == b.count && a.dim == b.dim && a.metric == b.metric &&
           a.kernel == b.kernel;
}

}  // namespace

std::int64_t KeptCodes::size(bool copied, bool tree) const {
    constexpr std::int64_t number = sizeof(float);
    std::int64_t size = sizeof(KeptCodes);
    if (copied) size += count * (dim * number + std::int64_t(sizeof(double)));
    // packed, with boxes of an eighth of the codes at most; their biases, the order, and nodes of the tree
    if (tree) size += count * (dim * number * 5 / 4 + 3 * number);
    return size;
}

CodeShelf& CodeShelf::instance() {
    static CodeShelf& shelf = *new CodeShelf;  // outlives threads that are still looking up at exit
    return shelf;
}

// Held by another thread for moments only; by nobody that exists, perhaps, in a process forked meanwhile.
std::unique_lock<std::mutex> CodeShelf::lock() {
    constexpr int attempts = 64;
    std::unique_lock<std::mutex> hold(mutex_, std::try_to_lock);
    for (int i = 0; i < attempts && !hold.owns_lock(); ++i) {
        std::this_thread::yield();
        hold.try_lock();
    }
    return hold;
}

std::optional<KeptCodes> CodeShelf::recall(const float* codes, std::int64_t count, std::int64_t dim, Metric metric,
                                           const ScanKernel& kernel, int threads, std::int64_t limit) {
    std::optional<KeptCodes> known;
    KeptCodes wanted;
    wanted.count = count, wanted.dim = dim, wanted.metric = metric, wanted.kernel = &kernel;
    if (wanted.size(true, true) > limit) return {};  // else they would be copied again and again
    {
        const auto hold = lock();
        if (!hold.owns_lock()) return {};
        wanted.sample = sample_of(codes, count, dim);
        const auto found =
            std::find_if(kept_.begin(), kept_.end(), [&](const KeptCodes& kept) { return same_key(kept, wanted); });
        if (found == kept_.end()) {
            keep_locked(std::move(wanted), limit);
            return {};
        }
        known = *found;
    }
    if (known->codes && !same(known->codes->values.data(), codes, count * dim, threads)) known = wanted;
    if (!known->codes) {
        known->codes = std::make_shared<const CodeCopy>(codes, count, dim, metric, kernel, threads);
        keep(*known, limit);
    }
    return known;
}

void CodeShelf::clear() {
    const auto hold = lock();
    if (hold.owns_lock()) kept_.clear();
}

void CodeShelf::keep(KeptCodes kept, std::int64_t limit) {
    const auto hold = lock();
    if (hold.owns_lock()) keep_locked(std::move(kept), limit);
}

std::array<std::int64_t, 4> CodeShelf::size() {
    std::array<std::int64_t, 4> sum{};
    const auto hold = lock();
    if (!hold.owns_lock()) return sum;
    for (const KeptCodes& one : kept_) {
        sum[0] += one.codes != nullptr;
        sum[1] += one.ordered != nullptr;
        sum[2] += one.bytes();
        sum[3] += 1;
    }
    return sum;
}

void CodeShelf::keep_locked(KeptCodes kept, std::int64_t limit) {
    constexpr std::size_t most = 256;
    kept_.remove_if([&](const KeptCodes& other) { return same_key(other, kept); });
    kept_.push_front(std::move(kept));
    std::int64_t size = 0;
    const auto over =
        std::find_if(kept_.begin(), kept_.end(), [&](const KeptCodes& one) { return (size += one.bytes()) > limit; });
    kept_.erase(over, kept_.end());
    // training leaves a sample of every step's codes
    if (kept_.size() > most) kept_.pop_back();
}

}  // namespace vqk
