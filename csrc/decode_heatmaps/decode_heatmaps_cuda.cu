// CUDA kernel of decode_heatmaps: one block per map, one launch. See decode_heatmaps.h for the floor.
//
// A block has as many threads as it takes to ask for the whole map at once, and finds the maximum by reductions of
// integers in the order of the values. A throw-away prototype took 5.0 us for [64, 17, 64, 48] and 6.8 us for [16, 17,
// 128, 128] on an H200; this kernel is not yet measured.
#include <algorithm>
#include <climits>

#include "core/cuda_math.cuh"
#include "core/cuda_reduce.cuh"
#include "decode_heatmaps/decode_heatmaps_math.h"

namespace posekd {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kAtOnce = 4;  // loads of a thread in flight

struct DecodeParams {
  const float* matrices;  // [B, 2, 3] or null
  float* keypoints;       // [B, K, 3]
  int64_t joints;
  int width, height;
  DecodeMethod method;
  int blur;
  BlurTaps<float> filter;
};

// Where a map has its highest value, the first of equals; NaN is above every number. `key`: the value's, see key_of.
struct Peak {
  int key, index;
};

__device__ __forceinline__ int key_of(float value) { return value != value ? INT_MAX : order_of(value + 0.0f); }

__device__ __forceinline__ Peak warp_peak(const Peak& mine) {
  const int key = warp_max(mine.key);
  return {key, ~warp_max(mine.key == key ? ~mine.index : INT_MIN)};  // the complement: the smallest index
}

// The map's first maximum, in every thread. Reads N elements at a time. `scratch` is shared memory for 32. Contains a
// barrier.
template <class In, int N>
__device__ __forceinline__ Peak block_peak(const In* map, int pixels, Peak* scratch) {
  const int threads = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x) % kWarp;
  Peak peak{INT_MIN, pixels};
  for (int first = static_cast<int>(threadIdx.x) * N; first < pixels; first += kAtOnce * threads * N) {
    Pack<In, N> packs[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j * threads * N < pixels)
        packs[j] = *reinterpret_cast<const Pack<In, N>*>(map + first + j * threads * N);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const int index = first + j * threads * N + k;
        const int key = index < pixels ? key_of(to_float(packs[j].v[k])) : INT_MIN;
        if (key > peak.key) peak = {key, index};
      }
  }
  peak = warp_peak(peak);
  if (lane == 0) scratch[threadIdx.x / kWarp] = peak;
  __syncthreads();
  return warp_peak(lane < threads / kWarp ? scratch[lane] : Peak{INT_MIN, pixels});
}

// The map blurred down the columns at one pixel; zero outside.
template <class In>
__device__ __forceinline__ float blur_column(const DecodeParams& p, const In* map, int x, int y) {
  if (x < 0 || x >= p.width) return 0.0f;
  const int radius = p.blur / 2;
  float sum = 0.0f;
  for (int t = 0; t < p.blur; ++t) {
    const int row = y + t - radius;
    if (row >= 0 && row < p.height) sum += p.filter.tap[t] * to_float(map[static_cast<int64_t>(row) * p.width + x]);
  }
  return sum;
}

// The maximum of the whole blurred map, for all threads. Rare (see decode_heatmaps.h), so it is merely right.
template <class In>
__device__ __forceinline__ float blurred_maximum(const DecodeParams& p, const In* map, float* scratch) {
  const int radius = p.blur / 2;
  float highest = -INFINITY;
  for (int i = threadIdx.x; i < p.width * p.height; i += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int t = 0; t < p.blur; ++t)
      sum += p.filter.tap[t] * blur_column(p, map, i % p.width + t - radius, i / p.width);
    highest = fmaxf(highest, sum);
  }
  highest = block_reduce(
      highest, scratch, [](float mine, int offset) { return __shfl_down_sync(0xffffffffu, mine, offset); },
      [](float a, float b) { return fmaxf(a, b); });
  if (threadIdx.x == 0) scratch[0] = highest;
  __syncthreads();
  return scratch[0];
}

// DARK's step from the maximum at (x, y); called by the whole block, thread 0 gets the result.
template <class In>
__device__ __forceinline__ Point<float> dark_step(const DecodeParams& p, const In* map, int x, int y, float score,
                                                  float* scratch) {
  __shared__ float columns[5][5 + kMaxBlur];
  __shared__ float blurred[25];
  const int radius = p.blur / 2, count = 5 + 2 * radius;
  for (int i = threadIdx.x; i < 5 * count; i += static_cast<int>(blockDim.x))
    columns[i / count][i % count] = blur_column(p, map, x - 2 - radius + i % count, y - 2 + i / count);
  __syncthreads();
  if (threadIdx.x < 25) {
    float sum = 0.0f;
    for (int t = 0; t < p.blur; ++t) sum += p.filter.tap[t] * columns[threadIdx.x / 5][threadIdx.x % 5 + t];
    blurred[threadIdx.x] = sum;
  }
  __syncthreads();
  bool clamped = false;
  for (int i = 0; i < 25; ++i) clamped |= dark_reads(i) && !(blurred[i] >= kDarkFloor);
  float rescale = 1.0f;
  if (clamped) {  // the same for every thread
    const float highest = blurred_maximum(p, map, scratch);
    if (!(highest > 0.0f)) return {0.0f, 0.0f};
    rescale = score / highest;
  }
  float log_patch[25];
  for (int i = 0; i < 25; ++i) {
    const float value = blurred[i] * rescale;
    log_patch[i] = dark_reads(i) ? logf(value < kDarkFloor ? kDarkFloor : value) : 0.0f;
  }
  return newton_step(log_patch);
}

// kDark apart: its arithmetic takes registers, of which the others need few, so that more maps are in flight.
template <class In, int N, bool kDark>
__global__ void __launch_bounds__(kMaxThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams p, const In* __restrict__ heatmaps) {
  __shared__ Peak peaks[kWarp];
  __shared__ float scratch[kWarp];
  const int pixels = p.width * p.height;
  const int64_t index = blockIdx.x;
  const In* map = heatmaps + index * pixels;
  const int found = block_peak<In, N>(map, pixels, peaks).index;
  const float score = to_float(map[found]);
  Point<float> point{0.0f, 0.0f};
  if (score > 0.0f) {  // the same for every thread
    const int x = found % p.width, y = found / p.width;
    Point<float> shift{0.0f, 0.0f};
    if (p.method == DecodeMethod::quarter) shift = quarter_shift<float>(map, p.width, p.height, x, y);
    if (kDark && dark_inside(p.width, p.height, x, y)) shift = dark_step(p, map, x, y, score, scratch);
    point = {static_cast<float>(x) + shift.x, static_cast<float>(y) + shift.y};
  }
  if (threadIdx.x != 0) return;
  const float* matrix = p.matrices ? p.matrices + 6 * (index / p.joints) : nullptr;
  store_keypoint(point, score, matrix, p.keypoints + 3 * index);
}

template <class In, int N>
void launch_decode(const DecodeHeatmaps& args, const CudaContext& context) {
  const DecodeParams p{args.matrices ? args.matrices.as<float>() : nullptr,
                       args.keypoints.as<float>(),
                       args.joints(),
                       args.width(),
                       args.height(),
                       args.method,
                       args.blur,
                       blur_taps<float>(args.blur)};
  const int threads = std::min(kMaxThreads, ceil_div(ceil_div(p.width * p.height, 3 * N), kWarp) * kWarp);
  launch(context, args.method == DecodeMethod::dark ? decode_kernel<In, N, true> : decode_kernel<In, N, false>,
         dim3(static_cast<unsigned>(args.maps())), dim3(static_cast<unsigned>(threads)), 0, p, args.heatmaps.as<In>());
}

}  // namespace

void decode_heatmaps_cuda(const DecodeHeatmaps& args, const CudaContext& context) {
  dispatch_float<false>(args.heatmaps.dtype, [&](auto tag) {
    using In = typename decltype(tag)::type;
    constexpr int kVector = 16 / sizeof(In);
    const bool aligned = reinterpret_cast<uintptr_t>(args.heatmaps.data) % 16 == 0;
    if (aligned && args.width() * args.height() % kVector == 0)
      launch_decode<In, kVector>(args, context);
    else
      launch_decode<In, 1>(args, context);
  });
}

}  // namespace posekd
