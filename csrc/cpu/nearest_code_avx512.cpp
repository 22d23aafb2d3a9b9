// Scan for AVX-512 (F, DQ, VL, BW): 32 registers hold a tile of 6 queries x 4 vectors of 16 codes.
#include "cpu/simd_avx512.inl"

namespace vqk {

const ScanKernel& scan_avx512() {
    static const ScanKernel kernel = make_kernel<Avx512, 6, 4>(Isa::avx512);
    return kernel;
}

}  // namespace vqk
