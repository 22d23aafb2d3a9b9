// The launcher of csrc/cuda as a C function of host pointers.
#include "cuda/nearest_code.h"

using vqk::DType;
using vqk::Metric;
using vqk::cuda::Lookup;

extern "C" {

std::int64_t workspace_bytes(std::int64_t n, std::int64_t g, std::int64_t k, std::int64_t d, int multiprocessors) {
    return vqk::cuda::workspace_bytes({nullptr, {}, nullptr, {}, n, g, k, d, {}, nullptr, nullptr}, multiprocessors);
}

const char* nearest_code(const void* x, int x_type, const void* codebook, int codebook_type, std::int64_t n,
                         std::int64_t g, std::int64_t k, std::int64_t d, int metric, void* workspace,
                         int multiprocessors, std::int64_t* indices, float* distance) {
    const Lookup call{x,       DType(x_type), codebook, DType(codebook_type), n, g, k, d, Metric(metric),
                      indices, distance};
    return vqk::cuda::nearest_code(call, workspace, {0, multiprocessors, nullptr});
}
}
