// Linear maps along spatial axes, one after the other: interpolation, adaptive averages.
#pragma once
#include <algorithm>
#include <vector>

#include "geometry.h"

namespace jaxunpool {

// Element `o` of the output is the sum of `taps` elements of the input times their weights, in
// order. A weight of 0 stands for no tap at all.
struct Map {
  i64 size, outputs, taps;
  const int32_t* elements;  // (taps, outputs)
  const void* weights;      // (taps, outputs)
  const void* divisors;     // of the output or, before the sums, of the input; or null
};

// The maps of an array (n, axes..., channels), with axes of size 1 for those that are not there.
struct Maps {
  i64 n, channels;
  Map axes[3];
  std::vector<int> order;  // of the axes that are mapped
  bool divides_first;
  bool from_zero = false;  // whether results are added to 0, so that none of them is -0

  bool maps(int axis) const { return std::count(order.begin(), order.end(), axis); }
  // Where a part begins and ends; only axes of size 1 are before it.
  int outermost() const {
    int axis = 0;
    while (axis < 2 && axes[axis].size == 1 && axes[axis].outputs == 1) ++axis;
    return axis;
  }
};

// Some arrays of the batch or, of one of them, some outputs along the outermost axis.
struct Slab {
  i64 first, count, begin, end;
};

// How an array is cut into slabs, so that what lies between two maps stays in a cache.
class Slabs {
 public:
  Slabs(const Maps& maps, i64 bytes_of_sum, i64 tasks) : n_(maps.n) {
    constexpr i64 KEPT = 1 << 18, LEAST = 8;
    i64 sizes[] = {maps.axes[0].size, maps.axes[1].size, maps.axes[2].size}, largest = 0;
    auto measure = [&] {
      largest = std::max(largest, sizes[0] * sizes[1] * sizes[2] * maps.channels * bytes_of_sum);
    };
    measure();
    for (int axis : maps.order) sizes[axis] = maps.axes[axis].outputs, measure();
    outputs_ = maps.axes[maps.outermost()].outputs;
    if (largest > KEPT) {
      blocks_ = std::clamp<i64>(ceil_div(largest, KEPT), 1, std::max<i64>(1, outputs_ / LEAST));
    } else {
      count_ = std::max<i64>(1, std::min(KEPT / std::max<i64>(1, largest), ceil_div(n_, tasks)));
    }
    if (n_ * blocks_ < tasks)
      blocks_ = std::clamp<i64>(ceil_div(tasks, n_), 1, std::max<i64>(1, outputs_ / LEAST));
    if (blocks_ > 1) count_ = 1;
  }
  i64 count() const { return ceil_div(n_, count_) * blocks_; }
  // Whether there are several slabs of an array.
  bool cut() const { return blocks_ > 1; }
  Slab operator[](i64 i) const {
    i64 first = i / blocks_ * count_, block = i % blocks_;
    return {first, std::min(count_, n_ - first), outputs_ * block / blocks_,
            outputs_ * (block + 1) / blocks_};
  }

 private:
  i64 n_, outputs_, count_ = 1, blocks_ = 1;
};

// What is read stays where it is while the next is written.
class Between {
 public:
  template <typename S>
  S* next(i64 size) {
    auto& memory = memory_[turn_ ^= 1];
    if (i64(memory.size()) < size * i64(sizeof(S))) memory.resize(size * sizeof(S));
    return reinterpret_cast<S*>(memory.data());
  }

 private:
  std::vector<char> memory_[2];
  int turn_ = 0;
};

struct Resampler {
  virtual ~Resampler() = default;
  // Whether vectors are picked from vectors along all axes.
  virtual bool picks() const = 0;
  virtual void run(const Slab& slab, const char* x, char* y, Between& between) const = 0;
};

}  // namespace jaxunpool
