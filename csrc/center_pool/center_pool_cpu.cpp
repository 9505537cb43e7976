// CPU kernels of center_pool, compiled once per vector level. See center_pool.h for the floor.
#include <limits>
#include <type_traits>

#include "center_pool/center_pool.h"
#include "core/large_outputs.h"
#include "core/parallel.h"
#include "core/pooling_math.h"
#include "core/scratch.h"
#include "core/stream.h"
#include "core/vec.h"
#include "core/vec_lanes.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kSerialItems = 32768;  // elements that are not worth a second thread

template <class A>
using index_t = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;  // an index as wide as a lane

bool past_cache(const TensorView& map, int64_t vector_bytes) {
  return streams(map, map.shape[3] * item_size(map.dtype), vector_bytes);
}

template <class A>
POSEKD_INLINE void put(A* to, vec<A> value, bool streaming) {
  streaming ? stream(to, value) : store(to, value);
}

template <class T, class A>
const A* read_line(const T* from, int64_t count, A* buffer) {
  if constexpr (std::is_same_v<T, A>) return from;
  widen(from, buffer, count);
  return buffer;
}

// Takes row `row` into the column maxima.
template <class A>
POSEKD_INLINE void column_maxima(const A* x, int64_t row, int64_t width, A* best, index_t<A>* argument) {
  constexpr int L = Vec<A>::kLanes;
  const auto index = static_cast<index_t<A>>(row);
  int64_t i = 0;
  for (; row == 0 && i < width; ++i) best[i] = x[i], argument[i] = 0;
  for (; i + L <= width; i += L) {
    fetch_ahead<false>(x + i);
    const vec<A> value = load(x + i), m = load(best + i);
    const lanes<A> takes = takes_over_lanes<true, A>(value, m);
    store(best + i, choose<A>(takes, value, m));
    store_as(argument + i, choose<A>(takes, mask<A>{} + index, load_as<mask<A>>(argument + i)));
  }
  for (; i < width; ++i)
    if (takes_over<true>(x[i], best[i])) best[i] = x[i], argument[i] = index;
}

template <int D, class A>
POSEKD_INLINE vec<A> fold_max(vec<A> value) {
  if constexpr (D > 0) {
    const vec<A> other = shift<D, true, A>(value, value);
    return fold_max<D / 2, A>(larger(value, other));
  } else {
    return value;
  }
}

template <class A>
struct RowMaximum {
  A value;
  int64_t argument;  // the last of equals; -1 if not asked for
};

template <class A>
POSEKD_INLINE RowMaximum<A> row_maximum(const A* x, int64_t width, bool with_argument) {
  constexpr int L = Vec<A>::kLanes;
  const int64_t whole = width / L * L;
  vec<A> best = broadcast(-std::numeric_limits<A>::infinity());
  lanes<A> nans = {};
  for (int64_t i = 0; i < whole; i += L) {
    fetch_ahead<false>(x + i);
    const vec<A> value = load(x + i);
    best = larger(value, best);
    nans |= is_nan<A>(value);
  }
  A maximum = fold_max<L / 2, A>(best)[0];
  bool nan = bits_of<A>(nans) != 0;
  for (int64_t i = whole; i < width; ++i) {
    nan |= x[i] != x[i];
    maximum = x[i] > maximum ? x[i] : maximum;
  }
  if (nan) {
    int64_t i = width - 1;
    while (x[i] == x[i]) --i;
    return {x[i], i};
  }
  if (!with_argument) return {maximum, -1};
  for (int64_t i = width - 1; i >= whole; --i)
    if (x[i] == maximum) return {maximum, i};
  for (int64_t i = whole - L; i >= 0; i -= L) {
    const uint32_t found = bits_of<A>(equal<A>(load(x + i), broadcast(maximum)));
    if (found) return {maximum, i + 31 - __builtin_clz(found)};
  }
  return {maximum, 0};
}

template <class A>
POSEKD_INLINE void add_to_line(const A* columns, A row, int64_t width, bool streaming, A* y) {
  constexpr int L = Vec<A>::kLanes;
  int64_t i = 0;
  for (; i + L <= width; i += L) put(y + i, load(columns + i) + row, streaming);
  for (; i < width; ++i) y[i] = columns[i] + row;
}

template <class T>
void forward(const CenterPool& args, int threads) {
  using A = accumulate_t<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;
  const int64_t width = args.width(), height = args.height();
  const TensorView& second = args.horizontal ? args.horizontal : args.vertical;
  const bool streaming = kDirect && past_cache(args.output, sizeof(vec<A>));
  parallel_for(args.planes(), kSerialItems / (height * width) + 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<A> scratch(3 * width);
    const ScratchOf<index_t<A>> indices(width);
    A *best = scratch.get(), *x = best + width, *y = x + width;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t offset = plane * height * width;
      for (int64_t row = 0; row < height; ++row)
        column_maxima(read_line(args.vertical.as<T>() + offset + row * width, width, x), row, width, best,
                      indices.get());
      for (int64_t i = 0; args.column_argument && i < width; ++i)
        args.column_argument.as<int32_t>()[plane * width + i] = static_cast<int32_t>(indices.get()[i]);
      for (int64_t row = 0; row < height; ++row) {
        const A* line = read_line(second.as<T>() + offset + row * width, width, x);
        const RowMaximum<A> maximum = row_maximum(line, width, args.row_argument.present);
        if (args.row_argument)
          args.row_argument.as<int32_t>()[plane * height + row] = static_cast<int32_t>(maximum.argument);
        T* out = args.output.as<T>() + offset + row * width;
        if constexpr (kDirect) {
          add_to_line(best, maximum.value, width, streaming, out);
        } else {
          add_to_line(best, maximum.value, width, streaming, y);
          narrow(y, out, width);
        }
      }
    }
    stream_fence();
  });
}

// Adds a row of dy to the sums of the columns; returns the sum of the row.
template <class A>
POSEKD_INLINE A add_up(const A* dy, int64_t width, A* columns) {
  constexpr int L = Vec<A>::kLanes;
  vec<A> sum = {};
  int64_t i = 0;
  for (; i + L <= width; i += L) {
    fetch_ahead<false>(dy + i);
    const vec<A> value = load(dy + i);
    sum += value;
    store(columns + i, load(columns + i) + value);
  }
  A total = sum_lanes<A>(sum);
  for (; i < width; ++i) total += dy[i], columns[i] += dy[i];
  return total;
}

// Row `row` of the gradients: the column sums where the column's maximum lies in this row, the row's sum at the row's
// maximum. With no second row both go to the first.
template <class A>
POSEKD_INLINE void gradient_line(const A* columns, const index_t<A>* argument, int64_t row, A row_sum,
                                 int64_t row_argument, int64_t width, bool streaming, A* vertical, A* horizontal) {
  constexpr int L = Vec<A>::kLanes;
  const auto index = static_cast<index_t<A>>(row);
  const vec<A> zero = {}, sum = broadcast(row_sum);
  const mask<A> own = lane_numbers<A>(std::make_integer_sequence<int, L>());
  int64_t i = 0;
  for (; i + L <= width; i += L) {
    const vec<A> by_column =
        choose<A>(equal_index<A>(load_as<mask<A>>(argument + i), mask<A>{} + index), load(columns + i), zero);
    const vec<A> by_row =
        choose<A>(equal_index<A>(own, mask<A>{} + static_cast<index_t<A>>(row_argument - i)), sum, zero);
    put(vertical + i, horizontal ? by_column : by_column + by_row, streaming);
    if (horizontal) put(horizontal + i, by_row, streaming);
  }
  for (; i < width; ++i) {
    const A by_column = argument[i] == index ? columns[i] : A(0), by_row = i == row_argument ? row_sum : A(0);
    vertical[i] = horizontal ? by_column : by_column + by_row;
    if (horizontal) horizontal[i] = by_row;
  }
}

template <class T>
void backward(const CenterPoolGradient& args, int threads) {
  using A = accumulate_t<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;
  const int64_t width = args.width(), height = args.height();
  const bool streaming = kDirect && past_cache(args.vertical, sizeof(vec<A>)) &&
                         (!args.horizontal || past_cache(args.horizontal, sizeof(vec<A>)));
  parallel_for(args.planes(), kSerialItems / (height * width) + 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<A> scratch(4 * width + height);
    const ScratchOf<index_t<A>> indices(width);
    A *columns = scratch.get(), *dy = columns + width, *v = dy + width, *h = v + width, *rows = h + width;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t offset = plane * height * width;
      for (int64_t i = 0; i < width; ++i) {
        columns[i] = A(0);
        indices.get()[i] = args.column_argument.as<int32_t>()[plane * width + i];
      }
      for (int64_t row = 0; row < height; ++row)
        rows[row] = add_up(read_line(args.upstream.as<T>() + offset + row * width, width, dy), width, columns);
      for (int64_t row = 0; row < height; ++row) {
        const int64_t argument = args.row_argument.as<int32_t>()[plane * height + row], at = offset + row * width;
        T* vertical = args.vertical.as<T>() + at;
        T* horizontal = args.horizontal ? args.horizontal.as<T>() + at : nullptr;
        if constexpr (kDirect) {
          gradient_line(columns, indices.get(), row, rows[row], argument, width, streaming, vertical, horizontal);
        } else {
          gradient_line(columns, indices.get(), row, rows[row], argument, width, streaming, v,
                        horizontal ? h : nullptr);
          narrow(v, vertical, width);
          if (horizontal) narrow(h, horizontal, width);
        }
      }
    }
    stream_fence();
  });
}

}  // namespace

void center_pool_forward(const CenterPool& args, int threads) {
  advise_huge_pages(args.output);
  dispatch_float(args.output.dtype, [&](auto tag) { forward<typename decltype(tag)::type>(args, threads); });
}

void center_pool_backward(const CenterPoolGradient& args, int threads) {
  advise_huge_pages(args.vertical);
  advise_huge_pages(args.horizontal);
  dispatch_float(args.upstream.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(args, threads); });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
