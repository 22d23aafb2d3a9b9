// In the place of the compiler's: the words that csrc asks for.
#pragma once

inline int __get_cpuid_count(unsigned leaf, unsigned subleaf, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
    *a = *b = *c = *d = 0;
    if (leaf != 7) return 0;
    if (subleaf == 0) {
        *d = unsigned(emulated_feature("amx_bf16")) << 22 | unsigned(emulated_feature("amx_tile")) << 24 |
             unsigned(emulated_feature("amx_int8")) << 25;
    }
    if (subleaf == 1)
        *a = unsigned(emulated_feature("avx512_bf16")) << 5 | unsigned(emulated_feature("avx_vnni")) << 4;
    return 1;
}
