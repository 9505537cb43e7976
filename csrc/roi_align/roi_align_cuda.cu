// CUDA kernels of roi_align. See roi_align.h for the floor. One launch each way.
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_device.cuh"

namespace posekd {
namespace {

struct Params {
  RoiGeometry boxes;
  void* maps;
  void* crops;
  int channels;
  int group;  // channels per block
  int rows;   // forward: crop rows at once; backward: map rows per block
};

// Block (box, channel group): matrices once, then each channel's crop, `rows` rows at a time.
template <class T>
__global__ void __launch_bounds__(kRoiThreads, 4) crop_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, shared);
  float* at = shared;
  DeviceBox box = carve_box(at, p.boxes);
  const int64_t r = blockIdx.x, map = static_cast<int64_t>(p.boxes.height) * p.boxes.width;
  const int P = p.boxes.out_height, Q = p.boxes.out_width;
  const int from = static_cast<int>(blockIdx.y) * p.group, to = min(from + p.group, p.channels);
  open_box(p.boxes, r, box);
  T* crops = static_cast<T*>(p.crops) + (r * p.channels + from) * P * Q;
  if (box.empty) {
    const int64_t size = static_cast<int64_t>(to - from) * P * Q;
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) crops[i] = from_float<T>(0.0f);
    return;
  }
  const int64_t image = roi_image(p.boxes.boxes[5 * r], p.boxes.images);
  const T* maps = static_cast<const T*>(p.maps) + (image * p.channels + from) * map;
  for (int c = from; c < to; ++c, maps += map, crops += static_cast<int64_t>(P) * Q)
    for (int row = 0; row < P; row += p.rows)
      crop_rows(
          box, row, min(row + p.rows, P), at, [&](int64_t i) { return to_float(maps[i]); },
          [&](int i, int q, float value) { crops[static_cast<int64_t>(i) * Q + q] = from_float<T>(value); });
}

// Block (stripe, channel group, image): owns its part of the gradient in shared memory, adds the image's boxes in
// order, writes it once.
template <class T>
__global__ void __launch_bounds__(kRoiThreads, 2) gradient_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, shared);
  float* at = shared;
  DeviceBox box = carve_box(at, p.boxes);
  const int n = blockIdx.z, W = p.boxes.width, P = p.boxes.out_height, Q = p.boxes.out_width;
  const int y_begin = static_cast<int>(blockIdx.x) * p.rows, y_end = min(y_begin + p.rows, p.boxes.height);
  const int from = static_cast<int>(blockIdx.y) * p.group, to = min(from + p.group, p.channels);
  float* middle = at;
  float* tiles = at + kRoiChunk * W;
  const int tile = (y_end - y_begin) * W;
  for (int i = threadIdx.x; i < (to - from) * tile; i += blockDim.x) tiles[i] = 0.0f;
  each_box_of(p.boxes, n, [&](int r) {
    open_box(p.boxes, r, box);
    if (box.empty) return;
    const RoiRange range = rows_that_read(box.y, y_begin, y_end);
    for (int c = from; c < to; ++c) {
      const T* crop = static_cast<const T*>(p.crops) + (static_cast<int64_t>(r) * p.channels + c) * P * Q;
      for (int row = range.begin; row < range.end; row += kRoiChunk)
        add_rows(box, row, min(row + kRoiChunk, range.end), y_begin, y_end, middle, tiles + (c - from) * tile,
                 [&](int i, int q) { return to_float(crop[static_cast<int64_t>(i) * Q + q]); });
    }
  });
  __syncthreads();
  for (int c = from; c < to; ++c) {
    T* out = static_cast<T*>(p.maps) + ((static_cast<int64_t>(n) * p.channels + c) * p.boxes.height + y_begin) * W;
    for (int i = threadIdx.x; i < tile; i += blockDim.x) out[i] = from_float<T>(tiles[(c - from) * tile + i]);
  }
}

Params make_params(const RoiAlign& args) {
  Params p{};
  p.boxes = roi_geometry(args);
  p.maps = args.maps.data;
  p.crops = args.crops.data;
  p.channels = static_cast<int>(args.channels());
  return p;
}

}  // namespace

void roi_align_forward_cuda(const RoiAlign& args, const CudaContext& context) {
  if (roi_align_by_plane(args, context)) return;
  Params p = make_params(args);
  const int64_t group = args.count() * args.channels() / 1056;
  p.group = static_cast<int>(group < 1 ? 1 : group > args.channels() ? args.channels() : group);
  const int rows = 4096 / args.width();
  p.rows = rows < 1 ? 1 : rows > args.out_height() ? args.out_height() : rows;
  const size_t bytes = 4 * (static_cast<size_t>(box_words(p.boxes)) + static_cast<size_t>(p.rows) * args.width());
  const dim3 grid(static_cast<unsigned>(args.count()), static_cast<unsigned>(ceil_div(p.channels, p.group)));
  dispatch_float<false>(args.maps.dtype, [&](auto tag) {
    launch(context, crop_kernel<typename decltype(tag)::type>, grid, kRoiThreads, bytes, p);
  });
}

void roi_align_backward_cuda(const RoiAlign& args, const CudaContext& context) {
  if (roi_align_by_bins(args, context)) return;
  Params p = make_params(args);
  const GradientTiles tiles = gradient_tiles(args.images(), args.channels(), args.height(), args.width());
  p.group = tiles.group;
  p.rows = tiles.rows;
  const size_t words = static_cast<size_t>(kRoiChunk + tiles.group * tiles.rows) * args.width();
  const size_t bytes = 4 * (static_cast<size_t>(box_words(p.boxes)) + words);
  const dim3 grid(static_cast<unsigned>(tiles.stripes), static_cast<unsigned>(tiles.groups),
                  static_cast<unsigned>(args.images()));
  dispatch_float<false>(args.maps.dtype, [&](auto tag) {
    launch(context, gradient_kernel<typename decltype(tag)::type>, grid, kRoiThreads, bytes, p);
  });
}

}  // namespace posekd
