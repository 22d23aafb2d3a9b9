// From records to results: the float64 evaluation of the few codes that can be the nearest. Rows that their record
// does not decide are listed, and a second kernel goes through all codes for them.
#pragma once

#include "cuda/scan_data.cuh"

namespace vqk::cuda {

constexpr int decide_threads = 128;
constexpr int open_threads = tile_codes;

// What is known of a row before it is compared with a code.
struct Row {
    double norm;  // canonical |x|, cosine only
    bool finite;
};

__device__ inline Row inspect_row(const Lookup& call, Vector x) {
    Row row{call.metric == Metric::cosine ? canonical_norm(x, call.d) : 0.0, true};
    for (std::int64_t d = 0; d < call.d; ++d) row.finite &= isfinite(x[d]);
    row.finite &= isfinite(row.norm);
    return row;
}

// How far above the lowest score the nearest code's may be: twice the bound on |score - true score| that
// csrc/README.md derives. Infinite where the bound does not hold.
__device__ inline double score_band(const Lookup& call, const CodeFacts& facts, Vector vector, double norm) {
    const double scale = scale_of(facts, call.metric), terms = double(call.d + 8);
    const Affine affine = affine_of_vector(facts, call.metric, norm);
    double square = 0, shift_square = 0;
    for (std::int64_t d = 0; d < call.d; ++d) {
        const double value = affine(vector[d], d), shift = facts.shift[d] * scale;
        square += value * value;
        shift_square += shift * shift;
    }
    const double x = sqrt(square) * (1 + 1e-6);
    // |m|, where the codes are shifted and the vectors are not
    const double m = call.metric == Metric::dot ? sqrt(shift_square) * (1 + 1e-6) : 0.0;
    const double c = sqrt(from_bits(facts.widest)) * (1 + 1e-6);
    const double canonical = call.metric == Metric::l2 ? (x + c) * (x + c) : x * (c + m);
    // products that overflow float32 or float64, or lose their last bits to float64 underflow
    const bool overflow = !(x < 1e15) || !(canonical / scale / scale < 1e300);
    const bool underflow = call.metric == Metric::cosine && norm * from_bits(facts.least) < 1e-290;
    if (overflow || underflow) return HUGE_VAL;
    return 2 * (1.001 * terms * 0x1p-24 * (0.5 * c * c + x * c) + 2 * terms * 0x1p-53 * canonical +
                terms * 0x1p-120 * (1 + x) + terms * 0x1p-1022 * scale * scale);
}

// the scan's scores of `Count` neighbouring codes, once more
template <int Count>
__device__ inline void score_codes(const Lookup& call, const Workspace& work, std::int64_t group, std::int64_t code,
                                   Vector x, Affine affine, float (&score)[Count]) {
    const std::int64_t tile = group * work.tiles + code / tile_codes;
    const float* column = work.packed + tile * (call.d + 1) * tile_codes + code % tile_codes;
    for (int i = 0; i < Count; ++i) score[i] = column[call.d * tile_codes + i];
    for (std::int64_t d = 0; d < call.d; ++d, column += tile_codes) {
        const float negated = -affine(x[d], d);
        for (int i = 0; i < Count; ++i) score[i] = __fmaf_rn(negated, column[i], score[i]);
    }
}

// Eight threads per row: each scores the codes of one step of the winning section again and evaluates those that are
// near enough.
__global__ void __launch_bounds__(decide_threads, 6) decide(Lookup call, Workspace work) {
    const int lane = threadIdx.x % code_lanes;
    const std::int64_t rows = call.n * call.g;
    const std::int64_t mine = (std::int64_t(blockIdx.x) * decide_threads + threadIdx.x) / code_lanes;
    const std::int64_t q = mine < rows ? mine : rows - 1;  // every lane takes part in the exchange at the end
    const std::int64_t group = q % call.g;
    const CodeFacts& facts = work.facts[group];
    const Vector x = vector_of(call, q);
    const Row row = inspect_row(call, x);

    Winner winner;
    bool open = false;
    double limit = 0;
    const bool any = facts.first < static_cast<unsigned long long>(call.k);
    if (row.finite && any && call.metric == Metric::cosine && row.norm == 0) {
        winner.offer(0.0, std::int64_t(facts.first));  // equally far from every code
    } else if (row.finite && any) {
        Record record = work.records[q];
        for (int split = 1; split < work.splits; ++split) record.merge(work.records[split * rows + q]);
        const double band = score_band(call, facts, x, row.norm);
        limit = band < HUGE_VAL ? double(record.best) + band : HUGE_VAL;  // best may be -inf
        open = !(double(record.second) > limit);
        const std::int64_t tile = record.section / code_lanes;
        const std::int64_t code = tile * tile_codes + lane * step_codes + record.section % code_lanes * lane_codes;
        float score[lane_codes];
        score_codes(call, work, group, code, x, affine_of_vector(facts, call.metric, row.norm), score);
        for (int i = 0; i < lane_codes && !open; ++i) {
            if (double(score[i]) > limit) continue;
            winner.offer(canonical_key(x, code_of(call, group, code + i), call.d, call.metric), code + i);
        }
    }
    winner.gather(code_lanes);
    if (lane != 0 || mine >= rows) return;
    if (open) {
        work.rows[atomicAdd(work.open, 1ull)] = {q, limit};
    } else {
        winner.write(call.metric, row.norm, call.indices + q, call.distance + q);
    }
}

// A block per row, its threads divide the codes. `Scanned`: the listed rows, and only codes within the limit are
// evaluated. Otherwise every row and every code, without a scan before; the workspace is not touched.
template <bool Scanned>
__global__ void __launch_bounds__(open_threads, 3) decide_open(Lookup call, Workspace work) {
    __shared__ double keys[open_threads / warp_lanes];
    __shared__ std::int64_t indices[open_threads / warp_lanes];
    const std::int64_t count = Scanned ? std::int64_t(*work.open) : call.n * call.g;
    for (std::int64_t i = blockIdx.x; i < count; i += gridDim.x) {
        const OpenRow open = Scanned ? work.rows[i] : OpenRow{i, HUGE_VAL};
        const std::int64_t group = open.row % call.g;
        const Vector x = vector_of(call, open.row);
        const Row row = inspect_row(call, x);
        const bool zero = call.metric == Metric::cosine && row.norm == 0;  // equally far from every code
        Winner winner;
        for (std::int64_t code = threadIdx.x; row.finite && code < call.k; code += open_threads) {
            if constexpr (Scanned) {
                float score[1];
                score_codes(call, work, group, code, x, affine_of_vector(work.facts[group], call.metric, row.norm),
                            score);
                if (double(score[0]) > open.limit) continue;  // not for a NaN, where floats overflowed
            }
            const double key = canonical_key(x, code_of(call, group, code), call.d, call.metric);
            winner.offer(zero && key < HUGE_VAL ? 0.0 : key, code);
        }
        winner.gather(warp_lanes);
        if (threadIdx.x % warp_lanes == 0) {
            keys[threadIdx.x / warp_lanes] = winner.key;
            indices[threadIdx.x / warp_lanes] = winner.index;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int warp = 1; warp < open_threads / warp_lanes; ++warp) {
                if (indices[warp] >= 0) winner.offer(keys[warp], indices[warp]);
            }
            winner.write(call.metric, row.norm, call.indices + open.row, call.distance + open.row);
        }
        __syncthreads();
    }
}

}  // namespace vqk::cuda
