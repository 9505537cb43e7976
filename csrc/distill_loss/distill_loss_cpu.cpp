// CPU kernels of distill_loss, compiled once per vector level. See distill_loss.h for the floor.
#include <cmath>
#include <cstring>
#include <limits>

#include "core/large_outputs.h"
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

// The next row's lines, asked for while this row is computed: the passes over a row that is in cache would leave the
// memory idle, and the hardware's prefetcher does not look past the end of a row.
struct Ahead {
  const char* lines[3] = {};  // of s, t, g; null: nothing to fetch
  int64_t bytes[3] = {};      // a vector of pixels

  POSEKD_INLINE void fetch(int64_t vector) const {
    for (int map = 0; map < 3; ++map)
      if (lines[map]) __builtin_prefetch(lines[map] + vector * bytes[map], 0, 2);
  }
};

template <class T>
struct Sums {
  T teacher = 0, label = 0, kl = 0, lse_s = 0, lse_t = 0;
};

template <class T>
class RowReader {
 public:
  // Buffers: s, t, g, gradient (its squares' part first), exp s, exp t.
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

  // What to fetch while row `row` is computed.
  Ahead ahead(int64_t row) const {
    Ahead result;
    if (row + 1 >= args_.rows()) return result;
    const TensorView* maps[3] = {&args_.student, &args_.teacher, &args_.target};
    for (int map = 0; map < 3; ++map) {
      if (!*maps[map]) continue;
      const int64_t size = item_size(maps[map]->dtype);
      result.lines[map] = maps[map]->as<char>() + (row + 1) * pixels_ * size;
      result.bytes[map] = Vec<T>::kLanes * size;
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
  bool streams(const T* out) const {
    return out != buffer(3) && args_.rows() * pixels_ * static_cast<int64_t>(sizeof(T)) >= stream_from();
  }

 private:
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

template <class T>
POSEKD_INLINE T maximum(const T* x, int64_t pixels) {
  T best = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < pixels; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// A vector of pixels; past the end of the row `fill`.
template <class T>
POSEKD_INLINE vec<T> load_padded(const T* x, int64_t i, int64_t pixels, T fill) {
  if (i + Vec<T>::kLanes <= pixels) return load(x + i);
  vec<T> value = broadcast(fill);
  for (int lane = 0; i + lane < pixels; ++lane) value[lane] = x[i + lane];
  return value;
}

// What a row's softmaxes are taken relative to, and their norms.
template <class T>
struct Softmax {
  T shift_s = 0, shift_t = 0;  // subtracted before the exponentials
  T inverse_zs = 0, inverse_zt = 0;
};

// What a row's gradient is made of, kept in cache between the two passes: squares[i] + kl (es[i]/zs - et[i]/zt).
template <class T>
struct Parts {
  T* squares = nullptr;  // null: no gradient is asked for
  T* es = nullptr;
  T* et = nullptr;
};

// The pass that reads memory: all sums of a row, and the parts of its gradient.
// KL(q_t, q_s) = sum q_t (t - s)/T - lse_t + lse_s. Returns the largest of (s - shift_s)/T and (t - shift_t)/T.
template <class T, bool kTeacher, bool kLabels>
POSEKD_INLINE T sum_row(const Row<T>& row, T inverse_temperature, const Factors<T>& f, const Parts<T>& parts,
                        const Ahead& ahead, Softmax<T>& softmax, Sums<T>& sums) {
  constexpr int L = Vec<T>::kLanes;
  const T infinity = std::numeric_limits<T>::infinity();
  const vec<T> zero = {}, lowest = broadcast(-infinity);
  vec<T> teacher = {}, label = {}, zs = {}, zt = {}, kl = {}, top = lowest;
  for (int64_t i = 0; i < row.pixels; i += L) {
    ahead.fetch(i / L);
    const bool whole = i + L <= row.pixels;
    const vec<T> s = load_padded(row.s, i, row.pixels, T(0));
    vec<T> squares = {};
    if constexpr (kLabels) {
      const vec<T> d = s - load_padded(row.g, i, row.pixels, T(0));
      label += d * d;
      squares = d * f.label;
    }
    if constexpr (kTeacher) {
      const vec<T> t = load_padded(row.t, i, row.pixels, T(0)), d = s - t;
      teacher += d * d;
      squares += d * f.teacher;
      vec<T> x = (s - softmax.shift_s) * inverse_temperature, y = (t - softmax.shift_t) * inverse_temperature;
      if (!whole)  // pixels of no weight
        for (int lane = static_cast<int>(row.pixels - i); lane < L; ++lane) x[lane] = y[lane] = -infinity;
      top = larger(larger(x, y), top);
      const vec<T> ex = vec_exp(x), ey = vec_exp(y);
      zs += ex;
      zt += ey;
      kl += select(y == lowest, zero, ey * (y - x));  // 0 log 0 = 0
      if (parts.squares) {
        store(parts.es + i, ex);
        store(parts.et + i, ey);
      }
    }
    if (parts.squares) store(parts.squares + i, squares);
  }
  if constexpr (kLabels) sums.label = sum_lanes<T>(label);
  if constexpr (kTeacher) {
    const T sum_s = sum_lanes<T>(zs), sum_t = sum_lanes<T>(zt);
    softmax.inverse_zs = T(1) / sum_s;
    softmax.inverse_zt = T(1) / sum_t;
    sums.teacher = sum_lanes<T>(teacher);
    sums.lse_s = softmax.shift_s * inverse_temperature + std::log(sum_s);
    sums.lse_t = softmax.shift_t * inverse_temperature + std::log(sum_t);
    sums.kl = sum_lanes<T>(kl) * softmax.inverse_zt - std::log(sum_t) + std::log(sum_s);
  }
  return max_lanes<T>(top);
}

// The sums, in one pass where the row allows it. A softmax subtracts the maximum, which takes a pass to find; any value
// near it serves as well. So the maximum of the first pixels is tried: then no sum is below 1, and only if a pixel lies
// far above (or is not finite) the pass is repeated with the true maxima.
template <class T, bool kTeacher, bool kLabels>
POSEKD_INLINE Softmax<T> sums_of(const Row<T>& row, T inverse_temperature, const Factors<T>& f, const Parts<T>& parts,
                                 const Ahead& ahead, Sums<T>& sums) {
  constexpr T kFar = 60;  // e^60 times a million pixels is within float32
  Softmax<T> softmax;
  if constexpr (kTeacher) {
    const int64_t first = row.pixels < Vec<T>::kLanes ? row.pixels : Vec<T>::kLanes;
    softmax.shift_s = maximum(row.s, first);
    softmax.shift_t = maximum(row.t, first);
  }
  const T top = sum_row<T, kTeacher, kLabels>(row, inverse_temperature, f, parts, ahead, softmax, sums);
  if constexpr (kTeacher) {
    if (!(top < kFar)) {
      softmax.shift_s = maximum(row.s, row.pixels);
      softmax.shift_t = maximum(row.t, row.pixels);
      sum_row<T, kTeacher, kLabels>(row, inverse_temperature, f, parts, ahead, softmax, sums);
    }
  }
  return softmax;
}

// The second pass, over parts that are in cache.
template <class T, bool kTeacher>
POSEKD_INLINE void gradient_row(const Parts<T>& parts, T kl, const Softmax<T>& softmax, T upstream, bool streaming,
                                int64_t pixels, T* out) {
  constexpr int L = Vec<T>::kLanes;
  const T ks = kl * softmax.inverse_zs, kt = kl * softmax.inverse_zt;
  const bool past_cache = streaming && reinterpret_cast<uintptr_t>(out) % sizeof(vec<T>) == 0;
  int64_t i = 0;
  for (; i + L <= pixels; i += L) {
    vec<T> value = load(parts.squares + i);
    if constexpr (kTeacher) value += load(parts.es + i) * ks - load(parts.et + i) * kt;
    past_cache ? stream(out + i, value * upstream) : store(out + i, value * upstream);
  }
  for (; i < pixels; ++i) {
    T value = parts.squares[i];
    if constexpr (kTeacher) value += parts.es[i] * ks - parts.et[i] * kt;
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
  Softmax<T> softmax;
  Parts<T> parts;
  if (args.gradient) parts = {reader.buffer(3), reader.buffer(4), reader.buffer(5)};
  const Factors<T> f = factors(args, row);
  if (row.pixels > 0)
    softmax =
        sums_of<T, kTeacher, kLabels>(row, static_cast<T>(1 / args.temperature), f, parts, reader.ahead(index), sums);
  if (args.gradient) {
    T* out = reader.gradient_target(index);
    gradient_row<T, kTeacher>(parts, f.kl, softmax, upstream, reader.streams(out), row.pixels, out);
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

// Rows a thread takes at once: enough that the row fetched ahead is mostly its own, few enough that threads end
// together.
int64_t grain(const DistillLoss& args, int threads) {
  const int64_t share = args.rows() / (4 * static_cast<int64_t>(threads < 1 ? 1 : threads));
  return share < 1 ? 1 : share > 32 ? 32 : share;
}

template <class T>
void forward(const DistillLoss& args, int threads) {
  advise_huge_pages(args.gradient);
  T* stats = args.stats.as<T>();
  parallel_for(args.rows(), grain(args, threads), threads, [&](int64_t begin, int64_t end) {
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
  parallel_for(args.rows(), grain(args, threads), threads, [&](int64_t begin, int64_t end) {
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
