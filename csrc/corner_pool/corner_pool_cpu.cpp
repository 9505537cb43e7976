// CPU kernels of corner_pool, compiled once per vector level. See corner_pool.h for the floor.
#include <type_traits>

#include "core/large_outputs.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/stream.h"
#include "core/vec.h"
#include "corner_pool/corner_pool.h"
#include "corner_pool/corner_pool_lines.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kSerialItems = 32768;  // elements that are not worth a second thread
constexpr int64_t kManyPlanes = 16;      // from here on a thread takes whole planes
constexpr int64_t kBandColumns = 128, kBandRows = 32;
constexpr int kRows = 2;  // that a column scan takes at once, where nothing else is to be done with a row

// Part of a plane that one thread scans: whole columns of a column scan, whole rows of a row scan, both of both.
struct Part {
  int64_t plane, row_begin, row_end, column_begin, column_end;
};

class Parts {
 public:
  explicit Parts(const CornerPool& args) : args_(args) {
    const bool many = args.planes() >= kManyPlanes;
    rows_ = args.columns() || many ? args.height() : kBandRows;
    columns_ = args.columns() && !many && !args.second ? kBandColumns : args.width();
    bands_ = args.columns() ? ceil(args.width(), columns_) : ceil(args.height(), rows_);
  }
  int64_t count() const { return args_.planes() * bands_; }
  int64_t grain() const { return kSerialItems / (rows_ * columns_) + 1; }

  Part operator[](int64_t index) const {
    const int64_t band = index % bands_;
    if (args_.columns())
      return {index / bands_, 0, args_.height(), band * columns_, end(band, columns_, args_.width())};
    return {index / bands_, band * rows_, end(band, rows_, args_.height()), 0, args_.width()};
  }

 private:
  static int64_t ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
  static int64_t end(int64_t band, int64_t size, int64_t limit) {
    return (band + 1) * size < limit ? (band + 1) * size : limit;
  }
  const CornerPool& args_;
  int64_t rows_, columns_, bands_;
};

// Calls body(part, scratch) for every part, and the parts of a thread in the direction in which memory is walked:
// a descending walk inside ascending parts would cost twice the time.
template <class A, class Body>
void for_parts(const CornerPool& args, int threads, bool descending, Body&& body) {
  const Parts parts(args);
  parallel_for(parts.count(), parts.grain(), threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<A> scratch(5 * args.width());
    for (int64_t k = begin; k < end; ++k) body(parts[descending ? begin + end - 1 - k : k], scratch.get());
    stream_fence();
  });
}

bool past_cache(const CornerPool& args, int64_t vector_bytes) {
  return streams(args.output, args.width() * item_size(args.output.dtype), vector_bytes);
}

template <class T, class A>
const A* read_line(const T* from, int64_t count, A* buffer) {
  if constexpr (std::is_same_v<T, A>) return from;
  widen(from, buffer, count);
  return buffer;
}

// Row `line_index` of the second map, pooled into `pooled`.
template <bool kLast, class T, class A>
void pool_second(const CornerPool& args, int64_t line_index, A* buffer, A* pooled) {
  const int64_t width = args.width();
  const A* x = read_line(args.second.as<T>() + line_index * width, width, buffer);
  ForwardLine<A> line{x, nullptr, pooled, nullptr, width, false};
  if (args.second_heads) line.heads = args.second_heads.as<uint32_t>() + line_index * args.words();
  args.second_direction == CornerDirection::left ? row_line<true, kLast>(line) : row_line<false, kLast>(line);
}

template <bool kColumns, bool kDown, bool kLast, class T>
void forward(const CornerPool& args, int threads) {
  using A = accumulate_t<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;
  const bool streaming = kDirect && past_cache(args, sizeof(vec<A>));
  for_parts<A>(args, threads, kDown, [&](const Part& part, A* scratch) {
    const int64_t width = args.width(), count = part.column_end - part.column_begin;
    A *best = scratch, *x = best + width, *y = x + width, *other = y + width, *second = other + width;
    const NextRow next{kDown ? -width : width, kDown ? -args.words() : args.words()};
    const int64_t rows = part.row_end - part.row_begin;
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t row = kDown ? part.row_end - 1 - k : part.row_begin + k;
      const int64_t line_index = part.plane * args.height() + row, offset = line_index * width + part.column_begin;
      ForwardLine<A> line{read_line(args.input.as<T>() + offset, count, x), nullptr, y, nullptr, count, streaming};
      if constexpr (kDirect) line.y = args.output.as<T>() + offset;
      if (args.other) line.other = read_line(args.other.as<T>() + offset, count, other);
      if (kColumns && args.second) {
        pool_second<kLast, T>(args, line_index, second, other);
        line.other = other;
      }
      if (args.heads) line.heads = args.heads.as<uint32_t>() + line_index * args.words() + part.column_begin / 32;
      if constexpr (!kColumns) {
        row_line<kDown, kLast>(line);
      } else if (k == 0) {
        first_column_line<kDown>(line, best);
      } else if (kDirect && !args.second && k + kRows <= rows) {
        column_lines<kRows, kDown, kLast>(line, next, best);
        k += kRows - 1;
      } else {
        column_lines<1, kDown, kLast>(line, next, best);
      }
      if constexpr (!kDirect) narrow(y, args.output.as<T>() + offset, count);
    }
  });
}

template <bool kColumns, bool kDown, class T>
void backward(const CornerPool& args, int threads) {
  using A = accumulate_t<T>;
  constexpr bool kDirect = std::is_same_v<T, A>;
  const bool streaming = kDirect && past_cache(args, sizeof(vec<A>));
  for_parts<A>(args, threads, !kDown, [&](const Part& part, A* scratch) {
    const int64_t width = args.width(), count = part.column_end - part.column_begin;
    A *sums = scratch, *dy = scratch + width, *dx = scratch + 2 * width;
    for (int64_t i = 0; i < count; ++i) sums[i] = A(0);
    const NextRow next{kDown ? width : -width, kDown ? args.words() : -args.words()};
    const int64_t rows = part.row_end - part.row_begin;
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t row = kDown ? part.row_begin + k : part.row_end - 1 - k;
      const int64_t line_index = part.plane * args.height() + row, offset = line_index * width + part.column_begin;
      const uint32_t* heads = args.heads.as<uint32_t>() + line_index * args.words() + part.column_begin / 32;
      BackwardLine<A> line{read_line(args.input.as<T>() + offset, count, dy), dx, heads, count, streaming};
      if constexpr (kDirect) line.dx = args.output.as<T>() + offset;
      if constexpr (!kColumns) {
        row_line_backward<kDown>(line);
      } else if (kDirect && k + kRows <= rows) {
        column_lines_backward<kRows, kDown>(line, next, sums);
        k += kRows - 1;
      } else {
        column_lines_backward<1, kDown>(line, next, sums);
      }
      if constexpr (!kDirect) narrow(dx, args.output.as<T>() + offset, count);
    }
  });
}

template <class F>
void dispatch_bool(bool value, F&& f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

// Calls f(columns, descending, Tag<T>) with what is known at compile time.
template <class F>
void dispatch(const CornerPool& args, F&& f) {
  dispatch_float(args.input.dtype, [&](auto tag) {
    dispatch_bool(args.columns(), [&](auto columns) {
      dispatch_bool(args.descending(), [&](auto descending) { f(columns, descending, tag); });
    });
  });
}

}  // namespace

void corner_pool_forward(const CornerPool& args, int threads) {
  advise_huge_pages(args.output);
  dispatch(args, [&](auto columns, auto descending, auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(args.last_wins, [&](auto last) {
      forward<decltype(columns)::value, decltype(descending)::value, decltype(last)::value, T>(args, threads);
    });
  });
}

void corner_pool_backward(const CornerPool& args, int threads) {
  advise_huge_pages(args.output);
  dispatch(args, [&](auto columns, auto descending, auto tag) {
    using T = typename decltype(tag)::type;
    backward<decltype(columns)::value, decltype(descending)::value, T>(args, threads);
  });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
