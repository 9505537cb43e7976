// CPU kernels of mimic_loss, compiled once per vector level. See mimic_loss.h for the floor.
#include "core/parallel.h"
#include "mimic_loss/mimic_loss.h"
#include "roi_align/roi_align_planes.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kChannels = 8;  // that share a box's packed matrices in the backward pass

// The crops' sizes, and what a thread works in.
template <class T>
struct Work {
  explicit Work(const MimicLoss& args)
      : args(args),
        roi(args.roi()),
        K(roi.channels()),
        R(roi.count()),
        P(roi.out_height()),
        Q(roi.out_width()),
        cropper(P, Q, roi.height(), roi.width()),
        source(static_cast<int64_t>(roi.height()) * roi.width()),
        target(static_cast<int64_t>(P) * Q),
        crop(P * padded<T>(Q)),
        gradient(P * padded<T>(Q)) {}

  T weight(int64_t m, int64_t r, int64_t k) const { return args.weight.as<T>()[(m * R + r) * K + k]; }
  bool any_weight(int64_t r, int64_t k) const {
    for (int64_t m = 0; m < args.sets(); ++m)
      if (weight(m, r, k) != T(0)) return true;
    return false;
  }
  const RoiBox<T>& box(int64_t r) const { return static_cast<const RoiPlan<T>*>(args.plan)->boxes[r]; }

  // The crop of keypoint k in the chosen box.
  Plane<const T> sample(int64_t r, int64_t k) const {
    const int64_t image = box(r).image < 0 ? 0 : box(r).image;
    const int64_t offset = (image * K + k) * roi.height() * roi.width();
    cropper.crop(read_plane(args.maps, offset, roi.height(), roi.width(), source.data), {crop.data, padded<T>(Q)});
    return {crop.data, padded<T>(Q)};
  }
  int64_t target_offset(int64_t m, int64_t r, int64_t k) const { return ((m * R + r) * K + k) * P * Q; }
  Plane<const T> read_target(int64_t m, int64_t r, int64_t k) const {
    return read_plane(args.targets, target_offset(m, r, k), P, Q, target.data);
  }

  const MimicLoss& args;
  RoiAlign roi;
  int64_t K, R;
  int P, Q;
  Cropper<T> cropper;
  Buffer<T> source, target, crop, gradient;
};

template <class T>
T squared_distance(const Plane<const T>& a, const Plane<const T>& b, int rows, int columns) {
  constexpr int L = Vec<T>::kLanes;
  vec<T> sum = {};
  T tail = 0;
  for (int y = 0; y < rows; ++y) {
    const T *p = a.row(y), *q = b.row(y);
    int x = 0;
    for (; x + L <= columns; x += L) {
      const vec<T> d = load(p + x) - load(q + x);
      sum += d * d;
    }
    for (; x < columns; ++x) tail += (p[x] - q[x]) * (p[x] - q[x]);
  }
  return sum_lanes<T>(sum) + tail;
}

template <class T>
void sums(const MimicLoss& args, int threads) {
  T* stats = args.stats.as<T>();
  parallel_for(args.boxes.shape[0], 1, threads, [&](int64_t begin, int64_t end) {
    Work<T> work(args);
    for (int64_t r = begin; r < end; ++r) {
      work.cropper.choose(work.box(r), true, false);
      for (int64_t k = 0; k < work.K; ++k) {
        const bool any = work.any_weight(r, k);
        const Plane<const T> crop = any ? work.sample(r, k) : Plane<const T>{};
        for (int64_t m = 0; m < args.sets(); ++m) {
          const T weight = work.weight(m, r, k);
          stats[(m * work.R + r) * work.K + k] =
              weight == T(0) ? T(0) : weight * squared_distance(crop, work.read_target(m, r, k), work.P, work.Q);
        }
      }
    }
  });
}

// The gradient of keypoint k's crop in box r, summed over the target sets, in work.gradient; the targets' is written.
template <class T>
void crop_gradient(const Work<T>& work, int64_t r, int64_t k) {
  const MimicLoss& args = work.args;
  const Plane<T> gradient{work.gradient.data, padded<T>(work.Q)};
  std::memset(static_cast<void*>(gradient.data), 0, static_cast<size_t>(work.P * gradient.stride) * sizeof(T));
  const Plane<const T> crop = work.any_weight(r, k) ? work.sample(r, k) : Plane<const T>{};
  for (int64_t m = 0; m < args.sets(); ++m) {
    const T weight = work.weight(m, r, k);
    const Plane<T> own{work.target.data, work.Q};
    if (weight == T(0)) {
      std::memset(static_cast<void*>(own.data), 0, static_cast<size_t>(work.P) * work.Q * sizeof(T));
    } else {
      const T factor = static_cast<T>(2 * args.scale() * static_cast<double>(weight) *
                                      static_cast<double>(args.upstream.as<T>()[m]));
      const Plane<const T> target = work.read_target(m, r, k);
      for (int p = 0; p < work.P; ++p) {
        const T *y = crop.row(p), *t = target.row(p);
        T *sum = gradient.row(p), *negative = own.row(p);  // may be the very buffer of t
        for (int q = 0; q < work.Q; ++q) {
          const T value = factor * (y[q] - t[q]);
          sum[q] += value;
          negative[q] = -value;
        }
      }
    }
    if (args.target_gradient)
      write_plane<T>(args.target_gradient, work.target_offset(m, r, k), work.P, work.Q, {own.data, own.stride});
  }
}

// A thread owns channels of an image: the boxes in index order, no atomics.
template <class T>
void gradients(const MimicLoss& args, int threads) {
  const auto& plan = *static_cast<const RoiPlan<T>*>(args.plan);
  const int H = args.roi().height(), W = args.roi().width();
  const int64_t K = args.roi().channels(), groups = (K + kChannels - 1) / kChannels;
  const int64_t stride = padded<T>(W) + Vec<T>::kLanes;
  parallel_for(args.roi().images() * groups, 1, threads, [&](int64_t begin, int64_t end) {
    Work<T> work(args);
    const Buffer<T> planes(kChannels * H * stride);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / groups, from = item % groups * kChannels;
      const int64_t to = from + kChannels < K ? from + kChannels : K;
      std::memset(static_cast<void*>(planes.data), 0, static_cast<size_t>((to - from) * H * stride) * sizeof(T));
      for (int64_t i = plan.first[n]; i < plan.first[n + 1]; ++i) {
        const int64_t r = plan.order[i];
        work.cropper.choose(plan.boxes[r], true, true);
        for (int64_t k = from; k < to; ++k) {
          crop_gradient(work, r, k);
          work.cropper.add({work.gradient.data, padded<T>(work.Q)}, {planes.data + (k - from) * H * stride, stride});
        }
      }
      for (int64_t k = from; k < to; ++k)
        write_plane<T>(args.gradient, (n * K + k) * H * W, H, W, {planes.data + (k - from) * H * stride, stride});
    }
  });
}

}  // namespace

void mimic_loss_sums(const MimicLoss& args, int threads) {
  args.stats.dtype == DType::float64 ? sums<double>(args, threads) : sums<float>(args, threads);
}

void mimic_loss_gradients(const MimicLoss& args, int threads) {
  args.maps.dtype == DType::float64 ? gradients<double>(args, threads) : gradients<float>(args, threads);
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
