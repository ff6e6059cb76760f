// Windows along the spatial axes, and the arithmetic of their borders (jaxunpool/core/geometry.py).
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>

namespace jaxunpool {

using i64 = int64_t;
#define INLINE inline __attribute__((always_inline))

enum Weighting : i64 { SUM, MEAN, MEAN_INSIDE, COVER, LAST };

// Divisors are strides and dilations, seldom others than 1 and 2, and division is slow.
INLINE i64 floor_div(i64 a, i64 b) {
  if (b == 1) return a;
  if (b == 2) return a >> 1;
  return a / b - (a % b < 0);
}
INLINE i64 ceil_div(i64 a, i64 b) { return -floor_div(-a, b); }

// One spatial axis. Element `tap` of window `o` is at `position(o, tap)`; outside the size is
// padding.
struct Axis {
  i64 size, outputs, window, stride, dilation, low, high;

  i64 span() const { return (window - 1) * dilation + 1; }
  i64 position(i64 o, i64 tap) const { return o * stride - low + tap * dilation; }

  // The taps of a window that are no padding.
  i64 first_tap(i64 o) const {
    return std::min(window, ceil_div(std::max<i64>(0, -position(o, 0)), dilation));
  }
  i64 end_tap(i64 o) const {
    return std::max(first_tap(o), std::min(window, ceil_div(size - position(o, 0), dilation)));
  }
  // The windows that hold no padding.
  i64 interior_begin() const { return ceil_div(low, stride); }
  i64 interior_end() const { return floor_div(size - span() + low, stride) + 1; }
  // The elements that no missing window would cover.
  i64 covered_begin() const { return std::max<i64>(0, span() - low - stride); }
  i64 covered_end() const { return std::min(size, outputs * stride - low); }

  // Elements of a window that are in the input, or in it and its padding; never an overhang.
  i64 count(i64 o, bool padded) const {
    i64 stop = size + (padded ? high : 0) - position(o, 0);
    return std::max<i64>(0,
                         std::min(window, ceil_div(stop, dilation)) - (padded ? 0 : first_tap(o)));
  }
  // How many windows after one of them may share elements with it.
  i64 windows_that_meet() const {
    return std::clamp<i64>((span() - 1) / stride, 0, std::max<i64>(0, outputs - 1));
  }
  // The windows that reach positions from `begin` to `end`: the first, and the one after the last.
  std::pair<i64, i64> reaching(i64 begin, i64 end) const {
    i64 first = std::clamp<i64>(ceil_div(begin + low - span() + 1, stride), 0, outputs);
    return {first, std::clamp<i64>(floor_div(end - 1 + low, stride) + 1, first, outputs)};
  }
  // Calls f(window, tap) for the windows that have an element at a position, in order.
  template <typename F>
  void covering(i64 p, F f) const {
    auto [begin, end] = reaching(p, p + 1);
    for (i64 o = begin; o < end; ++o) {
      i64 distance = p - position(o, 0), tap = floor_div(distance, dilation);
      if (tap * dilation == distance) f(o, tap);
    }
  }
  i64 covers(i64 p) const {
    i64 n = 0;
    covering(p, [&](i64, i64) { ++n; });
    return n;
  }
  // From one window to the next that can share an element with it, and how many taps further back
  // the element is there.
  i64 next() const { return dilation / std::gcd(dilation, stride); }
  i64 next_taps() const { return next() * stride / dilation; }
  bool overlaps() const { return next_taps() < window && next() < outputs; }
  // Whether no later window has this element of a window.
  bool is_last(i64 o, i64 tap) const { return tap < next_taps() || o + next() >= outputs; }
};

// Arrays are (n, axes[0].size, axes[1].size, axes[2].size, channels): fewer spatial axes have
// leading ones of size 1, and channels first is one channel with the channels in n.
struct Geometry {
  i64 n, channels;
  Axis axes[3];
  Weighting weighting = SUM;
  bool streams = false;  // whether results are so large that they go past the caches

  // Elements of a plane, where there are planes: else the product may overflow.
  i64 unpooled() const { return n && channels ? axes[0].size * axes[1].size * axes[2].size : 0; }
  i64 pooled() const {
    return n && channels ? axes[0].outputs * axes[1].outputs * axes[2].outputs : 0;
  }
  // Elements from one window to the next; many are as good as more.
  i64 cell() const {
    i64 elements = 1;
    for (const Axis& a : axes) elements *= std::min<i64>(a.stride, 1000);
    return elements;
  }
  i64 volume() const { return axes[0].window * axes[1].window * axes[2].window; }
  bool overlaps() const { return axes[0].overlaps() || axes[1].overlaps() || axes[2].overlaps(); }
};

}  // namespace jaxunpool
