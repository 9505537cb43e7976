// The pixels that the bins of small crops read, written down once for all channels: with one or two samples a bin and
// axis, at most four an axis.
#pragma once

#include "roi_align/roi_align.h"
#include "roi_align/roi_align_device.cuh"

namespace posekd {
namespace {

constexpr int kTaps = 4;  // of a bin and axis

// A pixel that a bin reads along an axis: a column, or the first pixel of a row. A weight of kUntouched: none.
struct alignas(8) Tap {
  int offset;
  float weight;
};

struct TapTables {
  Tap* x;      // [R, Q, kTaps]
  Tap* y;      // [R, P, kTaps]
  int* image;  // [R]; 0 where the box is on none: it then has no taps
};

__device__ __forceinline__ void add_tap(Tap (&taps)[kTaps], int offset, float weight) {
  for (Tap& tap : taps) {
    if (tap.weight >= 0.0f && tap.offset != offset) continue;
    add_weight(tap.weight, weight);
    tap.offset = offset;
    return;
  }
}

// The taps of bin p, as roi_weights has them: a pixel is read once, whatever the samples beside it.
__device__ __forceinline__ void write_taps(const RoiAxis<float>& axis, int p, int stride, float factor, Tap* out) {
  Tap taps[kTaps];
  for (Tap& tap : taps) tap = {0, static_cast<float>(kUntouched)};
  RoiSample<float> sample;
  for (int i = 0; i < axis.grid; ++i) {
    if (!roi_sample(axis, p, i, sample)) continue;
    add_tap(taps, sample.low * stride, 1.0f - sample.weight);
    add_tap(taps, sample.high * stride, sample.weight);
  }
  for (int k = 0; k < kTaps; ++k) {
    if (taps[k].weight > 0.0f) taps[k].weight *= factor;
    out[k] = taps[k];
  }
}

// A block a box.
__global__ void __launch_bounds__(kWarp)
    taps_kernel(const __grid_constant__ RoiGeometry g, const __grid_constant__ TapTables t) {
  const int64_t r = blockIdx.x;
  const float* corners = g.boxes + 5 * r + 1;
  RoiAxis<float> x = roi_axis(corners[0], corners[2], g.scale, g.aligned, g.sampling_ratio, g.out_width, g.width);
  RoiAxis<float> y = roi_axis(corners[1], corners[3], g.scale, g.aligned, g.sampling_ratio, g.out_height, g.height);
  const float factor = 1.0f / roi_count(y, x);
  const int image = roi_image(g.boxes[5 * r], g.images);
  if (image < 0 || x.grid == 0 || y.grid == 0) x.grid = y.grid = 0;
  if (threadIdx.x == 0) t.image[r] = max(image, 0);
  for (int i = threadIdx.x; i < g.out_width; i += kWarp) write_taps(x, i, 1, 1.0f, t.x + (r * g.out_width + i) * kTaps);
  for (int i = threadIdx.x; i < g.out_height; i += kWarp)
    write_taps(y, i, g.width, factor, t.y + (r * g.out_height + i) * kTaps);
}

// Whether the boxes of a call have such tables, and there is room for them.
inline bool has_taps(const RoiAlign& args) {
  return args.sampling_ratio >= 1 && args.sampling_ratio <= kTaps / 2 && args.scratch;
}

// Launches what fills them.
inline TapTables make_taps(const RoiAlign& args, const CudaContext& context) {
  TapTables t;
  t.x = args.scratch.as<Tap>();
  t.y = t.x + args.count() * args.out_width() * kTaps;
  t.image = reinterpret_cast<int*>(t.y + args.count() * args.out_height() * kTaps);
  launch(context, taps_kernel, dim3(static_cast<unsigned>(args.count())), kWarp, 0, roi_geometry(args), t);
  return t;
}

}  // namespace
}  // namespace posekd
