// The kernels for x86-64-v4.
#if defined(__x86_64__)
#include "kernels.h"

// To clang instructions are named one by one: what a driver switches off by name, as zig's does,
// `arch` does not switch on again.
#if defined(__clang__)
#pragma clang attribute push(                                                                   \
    __attribute__((target("avx2,bmi,bmi2,f16c,fma,lzcnt,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#endif
namespace jaxunpool::avx512 {
#define VECTOR_BYTES 64
#include "vectors.inc"
#include "tiled.inc"
#include "runs.inc"
#include "resample.inc"
#include "convolve.inc"
}  // namespace jaxunpool::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
