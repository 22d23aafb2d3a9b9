#include "cpu/gather_codes.h"

#include <atomic>
#include <cstring>

#include "cpu/parallel.h"

namespace vqk {

std::optional<std::int64_t> gather_codes(const void* codebook, std::int64_t element_size, const std::int64_t* indices,
                                         std::int64_t n, std::int64_t g, std::int64_t k, std::int64_t d, int threads,
                                         void* codes) {
    constexpr std::int64_t chunk = 1024;
    const std::int64_t row_bytes = d * element_size, rows = n * g;
    const char* source = static_cast<const char*>(codebook);
    char* target = static_cast<char*>(codes);
    std::atomic<std::int64_t> bad{0};  // 0 is never out of range
    parallel_for((rows + chunk - 1) / chunk, useful_threads(threads, double(rows) * double(d)), [&](std::int64_t c) {
        for (std::int64_t i = c * chunk; i < std::min(rows, (c + 1) * chunk); ++i) {
            const std::int64_t index = indices[i];
            if (index >= 0 && index < k) {
                std::memcpy(target + i * row_bytes, source + ((i % g) * k + index) * row_bytes, row_bytes);
            } else {
                std::memset(target + i * row_bytes, 0, row_bytes);
                if (index != -1) bad.store(index);
            }
        }
    });
    return bad.load() == 0 ? std::nullopt : std::optional(bad.load());
}

}  // namespace vqk
