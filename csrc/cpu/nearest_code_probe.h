// The ways to scan, and what a pair of vector and code costs each of them on this processor.
#pragma once

#include "cpu/nearest_code_scan.h"

namespace vqk {

enum class Unit { floats, plain, words, bytes, tiles };

struct PairCost {
    double number;  // ns a multiply-add, or a step of tiles
    double end;     // ns beside, however many those are
};

// Measured by the first who asks, in about 0.1 ms (`portable`: half a ms); of a unit that the kernel has.
PairCost pair_cost(const ScanKernel& kernel, Unit unit);

}  // namespace vqk
