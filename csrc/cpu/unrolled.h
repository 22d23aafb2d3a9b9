// A loop over the registers of a tile.
#pragma once

#include <type_traits>
#include <utility>

namespace vqk {
namespace {

template <class Step, int... steps>
inline void run_steps(const Step& step, std::integer_sequence<int, steps...>) {
    (step(std::integral_constant<int, steps>{}), ...);
}

// step(0), step(1), ... step(count - 1), written out from the start. gcc unrolls loops too late to keep an array that
// they index in registers: it stored every vector and loaded it again.
template <int count, class Step>
inline void unrolled(const Step& step) {
    run_steps(step, std::make_integer_sequence<int, count>{});
}

}  // namespace
}  // namespace vqk
