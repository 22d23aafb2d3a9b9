#include "cpu/ema_update.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "cpu/parallel.h"

namespace vqk {
namespace {

template <class T>
struct Group {
    T *codebook, *size, *sum;
    const T *count, *total;
};

// moves the statistics of one code; false, and they stay as they were, if they would not be finite
template <class T>
bool move_statistics(const EmaUpdate& call, const Group<T>& group, std::int64_t code) {
    const T keep = T(call.decay), take = T(1 - call.decay);
    const T* total = group.total + code * call.d;
    T* sum = group.sum + code * call.d;
    const T size = keep * group.size[code] + take * group.count[code];
    bool finite = std::isfinite(size);
    for (std::int64_t d = 0; d < call.d; ++d) finite &= std::isfinite(keep * sum[d] + take * total[d]);
    if (!finite) return false;
    group.size[code] = size;
    for (std::int64_t d = 0; d < call.d; ++d) sum[d] = keep * sum[d] + take * total[d];
    return true;
}

// a code that would not be finite stays as it was
template <class T>
void write_code(const EmaUpdate& call, const Group<T>& group, std::int64_t code, T smoothed) {
    const T* sum = group.sum + code * call.d;
    T* out = group.codebook + code * call.d;
    T largest = 0;
    double square = 0;
    for (std::int64_t d = 0; d < call.d; ++d) {
        const T value = sum[d] / smoothed;
        largest = std::max(largest, std::fabs(value));
        square += double(value) * double(value);
    }
    if (!std::isfinite(largest)) return;
    for (std::int64_t d = 0; d < call.d; ++d) out[d] = sum[d] / smoothed;
    if (!call.normalize || !(square > 0)) return;
    const T norm = T(std::sqrt(square));
    for (std::int64_t d = 0; d < call.d; ++d) out[d] /= norm;
}

template <class T>
void update_group(const EmaUpdate& call, const Group<T>& group) {
    constexpr std::int64_t chunk = 1024;
    const std::int64_t chunks = (call.k + chunk - 1) / chunk;
    const int threads = useful_threads(call.threads, double(call.k) * double(call.d));
    std::vector<std::uint8_t> moved(call.k);
    auto for_codes = [&](auto&& visit) {
        parallel_for(chunks, threads, [&](std::int64_t c) {
            for (std::int64_t code = c * chunk; code < std::min(call.k, (c + 1) * chunk); ++code) visit(code);
        });
    };
    for_codes([&](std::int64_t code) { moved[code] = move_statistics(call, group, code); });
    double n = 0;  // one order of summation, whatever the threads
    for (std::int64_t code = 0; code < call.k; ++code) n += double(group.size[code]);
    for_codes([&](std::int64_t code) {
        const double size = double(group.size[code]);
        const T smoothed = T(call.eps > 0 ? (size + call.eps) / (n + double(call.k) * call.eps) * n : size);
        if (moved[code] && smoothed > 0) write_code(call, group, code, smoothed);
    });
}

template <class T>
void update(const EmaUpdate& call) {
    for (std::int64_t g = 0; g < call.g; ++g) {
        const std::int64_t flat = g * call.k, deep = flat * call.d;
        update_group<T>(call, {static_cast<T*>(call.codebook) + deep, static_cast<T*>(call.cluster_size) + flat,
                               static_cast<T*>(call.embed_sum) + deep, static_cast<const T*>(call.count) + flat,
                               static_cast<const T*>(call.total) + deep});
    }
}

}  // namespace

void ema_update(const EmaUpdate& call) {
    if (call.type != DType::f32 && call.type != DType::f64)
        throw std::invalid_argument("ema_update: f32 or f64 only");
    call.type == DType::f32 ? update<float>(call) : update<double>(call);
}

}  // namespace vqk
