// CPU kernels of center_pool, compiled once per vector level. See center_pool.h for the floor.
#include <cstring>
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
constexpr int kRows = 2;                 // that pass while a column's maximum is in a register

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

// Takes N rows from row `row` on, `width` apart, into the column maxima.
template <int N, class A>
POSEKD_INLINE void column_maxima(const A* x, int64_t row, int64_t width, A* best, index_t<A>* argument) {
  constexpr int L = Vec<A>::kLanes;
  const auto index = static_cast<index_t<A>>(row);
  int64_t i = 0;
  for (; i + L <= width; i += L) {
    vec<A> m = load(best + i);
    auto at = load_as<mask<A>>(argument + i);
    for (int n = 0; n < N; ++n) {
      const A* from = x + n * width + i;
      fetch_ahead<false>(from);
      const vec<A> value = load(from);
      const lanes<A> takes = takes_over_lanes<true, A>(value, m);
      m = choose<A>(takes, value, m);
      at = choose<A>(takes, mask<A>{} + (index + n), at);
    }
    store(best + i, m);
    store_as(argument + i, at);
  }
  for (; i < width; ++i)
    for (int n = 0; n < N; ++n)
      if (takes_over<true>(x[n * width + i], best[i])) best[i] = x[n * width + i], argument[i] = index + n;
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

// Calls read(plane, row, count) and write(plane, row, count) for blocks of rows of planes [begin, end): a plane is
// written while the next is read, because memory serves both at once faster than in turn. done(plane) comes between.
template <class Read, class Done, class Write>
void one_plane_behind(int64_t begin, int64_t end, int64_t height, Read&& read, Done&& done, Write&& write) {
  for (int64_t plane = begin; plane <= end; ++plane) {
    for (int64_t row = 0; row < height; row += kRows) {
      const int64_t count = height - row < kRows ? height - row : kRows;
      if (plane < end) read(plane, row, count);
      if (plane > begin) write(plane - 1, row, count);
    }
    if (plane < end) done(plane);
  }
}

// Planes a thread takes at once: few enough to share evenly, many because the first is read alone and the last written.
int64_t grain(int64_t planes, int64_t pixels, int threads) {
  const int64_t least = kSerialItems / pixels + 1, most = planes / (4 * static_cast<int64_t>(threads));
  return least > most ? least : most;
}

template <class T>
void forward(const CenterPool& args, int threads) {
  using A = accumulate_t<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;
  const int64_t width = args.width(), height = args.height();
  const TensorView& second = args.horizontal ? args.horizontal : args.vertical;
  const bool streaming = kDirect && past_cache(args.output, sizeof(vec<A>));
  parallel_for(args.planes(), grain(args.planes(), height * width, threads), threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<A> scratch(4 * width);
    const ScratchOf<index_t<A>> indices(width);
    A *best = scratch.get(), *finished = best + width, *x = finished + width, *y = x + width;
    const auto read = [&](int64_t plane, int64_t row, int64_t count) {
      const T* from = args.vertical.as<T>() + (plane * height + row) * width;
      for (int64_t i = 0; row == 0 && i < width; ++i)
        best[i] = -std::numeric_limits<A>::infinity(), indices.get()[i] = 0;
      if (kDirect && count == kRows) {
        column_maxima<kRows>(read_line(from, width, x), row, width, best, indices.get());
      } else {
        for (int64_t k = 0; k < count; ++k)
          column_maxima<1>(read_line(from + k * width, width, x), row + k, width, best, indices.get());
      }
    };
    const auto done = [&](int64_t plane) {
      for (int64_t i = 0; i < width; ++i) finished[i] = best[i];
      for (int64_t i = 0; args.column_argument && i < width; ++i)
        args.column_argument.as<int32_t>()[plane * width + i] = static_cast<int32_t>(indices.get()[i]);
    };
    const auto write = [&](int64_t plane, int64_t row, int64_t count) {
      for (int64_t index = plane * height + row; index < plane * height + row + count; ++index) {
        const A* line = read_line(second.as<T>() + index * width, width, x);
        const RowMaximum<A> maximum = row_maximum(line, width, args.row_argument.present);
        if (args.row_argument) args.row_argument.as<int32_t>()[index] = static_cast<int32_t>(maximum.argument);
        T* out = args.output.as<T>() + index * width;
        if constexpr (kDirect) {
          add_to_line(finished, maximum.value, width, streaming, out);
        } else {
          add_to_line(finished, maximum.value, width, streaming, y);
          narrow(y, out, width);
        }
      }
    };
    one_plane_behind(begin, end, height, read, done, write);
    stream_fence();
  });
}

// Adds N rows of dy, `width` apart, to the sums of the columns, and writes the sums of the rows.
template <int N, class A>
POSEKD_INLINE void add_up(const A* dy, int64_t width, A* columns, A* rows) {
  constexpr int L = Vec<A>::kLanes;
  vec<A> sums[N] = {};
  int64_t i = 0;
  for (; i + L <= width; i += L) {
    vec<A> column = load(columns + i);
    for (int n = 0; n < N; ++n) {
      fetch_ahead<false>(dy + n * width + i);
      const vec<A> value = load(dy + n * width + i);
      sums[n] += value;
      column += value;
    }
    store(columns + i, column);
  }
  for (int n = 0; n < N; ++n) {
    rows[n] = sum_lanes<A>(sums[n]);
    for (int64_t k = i; k < width; ++k) rows[n] += dy[n * width + k], columns[k] += dy[n * width + k];
  }
}

// Which columns have their maximum in which row: lists, because a row has few.
class ColumnsOfRows {
 public:
  ColumnsOfRows(int64_t height, int64_t width) : first_(height), next_(width), height_(height), width_(width) {}

  void set(const int32_t* row_of_column) {
    for (int64_t row = 0; row < height_; ++row) first_.get()[row] = -1;
    for (int64_t i = 0; i < width_; ++i) {
      if (row_of_column[i] < 0 || row_of_column[i] >= height_) continue;  // not from our forward pass
      next_.get()[i] = first_.get()[row_of_column[i]];
      first_.get()[row_of_column[i]] = static_cast<int32_t>(i);
    }
  }
  template <class F>
  void each(int64_t row, F&& f) const {
    for (int32_t i = first_.get()[row]; i >= 0; i = next_.get()[i]) f(i);
  }

 private:
  ScratchOf<int32_t> first_, next_;
  int64_t height_, width_;
};

// Writes a row that is zero but for a few values: values(set) calls set(i, value) for each, once per column. `line` is
// zero before and after: a row that goes past the cache is put together there. Elsewhere the values go over the zeros,
// as vectors that were loaded from `line` would wait for its single elements.
template <class T, class A, class Values>
POSEKD_INLINE void write_sparse(Values&& values, int64_t width, bool streaming, A* line, T* to) {
  constexpr int L = Vec<A>::kLanes;
  if constexpr (std::is_same_v<T, A>) {
    if (streaming) {
      values([&](int64_t i, A value) { line[i] = value; });
      for (int64_t i = 0; i < width; i += L) stream(to + i, load(line + i));
      return values([&](int64_t i, A) { line[i] = A(0); });
    }
  }
  std::memset(static_cast<void*>(to), 0, static_cast<size_t>(width) * sizeof(T));
  values([&](int64_t i, A value) { to[i] = from_float<T>(value); });
}

// Sums of a plane's gradient.
template <class A>
struct PlaneSums {
  PlaneSums(int64_t height, int64_t width) : columns(width), rows(height), columns_of(height, width) {}
  ScratchOf<A> columns, rows;
  ColumnsOfRows columns_of;
};

// A row of the gradients: the column sums, where the columns' maxima lie, and the row's sum at the row's. With no
// second map both go to the first.
template <class T, class A>
void gradient_row(const CenterPoolGradient& args, int64_t plane, int64_t row, const PlaneSums<A>& sums, bool streaming,
                  A* line) {
  const int64_t width = args.width(), index = plane * args.height() + row;
  const int32_t argument = args.row_argument.as<int32_t>()[index];
  const int64_t column = argument >= 0 && argument < width ? argument : 0;
  const A *columns = sums.columns.get(), row_sum = sums.rows.get()[row];
  T* vertical = args.vertical.as<T>() + index * width;
  if (args.horizontal) {
    const auto of_columns = [&](auto&& set) { sums.columns_of.each(row, [&](int64_t i) { set(i, columns[i]); }); };
    write_sparse(of_columns, width, streaming, line, vertical);
    const auto of_row = [&](auto&& set) { set(column, row_sum); };
    write_sparse(of_row, width, streaming, line, args.horizontal.as<T>() + index * width);
  } else {
    const auto of_both = [&](auto&& set) {
      A at_argument = row_sum;
      sums.columns_of.each(row, [&](int64_t i) {
        if (i == column)
          at_argument += columns[i];
        else
          set(i, columns[i]);
      });
      set(column, at_argument);
    };
    write_sparse(of_both, width, streaming, line, vertical);
  }
}

template <class T>
void backward(const CenterPoolGradient& args, int threads) {
  using A = accumulate_t<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;
  const int64_t width = args.width(), height = args.height();
  const bool streaming = kDirect && past_cache(args.vertical, sizeof(vec<A>)) &&
                         (!args.horizontal || past_cache(args.horizontal, sizeof(vec<A>)));
  parallel_for(args.planes(), grain(args.planes(), height * width, threads), threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<A> scratch(2 * width);
    PlaneSums<A> sums[2] = {{height, width}, {height, width}};
    A *dy = scratch.get(), *line = dy + width;
    for (int64_t i = 0; i < width; ++i) line[i] = A(0);
    const auto read = [&](int64_t plane, int64_t row, int64_t count) {
      A *columns = sums[plane % 2].columns.get(), *rows = sums[plane % 2].rows.get() + row;
      const T* from = args.upstream.as<T>() + (plane * height + row) * width;
      for (int64_t i = 0; row == 0 && i < width; ++i) columns[i] = A(0);
      if (kDirect && count == kRows) {
        add_up<kRows>(read_line(from, width, dy), width, columns, rows);
      } else {
        for (int64_t k = 0; k < count; ++k) add_up<1>(read_line(from + k * width, width, dy), width, columns, rows + k);
      }
    };
    const auto done = [&](int64_t plane) {
      sums[plane % 2].columns_of.set(args.column_argument.as<int32_t>() + plane * width);
    };
    const auto write = [&](int64_t plane, int64_t row, int64_t count) {
      for (int64_t k = row; k < row + count; ++k) gradient_row<T>(args, plane, k, sums[plane % 2], streaming, line);
    };
    one_plane_behind(begin, end, height, read, done, write);
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
