// What is compiled once for each instruction set.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "convolve.h"
#include "planes.h"
#include "resample.h"
#include "rows.h"
#include "winners.h"
#include "xla/ffi/api/ffi.h"

namespace jaxunpool {

namespace ffi = xla::ffi;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

struct Refused : std::exception {
  std::string message;
  explicit Refused(std::string m) : message("jaxunpool: " + std::move(m)) {}
};

// The kernels of runs, for one type of values and one of offsets.
struct Runs {
  using Indexed = void (*)(const void* from, const void* offsets, Taps taps, Extent extent,
                           void* to);

  void (*select)(const void* x, Taps taps, Extent extent, void* y, void* offsets);
  Indexed gather, fetch, scatter_last, scatter_sum;
  // Of values, from values to sums, and from sums to values: 16-bit floats are summed in float32.
  using Weighted = void (*)(const void* from, const void* factors, Taps taps, Extent extent,
                            i64 divisor, void* to);
  Weighted weighted, widened, narrowed;
  // Rows of planes: copies where windows do not meet, sums where windows tile.
  using Planes = void (*)(const Geometry& g, const void* from, i64 first, i64 last, void* to);
  Planes copy_rows, sum_tiles;
  void (*encode)(const void* offsets, Extent extent, const Digits& digits, void* codes);
  using Compare = void (*)(const void* codes, const void* offsets, Taps later, Extent extent,
                           void* winners);
  Compare winners8, winners16, winners32;
  // Where the largest element of each of a few channels is, in rows of so many positions.
  void (*largest)(const void* x, Taps rows, i64 count, i64 channels, i64* winners);
  int last_lanes, sum_lanes;  // of what `scatter_last` and `scatter_sum` spread, or 0
};

using MakeResampler = std::unique_ptr<Resampler> (*)(const Maps& maps, bool cut, i64 count,
                                                     bool streams);

#define INSTRUCTIONS(name)                                    \
  namespace name {                                            \
  Runs runs_of(ffi::DataType type, i64 offset_bytes);         \
  MakeResampler resampler_of(ffi::DataType type, bool moves); \
  Convolver convolver_of(ffi::DataType type);                 \
  i64 vector_bytes();                                         \
  bool permutes(ffi::DataType type);                          \
  }
INSTRUCTIONS(baseline)
INSTRUCTIONS(avx2)
INSTRUCTIONS(avx512)
#undef INSTRUCTIONS

}  // namespace jaxunpool
