// The kernels for every x86-64 and arm64 processor.
#include "kernels.h"

namespace jaxunpool::baseline {
#define VECTOR_BYTES 16
#include "vectors.inc"
#include "tiled.inc"
#include "runs.inc"
#include "resample.inc"
#include "convolve.inc"
}  // namespace jaxunpool::baseline
