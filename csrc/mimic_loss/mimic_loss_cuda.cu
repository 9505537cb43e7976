// CUDA kernels of mimic_loss. See mimic_loss.h for the floor.
#include "core/cuda_reduce.cuh"
#include "mimic_loss/mimic_loss.h"
#include "roi_align/roi_align_device.cuh"

namespace posekd {
namespace {

// Values of any float type, read and written as float. The type is the same for all threads: the branch costs little.
struct Values {
  void* data;
  DType dtype;
};

__device__ __forceinline__ float read(const Values& values, int64_t i) {
  if (values.dtype == DType::float32) return static_cast<const float*>(values.data)[i];
  if (values.dtype == DType::float16) return to_float(static_cast<const half_t*>(values.data)[i]);
  return to_float(static_cast<const bfloat16_t*>(values.data)[i]);
}

__device__ __forceinline__ void write(const Values& values, int64_t i, float value) {
  if (values.dtype == DType::float32)
    static_cast<float*>(values.data)[i] = value;
  else if (values.dtype == DType::float16)
    static_cast<half_t*>(values.data)[i] = from_float<half_t>(value);
  else
    static_cast<bfloat16_t*>(values.data)[i] = from_float<bfloat16_t>(value);
}

struct Params {
  RoiGeometry boxes;
  Values maps, targets, gradient, target_gradient;
  const float* weight;    // [M, R, K]
  const float* upstream;  // [M]
  float* stats;           // [M, R, K]
  float* loss;            // [M]
  unsigned* counter;
  int sets, joints;
  int group;  // keypoints per block
  int rows;   // crop rows at once; in gradient_kernel, map rows per block
  double scale;

  __device__ int64_t row(int m, int64_t r, int k) const {
    return (static_cast<int64_t>(m) * boxes.count + r) * joints + k;
  }
  __device__ bool any_weight(int64_t r, int k) const {
    for (int m = 0; m < sets; ++m)
      if (weight[row(m, r, k)] != 0.0f) return true;
    return false;
  }
  // What the difference to set m is multiplied by in the crop's gradient.
  __device__ float factor(int m, int64_t r, int k) const {
    return static_cast<float>(2.0 * scale * static_cast<double>(weight[row(m, r, k)]) *
                              static_cast<double>(upstream[m]));
  }
  // Where the map of keypoint k in box r's image begins.
  __device__ int64_t map(int64_t r, int k) const {
    const int image = max(roi_image(boxes.boxes[5 * r], boxes.images), 0);
    return (static_cast<int64_t>(image) * joints + k) * boxes.height * boxes.width;
  }
};

// The crop of keypoint k, rows [p_begin, p_end), into `crop` [rows, Q]; zeros for an empty box. Ends with a barrier.
__device__ __forceinline__ void sample(const Params& p, const DeviceBox& box, int64_t r, int k, int p_begin, int p_end,
                                       float* middle, float* crop) {
  const int Q = p.boxes.out_width;
  if (box.empty) {
    __syncthreads();
    for (int i = threadIdx.x; i < (p_end - p_begin) * Q; i += blockDim.x) crop[i] = 0.0f;
  } else {
    const int64_t map = p.map(r, k);
    crop_rows(
        box, p_begin, p_end, middle, [&](int64_t i) { return read(p.maps, map + i); },
        [&](int i, int q, float value) { crop[(i - p_begin) * Q + q] = value; });
  }
  __syncthreads();
}

// The last block to finish adds up the crops' sums, in a fixed order.
__device__ void finish(const Params& p, double* scratch) {
  if (!last_block(p.counter)) return;
  const volatile float* stats = p.stats;
  const int64_t crops = static_cast<int64_t>(p.boxes.count) * p.joints;
  for (int m = 0; m < p.sets; ++m) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < crops; i += blockDim.x) sum += static_cast<double>(stats[m * crops + i]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) p.loss[m] = static_cast<float>(sum * p.scale);
    __syncthreads();
  }
}

// Block (box, keypoint group): each keypoint's crop once, its weighted squared distance to every set.
__global__ void __launch_bounds__(kRoiThreads, 4) sums_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, shared);
  __shared__ float warp_sums[kWarp];
  __shared__ double scratch[kWarp];
  float* at = shared;
  DeviceBox box = carve_box(at, p.boxes);
  const int64_t r = blockIdx.x;
  const int P = p.boxes.out_height, Q = p.boxes.out_width;
  const int from = static_cast<int>(blockIdx.y) * p.group, to = min(from + p.group, p.joints);
  float* middle = at;
  float* crop = at + p.rows * p.boxes.width;
  open_box(p.boxes, r, box);
  for (int k = from; k < to; ++k) {
    const bool any = p.any_weight(r, k);
    for (int begin = 0; begin < P; begin += p.rows) {
      const int end = min(begin + p.rows, P);
      if (any) sample(p, box, r, k, begin, end, middle, crop);
      for (int m = 0; m < p.sets; ++m) {
        const float weight = p.weight[p.row(m, r, k)];
        float sum = 0.0f;
        if (weight != 0.0f) {
          const int64_t target = (p.row(m, r, k) * P + begin) * Q;
          for (int i = threadIdx.x; i < (end - begin) * Q; i += blockDim.x) {
            const float d = crop[i] - read(p.targets, target + i);
            sum += d * d;
          }
        }
        sum = block_sum(sum, warp_sums);
        if (threadIdx.x == 0) {
          float* stat = p.stats + p.row(m, r, k);
          *stat = (begin == 0 ? 0.0f : *stat) + (weight != 0.0f ? weight * sum : 0.0f);
        }
        __syncthreads();
      }
    }
  }
  finish(p, scratch);
}

// Block (box, keypoint group): the targets' gradient.
__global__ void __launch_bounds__(kRoiThreads, 4) target_gradient_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, shared);
  float* at = shared;
  DeviceBox box = carve_box(at, p.boxes);
  const int64_t r = blockIdx.x;
  const int P = p.boxes.out_height, Q = p.boxes.out_width;
  const int from = static_cast<int>(blockIdx.y) * p.group, to = min(from + p.group, p.joints);
  float* middle = at;
  float* crop = at + p.rows * p.boxes.width;
  open_box(p.boxes, r, box);
  for (int k = from; k < to; ++k) {
    const bool any = p.any_weight(r, k);
    for (int begin = 0; begin < P; begin += p.rows) {
      const int end = min(begin + p.rows, P);
      if (any) sample(p, box, r, k, begin, end, middle, crop);
      for (int m = 0; m < p.sets; ++m) {
        const bool weighted = p.weight[p.row(m, r, k)] != 0.0f;
        const float factor = p.factor(m, r, k);
        const int64_t offset = (p.row(m, r, k) * P + begin) * Q;
        for (int i = threadIdx.x; i < (end - begin) * Q; i += blockDim.x)
          write(p.target_gradient, offset + i, weighted ? factor * (read(p.targets, offset + i) - crop[i]) : 0.0f);
      }
    }
  }
}

// Turns crop rows [begin, end) of keypoint k into their gradient, summed over the sets. Ends with a barrier.
__device__ __forceinline__ void differentiate(const Params& p, int64_t r, int k, int begin, int end, float* crop) {
  const int P = p.boxes.out_height, Q = p.boxes.out_width;
  for (int i = threadIdx.x; i < (end - begin) * Q; i += blockDim.x) {
    float sum = 0.0f;
    for (int m = 0; m < p.sets; ++m)
      if (p.weight[p.row(m, r, k)] != 0.0f)
        sum += p.factor(m, r, k) * (crop[i] - read(p.targets, (p.row(m, r, k) * P + begin) * Q + i));
    crop[i] = sum;
  }
  __syncthreads();
}

// Block (stripe, keypoint group, image): owns its part of the maps' gradient, as in roi_align, with the crops' gradient
// recomputed a few rows at a time.
__global__ void __launch_bounds__(kRoiThreads, 2) gradient_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, shared);
  float* at = shared;
  DeviceBox box = carve_box(at, p.boxes);
  const int n = blockIdx.z, W = p.boxes.width, Q = p.boxes.out_width;
  const int y_begin = static_cast<int>(blockIdx.x) * p.rows, y_end = min(y_begin + p.rows, p.boxes.height);
  const int from = static_cast<int>(blockIdx.y) * p.group, to = min(from + p.group, p.joints);
  float* middle = at;
  float* crop = middle + kRoiChunk * W;
  float* tiles = crop + kRoiChunk * Q;
  const int tile = (y_end - y_begin) * W;
  for (int i = threadIdx.x; i < (to - from) * tile; i += blockDim.x) tiles[i] = 0.0f;
  each_box_of(p.boxes, n, [&](int r) {
    open_box(p.boxes, r, box);
    if (box.empty) return;
    const RoiRange range = rows_that_read(box.y, y_begin, y_end);
    for (int k = from; k < to; ++k) {
      if (!p.any_weight(r, k)) continue;
      for (int row = range.begin; row < range.end; row += kRoiChunk) {
        const int end = min(row + kRoiChunk, range.end);
        sample(p, box, r, k, row, end, middle, crop);
        differentiate(p, r, k, row, end, crop);
        add_rows(box, row, end, y_begin, y_end, middle, tiles + (k - from) * tile,
                 [&](int i, int q) { return crop[(i - row) * Q + q]; });
      }
    }
  });
  __syncthreads();
  for (int k = from; k < to; ++k) {
    const int64_t offset = ((static_cast<int64_t>(n) * p.joints + k) * p.boxes.height + y_begin) * W;
    for (int i = threadIdx.x; i < tile; i += blockDim.x) write(p.gradient, offset + i, tiles[(k - from) * tile + i]);
  }
}

Params make_params(const MimicLoss& args) {
  const auto values = [](const TensorView& view) { return Values{view.data, view.dtype}; };
  const RoiAlign roi = args.roi();
  Params p{};
  p.boxes = roi_geometry(roi);
  p.maps = values(args.maps);
  p.targets = values(args.targets);
  p.gradient = values(args.gradient);
  p.target_gradient = values(args.target_gradient);
  p.weight = args.weight.as<float>();
  p.upstream = args.upstream.as<float>();
  p.stats = args.stats.as<float>();
  p.loss = args.loss.as<float>();
  p.counter = args.counter.as<unsigned>();
  p.sets = static_cast<int>(args.sets());
  p.joints = static_cast<int>(roi.channels());
  p.scale = args.scale();
  return p;
}

// Sets how a kernel with a block per box and keypoint group divides its work; returns its shared bytes.
size_t divide_crops(Params& p) {
  const int64_t group = static_cast<int64_t>(p.boxes.count) * p.joints / 1056;
  p.group = static_cast<int>(group < 1 ? 1 : group > p.joints ? p.joints : group);
  const int wider = p.boxes.width + p.boxes.out_width, rows = 8192 / wider;
  p.rows = rows < 1 ? 1 : rows > p.boxes.out_height ? p.boxes.out_height : rows;
  return 4 * (static_cast<size_t>(box_words(p.boxes)) + static_cast<size_t>(p.rows) * wider);
}

dim3 crop_grid(const Params& p) {
  return {static_cast<unsigned>(p.boxes.count), static_cast<unsigned>(ceil_div(p.joints, p.group))};
}

}  // namespace

void mimic_loss_forward_cuda(const MimicLoss& args, const CudaContext& context) {
  Params p = make_params(args);
  const size_t bytes = divide_crops(p);
  launch(context, sums_kernel, crop_grid(p), kRoiThreads, bytes, p);
}

void mimic_loss_backward_cuda(const MimicLoss& args, const CudaContext& context) {
  Params p = make_params(args);
  if (args.target_gradient) {
    const size_t bytes = divide_crops(p);
    launch(context, target_gradient_kernel, crop_grid(p), kRoiThreads, bytes, p);
  }
  const GradientTiles tiles = gradient_tiles(p.boxes.images, p.joints, p.boxes.height, p.boxes.width);
  p.group = tiles.group;
  p.rows = tiles.rows;
  const size_t words = static_cast<size_t>(kRoiChunk + tiles.group * tiles.rows) * p.boxes.width;
  const size_t bytes = 4 * (static_cast<size_t>(box_words(p.boxes)) + words + kRoiChunk * p.boxes.out_width);
  const dim3 grid(static_cast<unsigned>(tiles.stripes), static_cast<unsigned>(tiles.groups),
                  static_cast<unsigned>(p.boxes.images));
  launch(context, gradient_kernel, grid, kRoiThreads, bytes, p);
}

}  // namespace posekd
