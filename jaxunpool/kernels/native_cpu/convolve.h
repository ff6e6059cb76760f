// Convolutions: which elements of an input a kernel takes to which results.
#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "geometry.h"

namespace jaxunpool {

// A convolution of arrays (n, axes..., channels) with a kernel (taps, inputs, groups * outputs).
// `inputs` and `outputs` are the channels of one group.
struct Convolution {
  i64 n, groups, inputs, outputs;
  Axis axes[3];

  i64 taps() const { return axes[0].window * axes[1].window * axes[2].window; }
  // Elements of the three arrays.
  i64 input() const { return n * axes[0].size * axes[1].size * axes[2].size * groups * inputs; }
  i64 kernel() const { return taps() * inputs * groups * outputs; }
  i64 results() const {
    return n * axes[0].outputs * axes[1].outputs * axes[2].outputs * groups * outputs;
  }
  // Multiplications, as if there were no padding.
  i64 products() const { return results() * taps() * inputs; }
};

// What a convolution is linear in, each from the two others: the results, the input, the kernel.
enum Wanted : i64 { RESULTS, INPUT, KERNEL };

// What is written along one axis, and what it is read from: the results from the input, or the
// input from the results, which some taps of the kernel reach and others do not.
struct Side {
  Axis axis;
  bool spread;  // writes the input

  i64 length() const { return spread ? axis.size : axis.outputs; }
  i64 sources() const { return spread ? axis.outputs : axis.size; }
  // What a tap reads for an element, or -1.
  i64 source(i64 at, i64 tap) const {
    i64 from = spread ? at + axis.low - tap * axis.dilation : axis.position(at, tap);
    if (spread) {
      if (from % axis.stride) return -1;
      from /= axis.stride;
    }
    return from < 0 || from >= sources() ? -1 : from;
  }
};

// Elements `step` apart that the same taps reach, whose sources are `pace` apart.
struct Phase {
  struct Tap {
    i64 tap, source;  // of the first element; may be out of range
  };
  i64 first, step, count, pace;
  std::vector<Tap> taps;
};
inline std::vector<Phase> phases(const Side& side) {
  const Axis& a = side.axis;
  std::vector<Phase> all;
  if (!side.spread) {
    all.push_back({0, 1, a.outputs, a.stride, {}});
    for (i64 t = 0; t < a.window; ++t) all[0].taps.push_back({t, a.position(0, t)});
    return all;
  }
  for (i64 first = 0; first < std::min(a.stride, a.size); ++first) {
    Phase phase{first, a.stride, ceil_div(a.size - first, a.stride), 1, {}};
    for (i64 t = 0; t < a.window; ++t) {
      i64 from = first + a.low - t * a.dilation, source = floor_div(from, a.stride);
      if (source * a.stride == from) phase.taps.push_back({t, source});
    }
    all.push_back(std::move(phase));
  }
  return all;
}

// Calls body(0), ..., body(n - 1) on several threads.
using Parallel = std::function<void(i64 n, const std::function<void(i64)>& body)>;

// The wanted one of the three from the input or the results, and from the kernel or the results.
using Convolver = void (*)(const Convolution& c, Wanted wanted, const void* from,
                           const void* factors, void* to, bool streams, const Parallel& parallel);

}  // namespace jaxunpool
