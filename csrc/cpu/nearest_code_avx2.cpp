// Scan for AVX2 + FMA: 16 registers hold a tile of 6 queries x 2 vectors of 8 codes.
#include "cpu/simd_avx2.inl"

namespace vqk {

const ScanKernel& scan_avx2() {
    static const ScanKernel kernel = make_kernel<Avx2, 6, 2>(Isa::avx2);
    return kernel;
}

}  // namespace vqk
