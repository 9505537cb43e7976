// CPU kernels of distill_loss, compiled once per vector level. See distill_loss.h for the floor.
#include <cmath>
#include <cstring>
#include <limits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/stream.h"
#include "core/vec.h"
#include "distill_loss/distill_loss.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

// One row's inputs as T, with unmasked pixels only.
template <class T>
struct Row {
  const T* s = nullptr;
  const T* t = nullptr;  // null: no teacher term
  const T* g = nullptr;  // null: no label term
  int64_t pixels = 0;
  T teacher_weight = 0;
  T label_weight = 0;
};

// What the gradient of a pixel is made of: teacher * (s-t) + label * (s-g) + kl * (q_s - q_t).
template <class T>
struct Factors {
  T teacher, label, kl;
};

template <class T>
struct Sums {
  T teacher = 0, label = 0, kl = 0, lse_s = 0, lse_t = 0;
};

template <class T>
class RowReader {
 public:
  // Buffers: s, t, g, gradient, exp s, exp t.
  explicit RowReader(const DistillLoss& args)
      : args_(args), pixels_(args.pixels()), stride_((pixels_ + 15) / 16 * 16), scratch_(6 * stride_) {}

  T* buffer(int i) const { return scratch_.get() + i * stride_; }
  bool compacted() const { return args_.mask.present; }
  const uint8_t* mask(int64_t row) const {
    return args_.mask.present ? args_.mask.as<uint8_t>() + row / args_.student.shape[1] * pixels_ : nullptr;
  }

  Row<T> read(int64_t row) const {
    Row<T> result;
    result.label_weight = args_.weight ? args_.weight.as<T>()[row] : T(1);
    const bool labels = args_.target || args_.keypoints;
    GaussianJoint joint{};
    if (args_.keypoints) {
      joint = gaussian_joint(args_.kind, args_.keypoints.as<float>() + 3 * row, static_cast<float>(args_.sigma),
                             static_cast<int>(args_.student.shape[3]), static_cast<int>(args_.student.shape[2]));
      result.label_weight *= joint.weight;
    }
    result.teacher_weight = args_.teacher_weight ? args_.teacher_weight.as<T>()[row] : result.label_weight;
    const bool use_teacher = args_.teacher && result.teacher_weight != 0;
    const bool use_labels = labels && result.label_weight != 0;
    if (!use_teacher && !use_labels) return result;
    result.pixels = pixels_;
    result.s = plane(args_.student, row, 0);
    if (use_teacher) result.t = plane(args_.teacher, row, 1);
    if (use_labels) result.g = args_.target ? plane(args_.target, row, 2) : render(joint);
    if (const uint8_t* keep = mask(row)) {
      int64_t count = 0;
      for (int64_t i = 0; i < pixels_; ++i) count += keep[i] != 0;
      result.s = compact(result.s, keep, 0);
      if (result.t) result.t = compact(result.t, keep, 1);
      if (result.g) result.g = compact(result.g, keep, 2);
      result.pixels = count;
    }
    return result;
  }

  // Writes a row's gradient in the student's dtype, zeros at masked pixels.
  void write(int64_t row, const T* gradient) const {
    const uint8_t* keep = mask(row);
    dispatch_float(args_.gradient.dtype, [&](auto tag) {
      using Out = typename decltype(tag)::type;
      Out* out = args_.gradient.as<Out>() + row * pixels_;
      if (!gradient) {
        std::memset(static_cast<void*>(out), 0, static_cast<size_t>(pixels_) * sizeof(Out));
      } else if (keep) {
        for (int64_t i = 0, j = 0; i < pixels_; ++i) out[i] = from_float<Out>(keep[i] ? gradient[j++] : T(0));
      } else if (static_cast<const void*>(out) != gradient) {
        for (int64_t i = 0; i < pixels_; ++i) out[i] = from_float<Out>(gradient[i]);
      }
    });
  }

  // Where a row's gradient may be computed: the output itself when no conversion or masking is needed.
  T* gradient_target(int64_t row) const {
    const DType own = sizeof(T) == 8 ? DType::float64 : DType::float32;
    if (args_.gradient.dtype == own && !args_.mask) return args_.gradient.as<T>() + row * pixels_;
    return buffer(3);
  }

  // Whether `out`, from gradient_target, is part of an output larger than the cache.
  bool streams(const T* out) const { return out != buffer(3) && args_.rows() * pixels_ * sizeof(T) > kCacheBytes; }

 private:
  static constexpr int64_t kCacheBytes = 8 << 20;

  const T* plane(const TensorView& maps, int64_t row, int i) const {
    if (maps.dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32)) return maps.as<T>() + row * pixels_;
    convert(maps.data, maps.dtype, row * pixels_, pixels_, buffer(i));
    return buffer(i);
  }

  const T* compact(const T* from, const uint8_t* keep, int i) const {
    T* to = buffer(i);
    for (int64_t p = 0, q = 0; p < pixels_; ++p)
      if (keep[p]) to[q++] = from[p];
    return to;
  }

  const T* render(const GaussianJoint& joint) const {
    T* out = buffer(2);
    const int width = static_cast<int>(args_.student.shape[3]), height = static_cast<int>(args_.student.shape[2]);
    std::memset(static_cast<void*>(out), 0, static_cast<size_t>(pixels_) * sizeof(T));
    if (!joint.drawn) return out;
    const float sigma = static_cast<float>(args_.sigma);
    T* column = buffer(4);  // free until the exponentials are taken
    for (int x = joint.x.begin; x < joint.x.end; ++x) column[x] = gaussian_value(joint.x, sigma, x);
    for (int y = joint.y.begin; y < joint.y.end && y < height; ++y) {
      const T value = gaussian_value(joint.y, sigma, y);
      for (int x = joint.x.begin; x < joint.x.end; ++x) out[static_cast<int64_t>(y) * width + x] = value * column[x];
    }
    return out;
  }

  const DistillLoss& args_;
  int64_t pixels_;
  int64_t stride_;
  ScratchOf<T> scratch_;
};

// Sums of squares and maxima: the one pass that reads memory; everything after it reads the cache.
template <class T, bool kTeacher, bool kLabels>
POSEKD_INLINE void squares(const Row<T>& row, Sums<T>& sums, T& max_s, T& max_t) {
  constexpr int L = Vec<T>::kLanes;
  const vec<T> lowest = broadcast<T>(-std::numeric_limits<T>::infinity());
  vec<T> teacher = {}, label = {}, ms = lowest, mt = lowest;
  int64_t i = 0;
  for (; i + L <= row.pixels; i += L) {
    const vec<T> s = load(row.s + i);
    if constexpr (kTeacher) {
      const vec<T> t = load(row.t + i), d = s - t;
      teacher += d * d;
      ms = select(s > ms, s, ms);
      mt = select(t > mt, t, mt);
    }
    if constexpr (kLabels) {
      const vec<T> d = s - load(row.g + i);
      label += d * d;
    }
  }
  sums.teacher = sum_lanes<T>(teacher);
  sums.label = sum_lanes<T>(label);
  max_s = max_lanes<T>(ms);
  max_t = max_lanes<T>(mt);
  for (; i < row.pixels; ++i) {
    const T s = row.s[i];
    if constexpr (kTeacher) {
      const T t = row.t[i];
      sums.teacher += (s - t) * (s - t);
      max_s = s > max_s ? s : max_s;
      max_t = t > max_t ? t : max_t;
    }
    if constexpr (kLabels) sums.label += (s - row.g[i]) * (s - row.g[i]);
  }
}

// KL(q_t, q_s) = sum q_t (t - s)/T - lse_t + lse_s. Keeps the exponentials in es, et when they are given.
template <class T>
POSEKD_INLINE void divergence(const Row<T>& row, T inverse_temperature, T max_s, T max_t, T* es, T* et, Sums<T>& sums,
                              T& inverse_zs, T& inverse_zt) {
  constexpr int L = Vec<T>::kLanes;
  vec<T> zs = {}, zt = {}, a = {};
  int64_t i = 0;
  for (; i < row.pixels; i += L) {
    vec<T> s, t;
    if (i + L <= row.pixels) {
      s = load(row.s + i);
      t = load(row.t + i);
    } else {  // the tail, padded with pixels of no weight
      s = t = broadcast<T>(-std::numeric_limits<T>::infinity());
      for (int j = 0; i + j < row.pixels; ++j) s[j] = row.s[i + j], t[j] = row.t[i + j];
    }
    const vec<T> x = (s - max_s) * inverse_temperature, y = (t - max_t) * inverse_temperature;
    const vec<T> ex = vec_exp(x), ey = vec_exp(y);
    zs += ex;
    zt += ey;
    const vec<T> zero = {}, term = ey * (y - x);
    a += select(t == broadcast<T>(-std::numeric_limits<T>::infinity()), zero, term);  // 0 log 0 = 0
    if (es) {
      store(es + i, ex);
      store(et + i, ey);
    }
  }
  const T sum_s = sum_lanes<T>(zs), sum_t = sum_lanes<T>(zt);
  inverse_zs = T(1) / sum_s;
  inverse_zt = T(1) / sum_t;
  sums.lse_s = max_s * inverse_temperature + std::log(sum_s);
  sums.lse_t = max_t * inverse_temperature + std::log(sum_t);
  sums.kl = sum_lanes<T>(a) * inverse_zt - std::log(sum_t) + std::log(sum_s);
}

template <class T, bool kTeacher, bool kLabels>
POSEKD_INLINE void gradient_row(const Row<T>& row, const Factors<T>& f, const T* es, const T* et, T inverse_zs,
                                T inverse_zt, T upstream, bool streaming, T* out) {
  constexpr int L = Vec<T>::kLanes;
  const T ks = f.kl * inverse_zs, kt = f.kl * inverse_zt;
  const bool past_cache = streaming && reinterpret_cast<uintptr_t>(out) % sizeof(vec<T>) == 0;
  int64_t i = 0;
  for (; i + L <= row.pixels; i += L) {
    const vec<T> s = load(row.s + i);
    vec<T> value = {};
    if constexpr (kTeacher) value = (s - load(row.t + i)) * f.teacher + (load(es + i) * ks - load(et + i) * kt);
    if constexpr (kLabels) value += (s - load(row.g + i)) * f.label;
    past_cache ? stream(out + i, value * upstream) : store(out + i, value * upstream);
  }
  for (; i < row.pixels; ++i) {
    T value = 0;
    if constexpr (kTeacher) value = (row.s[i] - row.t[i]) * f.teacher + (es[i] * ks - et[i] * kt);
    if constexpr (kLabels) value += (row.s[i] - row.g[i]) * f.label;
    out[i] = value * upstream;
  }
}

// The gradient's factors for a row: what the loss gives each term, times the row's weights.
template <class T>
Factors<T> factors(const DistillLoss& args, const Row<T>& row) {
  const double tw = row.teacher_weight, lw = row.label_weight;
  return {static_cast<T>(args.alpha * 2 * args.mse_scale() * tw * tw),
          static_cast<T>(args.label_factor() * 2 * args.mse_scale() * lw * lw),
          static_cast<T>(args.beta * args.kl_scale() * tw / args.temperature)};
}

// A row's sums and, where a gradient is asked for, its gradient times `upstream`. The forward pass calls it with 1 and
// the result is scaled afterwards; the backward pass calls it with the upstream gradient, and gives the same bits.
template <class T, bool kTeacher, bool kLabels>
Sums<T> process_row(const DistillLoss& args, const RowReader<T>& reader, const Row<T>& row, int64_t index, T upstream) {
  Sums<T> sums;
  T max_s = 0, max_t = 0, inverse_zs = 0, inverse_zt = 0;
  T *es = nullptr, *et = nullptr;
  if (args.gradient) es = reader.buffer(4), et = reader.buffer(5);
  if (row.pixels > 0) {
    squares<T, kTeacher, kLabels>(row, sums, max_s, max_t);
    if constexpr (kTeacher)
      divergence(row, static_cast<T>(1 / args.temperature), max_s, max_t, es, et, sums, inverse_zs, inverse_zt);
  }
  if (args.gradient) {
    T* out = reader.gradient_target(index);
    gradient_row<T, kTeacher, kLabels>(row, factors(args, row), es, et, inverse_zs, inverse_zt, upstream,
                                       reader.streams(out), out);
    reader.write(index, out);
  }
  return sums;
}

template <class T>
Sums<T> process(const DistillLoss& args, const RowReader<T>& reader, const Row<T>& row, int64_t index, T upstream) {
  if (row.t && row.g) return process_row<T, true, true>(args, reader, row, index, upstream);
  if (row.t) return process_row<T, true, false>(args, reader, row, index, upstream);
  if (row.g) return process_row<T, false, true>(args, reader, row, index, upstream);
  if (args.gradient) reader.write(index, nullptr);
  return {};
}

template <class T>
void forward(const DistillLoss& args, int threads) {
  T* stats = args.stats.as<T>();
  parallel_for(args.rows(), 4, threads, [&](int64_t begin, int64_t end) {
    const RowReader<T> reader(args);
    for (int64_t index = begin; index < end; ++index) {
      const Row<T> row = reader.read(index);
      const Sums<T> sums = process(args, reader, row, index, T(1));
      T* out = stats + 5 * index;
      out[0] = row.t ? row.teacher_weight * row.teacher_weight * sums.teacher : T(0);
      out[1] = row.t ? row.teacher_weight * sums.kl : T(0);
      out[2] = row.g ? row.label_weight * row.label_weight * sums.label : T(0);
      out[3] = sums.lse_s;
      out[4] = sums.lse_t;
    }
    stream_fence();
  });
  double total[3] = {};
  for (int64_t row = 0; row < args.rows(); ++row)
    for (int term = 0; term < 3; ++term) total[term] += static_cast<double>(stats[5 * row + term]);
  const double scale[3] = {args.mse_scale(), args.kl_scale(), args.mse_scale()};
  const double factor[3] = {args.alpha, args.beta, args.label_factor()};
  double sum = 0;
  for (int term = 0; term < 3; ++term) {
    args.terms.as<T>()[term] = static_cast<T>(total[term] * scale[term]);
    if (factor[term] != 0) sum += factor[term] * (total[term] * scale[term]);
  }
  *args.loss.as<T>() = static_cast<T>(sum);
}

template <class T>
void backward(const DistillLoss& args, int threads) {
  const T upstream = *args.upstream.as<T>();
  parallel_for(args.rows(), 4, threads, [&](int64_t begin, int64_t end) {
    const RowReader<T> reader(args);
    for (int64_t index = begin; index < end; ++index) process(args, reader, reader.read(index), index, upstream);
    stream_fence();
  });
}

}  // namespace

void distill_loss_forward(const DistillLoss& args, int threads) {
  args.stats.dtype == DType::float64 ? forward<double>(args, threads) : forward<float>(args, threads);
}

void distill_loss_backward(const DistillLoss& args, int threads) {
  args.stats.dtype == DType::float64 ? backward<double>(args, threads) : backward<float>(args, threads);
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
