// Codes shared by every kernel and by vqkernels/_core/extension.py, and the number formats behind them.
#pragma once

#include <cstdint>
#include <cstring>

// functions that kernels call on either side
#ifdef __CUDACC__
#define VQK_HOST_DEVICE __host__ __device__
#else
#define VQK_HOST_DEVICE
#endif

namespace vqk {

enum class DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };
enum class Metric : int { l2 = 0, cosine = 1, dot = 2 };
enum class Isa : int {  // x86 but for portable and those of NEON
    automatic = 0,
    portable = 1,
    avx2 = 2,
    avx512 = 3,
    amx = 4,
    avx2_int16 = 5,
    avxvnni = 6,
    avx512vnni = 7,
    neon = 8,
    avx2_int8 = 9,
    avxvnni_int8 = 10,
    avx512vnni_int8 = 11,
    neon_int8 = 12,
    amx_int8 = 13
};
constexpr int isas = 14;
// as VQKERNELS_ISA spells them
inline const char* isa_name(Isa isa) {
    constexpr const char* names[] = {"auto",         "portable",        "avx2",       "avx512",  "amx",
                                     "avx2_int16",   "avxvnni",         "avx512vnni", "neon",    "avx2_int8",
                                     "avxvnni_int8", "avx512vnni_int8", "neon_int8",  "amx_int8"};
    return names[int(isa)];
}

struct half_t {
    std::uint16_t bits;
};
struct bfloat16_t {
    std::uint16_t bits;
};

VQK_HOST_DEVICE inline float bits_to_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// exact: every half and bfloat16 is a float
VQK_HOST_DEVICE inline float widen(half_t h) {
    const std::uint32_t sign = std::uint32_t(h.bits & 0x8000u) << 16;
    const std::uint32_t exponent = (h.bits >> 10) & 0x1fu;
    const std::uint32_t mantissa = h.bits & 0x3ffu;
    if (exponent == 0x1f) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent == 0) {
        const float magnitude = float(mantissa) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
VQK_HOST_DEVICE inline float widen(bfloat16_t b) {
    return bits_to_float(std::uint32_t(b.bits) << 16);
}
VQK_HOST_DEVICE inline float widen(float value) {
    return value;
}
VQK_HOST_DEVICE inline double widen(double value) {
    return value;
}

// calls f with a null pointer of the element type that `type` names
template <class F>
void with_dtype(DType type, F&& f) {
    switch (type) {
        case DType::f32:
            return f(static_cast<const float*>(nullptr));
        case DType::f64:
            return f(static_cast<const double*>(nullptr));
        case DType::f16:
            return f(static_cast<const half_t*>(nullptr));
        case DType::bf16:
            return f(static_cast<const bfloat16_t*>(nullptr));
    }
}

}  // namespace vqk
