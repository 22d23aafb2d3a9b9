// The processor and the system that kernels are told they run on: EMULATED_FLAGS names what the processor has, as
// /proc/cpuinfo does. There, amx_rounds_up is a matrix unit that rounds every sum upwards, as none is known to do:
// what is proved of scores on tiles holds for it. Included before anything else of every file.
#pragma once

// Is a feature there? By its name in /proc/cpuinfo, or without the underscores, as compilers have it.
bool emulated_feature(const char* name);

// Was the use of tiles asked for, by the system call? It is granted where the processor has tiles.
bool emulated_tiles_permitted();

#define __builtin_cpu_supports(name) emulated_feature(name)
