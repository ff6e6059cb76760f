// Which windows have the last word on their element.
#pragma once
#include <limits>
#include <vector>

#include "rows.h"

namespace jaxunpool {

// What turns an offset of a byte into its code: its row in the window is offset * by_row / 1024.
struct Digits {
  uint16_t volume, none, by_row, by_layer, row, layer;
};

// The offsets of a row of windows, with those whose element a later window names replaced by one
// that names nothing. Offsets are compared as codes of type C, whose digits leave room for
// differences: a window names the same element as one before it by that one's code less the code of
// their distance.
template <typename C, typename O>
class Winners {
 public:
  using Encode = void (*)(const void* offsets, Extent extent, const Digits& digits, void* codes);
  using Compare = void (*)(const void* codes, const void* offsets, Taps later, Extent extent,
                           void* winners);

  Winners(const Geometry& g, Encode encode, Compare compare)
      : g_(g), encode_(encode), compare_(compare) {
    const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
    pitch_[2] = 1;
    pitch_[1] = 2 * w.window - 1;
    pitch_[0] = pitch_[1] * (2 * h.window - 1);
    for (int i = 0; i < 3; ++i) {
      const Axis& a = g.axes[i];
      i64 most = std::min((a.window - 1) / a.next_taps(), (a.outputs - 1) / a.next());
      most_[i] = most * a.next();
    }
    auto code = [](const Axis& a, i64 windows) { return windows / a.next() * a.next_taps(); };
    for (i64 z = 0; z <= most_[0]; z += d.next())
      for (i64 y = z ? -most_[1] : 0; y <= most_[1]; y += h.next())
        for (i64 x = z || y ? -most_[2] : w.next(); x <= most_[2]; x += w.next())
          neighbours_.push_back(
              {z, y, x * g.channels, code(d, z) * pitch_[0] + code(h, y) * pitch_[1] + code(w, x)});
    for (i64 a = 0; a < d.window; ++a)
      for (i64 b = 0; b < h.window; ++b)
        for (i64 c = 0; c < w.window; ++c) codes_.push_back(C(a * pitch_[0] + b * pitch_[1] + c));
    codes_.push_back(C(2 * largest(g) + 1));  // names nothing: no difference leads to it
    // Exact for all windows whose codes fit a byte. Without rows or layers there is nothing to
    // divide.
    auto reciprocal = [](i64 divisor, i64 quotients) {
      return uint16_t(quotients == 1 ? 0 : (1023 + divisor) / divisor);
    };
    i64 row = w.window, layer = row * h.window;
    digits_ = {uint16_t(g.volume()),
               uint16_t(codes_.back()),
               reciprocal(row, h.window * d.window),
               reciprocal(layer, d.window),
               uint16_t(pitch_[1] - row),
               uint16_t(pitch_[0] - h.window * pitch_[1])};
  }
  // Codes go from 0 to this.
  static i64 largest(const Geometry& g) {
    i64 w = 2 * g.axes[2].window - 1, h = w * (2 * g.axes[1].window - 1);
    return (g.axes[0].window - 1) * h + (g.axes[1].window - 1) * w + g.axes[2].window - 1;
  }
  // Differences go from -largest to 2 * largest, modulo the numbers that C has.
  static bool fits(const Geometry& g) {
    return 3 * largest(g) + 1 < i64(std::numeric_limits<C>::max());
  }

  const O* of_row(const O* o, i64 row, i64 first, i64 last) {
    const Axis &d = g_.axes[0], &h = g_.axes[1], &w = g_.axes[2];
    i64 oh = row % h.outputs, od = row / h.outputs % d.outputs, n = row / h.outputs / d.outputs;
    i64 length = (last - first + 2 * most_[2]) * g_.channels, count = (last - first) * g_.channels;
    // Rows are encoded once if they are held until a later layer's windows ask for them again.
    constexpr i64 CACHE = 1 << 20;
    i64 layers = most_[0] + 1, whole = layers * h.outputs * length * i64(sizeof(C));
    i64 ring = most_[0] && whole <= CACHE ? h.outputs : 2 * most_[1] + 1, slots = layers * ring;
    if (held_.empty()) {
      held_.assign(slots, -1);
      rows_.resize(slots * length);
      winners_.resize(count);
    }
    auto coded = [&](i64 z, i64 y) {
      i64 number = (n * d.outputs + z) * h.outputs + y, slot = z % (most_[0] + 1) * ring + y % ring;
      C* to = rows_.data() + slot * length;
      if (held_[slot] != number) {
        held_[slot] = number;
        i64 a = std::max<i64>(0, first - most_[2]), b = std::min(w.outputs, last + most_[2]);
        i64 before = (a - first + most_[2]) * g_.channels, m = (b - a) * g_.channels;
        std::fill(to, to + before, codes_.back());
        encode(o + (number * w.outputs + a) * g_.channels, m, to + before);
        std::fill(to + before + m, to + length, codes_.back());
      }
      return to + most_[2] * g_.channels;
    };
    const C *here = coded(od, oh), *there = here;
    later_.clear();
    i64 z = 0, y = 0;  // of `there`
    for (const Neighbour& next : neighbours_) {
      if (od + next.z >= d.outputs || oh + next.y < 0 || oh + next.y >= h.outputs) continue;
      if (next.z != z || next.y != y) z = next.z, y = next.y, there = coded(od + z, oh + y);
      later_.emplace_back(there - here + next.distance, next.code);
    }
    const O* own = o + (row * w.outputs + first) * g_.channels;
    compare_(here, own, Taps{later_.data(), int(later_.size())}, Extent{count}, winners_.data());
    return winners_.data();
  }

 private:
  // A later window that shares elements with this one: layers, rows and elements further on, and by
  // how much smaller its code for the same element is.
  struct Neighbour {
    i64 z, y, distance, code;
  };

  void encode(const O* o, i64 count, C* to) const {
    if constexpr (sizeof(C) == 1) {
      encode_(o, Extent{count}, digits_, to);
    } else {
      for (i64 i = 0; i < count; ++i) to[i] = codes_[std::min<i64>(o[i], g_.volume())];
    }
  }

  const Geometry& g_;
  Encode encode_;
  Compare compare_;
  Digits digits_;
  i64 pitch_[3], most_[3];
  std::vector<C> codes_, rows_;
  std::vector<O> winners_;
  std::vector<i64> held_;
  std::vector<Neighbour> neighbours_;
  std::vector<Tap> later_;
};

}  // namespace jaxunpool
