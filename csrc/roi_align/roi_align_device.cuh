// ROIAlign inside a block: the two banded matrices of a box in shared memory, products with them forward and
// transposed. What roi_align and mimic_loss do on the GPU. Every function here is called by all threads of a block.
#pragma once

#include <climits>

#include "core/cuda_compat.h"
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_math.h"

namespace posekd {
namespace {

constexpr int kRoiThreads = 256;
constexpr int kRoiChunk = 16;  // output rows that a backward pass works on at once

// Where and how the boxes sample.
struct RoiGeometry {
  const float* boxes;  // [R, 5]
  int count, images, height, width, out_height, out_width, sampling_ratio;
  float scale;
  bool aligned;
};

inline RoiGeometry roi_geometry(const RoiAlign& args) {
  return {args.boxes.as<float>(),
          static_cast<int>(args.count()),
          static_cast<int>(args.images()),
          args.height(),
          args.width(),
          args.out_height(),
          args.out_width(),
          args.sampling_ratio,
          static_cast<float>(args.spatial_scale),
          args.aligned};
}

// A banded matrix in shared memory. Row p has weights offset[p] .. offset[p + 1] from pixel begin[p] on; pixel i is
// read by rows low[i] .. high[i] at most.
struct DeviceBands {
  int* begin;
  int* offset;
  int* low;
  int* high;
  float* weights;
  int* extent;  // all pixels read lie in [extent[0], extent[1]); extent[1] is 0 where there are none
  int outputs, length;

  __device__ int capacity() const { return length + 4 * outputs + 4; }
  __device__ int count(int p) const { return offset[p + 1] - offset[p]; }
};

struct DeviceBox {
  DeviceBands y, x;
  bool empty;
};

// Shared memory of a DeviceBox, in 4-byte words (posekd.ops.roi_align.fits_device counts the same).
inline int box_words(const RoiGeometry& g) {
  const auto words = [](int outputs, int length) { return 6 * outputs + 3 * length + 8; };
  return words(g.out_height, g.height) + words(g.out_width, g.width);
}

__device__ __forceinline__ DeviceBands carve_bands(float*& at, int outputs, int length) {
  DeviceBands bands;
  bands.outputs = outputs;
  bands.length = length;
  bands.weights = at;
  at += bands.capacity();
  int* words = reinterpret_cast<int*>(at);
  bands.begin = words;
  bands.offset = words + outputs;
  bands.low = words + 2 * outputs + 1;
  bands.high = bands.low + length;
  bands.extent = bands.high + length;
  at += 2 * outputs + 1 + 2 * length + 2;
  return bands;
}

__device__ __forceinline__ DeviceBox carve_box(float*& at, const RoiGeometry& g) {
  DeviceBox box;
  box.y = carve_bands(at, g.out_height, g.height);
  box.x = carve_bands(at, g.out_width, g.width);
  box.empty = true;
  return box;
}

__device__ __forceinline__ void clear_bands(const DeviceBands& bands) {
  for (int i = threadIdx.x; i < bands.length; i += blockDim.x) {
    bands.low[i] = INT_MAX;
    bands.high[i] = -1;
  }
  if (threadIdx.x == 0) bands.extent[0] = INT_MAX, bands.extent[1] = 0;
}

__device__ __forceinline__ void find_bands(const DeviceBands& bands, const RoiAxis<float>& axis) {
  for (int p = threadIdx.x; p < bands.outputs; p += blockDim.x) {
    const RoiBand band = roi_band(axis, p);
    bands.begin[p] = band.begin;
    bands.offset[p + 1] = band.count;
    if (band.count == 0) continue;
    atomicMin(bands.extent, band.begin);
    atomicMax(bands.extent + 1, band.begin + band.count);
  }
}

// Counts to offsets, by one warp. Neighbouring bands overlap by two pixels, so their sum stays below the capacity
// unless float32 no longer resolves a pixel at the box's coordinates; the bands beyond it are then dropped.
__device__ __forceinline__ void scan_counts(const DeviceBands& bands) {
  const int lane = threadIdx.x % kWarp;
  int carry = 0;
  for (int base = 0; base < bands.outputs; base += kWarp) {
    const int p = base + lane;
    int sum = p < bands.outputs ? bands.offset[p + 1] : 0;
    for (int step = 1; step < kWarp; step *= 2) {
      const int before = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += before;
    }
    sum = min(sum + carry, bands.capacity());
    if (p < bands.outputs) bands.offset[p + 1] = sum;
    carry = __shfl_sync(0xffffffffu, sum, kWarp - 1);
  }
  if (lane == 0) bands.offset[0] = 0;
}

__device__ __forceinline__ void fill_bands(const DeviceBands& bands, const RoiAxis<float>& axis, float factor) {
  for (int p = threadIdx.x; p < bands.outputs; p += blockDim.x) {
    const RoiBand band{bands.begin[p], bands.count(p)};
    float* weights = bands.weights + bands.offset[p];
    if (bands.offset[p + 1] == bands.capacity()) {
      for (int k = 0; k < band.count; ++k) weights[k] = static_cast<float>(kUntouched);
      continue;
    }
    roi_weights(axis, p, band, factor, weights);
    for (int k = 0; k < band.count; ++k) {
      atomicMin(bands.low + band.begin + k, p);
      atomicMax(bands.high + band.begin + k, p);
    }
  }
}

// Builds the matrices of box r. Begins and ends with a barrier.
__device__ __forceinline__ void open_box(const RoiGeometry& g, int64_t r, DeviceBox& box) {
  const float* corners = g.boxes + 5 * r + 1;
  RoiAxis<float> x = roi_axis(corners[0], corners[2], g.scale, g.aligned, g.sampling_ratio, g.out_width, g.width);
  RoiAxis<float> y = roi_axis(corners[1], corners[3], g.scale, g.aligned, g.sampling_ratio, g.out_height, g.height);
  const float factor = 1.0f / roi_count(y, x);
  if (roi_image(g.boxes[5 * r], g.images) < 0) y.grid = x.grid = 0;
  __syncthreads();
  clear_bands(box.y);
  clear_bands(box.x);
  __syncthreads();
  find_bands(box.y, y);
  find_bands(box.x, x);
  __syncthreads();
  if (threadIdx.x / kWarp == 0) scan_counts(box.y);
  if (threadIdx.x / kWarp == 1) scan_counts(box.x);
  __syncthreads();
  fill_bands(box.y, y, factor);
  fill_bands(box.x, x, 1.0f);
  __syncthreads();
  box.empty = box.y.extent[1] == 0 || box.x.extent[1] == 0;
}

// How a block's threads lie over a plane of `columns`: `lanes` (a power of two) neighbours along a row.
struct ThreadGrid {
  int x, y, lanes, rows;
};

__device__ __forceinline__ ThreadGrid thread_grid(int columns) {
  int shift = 3;
  while ((1 << shift) < columns && shift < 8) ++shift;
  const int lanes = 1 << shift;
  const int x = threadIdx.x & (lanes - 1), y = threadIdx.x >> shift;
  return {x, y, lanes, static_cast<int>(blockDim.x) >> shift};
}

// Calls emit(p, q, value) for rows [p_begin, p_end) of the crop of one map, whose pixel i is read(i). `middle` holds
// (p_end - p_begin) rows of the pixels the box covers. Begins with a barrier; none after emit.
template <class Read, class Emit>
__device__ __forceinline__ void crop_rows(const DeviceBox& box, int p_begin, int p_end, float* middle, Read read,
                                          Emit emit) {
  const int x_first = box.x.extent[0], span = box.x.extent[1] - x_first;
  __syncthreads();  // the previous readers of `middle` are done
  const ThreadGrid wide = thread_grid(span);
  for (int p = p_begin + wide.y; p < p_end; p += wide.rows) {
    const int begin = box.y.begin[p], count = box.y.count(p);
    const float* weights = box.y.weights + box.y.offset[p];
    for (int x = wide.x; x < span; x += wide.lanes) {
      float sum = 0.0f;
      for (int k = 0; k < count; ++k)
        if (weights[k] >= 0.0f) sum += weights[k] * read(static_cast<int64_t>(begin + k) * box.x.length + x_first + x);
      middle[(p - p_begin) * span + x] = sum;
    }
  }
  __syncthreads();
  const ThreadGrid grid = thread_grid(box.x.outputs);
  for (int q = grid.x; q < box.x.outputs; q += grid.lanes) {
    const int begin = box.x.begin[q] - x_first, count = box.x.count(q);
    const float* weights = box.x.weights + box.x.offset[q];
    float near[4];  // a band is two or three pixels where the crop enlarges: kept for all rows
    for (int k = 0; k < 4; ++k) near[k] = k < count ? weights[k] : static_cast<float>(kUntouched);
    for (int p = p_begin + grid.y; p < p_end; p += grid.rows) {
      const float* row = middle + (p - p_begin) * span + begin;
      float sum = 0.0f;
      for (int k = 0; k < 4; ++k)
        if (near[k] >= 0.0f) sum += near[k] * row[k];
      for (int k = 4; k < count; ++k)
        if (weights[k] >= 0.0f) sum += weights[k] * row[k];
      emit(p, q, sum);
    }
  }
}

// The weight of pixel i in row p, or kUntouched.
__device__ __forceinline__ float band_weight(const DeviceBands& bands, int p, int i) {
  const int k = i - bands.begin[p];
  return k >= 0 && k < bands.count(p) ? bands.weights[bands.offset[p] + k] : static_cast<float>(kUntouched);
}

// The rows of a crop, [begin, end), that any pixel of rows [y_begin, y_end) of the map goes into.
__device__ __forceinline__ RoiRange rows_that_read(const DeviceBands& bands, int y_begin, int y_end) {
  int low = INT_MAX, high = -1;
  for (int y = y_begin; y < y_end; ++y) {
    low = min(low, bands.low[y]);
    high = max(high, bands.high[y]);
  }
  return high < 0 ? RoiRange{0, 0} : RoiRange{low, high + 1};
}

// tile [y_end - y_begin, W] += the transpose applied to rows [p_begin, p_end), at most kRoiChunk, of a crop's gradient
// gradient(p, q). A thread owns columns: no atomics. `middle` holds those rows of the pixels the box covers.
// Begins with a barrier.
template <class Gradient>
__device__ __forceinline__ void add_rows(const DeviceBox& box, int p_begin, int p_end, int y_begin, int y_end,
                                         float* middle, float* tile, Gradient gradient) {
  const int x_first = box.x.extent[0], span = box.x.extent[1] - x_first;
  const ThreadGrid grid = thread_grid(span);
  __syncthreads();  // the previous readers of `middle` are done
  for (int x = grid.x; x < span; x += grid.lanes) {
    const int low = box.x.low[x_first + x], high = box.x.high[x_first + x];
    for (int p = p_begin + grid.y; p < p_end; p += grid.rows) {
      float sum = 0.0f;
      for (int q = low; q <= high; ++q) {
        const float weight = band_weight(box.x, q, x_first + x);
        if (weight >= 0.0f) sum += weight * gradient(p, q);
      }
      middle[(p - p_begin) * span + x] = sum;
    }
  }
  __syncthreads();
  const int first = max(y_begin, box.y.extent[0]), last = min(y_end, box.y.extent[1]);
  for (int x = grid.x; x < span; x += grid.lanes) {
    for (int y = first + grid.y; y < last; y += grid.rows) {
      const int low = max(box.y.low[y], p_begin), high = min(box.y.high[y], p_end - 1);
      float sum = 0.0f;
      for (int p = low; p <= high; ++p) {
        const float weight = band_weight(box.y, p, y);
        if (weight >= 0.0f) sum += weight * middle[(p - p_begin) * span + x];
      }
      tile[static_cast<int64_t>(y - y_begin) * box.x.length + x_first + x] += sum;
    }
  }
}

// Calls visit(r) for the boxes of image n in index order. Contains barriers: visit may too.
template <class Visit>
__device__ __forceinline__ void each_box_of(const RoiGeometry& g, int n, Visit visit) {
  __shared__ unsigned found[kRoiThreads / kWarp];
  for (int base = 0; base < g.count; base += kRoiThreads) {
    const int r = base + static_cast<int>(threadIdx.x);
    const bool mine = r < g.count && roi_image(g.boxes[5 * static_cast<int64_t>(r)], g.images) == n;
    const unsigned votes = __ballot_sync(0xffffffffu, mine);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = votes;
    __syncthreads();
    for (int warp = 0; warp < kRoiThreads / kWarp; ++warp)
      for (unsigned left = found[warp]; left; left &= left - 1)
        visit(base + warp * kWarp + __ffs(static_cast<int>(left)) - 1);
  }
}

// How the gradient of [N, C, H, W] is divided: a block owns `group` channels of an image, rows of a stripe.
struct GradientTiles {
  int group, groups, rows, stripes;
};

// Tiles of up to 32 KB, small enough for several blocks per multiprocessor, groups of up to 4 channels that share a
// box's matrices.
inline GradientTiles gradient_tiles(int64_t images, int64_t channels, int height, int width) {
  constexpr int64_t kEnough = 528, kTileWords = 8192;
  GradientTiles tiles;
  int64_t rows = kTileWords / width > 0 ? kTileWords / width : 1;
  if (rows > height) rows = height;
  while (images * channels * ceil_div<int64_t>(height, rows) < kEnough && rows > 16) rows = ceil_div<int64_t>(rows, 2);
  tiles.rows = static_cast<int>(rows);
  tiles.stripes = static_cast<int>(ceil_div<int64_t>(height, rows));
  int64_t group = images * channels * tiles.stripes / kEnough;
  const int64_t fits = kTileWords / (rows * width) > 0 ? kTileWords / (rows * width) : 1;
  group = group > 4 ? 4 : group;
  group = group > fits ? fits : group;
  tiles.group = static_cast<int>(group > 1 ? group : 1);
  tiles.groups = static_cast<int>(ceil_div<int64_t>(channels, tiles.group));
  return tiles;
}

}  // namespace
}  // namespace posekd
