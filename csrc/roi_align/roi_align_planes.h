// Banded matrix products on one plane, forward and transposed: what roi_align and mimic_loss do on the CPU.
// Included by units that are compiled once per vector level.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/stream.h"
#include "core/vec.h"
#include "roi_align/roi_align_math.h"
#include "roi_align/roi_align_plan.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

template <class T>
constexpr int64_t padded(int64_t n) {
  return (n + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
}

// A 64-byte aligned buffer.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n)
      : data(static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>((n * sizeof(T) + 127) / 64 * 64)))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* const data;
};

// A plane of values: rows of `stride`.
template <class T>
struct Plane {
  T* data;
  int64_t stride;
  T* row(int64_t y) const { return data + y * stride; }
};

// 0 times a number is 0: NaN tells of an inf or NaN.
template <class T>
bool all_finite(const T* data, int64_t stride, int rows, int columns) {
  constexpr int L = Vec<T>::kLanes;
  vec<T> sum = {};
  T tail = 0;
  for (int y = 0; y < rows; ++y) {
    const T* row = data + y * stride;
    int x = 0;
    for (; x + L <= columns; x += L) sum += load(row + x) * T(0);
    for (; x < columns; ++x) tail += row[x] * T(0);
  }
  return sum_lanes<T>(sum) + tail == T(0);
}

// A banded matrix, or its transpose, packed for vectors: blocks of kLanes results, each block dense over the operands
// that any of its results reads. The band of neighbouring results overlaps, so little of a block is zero, and an
// operand is broadcast instead of gathered.
template <class T>
class Blocks {
 public:
  static constexpr int L = Vec<T>::kLanes;

  // For matrices of up to `outputs` x `pixels`.
  Blocks(int64_t outputs, int64_t pixels)
      : weights_((padded<T>(outputs) + L) * (padded<T>(pixels) + L)), ranges_(2 * (outputs + pixels) / L + 4) {}

  // Results are the outputs, operands the pixels counted from bands.first.
  void pack(const RoiBands<T>& bands) {
    count = static_cast<int>(padded<T>(bands.outputs) / L);
    T* to = weights_.data;
    for (int b = 0; b < count; ++b) {
      int first = bands.last, last = 0;
      const int end = bands.outputs < (b + 1) * L ? bands.outputs : (b + 1) * L;
      for (int q = b * L; q < end; ++q) {
        if (bands.count[q] == 0) continue;
        first = bands.begin[q] < first ? bands.begin[q] : first;
        last = bands.begin[q] + bands.count[q] > last ? bands.begin[q] + bands.count[q] : last;
      }
      to = open(b, first - bands.first, last - bands.first, to);
      T* block = weights(b);
      for (int q = b * L; q < end; ++q)
        for (int k = 0; k < bands.count[q]; ++k) {
          const T weight = bands.weights[bands.offset[q] + k];
          block[static_cast<int64_t>(bands.begin[q] + k - first) * L + q - b * L] = weight > T(0) ? weight : T(0);
        }
    }
  }

  // Results are the pixels counted from bands.first, operands the outputs.
  void pack_transposed(const RoiBands<T>& bands) {
    count = static_cast<int>(padded<T>(bands.last - bands.first) / L);
    T* to = weights_.data;
    for (int b = 0; b < count; ++b) {
      const int low = bands.first + b * L, high = low + L;
      const auto meets = [&](int q) {
        return bands.count[q] > 0 && bands.begin[q] < high && bands.begin[q] + bands.count[q] > low;
      };
      int first = 0, last = bands.outputs;
      while (first < last && !meets(first)) ++first;
      while (last > first && !meets(last - 1)) --last;
      to = open(b, first, last, to);
      T* block = weights(b);
      for (int q = first; q < last; ++q)
        for (int k = 0; k < bands.count[q]; ++k) {
          const int x = bands.begin[q] + k;
          const T weight = bands.weights[bands.offset[q] + k];
          if (x >= low && x < high && weight > T(0)) block[static_cast<int64_t>(q - first) * L + x - low] = weight;
        }
    }
  }

  int begin(int b) const { return ranges_.data[2 * b]; }
  int end(int b) const { return ranges_.data[2 * b + 1]; }
  T* weights(int b) const { return starts(b); }
  int count = 0;

 private:
  T* starts(int b) const {
    T* at = weights_.data;
    for (int i = 0; i < b; ++i) at += static_cast<int64_t>(end(i) - begin(i)) * L;
    return at;
  }
  // Sets block b's operands and zeroes its weights; returns where the next block starts.
  T* open(int b, int first, int last, T* at) {
    if (last < first) last = first = 0;
    ranges_.data[2 * b] = first;
    ranges_.data[2 * b + 1] = last;
    const int64_t size = static_cast<int64_t>(last - first) * L;
    std::memset(static_cast<void*>(at), 0, static_cast<size_t>(size) * sizeof(T));
    return at + size;
  }

  Buffer<T> weights_;
  Buffer<int> ranges_;
};

// N rows of out = in * blocks, kept in registers over a block; added to out where kAdd.
template <class T, int N, bool kAdd>
POSEKD_INLINE void multiply_group(const Plane<const T>& in, const Blocks<T>& blocks, const Plane<T>& out, int y) {
  constexpr int L = Vec<T>::kLanes;
  const T* weights = blocks.weights(0);
  for (int b = 0; b < blocks.count; ++b) {
    vec<T> sum[N];
    for (int n = 0; n < N; ++n) sum[n] = kAdd ? load(out.row(y + n) + b * L) : vec<T>{};
    for (int k = blocks.begin(b); k < blocks.end(b); ++k, weights += L) {
      const vec<T> w = load(weights);
      for (int n = 0; n < N; ++n) sum[n] += in.row(y + n)[k] * w;
    }
    for (int n = 0; n < N; ++n) store(out.row(y + n) + b * L, sum[n]);
  }
}

template <class T, bool kAdd>
void multiply_rows(const Plane<const T>& in, int rows, const Blocks<T>& blocks, const Plane<T>& out) {
  int y = 0;
  for (; y + 4 <= rows; y += 4) multiply_group<T, 4, kAdd>(in, blocks, out, y);
  for (; y < rows; ++y) multiply_group<T, 1, kAdd>(in, blocks, out, y);
}

// Columns [x, x + N vectors) of one row of `combine_rows`, kept in registers.
template <class T, int N, bool kAdd>
POSEKD_INLINE void combine_group(const T* weights, int count, const T* from, int64_t stride, T* to) {
  constexpr int L = Vec<T>::kLanes;
  vec<T> sum[N];
  for (int n = 0; n < N; ++n) sum[n] = kAdd ? load(to + n * L) : vec<T>{};
  for (int k = 0; k < count; ++k, from += stride) {
    if (!(weights[k] >= T(0))) continue;
    for (int n = 0; n < N; ++n) {
      fetch_ahead<false>(from + n * L);
      sum[n] += weights[k] * load(from + n * L);
    }
  }
  for (int n = 0; n < N; ++n) store(to + n * L, sum[n]);
}

// Rows of out = bands * in (kAdd: +=), where in's row 0 is the bands' first pixel.
template <class T, bool kAdd = false>
void combine_rows(const RoiBands<T>& bands, const Plane<const T>& in, int columns, const Plane<T>& out) {
  constexpr int L = Vec<T>::kLanes;
  for (int p = 0; p < bands.outputs; ++p) {
    const int count = bands.count[p];
    const T* weights = bands.weights + bands.offset[p];
    const T* from = in.row(bands.begin[p] - (count ? bands.first : bands.begin[p]));
    T* to = out.row(p);
    int x = 0;
    for (; x + 3 * L <= columns; x += 3 * L) combine_group<T, 3, kAdd>(weights, count, from + x, in.stride, to + x);
    for (; x + L <= columns; x += L) combine_group<T, 1, kAdd>(weights, count, from + x, in.stride, to + x);
    if (!kAdd && x < columns && columns >= L) {  // the last vector of the row, some of it once more
      combine_group<T, 1, kAdd>(weights, count, from + columns - L, in.stride, to + columns - L);
      x = columns;
    }
    for (; x < columns; ++x) {
      T sum = kAdd ? to[x] : T(0);
      for (int k = 0; k < count; ++k)
        if (weights[k] >= T(0)) sum += weights[k] * from[k * in.stride + x];
      to[x] = sum;
    }
  }
}

// The transpose of a banded matrix: for each pixel, counted from the first, the outputs that read it.
template <class T>
class Transposed {
 public:
  Transposed(int64_t outputs, int64_t pixels)
      : begin_(pixels), count_(pixels), offset_(pixels), weights_(outputs * pixels) {}

  RoiBands<T> of(const RoiBands<T>& bands) {
    const int pixels = bands.last - bands.first;
    for (int y = 0; y < pixels; ++y) begin_.data[y] = count_.data[y] = 0;
    each_positive(bands, [&](int p, int y, T) {
      if (count_.data[y] == 0) begin_.data[y] = p;
      count_.data[y] = p + 1 - begin_.data[y];
    });
    int64_t size = 0;
    for (int y = 0; y < pixels; ++y) {
      offset_.data[y] = size;
      size += count_.data[y];
    }
    std::memset(static_cast<void*>(weights_.data), 0, static_cast<size_t>(size) * sizeof(T));
    each_positive(bands, [&](int p, int y, T weight) { weights_.data[offset_.data[y] + p - begin_.data[y]] = weight; });
    return {begin_.data, count_.data, offset_.data, weights_.data, pixels, 0, bands.outputs};
  }

 private:
  template <class F>
  static void each_positive(const RoiBands<T>& bands, F&& f) {
    for (int p = 0; p < bands.outputs; ++p)
      for (int k = 0; k < bands.count[p]; ++k) {
        const T weight = bands.weights[bands.offset[p] + k];
        if (weight > T(0)) f(p, bands.begin[p] - bands.first + k, weight);
      }
  }

  Buffer<int> begin_, count_;
  Buffer<int64_t> offset_;
  Buffer<T> weights_;
};

// What a thread needs to crop from, and to add to, planes of [height, width], crops of [P, Q].
template <class T>
class Cropper {
 public:
  static constexpr int L = Vec<T>::kLanes;

  Cropper(int P, int Q, int height, int width)
      : P_(P),
        Q_(Q),
        blocks_(Q, width),
        transposed_(Q, width),
        rows_of_(P, height),
        middle_((P > height ? P : height) * (padded<T>(Q > width ? Q : width) + L)) {}

  // Chooses the box that `crop` and `add` work with. The costlier product, along the rows, comes first where
  // there are fewer source rows than results, so that it has the fewest rows.
  void choose(const RoiBox<T>& box, bool forward, bool backward) {
    box_ = &box;
    empty_ = box.y.last == 0 || box.x.last == 0;
    rows_ = box.y.last - box.y.first;
    columns_ = box.x.last - box.x.first;
    if (empty_) return;
    if (forward) blocks_.pack(box.x);
    if (backward) {
      transposed_.pack_transposed(box.x);
      spread_ = rows_of_.of(box.y);
    }
  }

  // out [P, >= padded Q] = the box's crop of `in`.
  void crop(const Plane<const T>& in, const Plane<T>& out) const {
    if (empty_) {
      for (int p = 0; p < P_; ++p) std::memset(static_cast<void*>(out.row(p)), 0, static_cast<size_t>(Q_) * sizeof(T));
      return;
    }
    const Plane<const T> source{in.row(box_->y.first) + box_->x.first, in.stride};
    const int64_t stride = padded<T>(rows_ <= P_ ? Q_ : columns_);
    const Plane<T> middle{middle_.data, stride};
    const Plane<const T> read{middle_.data, stride};
    if (rows_ <= P_) {
      multiply_rows<T, false>(source, rows_, blocks_, middle);
      combine_rows(box_->y, read, static_cast<int>(padded<T>(Q_)), out);
    } else {
      combine_rows(box_->y, source, columns_, middle);
      multiply_rows<T, false>(read, P_, blocks_, out);
    }
    // An inf or NaN among the pixels read shows here, in more values than it should.
    if (!all_finite<T>(out.data, out.stride, P_, Q_)) crop_carefully(source, out);
  }

  // to [H, >= W + kLanes] += the transpose, applied to `gradient` [P, Q].
  void add(const Plane<const T>& gradient, const Plane<T>& to) const {
    if (empty_) return;
    const Plane<T> target{to.row(box_->y.first) + box_->x.first, to.stride};
    const int64_t stride = padded<T>(rows_ < P_ ? Q_ : columns_);
    const Plane<T> middle{middle_.data, stride};
    const Plane<const T> read{middle_.data, stride};
    // Whatever is read here has a positive weight in the middle, so an inf or NaN shows there, before it can spread.
    if (rows_ < P_) {
      combine_rows(spread_, gradient, Q_, middle);
      if (!all_finite(read.data, stride, rows_, Q_)) return add_carefully(gradient, target);
      multiply_rows<T, true>(read, rows_, transposed_, target);
    } else {
      multiply_rows<T, false>(gradient, P_, transposed_, middle);
      if (!all_finite(read.data, stride, P_, columns_)) return add_carefully(gradient, target);
      combine_rows<T, true>(spread_, read, static_cast<int>(stride), target);  // beyond the columns are zeros
    }
  }

 private:
  static void clear(const Plane<T>& plane, int rows, int columns) {
    for (int y = 0; y < rows; ++y)
      std::memset(static_cast<void*>(plane.row(y)), 0, static_cast<size_t>(columns) * sizeof(T));
  }

  // Calls f(output, pixel from first, weight) for every weight that a sample touches.
  template <class F>
  static void each(const RoiBands<T>& bands, F&& f) {
    for (int p = 0; p < bands.outputs; ++p)
      for (int k = 0; k < bands.count[p]; ++k) {
        const T weight = bands.weights[bands.offset[p] + k];
        if (weight >= T(0)) f(p, bands.begin[p] - bands.first + k, weight);
      }
  }

  // With inf or NaN about: exactly the pixels that torchvision reads, because 0 times NaN is NaN.
  void crop_carefully(const Plane<const T>& source, const Plane<T>& out) const {
    const Plane<T> middle{middle_.data, padded<T>(columns_)};
    clear(middle, P_, columns_);
    clear(out, P_, Q_);
    each(box_->y, [&](int p, int y, T weight) {
      for (int x = 0; x < columns_; ++x) middle.row(p)[x] += weight * source.row(y)[x];
    });
    each(box_->x, [&](int q, int x, T weight) {
      for (int p = 0; p < P_; ++p) out.row(p)[q] += weight * middle.row(p)[x];
    });
  }

  void add_carefully(const Plane<const T>& gradient, const Plane<T>& target) const {
    const Plane<T> middle{middle_.data, padded<T>(columns_)};
    clear(middle, P_, columns_);
    each(box_->x, [&](int q, int x, T weight) {
      for (int p = 0; p < P_; ++p) middle.row(p)[x] += weight * gradient.row(p)[q];
    });
    each(box_->y, [&](int p, int y, T weight) {
      for (int x = 0; x < columns_; ++x) target.row(y)[x] += weight * middle.row(p)[x];
    });
  }

  int P_, Q_;
  Blocks<T> blocks_, transposed_;
  Transposed<T> rows_of_;
  RoiBands<T> spread_{};
  Buffer<T> middle_;
  const RoiBox<T>* box_ = nullptr;
  bool empty_ = true;
  int rows_ = 0, columns_ = 0;
};

// A [rows, columns] plane at `offset` of a contiguous tensor as T: in place, or converted into `buffer`.
template <class T>
Plane<const T> read_plane(const TensorView& tensor, int64_t offset, int rows, int columns, T* buffer) {
  if (tensor.dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32)) return {tensor.as<T>() + offset, columns};
  convert(tensor.data, tensor.dtype, offset, static_cast<int64_t>(rows) * columns, buffer);
  return {buffer, columns};
}

// The reverse: rounds a plane into the tensor's dtype.
template <class T>
void write_plane(const TensorView& tensor, int64_t offset, int rows, int columns, const Plane<const T>& plane) {
  dispatch_float(tensor.dtype, [&](auto tag) {
    using Out = typename decltype(tag)::type;
    for (int y = 0; y < rows; ++y) {
      Out* out = tensor.as<Out>() + offset + static_cast<int64_t>(y) * columns;
      for (int x = 0; x < columns; ++x) out[x] = from_float<Out>(plane.row(y)[x]);
    }
  });
}

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
