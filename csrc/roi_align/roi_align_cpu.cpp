// CPU kernels of roi_align, compiled once per vector level. See roi_align.h for the floor.
#include "core/parallel.h"
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_planes.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kBackwardChannels = 10;  // at most, that share a box's packed matrices

// The same in the forward pass: as many maps as stay in a core's cache from box to box.
int64_t forward_channels(int64_t channels, int64_t map_bytes) {
  const int64_t fit = (256 << 10) / map_bytes;
  const int64_t most = fit < 4 ? 4 : fit > 32 ? 32 : fit;
  return channels < most ? channels : most;
}

// Items a thread takes at once: at least 32 K values' worth, and not more than an eighth of its share.
int64_t grain(int64_t items, int64_t values, int threads) {
  const int64_t least = values >= 32768 ? 1 : 32768 / (values > 0 ? values : 1);
  const int64_t most = items / (8 * static_cast<int64_t>(threads)) + 1;
  return least > most ? least : most;
}

template <class T>
void crops(const RoiAlign& args, int threads) {
  const auto& plan = *static_cast<const RoiPlan<T>*>(args.plan);
  const int H = args.height(), W = args.width(), P = args.out_height(), Q = args.out_width();
  const int64_t map = static_cast<int64_t>(H) * W, size = static_cast<int64_t>(P) * Q;
  const int64_t C = args.channels(), R = args.count(), share = forward_channels(C, map * sizeof(T));
  const int64_t items = R * ((C + share - 1) / share);
  const bool direct = args.crops.dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32) && Q == padded<T>(Q);
  parallel_for(items, grain(items, size * share, threads), threads, [&](int64_t begin, int64_t end) {
    Cropper<T> cropper(P, Q, H, W);
    const Buffer<T> source(map), result(P * padded<T>(Q));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t r = plan.order[item % R], from = item / R * share;
      const int64_t image = plan.boxes[r].image < 0 ? 0 : plan.boxes[r].image;
      cropper.choose(plan.boxes[r], true, false);
      for (int64_t c = from; c < C && c < from + share; ++c) {
        const int64_t offset = (r * C + c) * size;
        const Plane<T> out{direct ? args.crops.as<T>() + offset : result.data, padded<T>(Q)};
        cropper.crop(read_plane(args.maps, (image * C + c) * map, H, W, source.data), out);
        if (!direct) write_plane<T>(args.crops, offset, P, Q, {out.data, out.stride});
      }
    }
  });
}

// Owns channels [from, to) of image n: all its boxes in index order, their matrices packed once for these channels.
template <class T>
void gradient_planes(const RoiAlign& args, Cropper<T>& cropper, int64_t n, int64_t from, int64_t to, T* planes,
                     T* buffer) {
  const auto& plan = *static_cast<const RoiPlan<T>*>(args.plan);
  const int H = args.height(), W = args.width(), P = args.out_height(), Q = args.out_width();
  const int64_t C = args.channels(), stride = padded<T>(W) + Vec<T>::kLanes;
  std::memset(static_cast<void*>(planes), 0, static_cast<size_t>((to - from) * H * stride) * sizeof(T));
  for (int64_t i = plan.first[n]; i < plan.first[n + 1]; ++i) {
    const int64_t r = plan.order[i];
    cropper.choose(plan.boxes[r], false, true);
    for (int64_t c = from; c < to; ++c)
      cropper.add(read_plane(args.crops, (r * C + c) * P * Q, P, Q, buffer),
                  {planes + (c - from) * H * stride, stride});
  }
  for (int64_t c = from; c < to; ++c)
    write_plane<T>(args.maps, (n * C + c) * H * W, H, W, {planes + (c - from) * H * stride, stride});
}

template <class T>
void gradients(const RoiAlign& args, int threads) {
  const int H = args.height(), W = args.width(), P = args.out_height(), Q = args.out_width();
  const int64_t C = args.channels(), groups = (C + kBackwardChannels - 1) / kBackwardChannels;
  if (groups == 0 || args.images() == 0) return;
  const int64_t items = args.images() * groups, share = (C + groups - 1) / groups;
  const int64_t values = (args.count() * P * Q / args.images() + H * W) * share;
  parallel_for(items, grain(items, values, threads), threads, [&](int64_t begin, int64_t end) {
    Cropper<T> cropper(P, Q, H, W);
    const Buffer<T> planes(share * H * (padded<T>(W) + Vec<T>::kLanes)), buffer(static_cast<int64_t>(P) * Q);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t from = item % groups * share, to = from + share < C ? from + share : C;
      gradient_planes(args, cropper, item / groups, from, to, planes.data, buffer.data);
    }
  });
}

}  // namespace

void roi_align_crops(const RoiAlign& args, int threads) {
  args.maps.dtype == DType::float64 ? crops<double>(args, threads) : crops<float>(args, threads);
}

void roi_align_gradients(const RoiAlign& args, int threads) {
  args.maps.dtype == DType::float64 ? gradients<double>(args, threads) : gradients<float>(args, threads);
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
