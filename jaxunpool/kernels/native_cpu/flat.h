// Positions of a whole plane: gather and scatter by them, and maxima over windows that start and
// stop where they like.
#pragma once
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "rows.h"

namespace jaxunpool {

// A batch of planes of `unpooled` and `pooled` elements, each with `channels` of them side by side.
struct Planes {
  i64 n, unpooled, pooled, channels;

  // Of element `p` of a pooled plane. Positions of no element, and negative ones, name nothing.
  template <typename I>
  i64 target(const I* positions, i64 batch, i64 p, i64 c) const {
    i64 position = i64(positions[(batch * pooled + p) * channels + c]);
    return position < 0 || position >= unpooled ? -1 : (batch * unpooled + position) * channels + c;
  }
};

// Part of a call: channels `first` to `last` of one example.
struct Part {
  i64 batch, first, last;
};

template <typename B, typename I>
void gather_flat(const Planes& g, Part part, const B* u, const I* positions, B* y) {
  for (i64 p = 0; p < g.pooled; ++p)
    for (i64 c = part.first; c < part.last; ++c) {
      i64 from = g.target(positions, part.batch, p, c);
      y[(part.batch * g.pooled + p) * g.channels + c] = from < 0 ? B(0) : u[from];
    }
}

template <typename B>
void clear(const Planes& g, Part part, B* u) {
  for (i64 p = 0; p < g.unpooled; ++p) {
    B* row = u + (part.batch * g.unpooled + p) * g.channels;
    std::fill(row + part.first, row + part.last, B(0));
  }
}

template <typename B, typename I>
void scatter_flat_last(const Planes& g, Part part, const B* y, const I* positions, B* u) {
  clear(g, part, u);
  for (i64 p = 0; p < g.pooled; ++p)
    for (i64 c = part.first; c < part.last; ++c) {
      i64 to = g.target(positions, part.batch, p, c);
      if (to >= 0) u[to] = y[(part.batch * g.pooled + p) * g.channels + c];
    }
}

// Sums in the type S, from zero on. Where it is wider than the values, they are kept apart first.
template <typename S, typename T, typename I, typename Widen, typename Narrow>
void scatter_flat_sum(const Planes& g, Part part, const T* y, const I* positions, T* u, Widen widen,
                      Narrow narrow) {
  i64 width = part.last - part.first;
  std::vector<S> sums(g.unpooled * width, S(0));
  for (i64 p = 0; p < g.pooled; ++p)
    for (i64 c = part.first; c < part.last; ++c) {
      i64 position = i64(positions[(part.batch * g.pooled + p) * g.channels + c]);
      if (position < 0 || position >= g.unpooled) continue;
      S& sum = sums[position * width + c - part.first];
      sum = S(sum + widen(y + (part.batch * g.pooled + p) * g.channels + c));
    }
  for (i64 p = 0; p < g.unpooled; ++p)
    for (i64 c = 0; c < width; ++c)
      narrow(sums[p * width + c], u + (part.batch * g.unpooled + p) * g.channels + part.first + c);
}

// Zero also where a later element of the pooled plane has the same position.
template <typename B, typename I>
void gather_flat_last(const Planes& g, Part part, const B* u, const I* positions, B* y) {
  i64 width = part.last - part.first;
  std::vector<i64> writer(g.unpooled * width, -1);
  auto slot = [&](i64 to, i64 c) {
    return ((to - c) / g.channels - part.batch * g.unpooled) * width + c - part.first;
  };
  for (i64 p = 0; p < g.pooled; ++p)
    for (i64 c = part.first; c < part.last; ++c) {
      i64 to = g.target(positions, part.batch, p, c);
      if (to >= 0) writer[slot(to, c)] = p;
    }
  for (i64 p = 0; p < g.pooled; ++p)
    for (i64 c = part.first; c < part.last; ++c) {
      i64 from = g.target(positions, part.batch, p, c);
      bool wins = from >= 0 && writer[slot(from, c)] == p;
      y[(part.batch * g.pooled + p) * g.channels + c] = wins ? u[from] : B(0);
    }
}

// Windows from `starts` to `stops` along each axis, the same for all examples and channels.
struct Uneven {
  i64 n, channels;
  struct {
    i64 size, outputs;
    const int32_t *starts, *stops;
  } axes[3];

  struct Range {
    i64 start, stop;
    i64 size() const { return stop - start; }
  };
  // Within the plane, and never empty.
  Range range(int axis, i64 o) const {
    const auto& a = axes[axis];
    i64 start = std::clamp<i64>(a.starts[o], 0, a.size - 1);
    return {start, std::clamp<i64>(a.stops[o], start + 1, a.size)};
  }
  // The example of a row of windows, and where they are along the first two axes.
  std::tuple<i64, Range, Range> of_row(i64 row) const {
    i64 h = row % axes[1].outputs, rest = row / axes[1].outputs;
    return {rest / axes[0].outputs, range(0, rest % axes[0].outputs), range(1, h)};
  }
};

// A row of windows: select(x, taps, extent, y, offsets) takes runs of channels.
template <typename B, typename O, typename Select>
void select_uneven(const Uneven& g, i64 row, const B* x, B* y, int32_t* flat, Select select) {
  const auto &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  auto [n, dr, hr] = g.of_row(row);
  x += n * d.size * h.size * w.size * g.channels;
  std::vector<Tap> taps;
  std::vector<O> offsets(g.channels);
  for (i64 ow = 0; ow < w.outputs; ++ow) {
    auto wr = g.range(2, ow);
    taps.clear();
    for (i64 a = dr.start; a < dr.stop; ++a)
      for (i64 b = hr.start; b < hr.stop; ++b)
        for (i64 c = wr.start; c < wr.stop; ++c)
          taps.emplace_back(((a * h.size + b) * w.size + c) * g.channels, i64(taps.size()));
    i64 to = (row * w.outputs + ow) * g.channels;
    select(x, Taps{taps.data(), int(taps.size())}, Extent{g.channels}, y + to, offsets.data());
    for (i64 c = 0; c < g.channels; ++c)
      flat[to + c] = int32_t(taps[offsets[c]].distance / g.channels);
  }
}

// The same of few channels: largest(x, rows, count, channels, winners) finds the distances of the
// largest elements.
template <typename B, typename Largest>
void largest_uneven(const Uneven& g, i64 row, const B* x, B* y, int32_t* flat, Largest largest) {
  const auto &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  auto [n, dr, hr] = g.of_row(row);
  x += n * d.size * h.size * w.size * g.channels;
  std::vector<Tap> rows;
  i64 winners[FEW_CHANNELS];
  for (i64 ow = 0; ow < w.outputs; ++ow) {
    auto wr = g.range(2, ow);
    rows.clear();
    for (i64 a = dr.start; a < dr.stop; ++a)
      for (i64 b = hr.start; b < hr.stop; ++b)
        rows.emplace_back(((a * h.size + b) * w.size + wr.start) * g.channels, 0);
    i64 to = (row * w.outputs + ow) * g.channels;
    largest(x, Taps{rows.data(), int(rows.size())}, wr.size(), g.channels, winners);
    for (i64 c = 0; c < g.channels; ++c)
      y[to + c] = x[winners[c]], flat[to + c] = int32_t(winners[c] / g.channels);
  }
}

}  // namespace jaxunpool
