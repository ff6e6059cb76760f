// Scatter where windows are large and written elements few: zeros, and then one write per window.
#pragma once
#include <cstring>
#include <limits>
#include <vector>

#include "geometry.h"

namespace jaxunpool {

// Writes rows `first_row` to `end_row` of u, in which whatever windows name is put in raster order of the
// windows: put(target, value). Windows of other rows are visited where they reach into these.
template <typename T, typename O, typename Put>
void scatter_sparse(const Geometry& g, i64 first_row, i64 end_row, const T* y, const O* o, T* u, Put put) {
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  i64 row_length = w.size * g.channels, volume = g.volume();
  std::memset(static_cast<void*>(u + first_row * row_length), 0, (end_row - first_row) * row_length * sizeof(T));
  constexpr i64 NOWHERE = std::numeric_limits<i64>::min();
  // How far from a window's first element its offsets lead, and for a window at a border.
  std::vector<i64> everywhere(volume + 1, NOWHERE), here(volume + 1, NOWHERE);
  auto each_offset = [&](auto f) {
    i64 offset = 0;
    for (i64 a = 0; a < d.window; ++a)
      for (i64 b = 0; b < h.window; ++b)
        for (i64 c = 0; c < w.window; ++c) f(offset++, a * d.dilation, b * h.dilation, c * w.dilation);
  };
  each_offset([&](i64 offset, i64 z, i64 y, i64 x) {
    everywhere[offset] = ((z * h.size + y) * w.size + x) * g.channels;
  });
  // The windows along an axis that have an element from `begin` to `end`.
  auto reaching = [](const Axis& a, i64 begin, i64 end, i64* first, i64* last) {
    *first = std::clamp<i64>(ceil_div(begin + a.low - a.span() + 1, a.stride), 0, a.outputs);
    *last = std::clamp<i64>(floor_div(end - 1 + a.low, a.stride) + 1, *first, a.outputs);
  };
  i64 plane = d.size * h.size;
  for (i64 n = first_row / plane; n * plane < end_row; ++n) {
    i64 begin = std::max<i64>(0, first_row - n * plane), end = std::min(plane, end_row - n * plane);  // of rows
    i64 od0, od1, oh0 = 0, oh1 = h.outputs;
    reaching(d, begin / h.size, (end - 1) / h.size + 1, &od0, &od1);
    if (begin / h.size == (end - 1) / h.size) reaching(h, begin % h.size, (end - 1) % h.size + 1, &oh0, &oh1);
    for (i64 od = od0; od < od1; ++od)
      for (i64 oh = oh0; oh < oh1; ++oh) {
        i64 z = d.position(od, 0), yy = h.position(oh, 0);
        bool inside = z >= 0 && yy >= 0 && z + d.span() <= d.size && yy + h.span() <= h.size &&
                      z * h.size + yy >= begin && (z + d.span() - 1) * h.size + yy + h.span() <= end;
        i64 at = ((n * d.outputs + od) * h.outputs + oh) * w.outputs * g.channels;
        for (i64 ow = 0; ow < w.outputs; ++ow, at += g.channels) {
          i64 x = w.position(ow, 0);
          T* from = u + (((n * d.size + z) * h.size + yy) * w.size + x) * g.channels;
          const i64* distances = everywhere.data();
          if (!inside || x < 0 || x + w.span() > w.size) {
            distances = here.data();
            each_offset([&](i64 offset, i64 dz, i64 dy, i64 dx) {
              i64 row = (z + dz) * h.size + yy + dy;
              bool there = z + dz >= 0 && z + dz < d.size && yy + dy >= 0 && yy + dy < h.size && x + dx >= 0 &&
                           x + dx < w.size && row >= begin && row < end;
              here[offset] = there ? everywhere[offset] : NOWHERE;
            });
          }
          for (i64 c = 0; c < g.channels; ++c) {
            i64 distance = distances[std::min<i64>(o[at + c], volume)];
            if (distance != NOWHERE) put(from[distance + c], y[at + c]);
          }
        }
      }
  }
}

}  // namespace jaxunpool
