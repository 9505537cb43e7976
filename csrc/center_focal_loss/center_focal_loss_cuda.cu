// CUDA kernels of center_focal_loss. A block has a strip of rows of one map; it lists the Gaussians whose windows reach
// the strip, in any order, because only their maximum counts.
#include "center_focal_loss/center_focal_loss.h"
#include "center_focal_loss/center_focal_loss_math.h"
#include "core/cuda_reduce.cuh"

namespace posekd {
namespace {

constexpr int kThreads = 256;

struct Params {
  const void* logits;
  const float* boxes;
  const int64_t* counts;
  const bool* mask;
  float* loss;
  int64_t* points;
  double* partial;
  void* gradient;
  unsigned* counter;
  int64_t images;
  int people, width, height, strips;
  bool divided;
};

// Which strip a block has: the grid is (strips, maps).
struct Strip {
  int64_t image;
  int point, begin, end;  // rows
};

__device__ __forceinline__ Strip strip_of(const Params& p) {
  const int64_t map = blockIdx.y;
  const int begin = static_cast<int>(blockIdx.x) * kFocalStripRows, end = begin + kFocalStripRows;
  return {map / kPoints, static_cast<int>(map % kPoints), begin, end < p.height ? end : p.height};
}

// Fills `list` with the Gaussians that reach the strip; `count` is shared. Ends with a barrier.
__device__ __forceinline__ void list_gaussians(const Params& p, const Strip& strip, Gaussian* list, int* count) {
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  const int64_t given = p.counts[strip.image];
  const int people = given < p.people ? static_cast<int>(given) : p.people;
  for (int i = threadIdx.x; i < people; i += kThreads) {
    const Gaussian one = gaussian_of(p.boxes + 4 * (strip.image * p.people + i), strip.point, p.divided);
    if (one.radius >= 0 && one.y + one.radius >= strip.begin && one.y - one.radius < strip.end)
      list[atomicAdd(count, 1)] = one;
  }
  __syncthreads();
}

__device__ __forceinline__ float target_at(const Gaussian* list, int count, int x, int y) {
  float target = 0.0f;
  for (int i = 0; i < count; ++i) {
    const Gaussian g = list[i];
    const int dx = x - g.x, dy = y - g.y;
    if (dx > g.radius || dx < -g.radius || dy > g.radius || dy < -g.radius) continue;
    target = fmaxf(target, expf(-static_cast<float>(dx * dx + dy * dy) * g.sharpness));
  }
  return target;
}

// Calls visit(pixel of the map, target, whether it counts) for this thread's pixels of the strip.
template <class Visit>
__device__ __forceinline__ void for_each_pixel(const Params& p, const Strip& strip, const Gaussian* list, int count,
                                               Visit visit) {
  const int total = (strip.end - strip.begin) * p.width;
  const int64_t map = static_cast<int64_t>(p.height) * p.width;
  for (int i = threadIdx.x; i < total; i += kThreads) {
    const int row = i / p.width, x = i - row * p.width, y = strip.begin + row;
    const int64_t pixel = static_cast<int64_t>(y) * p.width + x;
    visit(pixel, target_at(list, count, x, y), p.mask == nullptr || p.mask[strip.image * map + pixel]);
  }
}

// The last block adds up what all have found, in a fixed order.
__device__ void finish(const Params& p, double* scratch) {
  if (!last_block(p.counter)) return;
  const int64_t blocks = p.images * p.strips;
  const volatile double* partial = p.partial;
  for (int point = 0; point < kPoints; ++point) {
    double sum = 0.0, found = 0.0;
    for (int64_t i = threadIdx.x; i < blocks; i += kThreads) {
      sum += partial[point * blocks + i];
      found += partial[(kPoints + point) * blocks + i];
    }
    sum = block_sum(sum, scratch);
    __syncthreads();
    found = block_sum(found, scratch);
    __syncthreads();
    if (threadIdx.x == 0) {
      p.loss[point] = static_cast<float>(-sum / (found > 1.0 ? found : 1.0));
      p.points[point] = static_cast<int64_t>(found);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(Gaussian, list);
  __shared__ int count;
  __shared__ double scratch[kWarp];
  const Strip strip = strip_of(p);
  list_gaussians(p, strip, list, &count);
  const T* logits = static_cast<const T*>(p.logits) + static_cast<int64_t>(blockIdx.y) * p.height * p.width;
  double sum = 0.0, found = 0.0;
  for_each_pixel(p, strip, list, count, [&](int64_t pixel, float target, bool counted) {
    sum += static_cast<double>(focal_term<float>(to_float(logits[pixel]), target, counted).value);
    found += target == 1.0f ? 1.0 : 0.0;
  });
  sum = block_sum(sum, scratch);
  __syncthreads();
  found = block_sum(found, scratch);
  if (threadIdx.x == 0) {
    const int64_t blocks = p.images * p.strips, own = strip.image * p.strips + blockIdx.x;
    p.partial[strip.point * blocks + own] = sum;
    p.partial[(kPoints + strip.point) * blocks + own] = found;
  }
  finish(p, scratch);
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(Gaussian, list);
  __shared__ int count;
  const Strip strip = strip_of(p);
  list_gaussians(p, strip, list, &count);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * p.height * p.width, found = p.points[strip.point];
  const float scale = -p.loss[strip.point] / static_cast<float>(found > 1 ? found : 1);
  const T* logits = static_cast<const T*>(p.logits) + first;
  T* gradient = static_cast<T*>(p.gradient) + first;
  for_each_pixel(p, strip, list, count, [&](int64_t pixel, float target, bool counted) {
    gradient[pixel] = from_float<T>(scale * focal_term<float>(to_float(logits[pixel]), target, counted).slope);
  });
}

Params common(const CenterFocalLoss& args) {
  Params p{};
  p.logits = args.logits.data;
  p.boxes = args.boxes.as<float>();
  p.counts = args.counts.as<int64_t>();
  p.mask = args.mask ? args.mask.as<bool>() : nullptr;
  p.loss = args.loss.as<float>();
  p.points = args.points.as<int64_t>();
  p.images = args.images();
  p.people = args.people();
  p.width = args.width();
  p.height = args.height();
  p.strips = ceil_div(args.height(), kFocalStripRows);
  p.divided = args.divided;
  return p;
}

template <class Kernel>
void launch_strips(const CudaContext& context, Kernel kernel, const Params& p) {
  const dim3 grid(static_cast<unsigned>(p.strips), static_cast<unsigned>(p.images * kPoints));
  launch(context, kernel, grid, dim3(kThreads), sizeof(Gaussian) * static_cast<size_t>(p.people), p);
}

}  // namespace

void center_focal_loss_forward_cuda(const CenterFocalLoss& args, const CudaContext& context) {
  Params p = common(args);
  p.partial = args.partial.as<double>();
  p.counter = args.counter.as<unsigned>();
  dispatch_float<false>(args.logits.dtype,
                        [&](auto tag) { launch_strips(context, forward_kernel<typename decltype(tag)::type>, p); });
}

void center_focal_loss_backward_cuda(const CenterFocalLoss& args, const CudaContext& context) {
  Params p = common(args);
  p.gradient = args.gradient.data;
  dispatch_float<false>(args.logits.dtype,
                        [&](auto tag) { launch_strips(context, backward_kernel<typename decltype(tag)::type>, p); });
}

}  // namespace posekd
