// Scatter where windows are large and written elements few: zeros, and then one write per window.
#pragma once
#include <cstring>
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
  struct Target {
    i64 z, y, x, distance;  // of an offset: the steps from its window's first element
  };
  std::vector<Target> targets;
  for (i64 a = 0; a < d.window; ++a)
    for (i64 b = 0; b < h.window; ++b)
      for (i64 c = 0; c < w.window; ++c) {
        i64 z = a * d.dilation, y = b * h.dilation, x = c * w.dilation;
        targets.push_back({z, y, x, ((z * h.size + y) * w.size + x) * g.channels});
      }
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
          if (inside && x >= 0 && x + w.span() <= w.size) {
            for (i64 c = 0; c < g.channels; ++c)
              if (i64(o[at + c]) < volume) put(from[targets[o[at + c]].distance + c], y[at + c]);
            continue;
          }
          for (i64 c = 0; c < g.channels; ++c) {
            if (i64(o[at + c]) >= volume) continue;
            const Target& t = targets[o[at + c]];
            i64 row = (z + t.z) * h.size + yy + t.y;
            bool there = z + t.z >= 0 && z + t.z < d.size && yy + t.y >= 0 && yy + t.y < h.size && x + t.x >= 0 &&
                         x + t.x < w.size && row >= begin && row < end;
            if (there) put(from[t.distance + c], y[at + c]);
          }
        }
      }
  }
}

}  // namespace jaxunpool
