// Where windows are large and named elements few: offsets are followed, one element for each.
#pragma once
#include <cstring>
#include <limits>
#include <vector>

#include "geometry.h"

namespace jaxunpool {

// Positions of windows that lie outside may be beyond all numbers: they wrap around, unused.
using u64 = uint64_t;

constexpr i64 NOWHERE = std::numeric_limits<i64>::min();

// Where the offsets of a window lead, in elements from the window's first one. A table has an entry
// for each offset and one for those that name nothing.
class Distances {
 public:
  explicit Distances(const Geometry& g)
      : g_(g), everywhere_(g.volume() + 1, NOWHERE), row_(everywhere_), window_(everywhere_) {
    const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
    i64 offset = 0;
    for (i64 a = 0; a < d.window; ++a)
      for (i64 b = 0; b < h.window; ++b)
        for (i64 c = 0; c < w.window; ++c)
          everywhere_[offset++] =
              i64(((a * u64(d.dilation) * h.size + b * u64(h.dilation)) * w.size +
                   c * u64(w.dilation)) *
                  g.channels);
  }

  // A row of windows, of which the rows of elements from `begin` to `end` count.
  void enter_row(i64 n, i64 od, i64 oh, i64 begin, i64 end) {
    const Axis &d = g_.axes[0], &h = g_.axes[1];
    i64 z = d.position(od, 0), y = h.position(oh, 0);
    first_ = ((u64(n) * d.size + z) * h.size + y) * g_.axes[2].size;
    inside_ = z >= 0 && y >= 0 && z + d.span() <= d.size && y + h.span() <= h.size &&
              z * h.size + y >= begin && (z + d.span() - 1) * h.size + y + h.span() <= end;
    if (inside_) return;
    i64 offset = 0;
    for (i64 a = 0; a < d.window; ++a)
      for (i64 b = 0; b < h.window; ++b) {
        i64 tz = z + a * d.dilation, ty = y + b * h.dilation, row = tz * h.size + ty;
        bool there = tz >= 0 && tz < d.size && ty >= 0 && ty < h.size && row >= begin && row < end;
        for (i64 c = 0; c < g_.axes[2].window; ++c, ++offset)
          row_[offset] = there ? everywhere_[offset] : NOWHERE;
      }
  }
  // Calls window(start, table) for the windows `begin` to `end` of the row, or from the last one
  // `BACK`: where each begins, in elements, and where its offsets lead from there.
  template <bool BACK = false, typename Window>
  INLINE void windows(i64 begin, i64 end, Window window) {
    const Axis& w = g_.axes[2];
    const std::vector<i64>& table = inside_ ? everywhere_ : row_;
    i64 first = std::min(end, std::max(begin, w.interior_begin())),
        last = std::max(first, std::min(end, w.interior_end()));
    auto border = [&](i64 from, i64 to) {
      for (i64 k = from; k < to; ++k) {
        i64 ow = BACK ? from + to - 1 - k : k;
        window(start(ow), of_border(ow, table));
      }
    };
    if (BACK)
      border(last, end);
    else
      border(begin, first);
    for (i64 k = first; k < last; ++k) window(start(BACK ? first + last - 1 - k : k), table.data());
    if (BACK)
      border(begin, first);
    else
      border(last, end);
  }

 private:
  u64 start(i64 ow) const { return (first_ + g_.axes[2].position(ow, 0)) * g_.channels; }
  const i64* of_border(i64 ow, const std::vector<i64>& table) {
    const Axis& w = g_.axes[2];
    i64 x = w.position(ow, 0);
    for (i64 c = 0; c < w.window; ++c) {
      bool there = x + c * w.dilation >= 0 && x + c * w.dilation < w.size;
      for (i64 offset = c; offset < g_.volume(); offset += w.window)
        window_[offset] = there ? table[offset] : NOWHERE;
    }
    return window_.data();
  }

  const Geometry& g_;
  std::vector<i64> everywhere_, row_, window_;
  u64 first_ = 0;
  bool inside_ = true;
};

// An element of an array, or what stands for nowhere. Chosen by arithmetic: which it is cannot be
// predicted where windows are cut or lose, and a wrong guess takes longer than a load.
template <typename T>
INLINE T& element(T* array, u64 at, bool there, T& nowhere) {
  uintptr_t mask = -uintptr_t(there),
            address = reinterpret_cast<uintptr_t>(array) + uintptr_t(at) * sizeof(T);
  return *reinterpret_cast<T*>((address & mask) | (reinterpret_cast<uintptr_t>(&nowhere) & ~mask));
}

// Writes rows `first_row` to `end_row` of u: what windows name, in raster order of the windows:
// put(target, value), and zeros before, just ahead of the windows, so that these find them in
// caches. Windows of other rows are visited where they reach into these.
template <typename T, typename O, typename Put>
void scatter_sparse(const Geometry& g, i64 first_row, i64 end_row, const T* y, const O* o, T* u,
                    Put put) {
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  i64 row_length = w.size * g.channels, volume = g.volume(), plane = d.size * h.size;
  i64 cleared = first_row;
  auto clear_to = [&](i64 row) {
    if (row <= cleared) return;
    std::memset(static_cast<void*>(u + cleared * row_length), 0,
                (row - cleared) * row_length * sizeof(T));
    cleared = row;
  };
  Distances distances(g);
  for (i64 n = first_row / plane; n * plane < end_row; ++n) {
    i64 begin = std::max<i64>(0, first_row - n * plane), end = std::min(plane, end_row - n * plane);
    i64 z0 = begin / h.size, z1 = (end - 1) / h.size + 1;
    auto [od0, od1] = d.reaching(z0, z1);
    auto [oh0, oh1] =
        z1 - z0 > 1 ? h.reaching(0, h.size) : h.reaching(begin % h.size, (end - 1) % h.size + 1);
    for (i64 od = od0; od < od1; ++od)
      for (i64 oh = oh0; oh < oh1; ++oh) {
        distances.enter_row(n, od, oh, begin, end);
        i64 z = d.position(od, 0) + d.span(), y_end = h.position(oh, 0) + h.span();
        clear_to(n * plane +
                 std::min(end, (std::min(d.size, z) - 1) * h.size + std::min(h.size, y_end)));
        i64 at = ((n * d.outputs + od) * h.outputs + oh) * w.outputs * g.channels;
        T nowhere{};
        distances.windows(0, w.outputs, [&](u64 start, const i64* table) {
          for (i64 c = 0; c < g.channels; ++c, ++at) {
            i64 distance = table[std::min<i64>(o[at], volume)];
            put(element(u, start + distance + c, distance != NOWHERE, nowhere), y[at]);
          }
        });
      }
    clear_to(n * plane + end);
  }
}

// The windows `begin` to `end` of a row, from their offsets on. `MOST_NAME`: nearly every one names
// an element, which can be predicted.
template <bool MOST_NAME, typename B, typename O>
void gather_sparse(const Geometry& g, Distances& distances, i64 row, i64 begin, i64 end, const B* u,
                   const O* named, B* y) {
  const Axis &d = g.axes[0], &h = g.axes[1];
  i64 oh = row % h.outputs, od = row / h.outputs % d.outputs, volume = g.volume();
  distances.enter_row(row / h.outputs / d.outputs, od, oh, 0, d.size * h.size);
  const B zero{};
  distances.windows(begin, end, [&](u64 start, const i64* table) {
    for (i64 c = 0; c < g.channels; ++c, ++named, ++y) {
      i64 distance = table[std::min<i64>(*named, volume)];
      if (MOST_NAME)
        *y = distance == NOWHERE ? zero : u[start + distance + c];
      else
        *y = element(u, start + distance + c, distance != NOWHERE, zero);
    }
  });
}

// How many rows of windows after one of them may share elements with it.
inline i64 rows_that_meet(const Geometry& g) {
  return g.axes[0].windows_that_meet() * g.axes[1].outputs + g.axes[1].windows_that_meet();
}

// Rows `first_row` to `end_row` of windows: what each window names, or zero where a later one names
// the same. Windows are visited from the last one back, and mark what they name; those of later
// rows come first, as far as they meet these.
template <typename B, typename O>
void gather_last_sparse(const Geometry& g, i64 first_row, i64 end_row, const B* u, const O* o,
                        B* y) {
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  const i64 rows = d.outputs * h.outputs, row_length = w.size * g.channels, volume = g.volume();
  const i64 length = w.outputs * g.channels;
  Distances distances(g);
  std::vector<uint8_t> marks;
  for (i64 n = first_row / rows; n * rows < end_row; ++n) {
    const i64 begin = std::max<i64>(0, first_row - n * rows),
              end = std::min(rows, end_row - n * rows);
    const i64 last = std::min(rows, end + rows_that_meet(g)) - 1;
    // The rows of elements that these windows reach.
    const i64 z = begin / h.outputs, z_last = last / h.outputs;
    i64 low = std::clamp<i64>(d.position(z, 0), 0, d.size) * h.size,
        high = std::clamp<i64>(d.position(z_last, d.window - 1) + 1, 0, d.size) * h.size;
    if (d.size == 1 && z == z_last) {
      low = std::clamp<i64>(h.position(begin % h.outputs, 0), 0, h.size);
      high = std::clamp<i64>(h.position(last % h.outputs, h.window - 1) + 1, 0, h.size);
    }
    const u64 base = u64(n * d.size * h.size + low) * row_length;
    // The first mark is for windows that name nothing: as if one had named it before.
    marks.assign(std::max<i64>(0, high - low) * row_length + 1, 0);
    marks[0] = 1;
    for (i64 row = last; row >= begin; --row) {
      distances.enter_row(n, row / h.outputs, row % h.outputs, 0, d.size * h.size);
      const bool wanted = row < end;
      i64 at = ((n * rows + row) + 1) * length;
      distances.template windows<true>(0, w.outputs, [&](u64 start, const i64* table) {
        at -= g.channels;
        for (i64 c = 0; c < g.channels; ++c) {
          const i64 distance = table[std::min<i64>(o[at + c], volume)];
          const bool there = distance != NOWHERE;
          const u64 element = there ? start + distance + c - base : 0;
          uint8_t& mark = marks[there ? element + 1 : 0];
          if (wanted) y[at + c] = mark ? B(0) : u[base + element];
          mark = 1;
        }
      });
    }
  }
}

}  // namespace jaxunpool
