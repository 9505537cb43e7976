// CUDA kernels of tag_loss. See tag_loss.h for the floor.
//
// Forward: a block per image, a warp per person; means wait in shared memory. Backward: a block per part of a map fills
// it with zeros, then its keypoints are set by a thread each, which looks for the others of its pixel. One launch each
// way. A throw-away prototype took 16.6 us both ways for [16, 17, 128, 128] and 30 people on an H200; these kernels are
// not yet measured.
#include "core/cuda_math.cuh"
#include "core/cuda_reduce.cuh"
#include "tag_loss/tag_loss.h"
#include "tag_loss/tag_loss_math.h"

namespace posekd {
namespace {

constexpr int kMaxWarps = 32;                // forward
constexpr int kThreads = 256, kPart = 4096;  // backward: elements of a map in a block

struct Params {
  const void* tags;
  const float* keypoints;
  float *pull, *push, *pull_slope, *push_slope;  // backward: the first two are the upstream gradients
  int64_t pull_stride, push_stride;              // of the upstream gradients
  void* gradient;
  int parts;  // of a map
  TagGrid grid;
  int64_t images;
  bool exponential;
};

// What is known of the people of an image, in shared memory.
struct Person {
  float mean, pull;
  int joints;
};

// A warp gathers a person's tags; all lanes get the result.
template <class T>
__device__ __forceinline__ Person gather(const Params& p, const T* tags, const float* keypoints) {
  float sum = 0.0f;
  int joints = 0;
  for (int k = threadIdx.x; k < p.grid.joints; k += kWarp) {
    const int64_t pixel = tag_pixel(p.grid, keypoints + 3 * k, k);
    if (pixel >= 0) sum += to_float(tags[pixel]), ++joints;
  }
  Person person;
  person.joints = warp_sum(joints);
  person.mean = person.joints > 0 ? warp_sum(sum) / static_cast<float>(person.joints) : 0.0f;
  float squares = 0.0f;
  for (int k = threadIdx.x; k < p.grid.joints; k += kWarp) {
    const int64_t pixel = tag_pixel(p.grid, keypoints + 3 * k, k);
    if (pixel < 0) continue;
    const float d = to_float(tags[pixel]) - person.mean;
    squares += d * d;
  }
  squares = warp_sum(squares);
  person.pull = person.joints > 0 ? squares / static_cast<float>(person.joints) : 0.0f;
  return person;
}

template <class T>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1) forward_kernel(const __grid_constant__ Params p) {
  POSEKD_DYNAMIC_SHARED(Person, people);
  __shared__ float pushes[kMaxWarps];
  const int64_t image = blockIdx.x, first = image * p.grid.people;
  const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
  const T* tags =
      static_cast<const T*>(p.tags) + image * p.grid.channels * static_cast<int64_t>(p.grid.height) * p.grid.width;
  const float* keypoints = p.keypoints + 3 * first * p.grid.joints;
  for (int i = warp; i < p.grid.people; i += warps) {
    const Person person = gather(p, tags, keypoints + int64_t{3} * i * p.grid.joints);
    if (lane == 0) people[i] = person;
  }
  __syncthreads();
  int present = 0;
  float pull = 0.0f;
  for (int i = lane; i < p.grid.people; i += kWarp) present += people[i].joints > 0, pull += people[i].pull;
  present = warp_sum(present);
  pull = warp_sum(pull);
  const float pull_scale = pull_factor<float>(present), push_scale = push_factor<float>(present);
  float push = 0.0f;
  for (int i = warp; i < p.grid.people; i += warps) {
    const Person person = people[i];
    float slope = 0.0f;
    for (int j = lane; j < p.grid.people; j += kWarp) {
      if (j == i || person.joints == 0 || people[j].joints == 0) continue;
      const PushTerm<float> term = push_term(person.mean, people[j].mean, p.exponential);
      push += term.value;
      slope += term.slope;
    }
    slope = warp_sum(slope);
    const float share = person.joints > 0 ? 1.0f / static_cast<float>(person.joints) : 0.0f;
    if (lane == 0) p.push_slope[first + i] = 2.0f * push_scale * slope * share;
    for (int k = lane; k < p.grid.joints; k += kWarp) {
      const int64_t pixel = tag_pixel(p.grid, keypoints + int64_t{3} * (int64_t{1} * i * p.grid.joints + k), k);
      const float d = pixel < 0 ? 0.0f : to_float(tags[pixel]) - person.mean;
      p.pull_slope[(first + i) * p.grid.joints + k] = 2.0f * pull_scale * share * d;
    }
  }
  push = warp_sum(push);
  if (lane == 0) pushes[warp] = push;
  __syncthreads();
  if (lane != 0 || warp != 0) return;
  for (int w = 1; w < warps; ++w) push += pushes[w];
  p.pull[image] = pull * pull_scale;
  p.push[image] = push * push_scale;
}

// Keypoint `i` of an image, if it is the first at its pixel: the sum of the slopes of all that are there. Whether so.
__device__ __forceinline__ bool add_up(const Params& p, int64_t image, int64_t i, int64_t pixel, float* sum) {
  const int64_t total = int64_t{1} * p.grid.people * p.grid.joints;
  const int64_t step = p.grid.channels == 1 ? 1 : p.grid.joints;
  const float* keypoints = p.keypoints + 3 * image * total;
  const float pull = p.pull[image * p.pull_stride], push = p.push[image * p.push_stride];
  *sum = 0.0f;
  for (int64_t j = i % step; j < total; j += step) {
    if (tag_pixel(p.grid, keypoints + 3 * j, static_cast<int>(j % p.grid.joints)) != pixel) continue;
    if (j < i) return false;  // that keypoint adds up for all
    *sum += pull * p.pull_slope[image * total + j] + push * p.push_slope[image * p.grid.people + j / p.grid.joints];
  }
  return true;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) backward_kernel(const __grid_constant__ Params p) {
  const int64_t map = blockIdx.x / p.parts, image = map / p.grid.channels, channel = map - image * p.grid.channels;
  const int64_t size = static_cast<int64_t>(p.grid.height) * p.grid.width;
  const int64_t first = static_cast<int64_t>(blockIdx.x % p.parts) * kPart, left = size - first;
  const int count = static_cast<int>(left < kPart ? left : kPart);
  T* const part = static_cast<T*>(p.gradient) + map * size + first;
  const bool aligned = reinterpret_cast<uintptr_t>(part) % 16 == 0;
  const int packs = aligned ? count / kVector<T> : 0;
  for (int i = threadIdx.x; i < packs; i += kThreads) reinterpret_cast<uint4*>(part)[i] = uint4{0, 0, 0, 0};
  for (int i = packs * kVector<T> + static_cast<int>(threadIdx.x); i < count; i += kThreads)
    part[i] = from_float<T>(0.0f);
  __syncthreads();  // zeros before what replaces them
  const int64_t total = int64_t{1} * p.grid.people * p.grid.joints;
  const bool shared = p.grid.channels == 1;  // one map for all joints
  const int64_t step = shared ? 1 : p.grid.joints, entries = shared ? total : p.grid.people;
  for (int64_t e = threadIdx.x; e < entries; e += kThreads) {
    const int64_t i = shared ? e : e * step + channel;
    const int64_t pixel = tag_pixel(p.grid, p.keypoints + 3 * (image * total + i), static_cast<int>(i % p.grid.joints));
    const int64_t here = pixel - channel * size - first;
    float sum;
    if (pixel >= 0 && here >= 0 && here < count && add_up(p, image, i, pixel, &sum)) part[here] = from_float<T>(sum);
  }
}

template <class Args>
Params common(const Args& args) {
  Params p{};
  p.keypoints = args.keypoints.template as<float>();
  p.pull_slope = args.pull_slope.template as<float>();
  p.push_slope = args.push_slope.template as<float>();
  p.grid = {static_cast<int>(args.people()), static_cast<int>(args.joints()), static_cast<int>(args.channels()),
            static_cast<int>(args.height()), static_cast<int>(args.width())};
  p.images = args.images();
  return p;
}

}  // namespace

void tag_loss_forward_cuda(const TagLoss& args, const CudaContext& context) {
  Params p = common(args);
  p.tags = args.tags.data;
  p.pull = args.pull.as<float>();
  p.push = args.push.as<float>();
  p.exponential = args.exponential;
  const dim3 grid(static_cast<unsigned>(p.images)), block(kWarp, static_cast<unsigned>(min(p.grid.people, kMaxWarps)));
  const size_t shared = sizeof(Person) * static_cast<size_t>(p.grid.people);
  dispatch_float<false>(args.tags.dtype, [&](auto tag) {
    launch(context, forward_kernel<typename decltype(tag)::type>, grid, block, shared, p);
  });
}

void tag_loss_backward_cuda(const TagLossGradient& args, const CudaContext& context) {
  Params p = common(args);
  p.pull = args.pull_upstream.as<float>();
  p.push = args.push_upstream.as<float>();
  p.pull_stride = args.pull_upstream.stride[0], p.push_stride = args.push_upstream.stride[0];
  p.gradient = args.gradient.data;
  p.parts = static_cast<int>(ceil_div<int64_t>(args.height() * args.width(), kPart));
  const dim3 grid(static_cast<unsigned>(p.images * p.grid.channels * p.parts));
  dispatch_float<false>(args.gradient.dtype, [&](auto tag) {
    launch(context, backward_kernel<typename decltype(tag)::type>, grid, kThreads, 0, p);
  });
}

}  // namespace posekd
