#include "cpu/ema_update.h"

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

// moves the statistics of one code; false if the step brought a non-finite number, which leaves them as they were
template <class T>
bool move_statistics(const EmaUpdate& call, const Group<T>& group, std::int64_t code) {
    const T* total = group.total + code * call.d;
    bool finite = std::isfinite(group.count[code]);
    for (std::int64_t d = 0; d < call.d; ++d) finite &= std::isfinite(total[d]);
    if (!finite) return false;
    const T keep = T(call.decay), take = T(1 - call.decay);
    T* sum = group.sum + code * call.d;
    group.size[code] = keep * group.size[code] + take * group.count[code];
    for (std::int64_t d = 0; d < call.d; ++d) sum[d] = keep * sum[d] + take * total[d];
    return true;
}

template <class T>
void write_code(const EmaUpdate& call, const Group<T>& group, std::int64_t code, T smoothed) {
    const T* sum = group.sum + code * call.d;
    T* out = group.codebook + code * call.d;
    double square = 0;
    for (std::int64_t d = 0; d < call.d; ++d) {
        out[d] = sum[d] / smoothed;
        square += double(out[d]) * double(out[d]);
    }
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
