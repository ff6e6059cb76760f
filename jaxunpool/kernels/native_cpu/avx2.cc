// The kernels for x86-64-v3.
#if defined(__x86_64__)
#include "kernels.h"

// To clang instructions are named one by one: what a driver switches off by name, as zig's does,
// `arch` does not switch on again.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,f16c,fma,lzcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
namespace jaxunpool::avx2 {
#define VECTOR_BYTES 32
#include "vectors.inc"
#include "tiled.inc"
#include "runs.inc"
#include "resample.inc"
#include "convolve.inc"
}  // namespace jaxunpool::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
