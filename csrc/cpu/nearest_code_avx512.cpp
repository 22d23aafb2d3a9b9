// Scan for AVX-512 (F, DQ, VL, BW): 32 registers hold a tile of 6 queries x 4 vectors of 16 codes.
#include "cpu/simd_avx512.inl"

namespace vqk {

const ScanKernel& scan_avx512() {
    // groups of 16 codes are scanned one vector of them at a time: 8 sums, to hide the latency on two ports
    static const ScanKernel narrow = make_kernel<Avx512, 8, 1>(Isa::avx512);
    static const ScanKernel kernel = [] {
        ScanKernel with_narrow = make_kernel<Avx512, 6, 4>(Isa::avx512);
        with_narrow.narrow = &narrow;
        return with_narrow;
    }();
    return kernel;
}

}  // namespace vqk
