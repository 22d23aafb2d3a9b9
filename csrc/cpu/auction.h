// Rounds of an auction of rows among codes that have so many places each (vqkernels/kmeans/auction.py).
#pragma once

#include <cstdint>

namespace vqk {

struct Auction {
    const std::int32_t* codes;  // [N, L] that a row may want
    const double* cost;         // [N, L] distances
    const double* others;       // [N] what the codes that are not listed cost, at least
    std::int64_t n, listed, k, capacity;
    double step;
    std::int64_t few;
    std::int64_t* label;  // [N] in place; -1: no place
    double* paid;         // [N] in place
    double* prices;       // [K] in place
};

// Runs rounds until at most `few` rows have no place, or one of them may want a code that is not listed.
void auction_rounds(const Auction& call);

}  // namespace vqk
