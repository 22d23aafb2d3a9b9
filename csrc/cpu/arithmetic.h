// Floating point as IEEE 754 has it: subnormal numbers count, sums round to nearest.
#pragma once

#include <cstdint>

namespace vqk {

// A thread may have been told otherwise (torch.set_flush_denormal, code compiled with -ffast-math), but not the
// others that it shares its work with: without this, which of them took a vector would show in the result.
class DefaultArithmetic {
  public:
    DefaultArithmetic() : before_(mode()) {
        if (before_ != usual) set(usual);
    }
    ~DefaultArithmetic() {
        if (before_ != usual) set(before_);
    }
    DefaultArithmetic(const DefaultArithmetic&) = delete;
    DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

  private:
    // of builtins and not of <xmmintrin.h>: not every file that includes this one is of a single architecture
#if defined(__x86_64__)
    using Mode = unsigned;
    static constexpr Mode usual = 0x1F80, raised = 0x3F;  // no exception traps; which ones were raised is no mode
    static Mode mode() { return __builtin_ia32_stmxcsr() & ~raised; }
    static void set(Mode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
    using Mode = std::uint64_t;
    static constexpr Mode usual = 0;
    static Mode mode() {
        Mode mode;
        __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
        return mode;
    }
    static void set(Mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
    using Mode = int;
    static constexpr Mode usual = 0;
    static Mode mode() { return usual; }
    static void set(Mode) {}
#endif

    const Mode before_;
};

}  // namespace vqk
