// `in_turn` of the kernels for x86: the compiler has to form `a` here, in a register, and sees nothing of what it was
// formed of. tests/driver/x86 has one for processors whose registers are narrower than the kernels'.
#pragma once

namespace vqk {
namespace {

template <class Vector>
inline Vector formed(Vector a) {
    asm volatile("" : "+v"(a));
    return a;
}

}  // namespace
}  // namespace vqk
