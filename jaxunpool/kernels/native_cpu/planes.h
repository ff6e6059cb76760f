// Channels first: planes lie one after the other. Blocks of them are turned around into scratch
// memory, where they are channels side by side, and results are turned back.
#pragma once
#include <cstring>
#include <utility>
#include <vector>

#include "geometry.h"

namespace jaxunpool {

// An array of a call: elements of so many bytes, so many in a plane.
struct Operand {
  char* data;
  i64 bytes, plane;
  bool written;
};
using Operands = std::vector<Operand>;

// The elements of two vectors in turn, from element FIRST on.
template <int FIRST, typename V, int... I>
INLINE V zipped(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int N = sizeof...(I);
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (FIRST + I / 2 + I % 2 * N)...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){(FIRST + I / 2 + I % 2 * N)...});
#endif
}

// A square of as many rows as a vector has elements, as its columns: rows of its halves zipped, as
// often as it takes to halve it to single rows.
template <typename V, size_t N>
INLINE void transpose_square(V (&rows)[N]) {
  const std::make_integer_sequence<int, N> lanes;
  V half[N];
  for (size_t stage = N; stage > 1; stage /= 2) {
    for (size_t i = 0; i < N / 2; ++i) {
      half[2 * i] = zipped<0>(rows[i], rows[i + N / 2], lanes);
      half[2 * i + 1] = zipped<N / 2>(rows[i], rows[i + N / 2], lanes);
    }
    for (size_t i = 0; i < N; ++i) rows[i] = half[i];
  }
}
template <typename B>
INLINE void transpose_tile(const B* from, i64 step, B* to, i64 to_step) {
  constexpr int N = 16 / sizeof(B);
  typedef B V __attribute__((vector_size(16)));
  V rows[N];
  for (int i = 0; i < N; ++i) std::memcpy(&rows[i], from + i * step, 16);
  transpose_square(rows);
  for (int i = 0; i < N; ++i) std::memcpy(to + i * to_step, &rows[i], 16);
}

// A matrix transposed, tile by tile; the last tiles reach back over those before.
template <typename B>
void transpose(const B* from, i64 rows, i64 columns, B* to) {
  constexpr i64 N = 16 / sizeof(B);
  if (rows < N || columns < N) {
    for (i64 r = 0; r < rows; ++r)
      for (i64 c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
    return;
  }
  auto tile = [&](i64 r, i64 c) {
    r = std::min(r, rows - N), c = std::min(c, columns - N);
    transpose_tile(from + r * columns + c, columns, to + c * rows + r, rows);
  };
  if (rows < columns) {
    for (i64 c = 0; c < columns; c += N)
      for (i64 r = 0; r < rows; r += N) tile(r, c);
  } else {
    for (i64 r = 0; r < rows; r += N)
      for (i64 c = 0; c < columns; c += N) tile(r, c);
  }
}
inline void transpose(const char* from, i64 rows, i64 columns, char* to, i64 bytes) {
  auto as = [&](auto b) {
    using B = decltype(b);
    transpose(reinterpret_cast<const B*>(from), rows, columns, reinterpret_cast<B*>(to));
  };
  if (bytes == 1) return as(uint8_t{});
  if (bytes == 2) return as(uint16_t{});
  if (bytes == 4) return as(uint32_t{});
  as(uint64_t{});
}

// Blocks of `n` planes as channels side by side.
class Turned {
 public:
  Turned(i64 n, const Operands& operands) : n_(n), operands_(operands), width_(width(operands)) {
    for (const Operand& o : operands) {
      scratch_.emplace_back(std::max<i64>(1, o.plane * width_ * o.bytes));
      at_.push_back(scratch_.back().data());
    }
  }
  // So many planes that the values of an element fill a cache line.
  static i64 width(const Operands& operands) { return 64 / operands[0].bytes; }
  static i64 blocks(i64 n, const Operands& operands) { return ceil_div(n, width(operands)); }
  // Whether it pays: rows alone are short, and a block takes no more than `scratch` bytes.
  static bool pays(i64 channels, i64 row, i64 scratch, const Operands& operands) {
    constexpr i64 LONG = 256;
    i64 bytes = 0;
    for (const Operand& o : operands) bytes += o.plane * width(operands) * o.bytes;
    return channels == 1 && row < LONG && bytes <= scratch;
  }

  // Calls body(channels, where the operands are).
  template <typename Body>
  void block(i64 number, Body body) {
    i64 first = number * width_, channels = std::min(width_, n_ - first);
    for (size_t i = 0; i < operands_.size(); ++i)
      if (const Operand& o = operands_[i]; !o.written)
        transpose(o.data + first * o.plane * o.bytes, channels, o.plane, at_[i], o.bytes);
    body(channels, at_.data());
    for (size_t i = 0; i < operands_.size(); ++i)
      if (const Operand& o = operands_[i]; o.written)
        transpose(at_[i], o.plane, channels, o.data + first * o.plane * o.bytes, o.bytes);
  }

 private:
  i64 n_;
  const Operands& operands_;
  i64 width_;
  std::vector<std::vector<char>> scratch_;
  std::vector<char*> at_;
};

}  // namespace jaxunpool
