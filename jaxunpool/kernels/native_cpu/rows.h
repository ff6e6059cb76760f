// Cutting rows into runs. A run is the channels of one element or, where channels are few or the
// stride is 1, those of a row of elements; all its results look at the same taps, at the same
// distances.
#pragma once
#include <cstring>
#include <vector>

#include "geometry.h"

namespace jaxunpool {

struct Tap {
  i64 distance;     // from the run's start, in elements
  uint32_t offset;  // that names it
  i64 divisor;      // of its own, in weighted sums

  Tap(i64 distance, i64 offset, i64 divisor = 1)
      : distance(distance), offset(uint32_t(offset)), divisor(divisor) {}
};
struct Taps {
  const Tap* begin;
  int count;
  bool divided = false;  // whether any has a divisor
  const Tap& operator[](int i) const { return begin[i]; }
};

// From here on rows are taken channel by channel, below as a whole.
constexpr i64 MANY_CHANNELS = 16;
// Up to here vectors of the rows of uneven windows hold all channels, if rows have so many bytes.
constexpr i64 FEW_CHANNELS = 4, NARROW_BYTES = 16;

// Rows of few channels, written by vectors of `lanes` neighbours, which belong to several windows.
// The elements from one window to the next are a period. For each place in it where a vector may
// begin, a table has which elements its lanes read, counted from those of the first lane's window,
// and then, for windows before the lane's own, the furthest first, by which offset they name it.
class Spread {
 public:
  // Empty where rows are not written so. `lanes`: 0 where the kernel has no such vectors.
  Spread(const Geometry& g, i64 lanes)
      : lanes_(lanes), channels_(g.channels), total_(g.n * g.pooled() * g.channels) {
    const Axis& w = g.axes[2];
    if (!fits(g, lanes) || total_ < lanes || w.size * channels_ < lanes) return;
    period_ = w.stride * channels_, shifts_ = ceil_div(w.window, w.stride);
    table_.reserve(period_ * lanes * (1 + shifts_));
    std::vector<i64> taps(lanes);
    for (i64 start = 0; start < period_; ++start) {
      i64 window = 0, tap = start / channels_, channel = start % channels_;
      for (i64& first : taps) {
        table_.push_back(uint16_t(window * channels_ + channel));
        first = tap;
        if (++channel < channels_) continue;
        channel = 0;
        if (++tap == w.stride) tap = 0, ++window;
      }
      for (i64 shift = shifts_ - 1; shift >= 0; --shift)
        for (i64 first : taps) {
          i64 named = first + shift * w.stride;
          table_.push_back(named < w.window ? uint16_t(named) : NONE);
        }
    }
  }
  // Whether all that a vector reads is in one vector.
  static bool fits(const Geometry& g, i64 lanes) {
    const Axis& w = g.axes[2];
    constexpr i64 LONGEST = 64;
    if (!lanes || g.channels >= MANY_CHANNELS || w.stride == 1 || w.dilation > 1) return false;
    if (w.stride > LONGEST / std::max<i64>(1, g.channels) || w.window > 255) return false;
    for (i64 last = lanes - 1, period = w.stride * g.channels, end = last + period; last < end;
         ++last)
      if (last / period * g.channels + std::min(last % period, g.channels - 1) >= lanes)
        return false;
    return true;
  }
  bool covers(i64 length) const { return period_ && length >= lanes_; }
  i64 period() const { return period_; }
  i64 channels() const { return channels_; }
  i64 shifts() const { return shifts_; }
  i64 total() const { return total_; }
  const uint16_t* at(i64 start) const { return table_.data() + start * lanes_ * (1 + shifts_); }

 private:
  static constexpr uint16_t NONE = 0x8000;  // no offset of a byte, whatever row is added
  i64 lanes_, channels_, total_, period_ = 0, shifts_ = 0;
  std::vector<uint16_t> table_;
};

// Runs alike: of so many results each, so many of them, and how far it is from one to the next in
// what is read and in what is written. With `spread` it is a part of a row, of which the first
// result is at `start` in a period; taps are then the windows of each row that the first result may
// be in.
struct Extent {
  i64 length;
  bool streams = false;  // whether results go past the caches
  i64 count = 1, from = 0, to = 0;
  const Spread* spread = nullptr;
  i64 start = 0;

  i64 size() const { return length * count; }
  template <typename F>
  INLINE void each(F f) const {  // f(where it is read, where it is written)
    for (i64 run = 0; run < count; ++run)
      for (i64 i = 0; i < length; ++i) f(run * from + i, run * to + i);
  }
};

// What a task keeps from row to row. Rows of the input in phases (every `stride`th element) are
// made once and stay in the slot of their number.
struct Scratch {
  std::vector<Tap> rows, taps;
  std::vector<char> bytes;
  std::vector<i64> held;

  Taps list() const { return {taps.data(), int(taps.size())}; }
};

// STRIDE: where it is known, in elements, and that the copies are side by side. MOVED: so many
// bytes at once, where what is beyond an element is written over by the next.
template <int BYTES, i64 STRIDE = 0, int MOVED = BYTES>
void copy_elements(char* to, i64 to_step, const char* from, i64 from_step, i64 count) {
  if (STRIDE) from_step = STRIDE * BYTES, to_step = BYTES;
  i64 i = 0;
  if (MOVED > BYTES)
    for (; i + 1 < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, MOVED);
  for (; i < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, BYTES);
}
// Elements of so many bytes, all channels of them; `steps` are in bytes too.
inline void copy_every(char* to, i64 to_step, const char* from, i64 from_step, i64 count,
                       i64 bytes) {
  bool packed = to_step == bytes, every_second = packed && from_step == 2 * bytes;
  switch (bytes) {
    case 1:
      return (every_second ? copy_elements<1, 2> : copy_elements<1>)(to, to_step, from, from_step,
                                                                     count);
    case 2:
      return (every_second ? copy_elements<2, 2> : copy_elements<2>)(to, to_step, from, from_step,
                                                                     count);
    case 4:
      return (every_second ? copy_elements<4, 2> : copy_elements<4>)(to, to_step, from, from_step,
                                                                     count);
    case 3:
      return (packed ? copy_elements<3, 0, 4> : copy_elements<3>)(to, to_step, from, from_step,
                                                                  count);
    case 6:
      return (packed ? copy_elements<6, 0, 8> : copy_elements<6>)(to, to_step, from, from_step,
                                                                  count);
    case 8:
      return copy_elements<8>(to, to_step, from, from_step, count);
    case 12:
      return (packed ? copy_elements<12, 0, 16> : copy_elements<12>)(to, to_step, from, from_step,
                                                                     count);
    case 16:
      return copy_elements<16>(to, to_step, from, from_step, count);
    default:
      for (i64 i = 0; i < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, bytes);
  }
}

// Windows that read. Calls run(source, taps, first window, extent) for parts of a row of windows,
// of elements of `bytes` bytes; the windows of a part see the same taps, at distances from the
// first one.
template <typename Run>
void read_row(const Geometry& g, const char* x, i64 bytes, i64 row, i64 first, i64 last, Scratch& s,
              Run run) {
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  i64 oh = row % h.outputs, od = row / h.outputs % d.outputs, n = row / h.outputs / d.outputs;
  bool cover = g.weighting == COVER, only_last = g.weighting == LAST;
  s.rows.clear();  // the rows of x that the windows reach, by their numbers
  for (i64 a = d.first_tap(od); a < d.end_tap(od); ++a)
    for (i64 b = h.first_tap(oh); b < h.end_tap(oh); ++b) {
      if (only_last && !(d.is_last(od, a) && h.is_last(oh, b))) continue;
      i64 divisor = cover ? d.covers(d.position(od, a)) * h.covers(h.position(oh, b)) : 1;
      s.rows.emplace_back((n * d.size + d.position(od, a)) * h.size + h.position(oh, b),
                          (a * h.window + b) * w.window, divisor);
    }
  auto find_taps = [&](i64 o, i64 begin, i64 end) {  // of window o
    s.taps.clear();
    for (const Tap& r : s.rows)
      for (i64 c = begin; c < end; ++c) {
        if (only_last && !w.is_last(o, c)) continue;
        i64 divisor = cover ? r.divisor * w.covers(w.position(o, c)) : 1;
        i64 distance = (r.distance * w.size + w.position(o, c)) * g.channels;
        s.taps.emplace_back(distance, r.offset + c, divisor);
      }
  };
  auto one_by_one = [&](i64 begin, i64 end) {
    for (i64 o = begin; o < end; ++o) {
      find_taps(o, w.first_tap(o), w.end_tap(o));
      run(x, Taps{s.taps.data(), int(s.taps.size()), cover}, o, Extent{g.channels, g.streams});
    }
  };
  if (cover || only_last) return one_by_one(first, last);
  i64 begin = std::min(last, std::max(first, w.interior_begin()));
  i64 end = std::max(begin, std::min(last, w.interior_end()));
  one_by_one(first, begin);
  one_by_one(end, last);
  if (begin == end) return;
  bool by_channels =
      g.channels >= MANY_CHANNELS || std::max({d.dilation, h.dilation, w.dilation}) > 1;
  if (w.stride == 1 || by_channels) {
    find_taps(begin, 0, w.window);
    if (w.stride == 1)
      return run(x, s.list(), begin, Extent{(end - begin) * g.channels, g.streams});
    i64 step = w.stride * g.channels;
    return run(x, s.list(), begin, Extent{g.channels, g.streams, end - begin, step, g.channels});
  }
  // Few channels: in phases the elements of a tap are next to each other.
  i64 width = last - first + (w.window - 1) / w.stride, phases = std::min(w.stride, w.window);
  i64 length = phases * width * g.channels;
  i64 deep = std::min(d.window, d.size), high = std::min(h.window, h.size);  // of the rows to hold
  if (s.held.empty()) {
    s.held.assign(deep * high, -1);
    s.bytes.resize(s.held.size() * length * bytes);
  }
  s.taps.clear();
  for (const Tap& r : s.rows) {
    i64 number = r.distance, slot = number / h.size % d.size % deep * high + number % h.size % high;
    if (s.held[slot] != number) {
      s.held[slot] = number;
      for (i64 phase = 0; phase < phases; ++phase) {
        i64 at = w.position(first, phase), a = std::max<i64>(0, ceil_div(-at, w.stride));
        i64 b = std::min(width, floor_div(w.size - 1 - at, w.stride) + 1),
            element = g.channels * bytes;
        copy_every(s.bytes.data() + (slot * length + (phase * width + a) * g.channels) * bytes,
                   element, x + (number * w.size + at + a * w.stride) * element, w.stride * element,
                   b - a, element);
      }
    }
    for (i64 c = 0; c < w.window; ++c) {
      i64 at = c % w.stride * width + c / w.stride + begin - first;
      s.taps.emplace_back(slot * length + at * g.channels, r.offset + c);
    }
  }
  run(static_cast<const char*>(s.bytes.data()), s.list(), begin,
      Extent{(end - begin) * g.channels, g.streams});
}

// Rows of windows where they are.
inline auto in_place(const Geometry& g) {
  return [outputs = g.axes[2].outputs](i64, i64, i64 number) { return number * outputs; };
}

// Windows that write. Calls write(taps, extent, to) for parts of a row of u, of elements of `bytes`
// bytes: their taps are in raster order. `find(od, oh, number)`: where window 0 of a row of windows
// is, counted in windows.
template <typename Find, typename Write>
void write_row(const Geometry& g, char* u, i64 bytes, i64 row, i64 first, i64 last, Scratch& s,
               const Spread& spread, Find find, Write write) {
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  i64 y = row % h.size, z = row / h.size % d.size, n = row / h.size / d.size,
      element = g.channels * bytes;
  char* to = u + row * w.size * element;
  s.rows.clear();  // the rows of windows that have an element in this row
  d.covering(z, [&](i64 od, i64 a) {
    h.covering(y, [&](i64 oh, i64 b) {
      i64 number = (n * d.outputs + od) * h.outputs + oh;
      s.rows.emplace_back(find(od, oh, number), (a * h.window + b) * w.window);
    });
  });
  auto find_taps = [&](i64 x) {  // of element x
    s.taps.clear();
    for (const Tap& r : s.rows)
      w.covering(x, [&](i64 o, i64 c) {
        s.taps.emplace_back((r.distance + o) * g.channels, r.offset + c);
      });
  };
  auto one_by_one = [&](i64 begin, i64 end) {
    for (i64 x = begin; x < end; ++x) {
      find_taps(x);
      write(s.list(), Extent{g.channels, g.streams}, to + x * element);
    }
  };
  i64 begin = std::min(last, std::max(first, w.covered_begin()));
  i64 end = std::max(begin, std::min(last, w.covered_end()));
  one_by_one(first, begin);
  one_by_one(end, last);
  if (i64 length = (end - begin) * g.channels; spread.covers(length)) {
    i64 o = (begin + w.low) / w.stride, start = (begin + w.low) % w.stride * g.channels;
    s.taps.clear();
    for (const Tap& r : s.rows)
      for (i64 shift = spread.shifts() - 1; shift >= 0; --shift)
        s.taps.emplace_back((r.distance + o - shift) * g.channels, r.offset);
    return write(s.list(), Extent{length, g.streams, 1, 0, 0, &spread, start},
                 to + begin * element);
  }
  for (i64 x = begin; x < std::min(begin + w.stride, end); ++x) {  // and every `stride`th after it
    i64 count = ceil_div(end - x, w.stride);
    find_taps(x);
    if (w.stride == 1) {
      write(s.list(), Extent{count * g.channels, g.streams}, to + x * element);
    } else if (g.channels >= MANY_CHANNELS) {
      write(s.list(), Extent{g.channels, g.streams, count, g.channels, w.stride * g.channels},
            to + x * element);
    } else {
      s.bytes.resize(count * element);
      write(s.list(), Extent{count * g.channels}, s.bytes.data());
      copy_every(to + x * element, w.stride * element, s.bytes.data(), element, count, element);
    }
  }
}

}  // namespace jaxunpool
