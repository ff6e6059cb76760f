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
// result is at `start` in a period, and so many elements of the array are before what is read; taps
// are then the windows of each row that the first result may be in.
struct Extent {
  i64 length;
  bool streams = false;  // whether results go past the caches
  i64 count = 1, from = 0, to = 0;
  const Spread* spread = nullptr;
  i64 start = 0, before = 0;

  i64 size() const { return length * count; }
  template <typename F>
  INLINE void each(F f) const {  // f(where it is read, where it is written)
    for (i64 run = 0; run < count; ++run)
      for (i64 i = 0; i < length; ++i) f(run * from + i, run * to + i);
  }
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

// What a row of windows, or of elements, does: parts of it, each of results that look at the same
// taps. Taps are counted from the first of the rows that it reads, so that rows alike have one
// plan.
struct Plan {
  struct Row {
    i64 number, offset, divisor = 1, slot = 0;
  };
  struct Part {
    i64 first;         // of the row's results
    int begin, count;  // of its taps
    Extent extent;
    bool apart = false;  // whether it reads rows in phases, or writes results side by side first
  };
  std::vector<Row> rows;
  std::vector<Tap> taps;
  std::vector<Part> parts;
  bool made = false;

  i64 size() const { return i64(rows.size() + taps.size() + parts.size()); }
  void add(i64 first, size_t begin, Extent extent, bool apart = false) {
    parts.push_back({first, int(begin), int(taps.size() - begin), extent, apart});
  }
};

// Which rows along an axis are alike: from `begin` to `end` every `period`th, and no other.
struct Kinds {
  i64 begin, end, period, size;

  Kinds(i64 first, i64 last, i64 period, i64 size)
      : begin(std::clamp<i64>(first, 0, size)),
        end(std::clamp(last, begin, size)),
        period(period),
        size(size) {}
  i64 between() const { return std::min(period, end - begin); }
  i64 count() const { return size - (end - begin) + between(); }
  bool are_between(i64 i) const { return begin <= i && i < end; }
  i64 of(i64 i) const {
    if (i < begin) return i;
    return i < end ? begin + (i - begin) % period : i - end + begin + between();
  }
};

// The plans of a task, each made when a row first asks for it. One that is too large to keep is
// carried out part by part while it is made.
class Plans {
 public:
  Plans(const Kinds& layers, const Kinds& rows, bool keeps) : layers_(layers), rows_(rows) {
    if (keeps && layers.count() <= MANY && rows.count() <= MANY / layers.count())
      plans_.resize(layers.count() * rows.count());
  }
  // make(plan, added) makes a plan, and calls added() after each part; perform(plan) carries out
  // the parts that it has.
  template <typename Make, typename Perform>
  void perform(i64 layer, i64 row, Make make, Perform perform) {
    bool keeps = !plans_.empty();
    Plan& plan = keeps ? plans_[layers_.of(layer) * rows_.count() + rows_.of(row)] : rest_;
    if (plan.made) return perform(plan);
    // Half of the room is for rows between the borders, of which there are many.
    const i64 room =
        (layers_.are_between(layer) && rows_.are_between(row) ? MOST : MOST / 2) - kept_;
    plan.rows.clear();
    make(plan, [&] {
      if (keeps && plan.size() <= room) return;
      keeps = false;
      perform(plan);
      plan.taps.clear(), plan.parts.clear();
    });
    if (!keeps) return;
    perform(plan);
    kept_ += plan.size();
    plan.made = true;
  }

 private:
  static constexpr i64 MANY = 4096, MOST = 1 << 18;
  Kinds layers_, rows_;
  std::vector<Plan> plans_;
  Plan rest_;
  i64 kept_ = 0;  // rows, taps and parts
};

// Rows of windows that read, or parts of them from window `first` to `last`; elements have `bytes`
// bytes.
class ReadRows {
 public:
  ReadRows(const Geometry& g, i64 bytes, i64 first, i64 last)
      : g_(g), bytes_(bytes), first_(first), last_(last), plans_(plans(g)) {
    const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
    if (!in_phases(g)) return;
    width_ = last - first + (w.window - 1) / w.stride, phases_ = std::min(w.stride, w.window);
    deep_ = std::min(d.window, d.size), high_ = std::min(h.window, h.size);
  }
  // Another array.
  void start(const char* x) {
    x_ = x;
    held_.assign(held_.size(), -1);
  }
  // Calls run(source, taps, first window, extent) for parts of a row. The windows of a part see the
  // same taps, at distances from the first one.
  template <typename Run>
  void row(i64 row, Run run) {
    const Axis &d = g_.axes[0], &h = g_.axes[1], &w = g_.axes[2];
    i64 oh = row % h.outputs, od = row / h.outputs % d.outputs, n = row / h.outputs / d.outputs;
    auto perform = [&](const Plan& plan) {
      i64 begin = plan.rows.empty() ? 0 : (n * d.size + start_of(d, od)) * h.size + start_of(h, oh);
      for (const Plan::Part& part : plan.parts) {
        const char* from = x_ + begin * w.size * g_.channels * bytes_;
        if (part.apart) {
          for (const Plan::Row& r : plan.rows) hold(begin + r.number);
          from = held_bytes_.data();
        }
        Taps taps{plan.taps.data() + part.begin, part.count, g_.weighting == COVER};
        run(from, taps, part.first, part.extent);
      }
    };
    plans_.perform(od, oh, [&](Plan& plan, auto added) { make(od, oh, plan, added); }, perform);
  }

 private:
  // Of a row of few channels every `stride`th element, so that those of a tap are next to each
  // other. Rows of the input are taken apart once and stay in the slot of their number.
  static bool in_phases(const Geometry& g) {
    const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
    bool one_by_one = g.weighting == COVER || g.weighting == LAST;
    return !one_by_one && w.stride > 1 && g.channels < MANY_CHANNELS &&
           std::max({d.dilation, h.dilation, w.dilation}) == 1;
  }
  static Plans plans(const Geometry& g) {
    auto kinds = [&](const Axis& a) {
      i64 period = in_phases(g) ? std::max<i64>(1, std::min(a.window, a.size)) : 1;
      return Kinds(a.interior_begin(), a.interior_end(), period, a.outputs);
    };
    // Divisors, and which window is the last, depend on more than the window itself.
    bool keeps = g.weighting != COVER && g.weighting != LAST;
    return Plans(kinds(g.axes[0]), kinds(g.axes[1]), keeps);
  }
  static i64 start_of(const Axis& a, i64 o) { return a.position(o, a.first_tap(o)); }
  i64 slot(i64 number) const {
    const Axis &d = g_.axes[0], &h = g_.axes[1];
    return number / h.size % d.size % deep_ * high_ + number % h.size % high_;
  }
  void hold(i64 number) {
    const Axis& w = g_.axes[2];
    i64 length = phases_ * width_ * g_.channels, at_slot = slot(number);
    if (held_.empty()) {
      held_.assign(deep_ * high_, -1);
      held_bytes_.resize(i64(held_.size()) * length * bytes_);
    }
    if (held_[at_slot] == number) return;
    held_[at_slot] = number;
    for (i64 phase = 0; phase < phases_; ++phase) {
      i64 at = w.position(first_, phase), a = std::max<i64>(0, ceil_div(-at, w.stride));
      i64 b = std::min(width_, floor_div(w.size - 1 - at, w.stride) + 1),
          element = g_.channels * bytes_;
      copy_every(
          held_bytes_.data() + (at_slot * length + (phase * width_ + a) * g_.channels) * bytes_,
          element, x_ + (number * w.size + at + a * w.stride) * element, w.stride * element, b - a,
          element);
    }
  }

  template <typename Added>
  void make(i64 od, i64 oh, Plan& plan, Added added) const {
    const Axis &d = g_.axes[0], &h = g_.axes[1], &w = g_.axes[2];
    bool cover = g_.weighting == COVER, only_last = g_.weighting == LAST;
    for (i64 a = d.first_tap(od); a < d.end_tap(od); ++a)
      for (i64 b = h.first_tap(oh); b < h.end_tap(oh); ++b) {
        if (only_last && !(d.is_last(od, a) && h.is_last(oh, b))) continue;
        i64 divisor = cover ? d.covers(d.position(od, a)) * h.covers(h.position(oh, b)) : 1;
        i64 z = d.position(od, a) - start_of(d, od), y = h.position(oh, b) - start_of(h, oh);
        plan.rows.push_back({z * h.size + y, (a * h.window + b) * w.window, divisor});
      }
    auto add = [&](i64 o, i64 first_tap, i64 end_tap, Extent extent) {
      size_t begin = plan.taps.size();
      for (const Plan::Row& r : plan.rows)
        for (i64 c = first_tap; c < end_tap; ++c) {
          if (only_last && !w.is_last(o, c)) continue;
          i64 divisor = cover ? r.divisor * w.covers(w.position(o, c)) : 1;
          i64 distance = (r.number * w.size + w.position(o, c)) * g_.channels;
          plan.taps.emplace_back(distance, r.offset + c, divisor);
        }
      plan.add(o, begin, extent);
      added();
    };
    auto one_by_one = [&](i64 begin, i64 end) {
      for (i64 o = begin; o < end; ++o)
        add(o, w.first_tap(o), w.end_tap(o), Extent{g_.channels, g_.streams});
    };
    if (cover || only_last) return one_by_one(first_, last_);
    i64 begin = std::min(last_, std::max(first_, w.interior_begin()));
    i64 end = std::max(begin, std::min(last_, w.interior_end()));
    one_by_one(first_, begin);
    one_by_one(end, last_);
    if (begin == end) return;
    i64 step = w.stride * g_.channels;
    if (w.stride == 1)
      return add(begin, 0, w.window, Extent{(end - begin) * g_.channels, g_.streams});
    if (!in_phases(g_))
      return add(begin, 0, w.window,
                 Extent{g_.channels, g_.streams, end - begin, step, g_.channels});
    size_t first = plan.taps.size();
    i64 row = start_of(d, od) * h.size + start_of(h, oh);
    for (const Plan::Row& r : plan.rows)
      for (i64 c = 0; c < w.window; ++c) {
        i64 at = c % w.stride * width_ + c / w.stride + begin - first_;
        i64 distance = (slot(row + r.number) * phases_ * width_ + at) * g_.channels;
        plan.taps.emplace_back(distance, r.offset + c);
      }
    plan.add(begin, first, Extent{(end - begin) * g_.channels, g_.streams}, true);
    added();
  }

  const Geometry g_;
  const char* x_ = nullptr;
  i64 bytes_, first_, last_, width_ = 0, phases_ = 0, deep_ = 0, high_ = 0;
  Plans plans_;
  std::vector<char> held_bytes_;
  std::vector<i64> held_;
};

// Rows that windows write, or parts of them from element `first` to `last`.
class WriteRows {
 public:
  // `lanes`: as in Spread. Where rows of windows are held in slots of their numbers, for so many
  // layers and rows of each (0: they are not), they are from the first window that is reached to
  // the last.
  WriteRows(const Geometry& g, i64 bytes, i64 first, i64 last, i64 lanes, i64 layers = 0,
            i64 rows = 0)
      : g_(g),
        bytes_(bytes),
        first_(first),
        last_(last),
        layers_(layers),
        rows_(rows),
        spread_(g, lanes),
        plans_(kinds(g.axes[0], layers), kinds(g.axes[1], rows), true) {}

  // Calls hold(number of a row of windows, its slot) where they are held, and then, for parts of a
  // row of u, write(where its first row of windows is, in elements, taps, extent, to). Taps are in
  // raster order.
  template <typename Hold, typename Write>
  void row(char* u, i64 row, Hold hold, Write write) {
    const Axis &d = g_.axes[0], &h = g_.axes[1], &w = g_.axes[2];
    i64 y = row % h.size, z = row / h.size % d.size, n = row / h.size / d.size,
        element = g_.channels * bytes_;
    i64 od = d.reaching(z, z + 1).first, oh = h.reaching(y, y + 1).first;
    i64 number = (n * d.outputs + od) * h.outputs + oh, base = 0;
    if (!rows_) base = number * w.outputs * g_.channels;
    char* to = u + row * w.size * element;
    auto perform = [&](const Plan& plan) {
      if (rows_)
        for (const Plan::Row& r : plan.rows) hold(number + r.number, r.slot);
      for (const Plan::Part& part : plan.parts) {
        Taps taps{plan.taps.data() + part.begin, part.count};
        Extent extent = part.extent;
        extent.before = base;
        if (extent.spread) extent.spread = &spread_;
        if (!part.apart) {
          write(base, taps, extent, to + part.first * element);
          continue;
        }
        i64 count = extent.length / g_.channels;
        side_by_side_.resize(count * element);
        write(base, taps, extent, side_by_side_.data());
        copy_every(to + part.first * element, w.stride * element, side_by_side_.data(), element,
                   count, element);
      }
    };
    plans_.perform(z, y, [&](Plan& plan, auto added) { make(z, y, plan, added); }, perform);
  }

 private:
  static Kinds kinds(const Axis& a, i64 slots) {
    i64 period = a.stride * std::max<i64>(1, slots);
    return Kinds(a.covered_begin(), a.covered_end(), period, a.size);
  }

  template <typename Added>
  void make(i64 z, i64 y, Plan& plan, Added added) const {
    const Axis &d = g_.axes[0], &h = g_.axes[1], &w = g_.axes[2];
    i64 first_od = d.reaching(z, z + 1).first, first_oh = h.reaching(y, y + 1).first;
    d.covering(z, [&](i64 od, i64 a) {  // the rows of windows that have an element in this row
      h.covering(y, [&](i64 oh, i64 b) {
        i64 number = (od - first_od) * h.outputs + oh - first_oh;
        i64 slot = rows_ ? od % layers_ * rows_ + oh % rows_ : 0;
        plan.rows.push_back({number, (a * h.window + b) * w.window, 1, slot});
      });
    });
    auto [first_o, end_o] = w.reaching(first_, last_);
    auto place = [&, first_o = first_o, end_o = end_o](const Plan::Row& r) {  // of window 0
      return rows_ ? r.slot * (end_o - first_o) - first_o : r.number * w.outputs;
    };
    auto add = [&](i64 x, Extent extent, bool apart = false) {
      size_t begin = plan.taps.size();
      for (const Plan::Row& r : plan.rows)
        w.covering(x, [&](i64 o, i64 c) {
          plan.taps.emplace_back((place(r) + o) * g_.channels, r.offset + c);
        });
      plan.add(x, begin, extent, apart);
      added();
    };
    auto one_by_one = [&](i64 begin, i64 end) {
      for (i64 x = begin; x < end; ++x) add(x, Extent{g_.channels, g_.streams});
    };
    i64 begin = std::min(last_, std::max(first_, w.covered_begin()));
    i64 end = std::max(begin, std::min(last_, w.covered_end()));
    one_by_one(first_, begin);
    one_by_one(end, last_);
    if (i64 length = (end - begin) * g_.channels; spread_.covers(length)) {
      i64 o = (begin + w.low) / w.stride, start = (begin + w.low) % w.stride * g_.channels;
      size_t first = plan.taps.size();
      for (const Plan::Row& r : plan.rows)
        for (i64 shift = spread_.shifts() - 1; shift >= 0; --shift)
          plan.taps.emplace_back((place(r) + o - shift) * g_.channels, r.offset);
      plan.add(begin, first, Extent{length, g_.streams, 1, 0, 0, &spread_, start});
      return added();
    }
    for (i64 x = begin; x < std::min(begin + w.stride, end); ++x) {  // and every `stride`th after
      i64 count = ceil_div(end - x, w.stride), step = w.stride * g_.channels;
      if (w.stride == 1)
        add(x, Extent{count * g_.channels, g_.streams});
      else if (g_.channels >= MANY_CHANNELS)
        add(x, Extent{g_.channels, g_.streams, count, g_.channels, step});
      else
        add(x, Extent{count * g_.channels}, true);
    }
  }

  const Geometry g_;
  i64 bytes_, first_, last_, layers_, rows_;
  Spread spread_;
  Plans plans_;
  std::vector<char> side_by_side_;
};

}  // namespace jaxunpool
