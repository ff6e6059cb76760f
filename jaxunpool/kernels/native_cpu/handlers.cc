// The window primitives on CPU, as custom calls of XLA's FFI.
//
// The kernels are compiled once for each instruction set (baseline.cc, avx2.cc, avx512.cc), and the
// widest that this machine has is chosen when the library is loaded. Handlers check what they are
// given, share the work among XLA's own threads, and never throw.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "flat.h"
#include "kernels.h"
#include "planes.h"
#include "sparse.h"

namespace jaxunpool {

// Vectors of one element, for the kernels that are here.
namespace baseline {
#define VECTOR_BYTES 16
#include "vectors.inc"
#undef VECTOR_BYTES
}  // namespace baseline

namespace {

// What was compiled for the widest instructions that this machine has.
#if defined(__x86_64__)
enum Instructions { BASELINE, AVX2, AVX512 };
Instructions instructions() {
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
                               __builtin_cpu_supports("fma");
  static const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") &&
                                 __builtin_cpu_supports("avx512vl");
  return has_avx512 ? AVX512 : has_avx2 ? AVX2 : BASELINE;
}
#define WIDEST(function, ...)                               \
  (instructions() == AVX512 ? avx512::function(__VA_ARGS__) \
   : instructions() == AVX2 ? avx2::function(__VA_ARGS__)   \
                            : baseline::function(__VA_ARGS__))
#else
#define WIDEST(function, ...) baseline::function(__VA_ARGS__)
#endif

// Results larger than this would not stay in caches. Written past them, their lines are not read
// first; but a line of which a part is written otherwise is fetched again. So channels have to be
// whole lines or, where they are few, rows whole vectors.
constexpr i64 KEPT = 16 << 20, LINE = 64;
bool streams(i64 bytes, i64 row) { return bytes > KEPT && row % WIDEST(vector_bytes, ) == 0; }

Runs runs_of(ffi::DataType type, ffi::DataType offsets) {
  if (offsets != ffi::U8 && offsets != ffi::U16 && offsets != ffi::U32)
    throw Refused("offsets are neither uint8, uint16 nor uint32");
  return WIDEST(runs_of, type, i64(ffi::ByteWidth(offsets)));
}

// Calls f with a value of the type of an array's values.
template <typename F>
void with_type(ffi::DataType type, F f) {
  switch (type) {
    case ffi::F16:
      return f(Float16{});
    case ffi::BF16:
      return f(BFloat16{});
    case ffi::F32:
      return f(float{});
    case ffi::F64:
      return f(double{});
    case ffi::S8:
      return f(int8_t{});
    case ffi::U8:
      return f(uint8_t{});
    case ffi::S16:
      return f(int16_t{});
    case ffi::U16:
      return f(uint16_t{});
    case ffi::S32:
      return f(int32_t{});
    case ffi::U32:
      return f(uint32_t{});
    case ffi::S64:
      return f(int64_t{});
    case ffi::U64:
      return f(uint64_t{});
    default:
      throw Refused("no kernel for this type");
  }
}
// The type that sums wrap around in.
template <typename T>
using Wraps = typename std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>,
                                          std::common_type<T>>::type;

// Calls body(0), ..., body(n - 1) on the pool's threads and the caller's. The caller waits for no
// task that has not begun, so that many calls in a small pool cannot wait for each other. Rounding
// and subnormals are treated as on the caller's thread, so that results do not depend on the
// threads.
void in_parallel(ffi::ThreadPool& pool, i64 n, const std::function<void(i64)>& body) {
  i64 workers = std::min<i64>(pool.num_threads(), n);
  if (workers <= 1) {
    for (i64 i = 0; i < n; ++i) body(i);
    return;
  }
  struct State {
    std::vector<std::atomic<i64>> next;
    std::atomic<i64> done{0};
    std::mutex mutex;
    std::condition_variable changed;
    std::fenv_t rounding;
    std::exception_ptr failure;  // the first

    explicit State(i64 workers) : next(workers) {}
  };
  auto state = std::make_shared<State>(workers);
  std::fegetenv(&state->rounding);
  // Each worker has a part of the tasks to itself, and then helps with the others'. So they write
  // far from each other: page faults in the same 2 MB wait for each other.
  auto work = [state, n, workers, &body](i64 worker) {
    for (i64 k = 0; k < workers; ++k) {
      i64 part = (worker + k) % workers, first = n * part / workers,
          count = n * (part + 1) / workers - first;
      for (i64 i; (i = state->next[part].fetch_add(1)) < count;) {
        try {
          body(first + i);
        } catch (...) {
          std::lock_guard<std::mutex> lock(state->mutex);
          if (!state->failure) state->failure = std::current_exception();
        }
        if (state->done.fetch_add(1) + 1 == n) {
          std::lock_guard<std::mutex> lock(state->mutex);
          state->changed.notify_all();
        }
      }
    }
  };
  auto help = [state, work](i64 worker) {
    std::fenv_t before;
    std::fegetenv(&before);
    std::fesetenv(&state->rounding);
    work(worker);
    std::fesetenv(&before);
  };
  try {
    for (i64 worker = 1; worker < workers; ++worker)
      pool.Schedule([help, worker] { help(worker); });
  } catch (const std::bad_alloc&) {  // fewer helpers; those that there are must not outlive `body`
  }
  work(0);
  // The last tasks are nearly done: to sleep and be woken would take longer.
  for (int spins = 0; spins < 1000 && state->done.load() < n; ++spins) std::this_thread::yield();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->changed.wait(lock, [&] { return state->done.load() == n; });
  if (state->failure) std::rethrow_exception(state->failure);
}

// Makes streamed results visible before whatever this thread writes next.
void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

i64 threads_of(ffi::ThreadPool& pool) { return std::max<i64>(1, pool.num_threads()); }

// Tasks for so many bytes of operands and results. To wake another thread takes as long as one
// thread needs for some MB: smaller calls stay on the caller's. Where tasks meet both of them look
// at the same rows, so that they are few.
i64 tasks_for(ffi::ThreadPool& pool, i64 bytes) {
  constexpr i64 SMALL = 2 << 20, EACH = 1 << 18, OF_A_THREAD = 4;
  return bytes < SMALL ? 1 : std::min(bytes / EACH, threads_of(pool) * OF_A_THREAD);
}

// Products of sizes, refused where they overflow.
i64 product(std::initializer_list<i64> sizes) {
  i64 total = 1;
  for (i64 size : sizes)
    if (size < 0 || __builtin_mul_overflow(total, size, &total)) throw Refused("sizes overflow");
  return total;
}

Geometry geometry_of(ffi::Span<const i64> sizes, i64 unpooled, i64 pooled) {
  if (sizes.size() != 23) throw Refused("expected 23 sizes");
  Geometry g;
  g.n = sizes[0];
  g.channels = sizes[1];
  std::memcpy(g.axes, sizes.begin() + 2, sizeof g.axes);
  constexpr i64 MOST = i64(1) << 31;
  auto check = [](i64 value, i64 least) {
    if (value < least || value >= MOST) throw Refused("sizes of windows are out of range");
  };
  for (const Axis& a : g.axes) {
    for (i64 value : {a.size, a.outputs, a.low, a.high}) check(value, 0);
    for (i64 value : {a.window, a.stride, a.dilation}) check(value, 1);
  }
  const Axis *d = &g.axes[0], *h = &g.axes[1], *w = &g.axes[2];
  if (product({g.n, g.channels, d->size, h->size, w->size}) != unpooled ||
      product({g.n, g.channels, d->outputs, h->outputs, w->outputs}) != pooled)
    throw Refused("arrays and windows have different sizes");
  if (product({d->window, h->window, w->window}) >= MOST) throw Refused("windows are too large");
  return g;
}

i64 bytes(const Geometry& g, const Operands& operands) {
  i64 total = 0;
  for (const Operand& o : operands) total += g.n * g.channels * o.plane * o.bytes;
  return total;
}

// Whether planes are turned: that does not pay with too few blocks for all threads, or with more
// than `scratch` bytes of scratch memory for each.
bool turns(ffi::ThreadPool& pool, i64 n, i64 channels, i64 row, i64 scratch, i64 tasks,
           const Operands& operands) {
  i64 blocks = Turned::blocks(n, operands);
  return Turned::pays(channels, row, scratch, operands) && blocks > 1 &&
         blocks >= std::min(tasks, threads_of(pool));
}

// Blocks of planes, turned. make(channels) gives what a task calls with where the operands of a
// block are. Returns false, and has done nothing, where they are not turned.
template <typename F>
bool share_turned(ffi::ThreadPool& pool, i64 n, i64 channels, i64 row, i64 scratch, i64 tasks,
                  const Operands& operands, const F& make) {
  if (!turns(pool, n, channels, row, scratch, tasks, operands)) return false;
  i64 blocks = Turned::blocks(n, operands);
  tasks = std::min(tasks, blocks);
  in_parallel(pool, tasks, [&](i64 task) {
    using Work = decltype(make(channels));
    Turned turned(n, operands);
    std::unique_ptr<Work> work;
    i64 made_for = 0;
    for (i64 block = blocks * task / tasks; block < blocks * (task + 1) / tasks; ++block)
      turned.block(block, [&](i64 channels, char* const* at) {
        if (channels != made_for) work.reset(new Work(make(channels)));
        made_for = channels;
        (*work)(at);
      });
  });
  return true;
}

// Scratch memory for turned planes: where windows name few elements only what a cache holds,
// because turning reads and writes all of them.
constexpr i64 CACHE = 1 << 18, ANY_CACHE = 1 << 25;

// Shares the rows of what is written. make(geometry, begin, end) gives what a task calls with where
// the operands are, a first row and an end: of whole rows, or of parts of them from `begin` to
// `end` where these are few and long. With `band` rows stay together, so many, and whole. Planes
// are turned in `scratch` bytes at most.
template <typename F>
void share(ffi::ThreadPool& pool, const Geometry& g, bool unpooled, i64 band, i64 scratch,
           const Operands& operands, const F& make) {
  auto length = [&](const Axis& a) { return unpooled ? a.size : a.outputs; };
  if (!g.channels) return;  // then products may overflow
  i64 plane = length(g.axes[0]) * length(g.axes[1]), rows = g.n * plane, width = length(g.axes[2]);
  if (!rows || !width) return;
  Geometry whole = g;
  for (const Operand& o : operands) {
    i64 size = g.n * g.channels * o.plane * o.bytes;
    whole.streams |=
        o.written && (g.channels < MANY_CHANNELS ? streams(size, width * g.channels * o.bytes)
                                                 : size > KEPT && g.channels * o.bytes % LINE == 0);
  }
  i64 tasks = tasks_for(pool, bytes(g, operands));
  if (share_turned(pool, g.n, g.channels, g.axes[2].size, scratch, tasks, operands,
                   [&](i64 channels) {
                     Geometry block = g;
                     block.n = 1, block.channels = channels;
                     return [work = make(block, i64(0), width), plane](char* const* at) mutable {
                       work(at, i64(0), plane);
                     };
                   }))
    return;
  std::vector<char*> at;
  for (const Operand& o : operands) at.push_back(o.data);
  i64 parts = !band && tasks > rows ? std::min(width, tasks / rows) : 1;
  i64 step = unpooled ? g.axes[2].stride : 1, part = ceil_div(ceil_div(width, parts), step) * step;
  band = std::max<i64>(1, band);
  i64 bands = ceil_div(rows, band);
  tasks = std::min(tasks, bands);
  parts = ceil_div(width, part);
  in_parallel(pool, tasks * parts, [&](i64 i) {
    i64 task = i / parts, begin = i % parts * part;
    auto work = make(whole, begin, std::min(width, begin + part));
    work(at.data(), bands * task / tasks * band, std::min(rows, bands * (task + 1) / tasks * band));
    if (whole.streams) fence();
  });
}

using Sizes = ffi::Span<const i64>;
using Array = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

i64 count(const Array& array) { return i64(array.element_count()); }
i64 bytes(const Array& a, const Array& b) { return i64(a.size_bytes() + b.size_bytes()); }
i64 item(const Array& array) { return i64(ffi::ByteWidth(array.element_type())); }
const char* data(const Array& array) { return static_cast<const char*>(array.untyped_data()); }
char* data(Result& array) { return static_cast<char*>(array->untyped_data()); }
Operand reads(const Array& array, i64 plane) {
  return {static_cast<char*>(array.untyped_data()), item(array), plane, false};
}
Operand writes(Result& array, i64 plane) { return {data(array), item(*array), plane, true}; }
// Asks for pages of 2 MB under a large result: the first write to a page costs a fault.
void use_large_pages([[maybe_unused]] ffi::AnyBuffer& array) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 2 << 20;
  uintptr_t begin = reinterpret_cast<uintptr_t>(array.untyped_data()),
            first = (begin + PAGE - 1) / PAGE * PAGE,
            end = (begin + array.size_bytes()) / PAGE * PAGE;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

// Runs a handler that writes these results.
template <typename F>
ffi::Error guarded(std::initializer_list<Result*> results, F f) {
  try {
    for (Result* result : results) use_large_pages(**result);
    f();
    return ffi::Error::Success();
  } catch (const Refused& refused) {
    return ffi::Error::InvalidArgument(refused.message);
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("jaxunpool: ") + error.what());
  }
}

void check_types(ffi::DataType a, ffi::DataType b) {
  if (a != b) throw Refused("arrays of different types");
}
// One offset per window, of a type that has a number for every element and one that names none.
void check_offsets(const Geometry& g, const Array& offsets, i64 pooled) {
  if (count(offsets) != pooled) throw Refused("values and offsets have different sizes");
  if (item(offsets) < 4 && g.volume() >= i64(1) << 8 * item(offsets))
    throw Refused("offsets are too narrow for the window");
}

ffi::Error Select(ffi::ThreadPool pool, Array x, Result y, Result offsets, Sizes sizes) {
  return guarded({&y, &offsets}, [&] {
    Geometry g = geometry_of(sizes, count(x), count(*y));
    Runs runs = runs_of(x.element_type(), offsets->element_type());
    check_types(x.element_type(), y->element_type());
    check_offsets(g, *offsets, count(*y));
    i64 size = item(x), offset_size = item(*offsets), outputs = g.axes[2].outputs;
    share(pool, g, false, 0, ANY_CACHE,
          {reads(x, g.unpooled()), writes(y, g.pooled()), writes(offsets, g.pooled())},
          [&](const Geometry& g, i64 begin, i64 end) {
            return [&, rows = ReadRows(g, size, begin, end), channels = g.channels](
                       char* const* at, i64 first, i64 last) mutable {
              rows.start(at[0]);
              for (i64 row = first; row < last; ++row)
                rows.row(row, [&](const char* from, Taps taps, i64 o, Extent extent) {
                  i64 i = (row * outputs + o) * channels;
                  char *to = at[1] + i * size, *named = at[2] + i * offset_size;
                  if (taps.count) return runs.select(from, taps, extent, to, named);
                  std::memset(to, 0, extent.size() * size);  // a window of padding alone
                  std::memset(named, 0, extent.size() * offset_size);
                });
            };
          });
  });
}

// What no row of windows needs, where they are in the array.
constexpr auto nowhere = [](i64, i64) {};

constexpr int MANY_TAPS = 32;  // more than these are not compared one by one

// Whether each offset is followed by itself: windows are large, or rows would be taken apart first.
bool follows(const Geometry& g) {
  bool apart = g.channels < MANY_CHANNELS && g.axes[2].stride > 1;
  return g.volume() > (apart ? 12 : MANY_TAPS) && g.volume() <= 4096;
}

// Whether windows mark what they name, to find those that name the same: to compare with all that
// come later takes longer if these are many, above all where vectors are not filled.
bool marks(const Geometry& g) {
  constexpr i64 MANY_LATER = 50, FILLED = 16;
  i64 meet = 1;
  for (const Axis& a : g.axes) meet *= 2 * a.windows_that_meet() + 1;
  bool worth = g.volume() > MANY_TAPS || g.channels < FILLED;
  return worth && meet / 2 > MANY_LATER && g.volume() <= 4096;
}

template <typename F>
void with_bits(i64 bytes, F f) {
  if (bytes == 1)
    f(uint8_t{});
  else if (bytes == 2)
    f(uint16_t{});
  else if (bytes == 4)
    f(uint32_t{});
  else
    f(uint64_t{});
}

// names(row): the offsets of a row of windows from `begin` on.
template <bool MOST_NAME, typename O, typename Names>
void gather_rows(const Geometry& g, const Runs& runs, ReadRows& rows, const char* u, i64 size,
                 char* y, i64 first, i64 last, i64 begin, i64 end, Names names) {
  auto row_of = [&](i64 row) { return y + (row * g.axes[2].outputs + begin) * g.channels * size; };
  if (follows(g)) {
    Distances distances(g);
    with_bits(size, [&](auto bits) {
      using B = decltype(bits);
      for (i64 row = first; row < last; ++row)
        gather_sparse<MOST_NAME>(g, distances, row, begin, end, reinterpret_cast<const B*>(u),
                                 names(row), reinterpret_cast<B*>(row_of(row)));
    });
    return;
  }
  rows.start(u);
  for (i64 row = first; row < last; ++row) {
    const O* named = names(row);
    char* to = row_of(row);
    rows.row(row, [&](const char* from, Taps taps, i64 o, Extent extent) {
      i64 at = (o - begin) * g.channels;
      bool fetch = taps.count > MANY_TAPS && taps.count == g.volume();
      (fetch ? runs.fetch : runs.gather)(from, named + at, taps, extent, to + at * size);
    });
  }
}

template <typename O>
void gather(const Geometry& g, const Runs& runs, ReadRows& reading, i64 size, char* const* at,
            i64 first, i64 last, i64 begin, i64 end, bool winners) {
  const O* o = reinterpret_cast<const O*>(at[1]);
  if (winners && marks(g) && begin == 0 && end == g.axes[2].outputs)
    return with_bits(size, [&](auto bits) {
      using B = decltype(bits);
      gather_last_sparse(g, first, last, reinterpret_cast<const B*>(at[0]), o,
                         reinterpret_cast<B*>(at[2]));
    });
  auto rows = [&](auto most_name, auto names) {
    gather_rows<most_name, O>(g, runs, reading, at[0], size, at[2], first, last, begin, end, names);
  };
  auto of_winners = [&](auto&& found) {
    rows(std::false_type(), [&](i64 row) { return found.of_row(o, row, begin, end); });
  };
  if (!winners || !g.overlaps()) {
    rows(std::true_type(),
         [&](i64 row) { return o + (row * g.axes[2].outputs + begin) * g.channels; });
  } else if (sizeof(O) == 1 && Winners<uint8_t, uint8_t>::fits(g)) {
    of_winners(Winners<uint8_t, O>(g, runs.encode, runs.winners8));
  } else if (sizeof(O) <= 2 && Winners<uint16_t, O>::fits(g)) {
    of_winners(Winners<uint16_t, O>(g, runs.encode, runs.winners16));
  } else {
    of_winners(Winners<uint32_t, O>(g, runs.encode, runs.winners32));
  }
}

ffi::Error Gather(ffi::ThreadPool pool, Array u, Array offsets, Result y, Sizes sizes,
                  bool winners) {
  return guarded({&y}, [&] {
    Geometry g = geometry_of(sizes, count(u), count(*y));
    Runs runs = runs_of(u.element_type(), offsets.element_type());
    check_types(u.element_type(), y->element_type());
    check_offsets(g, offsets, count(*y));
    i64 rows = g.n * g.axes[0].outputs * g.axes[1].outputs, band = 0, threads = threads_of(pool);
    if (winners && marks(g) && rows >= threads) {  // rows that meet a part's are marked once more
      i64 meet = std::max<i64>(1, rows_that_meet(g));
      band = std::clamp<i64>(rows / threads, meet, 8 * meet);
    }
    share(pool, g, false, band, g.cell() >= 25 ? CACHE : ANY_CACHE,
          {reads(u, g.unpooled()), reads(offsets, g.pooled()), writes(y, g.pooled())},
          [&](const Geometry& g, i64 begin, i64 end) {
            return [&, g, begin, end, rows = ReadRows(g, item(u), begin, end)](
                       char* const* at, i64 first, i64 last) mutable {
              auto of = item(offsets) == 1   ? gather<uint8_t>
                        : item(offsets) == 2 ? gather<uint16_t>
                                             : gather<uint32_t>;
              of(g, runs, rows, item(u), at, first, last, begin, end, winners);
            };
          });
  });
}

template <typename B>
struct Move {
  using Value = B;
  void operator()(B& to, const B& value) const { to = value; }
};
template <typename T>
struct Add {  // to zero at first, so that no sum is -0
  using Value = T;
  void operator()(T& to, const T& value) const {
    if constexpr (std::is_arithmetic_v<T>)
      to = T(to + value);
    else
      to = T{uint16_t(value.bits == 0x8000 ? 0 : value.bits)};
  }
};

// Whether windows write so few elements that zeros and one write for each window cost less than to
// compare with the windows of each element.
bool is_sparse(const Geometry& g, ffi::DataType type, i64 offset_bytes, bool last, i64 lanes) {
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  i64 cell = g.cell();
  bool sparse = cell >= (g.channels >= MANY_CHANNELS ? 25 : 4);
  if (g.channels < MANY_CHANNELS && Spread::fits(g, lanes)) {
    // Times as measured: so much for a vector and each of its taps, and for a window and a vector
    // of zeros.
    i64 vector = 80 + 50 * d.window * h.window * ceil_div(w.window, w.stride) / d.stride / h.stride;
    sparse = lanes * (100 + cell) < vector * cell;
  }
  bool narrow = type == ffi::F16 || type == ffi::BF16;  // sums of these are kept in float32
  bool few = sparse && g.volume() <= 4096 && offset_bytes < 4;
  return few && (last || !narrow || !g.overlaps());
}

// Rows of whole windows, so that few of these reach into two parts.
i64 band_of(const Geometry& g) {
  const Axis &d = g.axes[0], &h = g.axes[1];
  return d.size > 1 ? d.stride * h.size : std::min(h.stride, h.size);
}

void scatter_few(const Geometry& g, ffi::DataType type, i64 offset_bytes, bool last,
                 char* const* at, i64 first_row, i64 end_row) {
  with_type(type, [&](auto value) {
    using T = Wraps<decltype(value)>;
    auto run = [&](auto offset, auto put) {
      using O = decltype(offset);
      using V = typename decltype(put)::Value;
      scatter_sparse(g, first_row, end_row, reinterpret_cast<const V*>(at[0]),
                     reinterpret_cast<const O*>(at[1]), reinterpret_cast<V*>(at[2]), put);
    };
    auto each_offset = [&](auto put) {
      if (offset_bytes == 1)
        run(uint8_t{}, put);
      else
        run(uint16_t{}, put);
    };
    using B = baseline::Bits<T>;
    if (last)
      each_offset(Move<B>{});
    else
      each_offset(Add<T>{});
  });
}

ffi::Error Scatter(ffi::ThreadPool pool, Array y, Array offsets, Result u, Sizes sizes,
                   bool last_wins) {
  return guarded({&u}, [&] {
    Geometry g = geometry_of(sizes, count(*u), count(y));
    Runs runs = runs_of(y.element_type(), offsets.element_type());
    check_types(y.element_type(), u->element_type());
    check_offsets(g, offsets, count(y));
    i64 lanes = last_wins ? runs.last_lanes : runs.sum_lanes;
    auto few = [&](const Geometry& g) {
      return is_sparse(g, y.element_type(), item(offsets), last_wins, lanes);
    };
    i64 size = item(y);
    share(pool, g, true, few(g) ? band_of(g) : 0, g.cell() >= 4 ? CACHE : ANY_CACHE,
          {reads(y, g.pooled()), reads(offsets, g.pooled()), writes(u, g.unpooled())},
          [&](const Geometry& g, i64 begin, i64 end) {
            return [&, g, rows = WriteRows(g, size, begin, end, lanes)](char* const* at, i64 first,
                                                                        i64 last) mutable {
              if (few(g))
                return scatter_few(g, y.element_type(), item(offsets), last_wins, at, first, last);
              for (i64 row = first; row < last; ++row)
                rows.row(at[2], row, nowhere, [&](i64 base, Taps taps, Extent extent, char* to) {
                  (last_wins ? runs.scatter_last : runs.scatter_sum)(
                      at[0] + base * size, at[1] + base * item(offsets), taps, extent, to);
                });
            };
          });
  });
}

ffi::DataType type_of_sums(ffi::DataType values) {
  return values == ffi::F16 || values == ffi::BF16 ? ffi::F32 : values;
}

// An empty pattern stands for ones. It has the type that sums of such values run in.
const void* pattern_of(const Array& pattern, Geometry& g, i64 weighting, ffi::DataType values) {
  if (weighting < SUM || weighting > LAST) throw Refused("unknown weighting");
  check_types(type_of_sums(values), pattern.element_type());
  g.weighting = Weighting(weighting);
  if (!count(pattern)) return nullptr;
  if (count(pattern) != g.volume()) throw Refused("the pattern is not as large as the window");
  return data(pattern);
}

// Rows from a first to a last: body(first, last). Returns false, and has done nothing, where they
// are too few for all tasks.
template <typename F>
bool share_rows(ffi::ThreadPool& pool, i64 rows, i64 tasks, bool streams, const F& body) {
  if (rows < tasks) return false;
  in_parallel(pool, tasks, [&](i64 task) {
    body(rows * task / tasks, rows * (task + 1) / tasks);
    if (streams) fence();
  });
  return true;
}

// Sums of windows that tile planes. Returns false, and has done nothing, where they do not, or
// where it is faster to turn planes: with more than two columns, or with rows of few bytes.
bool sum_tiles(ffi::ThreadPool& pool, const Geometry& g, const Runs& runs,
               const Operands& operands) {
  constexpr i64 FEW_BYTES = 48;
  const Axis& w = g.axes[2];
  auto tiles = [](const Axis& a) {
    return a.stride == a.window && a.dilation == 1 && a.low == 0 && a.outputs > 0 &&
           a.outputs * a.window <= a.size;
  };
  if (g.channels != 1 || !std::all_of(g.axes, g.axes + 3, tiles)) return false;
  i64 tasks = tasks_for(pool, bytes(g, operands)),
      rows = g.n * g.axes[0].outputs * g.axes[1].outputs;
  bool faster_turned = w.window > 2 || w.size * operands[0].bytes < FEW_BYTES;
  if (faster_turned && turns(pool, g.n, 1, w.size, ANY_CACHE, tasks, operands)) return false;
  return share_rows(pool, rows, tasks, false, [&](i64 first, i64 last) {
    runs.sum_tiles(g, operands[0].data, first, last, operands[1].data);
  });
}

ffi::Error Reduce(ffi::ThreadPool pool, Array u, Array pattern, Result y, Sizes sizes,
                  i64 weighting) {
  return guarded({&y}, [&] {
    Geometry g = geometry_of(sizes, count(u), count(*y));
    const void* factors = pattern_of(pattern, g, weighting, u.element_type());
    Runs runs = runs_of(u.element_type(), ffi::U8);
    check_types(u.element_type(), y->element_type());
    bool padded = g.weighting == MEAN, divides = padded || g.weighting == MEAN_INSIDE;
    const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
    Operands operands{reads(u, g.unpooled()), writes(y, g.pooled())};
    if (!factors && sum_tiles(pool, g, runs, operands)) return;
    share(pool, g, false, 0, ANY_CACHE, operands, [&](const Geometry& g, i64 begin, i64 end) {
      return [&, channels = g.channels, rows = ReadRows(g, item(u), begin, end)](
                 char* const* at, i64 first, i64 last) mutable {
        rows.start(at[0]);
        for (i64 row = first; row < last; ++row) {
          i64 od = row / h.outputs % d.outputs,
              count = divides ? d.count(od, padded) * h.count(row % h.outputs, padded) : 1;
          rows.row(row, [&](const char* from, Taps taps, i64 o, Extent extent) {
            i64 divisor = divides ? count * w.count(o, padded) : 1,
                to = (row * w.outputs + o) * channels;
            runs.weighted(from, factors, taps, extent, divisor, at[1] + to * item(u));
          });
        }
      };
    });
  });
}

// Rows of windows divided by their counts, each once for all elements that read it. Those that
// cover one row of elements are held at a time, for the windows that cover elements `begin` to
// `end`.
class Divided {
 public:
  Divided(const Geometry& g, const Runs& runs, i64 size, i64 sum_size, i64 begin, i64 end)
      : g_(g), runs_(runs), size_(size), sum_size_(sum_size) {
    const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
    auto [first, last] = w.reaching(begin, end);
    first_ = first, count_ = begin < end ? last - first : 0;
    layers_ = std::min(d.outputs, ceil_div(d.span(), d.stride));
    rows_ = std::min(h.outputs, ceil_div(h.span(), h.stride));
    held_.assign(layers_ * rows_, -1);
    values_.resize(held_.size() * count_ * g.channels * sum_size);
  }
  i64 layers() const { return layers_; }
  i64 rows() const { return rows_; }
  const char* values() const { return values_.data(); }

  // Another array.
  void start(const char* y) {
    y_ = y;
    held_.assign(held_.size(), -1);
  }
  void hold(i64 number, i64 slot) {
    const Axis &d = g_.axes[0], &h = g_.axes[1], &w = g_.axes[2];
    if (held_[slot] == number) return;
    held_[slot] = number;
    bool padded = g_.weighting == MEAN;
    i64 rows =
        d.count(number / h.outputs % d.outputs, padded) * h.count(number % h.outputs, padded);
    const Tap itself{0, 0};
    for (i64 o = first_, next; o < first_ + count_; o = next) {
      i64 divisor = w.count(o, padded);
      for (next = o + 1; next < first_ + count_ && w.count(next, padded) == divisor;) ++next;
      runs_.widened(y_ + (number * w.outputs + o) * g_.channels * size_, nullptr, Taps{&itself, 1},
                    Extent{(next - o) * g_.channels}, rows * divisor,
                    values_.data() + (slot * count_ + o - first_) * g_.channels * sum_size_);
    }
  }

 private:
  const Geometry g_;
  const Runs& runs_;
  const char* y_ = nullptr;
  i64 size_, sum_size_, first_, count_, layers_, rows_;
  std::vector<i64> held_;
  std::vector<char> values_;
};

// Maps along axes, slab by slab.
void run_maps(ffi::ThreadPool& pool, const Slabs& slabs, const Resampler& resampler, i64 tasks,
              const char* x, char* y, bool streams) {
  tasks = std::min(tasks, slabs.count());
  in_parallel(pool, tasks, [&](i64 task) {
    Between between;
    for (i64 i = slabs.count() * task / tasks; i < slabs.count() * (task + 1) / tasks; ++i)
      resampler.run(slabs[i], x, y, between);
    if (streams) fence();
  });
}

// Copies by small planes, as a map of a plane along one axis. Returns false, and has done nothing,
// where windows meet, planes are few or large, or vectors of elements are not picked from vectors
// of windows.
template <typename Real>
bool copy_planes(ffi::ThreadPool& pool, const Geometry& g, ffi::DataType type, bool divides,
                 const Operands& operands) {
  constexpr i64 SMALL = 1024, MANY = 256;
  const i64 inputs = g.pooled(), outputs = g.unpooled();
  if (g.channels != 1 || g.overlaps() || !inputs || !outputs) return false;
  if (outputs > SMALL || g.n < MANY || !WIDEST(permutes, type_of_sums(type))) return false;
  std::vector<int32_t> elements;
  std::vector<Real> weights, divisors;
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  bool padded = g.weighting == MEAN;
  for (i64 z = 0; z < d.size; ++z)
    for (i64 b = 0; b < h.size; ++b)
      for (i64 x = 0; x < w.size; ++x) {
        i64 from = elements.empty() ? 0 : elements.back(), divisor = 1;  // near the one before
        bool covered = false;
        d.covering(z, [&](i64 od, i64) {
          h.covering(b, [&](i64 oh, i64) {
            w.covering(x, [&](i64 ow, i64) {
              covered = true, from = (od * h.outputs + oh) * w.outputs + ow;
              if (divides)
                divisor = d.count(od, padded) * h.count(oh, padded) * w.count(ow, padded);
            });
          });
        });
        elements.push_back(int32_t(from)), weights.push_back(covered);
        divisors.push_back(Real(divisor));
      }
  bool moves = type != ffi::F16 && type != ffi::BF16 && type != ffi::F32 && type != ffi::F64;
  const void* divided = divides && !moves ? divisors.data() : nullptr;  // integers are not
  const Map alone{1, 1, 0, nullptr, nullptr, nullptr};
  const Map copies{inputs, outputs, 1, elements.data(), weights.data(), divided};
  Maps maps{g.n, 1, {alone, alone, copies}, {2}, false, true};
  const i64 tasks = tasks_for(pool, bytes(g, operands));
  Slabs slabs(maps, sizeof(Real), tasks);
  auto resampler = WIDEST(resampler_of, type, moves)(maps, slabs.cut(), slabs[0].count, false);
  if (!resampler->picks()) return false;
  run_maps(pool, slabs, *resampler, tasks, operands[0].data, operands[1].data, false);
  return true;
}

// Copies by rows of planes. Returns false, and has done nothing, where windows meet, rows are very
// long, or where it is faster to turn planes: with rows of few bytes.
bool copy_rows(ffi::ThreadPool& pool, Geometry g, const Runs& runs, const Operands& operands) {
  constexpr i64 LONG = 1 << 16, FEW_BYTES = 100;
  const Axis &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
  auto apart = [](const Axis& a) {
    return a.dilation == 1 && a.outputs > 0 && (a.stride >= a.window || a.outputs == 1);
  };
  if (g.channels != 1 || !std::all_of(g.axes, g.axes + 3, apart)) return false;
  bool is_long = w.outputs > LONG / w.stride || std::max(w.low, w.window) > LONG;
  if (is_long || std::max({d.size, h.size, w.size}) > LONG || !g.unpooled()) return false;
  i64 tasks = tasks_for(pool, bytes(g, operands)), row = w.size * operands[1].bytes;
  if (row < FEW_BYTES && turns(pool, g.n, 1, w.size, ANY_CACHE, tasks, operands)) return false;
  g.streams = streams(g.n * g.unpooled() * operands[1].bytes, row);
  return share_rows(pool, g.n * d.size * h.size, tasks, g.streams, [&](i64 first, i64 last) {
    runs.copy_rows(g, operands[0].data, first, last, operands[1].data);
  });
}

ffi::Error Replicate(ffi::ThreadPool pool, Array y, Array pattern, Result u, Sizes sizes,
                     i64 weighting) {
  return guarded({&u}, [&] {
    Geometry g = geometry_of(sizes, count(*u), count(y));
    const void* factors = pattern_of(pattern, g, weighting, y.element_type());
    Runs runs = runs_of(y.element_type(), ffi::U8);
    check_types(y.element_type(), u->element_type());
    bool divides = weighting == MEAN || weighting == MEAN_INSIDE;
    i64 size = item(y), sum_size = i64(ffi::ByteWidth(type_of_sums(y.element_type())));
    Operands operands{reads(y, g.pooled()), writes(u, g.unpooled())};
    auto by_planes = y.element_type() == ffi::F64 ? copy_planes<double> : copy_planes<float>;
    if (!factors && by_planes(pool, g, y.element_type(), divides, operands)) return;
    if (!factors && copy_rows(pool, g, runs, operands)) return;
    share(pool, g, true, 0, ANY_CACHE, operands, [&](const Geometry& g, i64 begin, i64 end) {
      Divided divided(g, runs, size, sum_size, begin, divides ? end : begin);  // or of no element
      WriteRows rows(g, size, begin, end, 0, divides ? divided.layers() : 0,
                     divides ? divided.rows() : 0);
      return [&, divided = std::move(divided), rows = std::move(rows)](char* const* at, i64 first,
                                                                       i64 last) mutable {
        auto hold = [&](i64 number, i64 slot) { divided.hold(number, slot); };
        auto run = [&](i64 base, Taps taps, Extent extent, char* to) {
          if (weighting == LAST && taps.count) taps = Taps{taps.begin + taps.count - 1, 1};
          i64 divisor = weighting == COVER ? std::max(taps.count, 1) : 1;
          if (divides)
            runs.narrowed(divided.values(), factors, taps, extent, divisor, to);
          else
            runs.weighted(at[0] + base * size, factors, taps, extent, divisor, to);
        };
        divided.start(at[0]);
        for (i64 row = first; row < last; ++row) rows.row(at[1], row, hold, run);
      };
    });
  });
}

// Indices without a window

// body(values' type, positions, part) for parts of a call: examples, or some of the channels of
// one.
template <typename F>
void share_planes(ffi::ThreadPool& pool, const Array& values, const Array& positions,
                  const Planes& g, i64 bytes, F body) {
  if (positions.element_type() != ffi::S32) throw Refused("positions are not int32");
  if (!g.n || !g.channels) return;
  constexpr i64 CACHE_LINE = 64;
  i64 width = std::max<i64>(1, CACHE_LINE / item(values)), chunks = ceil_div(g.channels, width);
  i64 tasks = tasks_for(pool, bytes), parts = std::clamp<i64>(tasks / g.n, 1, chunks);
  tasks = std::min(tasks, g.n);
  const int32_t* p = reinterpret_cast<const int32_t*>(data(positions));
  with_type(values.element_type(), [&](auto value) {
    in_parallel(pool, tasks * parts, [&](i64 i) {
      i64 task = i / parts, part = i % parts;
      i64 first = chunks * part / parts * width,
          last = std::min(g.channels, chunks * (part + 1) / parts * width);
      for (i64 batch = g.n * task / tasks; batch < g.n * (task + 1) / tasks; ++batch)
        body(value, p, Part{batch, first, last});
    });
  });
}

Planes planes_of(Sizes sizes, const Array& u, const Array& y, const Array& positions) {
  if (sizes.size() != 4) throw Refused("expected 4 sizes");
  Planes g{sizes[0], sizes[1], sizes[2], sizes[3]};
  if (count(y) != count(positions)) throw Refused("values and positions have different sizes");
  if (product({g.n, g.unpooled, g.channels}) != count(u) ||
      product({g.n, g.pooled, g.channels}) != count(y))
    throw Refused("arrays and planes have different sizes");
  return g;
}

ffi::Error GatherFlat(ffi::ThreadPool pool, Array u, Array positions, Result y, Sizes sizes,
                      bool winners) {
  return guarded({&y}, [&] {
    Planes g = planes_of(sizes, u, *y, positions);
    check_types(u.element_type(), y->element_type());
    share_planes(pool, u, positions, g, bytes(u, *y), [&](auto value, const int32_t* p, Part part) {
      using B = baseline::Bits<decltype(value)>;
      auto* from = reinterpret_cast<const B*>(data(u));
      auto* to = reinterpret_cast<B*>(data(y));
      winners ? gather_flat_last(g, part, from, p, to) : gather_flat(g, part, from, p, to);
    });
  });
}

ffi::Error ScatterFlat(ffi::ThreadPool pool, Array y, Array positions, Result u, Sizes sizes,
                       bool last) {
  return guarded({&u}, [&] {
    Planes g = planes_of(sizes, *u, y, positions);
    check_types(u->element_type(), y.element_type());
    share_planes(pool, y, positions, g, bytes(*u, y), [&](auto value, const int32_t* p, Part part) {
      using T = Wraps<decltype(value)>;
      using B = baseline::Bits<T>;
      if (last) {
        scatter_flat_last(g, part, reinterpret_cast<const B*>(data(y)), p,
                          reinterpret_cast<B*>(data(u)));
        return;
      }
      using S = baseline::Sum<T>;
      scatter_flat_sum<S>(
          g, part, reinterpret_cast<const T*>(data(y)), p, reinterpret_cast<T*>(data(u)),
          [](const T* from) { return baseline::load_sum<1, T>(from)[0]; },
          [](S sum, T* to) {
            baseline::put_sum<1, T>(to, baseline::all<baseline::Vector<S, 1>>(sum), false);
          });
    });
  });
}

// Maxima over windows that start and stop where they like.
ffi::Error SelectUneven(ffi::ThreadPool pool, Array x, Array start0, Array start1, Array start2,
                        Array stop0, Array stop1, Array stop2, Result y, Result flat, Sizes sizes) {
  return guarded({&y, &flat}, [&] {
    if (sizes.size() != 8) throw Refused("expected 8 sizes");
    Uneven g{sizes[0], sizes[1], {}};
    const Array *starts[] = {&start0, &start1, &start2}, *stops[] = {&stop0, &stop1, &stop2};
    i64 volume = 1;
    for (int i = 0; i < 3; ++i) {
      i64 size = sizes[2 + i], outputs = sizes[5 + i], widest = 1;
      if (starts[i]->element_type() != ffi::S32 || stops[i]->element_type() != ffi::S32)
        throw Refused("bounds are not int32");
      if (count(*starts[i]) != outputs || count(*stops[i]) != outputs)
        throw Refused("bounds and windows have different sizes");
      if (size < 1 && outputs) throw Refused("windows on nothing");
      g.axes[i] = {size, outputs, reinterpret_cast<const int32_t*>(data(*starts[i])),
                   reinterpret_cast<const int32_t*>(data(*stops[i]))};
      for (i64 o = 0; o < outputs; ++o) widest = std::max(widest, g.range(i, o).size());
      volume = product({volume, widest});
    }
    const auto &d = g.axes[0], &h = g.axes[1], &w = g.axes[2];
    check_types(x.element_type(), y->element_type());
    if (count(*y) != count(*flat)) throw Refused("values and positions have different sizes");
    if (product({g.n, g.channels, d.size, h.size, w.size}) != count(x) ||
        product({g.n, g.channels, d.outputs, h.outputs, w.outputs}) != count(*y) ||
        flat->element_type() != ffi::S32)
      throw Refused("arrays and windows have different sizes");
    if (!count(*y)) return;
    i64 narrowest = w.size;
    for (i64 o = 0; o < w.outputs; ++o) narrowest = std::min(narrowest, g.range(2, o).size());
    i64 tasks = tasks_for(pool, bytes(x, *y));
    Operands operands{reads(x, d.size * h.size * w.size),
                      writes(y, d.outputs * h.outputs * w.outputs),
                      writes(flat, d.outputs * h.outputs * w.outputs)};
    auto select = [&](auto offset, ffi::DataType type) {
      Runs runs = runs_of(x.element_type(), type);
      auto rows_of = [&](const Uneven& g, char* const* at, i64 first, i64 last) {
        with_type(x.element_type(), [&](auto value) {
          using B = baseline::Bits<decltype(value)>;
          auto* from = reinterpret_cast<const B*>(at[0]);
          auto* to = reinterpret_cast<B*>(at[1]);
          auto* flat = reinterpret_cast<int32_t*>(at[2]);
          // In small windows there is little to compare before channels are told apart.
          bool large = volume > MANY_TAPS || narrowest >= NARROW_BYTES / i64(sizeof(B));
          for (i64 row = first; row < last; ++row)
            if (g.channels == 1 || (g.channels <= FEW_CHANNELS && large))
              largest_uneven(g, row, from, to, flat, runs.largest);
            else
              select_uneven<B, decltype(offset)>(g, row, from, to, flat, runs.select);
        });
      };
      if (share_turned(
              pool, g.n, g.channels, w.size, ANY_CACHE, tasks, operands, [&](i64 channels) {
                Uneven block = g;
                block.n = 1, block.channels = channels;
                return
                    [&, block](char* const* at) { rows_of(block, at, 0, d.outputs * h.outputs); };
              }))
        return;
      char* const at[] = {operands[0].data, operands[1].data, operands[2].data};
      i64 rows = g.n * d.outputs * h.outputs, parts = std::min(tasks, rows);
      in_parallel(pool, parts, [&](i64 part) {
        rows_of(g, at, rows * part / parts, rows * (part + 1) / parts);
      });
    };
    if (volume <= 255) return select(uint8_t{}, ffi::U8);
    if (volume <= 65535) return select(uint16_t{}, ffi::U16);
    select(uint32_t{}, ffi::U32);
  });
}

// Linear maps along axes, given as tables.
ffi::Error Resample(ffi::ThreadPool pool, Array x, Array elements0, Array weights0, Array divisors0,
                    Array elements1, Array weights1, Array divisors1, Array elements2,
                    Array weights2, Array divisors2, Result y, Sizes sizes, bool moves,
                    bool divides_first) {
  return guarded({&y}, [&] {
    if (sizes.size() < 9) throw Refused("expected 8 sizes and an axis");
    Maps maps{sizes[0], sizes[1], {}, {sizes.begin() + 8, sizes.end()}, divides_first};
    for (int axis : maps.order)
      if (axis < 0 || axis > 2 || std::count(maps.order.begin(), maps.order.end(), axis) > 1)
        throw Refused("axes are not 0, 1 and 2, once each");
    const Array *elements[] = {&elements0, &elements1, &elements2},
                *weights[] = {&weights0, &weights1, &weights2},
                *divisors[] = {&divisors0, &divisors1, &divisors2};
    check_types(x.element_type(), y->element_type());
    auto real = x.element_type() == ffi::F64 && !moves ? ffi::F64 : ffi::F32;
    i64 inputs = product({maps.n, maps.channels}), outputs = inputs;
    for (int i = 0; i < 3; ++i) {
      Map& m = maps.axes[i];
      m = {sizes[2 + 2 * i], sizes[3 + 2 * i], 0, nullptr, nullptr, nullptr};
      inputs = product({inputs, m.size}), outputs = product({outputs, m.outputs});
      if (!maps.maps(i)) {
        if (m.size != m.outputs) throw Refused("an axis without a map changes its size");
        continue;
      }
      check_types(elements[i]->element_type(), ffi::S32);
      check_types(weights[i]->element_type(), real);
      check_types(divisors[i]->element_type(), real);
      if (!m.outputs) continue;
      m.taps = count(*elements[i]) / m.outputs;
      m.elements = reinterpret_cast<const int32_t*>(data(*elements[i]));
      m.weights = data(*weights[i]);
      if (count(*elements[i]) != m.taps * m.outputs || count(*weights[i]) != m.taps * m.outputs)
        throw Refused("tables and outputs have different sizes");
      for (i64 k = 0; k < m.taps * m.outputs; ++k)
        if (m.elements[k] < 0 || m.elements[k] >= m.size) throw Refused("an element is not there");
      if (!count(*divisors[i])) continue;
      m.divisors = data(*divisors[i]);
      if (count(*divisors[i]) != (divides_first ? m.size : m.outputs))
        throw Refused("divisors and axes have different sizes");
    }
    if (inputs != count(x) || outputs != count(*y))
      throw Refused("arrays and maps have different sizes");
    if (!outputs) return;
    bool streams = i64(y->size_bytes()) > KEPT;
    i64 tasks = tasks_for(pool, bytes(x, *y));
    Slabs slabs(maps, real == ffi::F64 ? 8 : 4, tasks);
    auto resampler =
        WIDEST(resampler_of, x.element_type(), moves)(maps, slabs.cut(), slabs[0].count, streams);
    run_maps(pool, slabs, *resampler, tasks, data(x), data(y), streams);
  });
}

// A convolution, or its gradient by the input or by the kernel.
ffi::Error Convolve(ffi::ThreadPool pool, Array from, Array factors, Result to, Sizes sizes,
                    i64 wanted) {
  return guarded({&to}, [&] {
    constexpr i64 MOST = i64(1) << 31;
    if (sizes.size() != 25) throw Refused("expected 25 sizes");
    if (wanted < RESULTS || wanted > KERNEL) throw Refused("nothing that a convolution gives");
    Convolution c{sizes[0], sizes[1], sizes[2], sizes[3], {}};
    std::memcpy(c.axes, sizes.begin() + 4, sizeof c.axes);
    auto check = [](i64 value, i64 least) {
      if (value < least || value >= MOST) throw Refused("sizes of a convolution are out of range");
    };
    for (i64 value : {c.n, c.groups, c.inputs, c.outputs}) check(value, 1);
    for (const Axis& a : c.axes) {
      for (i64 value : {a.size, a.outputs, a.window, a.stride, a.dilation}) check(value, 1);
      check(a.low, -MOST);
      check(product({a.window, a.dilation}), 1), check(product({a.outputs, a.stride}), 1);
    }
    const Axis *d = &c.axes[0], *h = &c.axes[1], *w = &c.axes[2];
    const i64 arrays[] = {
        product({c.n, d->outputs, h->outputs, w->outputs, c.groups, c.outputs}),
        product({c.n, d->size, h->size, w->size, c.groups, c.inputs}),
        product({d->window, h->window, w->window, c.inputs, c.groups, c.outputs}),
    };
    product({arrays[RESULTS], d->window, h->window, w->window, c.inputs});
    if (count(from) != arrays[wanted == INPUT ? RESULTS : INPUT] ||
        count(factors) != arrays[wanted == KERNEL ? RESULTS : KERNEL] ||
        count(*to) != arrays[wanted])
      throw Refused("arrays and a convolution have different sizes");
    check_types(from.element_type(), factors.element_type());
    check_types(from.element_type(), to->element_type());
    i64 line = c.groups * (wanted == INPUT ? c.inputs : c.outputs) * item(*to);
    bool streams = i64(to->size_bytes()) > KEPT && line % LINE == 0;
    WIDEST(convolver_of, from.element_type())
    (c, Wanted(wanted), data(from), data(factors), data(to), streams,
     [&](i64 tasks, const std::function<void(i64)>& body) {
       in_parallel(pool, tasks, [&](i64 task) {
         body(task);
         if (streams) fence();
       });
     });
  });
}

// What a handler is given: the pool, so many arrays, so many results, and sizes.
template <int ARRAYS, int RESULTS, typename Binding>
auto with_sizes(Binding&& binding) {
  if constexpr (ARRAYS > 0)
    return with_sizes<ARRAYS - 1, RESULTS>(std::move(binding).template Arg<Array>());
  else if constexpr (RESULTS > 0)
    return with_sizes<0, RESULTS - 1>(std::move(binding).template Ret<Array>());
  else
    return std::move(binding).template Attr<Sizes>("sizes");
}
template <int ARRAYS, int RESULTS>
auto with_sizes() {
  return with_sizes<ARRAYS, RESULTS>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>());
}

}  // namespace
}  // namespace jaxunpool

// What the library was made of, and how (setup.py).
#ifndef JAXUNPOOL_SOURCES
#define JAXUNPOOL_SOURCES ""
#define JAXUNPOOL_BUILD ""
#endif
extern "C" __attribute__((visibility("default"))) const char* jaxunpool_sources() {
  return JAXUNPOOL_SOURCES;
}
extern "C" __attribute__((visibility("default"))) const char* jaxunpool_build() {
  return JAXUNPOOL_BUILD;
}

using namespace jaxunpool;
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_select, Select, (with_sizes<1, 2>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_gather, Gather, (with_sizes<2, 1>()).Attr<bool>("winners"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_scatter, Scatter, (with_sizes<2, 1>()).Attr<bool>("last"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_reduce, Reduce,
                              (with_sizes<2, 1>()).Attr<i64>("weighting"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_replicate, Replicate,
                              (with_sizes<2, 1>()).Attr<i64>("weighting"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_gather_flat, GatherFlat,
                              (with_sizes<2, 1>()).Attr<bool>("winners"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_scatter_flat, ScatterFlat,
                              (with_sizes<2, 1>()).Attr<bool>("last"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_select_uneven, SelectUneven, (with_sizes<7, 2>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxunpool_resample, Resample,
    (with_sizes<10, 1>()).Attr<bool>("moves").Attr<bool>("divides_first"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_convolve, Convolve,
                              (with_sizes<2, 1>()).Attr<i64>("wanted"));
