// CUDA kernel of decode_heatmaps: one block per map, one launch. See decode_heatmaps.h for the floor.
#include "core/cuda_reduce.cuh"
#include "decode_heatmaps/decode_heatmaps_math.h"

namespace posekd {
namespace {

constexpr int kThreads = 128;

struct Peak {
  float value;
  int index;
};

// The higher peak, the first of equals; NaN is above every number.
__device__ __forceinline__ Peak higher(const Peak& a, const Peak& b) {
  const bool nan_a = a.value != a.value, nan_b = b.value != b.value;
  if (nan_a != nan_b) return nan_a ? a : b;
  if (nan_a || a.value == b.value) return a.index < b.index ? a : b;
  return a.value > b.value ? a : b;
}

struct DecodeParams {
  const float* matrices;  // [B, 2, 3] or null
  float* keypoints;       // [B, K, 3]
  int64_t joints;
  int width, height;
  DecodeMethod method;
  int blur;
  BlurTaps<float> filter;
};

// The map's first maximum; thread 0 has it. Reads N elements at a time.
template <class In, int N>
__device__ __forceinline__ Peak block_peak(const In* map, int pixels, Peak* scratch) {
  Peak peak{-INFINITY, pixels};  // an index that every pixel precedes: a map of -inf has its maximum at 0
  for (int i = static_cast<int>(threadIdx.x) * N; i < pixels; i += kThreads * N) {
    const auto pack = *reinterpret_cast<const Pack<In, N>*>(map + i);
#pragma unroll
    for (int k = 0; k < N; ++k) peak = higher(peak, Peak{to_float(pack.v[k]), i + k});
  }
  return block_reduce(
      peak, scratch,
      [](const Peak& mine, int offset) {
        return Peak{__shfl_down_sync(0xffffffffu, mine.value, offset),
                    __shfl_down_sync(0xffffffffu, mine.index, offset)};
      },
      [](const Peak& a, const Peak& b) { return higher(a, b); });
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
__device__ float blurred_maximum(const DecodeParams& p, const In* map, float* scratch) {
  const int radius = p.blur / 2;
  float highest = -INFINITY;
  for (int i = threadIdx.x; i < p.width * p.height; i += kThreads) {
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
__device__ Point<float> dark_step(const DecodeParams& p, const In* map, int x, int y, float score, float* scratch) {
  __shared__ float columns[5][5 + kMaxBlur];
  __shared__ float blurred[25];
  const int radius = p.blur / 2, count = 5 + 2 * radius;
  for (int i = threadIdx.x; i < 5 * count; i += kThreads)
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

template <class In, int N>
__global__ void __launch_bounds__(kThreads) decode_kernel(DecodeParams p, const In* __restrict__ heatmaps) {
  __shared__ Peak peaks[kWarp];
  __shared__ float scratch[kWarp];
  const int pixels = p.width * p.height;
  const int64_t index = blockIdx.x;
  const In* map = heatmaps + index * pixels;
  const Peak found = block_peak<In, N>(map, pixels, peaks);
  if (threadIdx.x == 0) peaks[0] = found;
  __syncthreads();
  const Peak peak = peaks[0];
  Point<float> point{0.0f, 0.0f};
  if (peak.value > 0.0f) {  // the same for every thread
    const int x = peak.index % p.width, y = peak.index / p.width;
    Point<float> shift{0.0f, 0.0f};
    if (p.method == DecodeMethod::quarter) shift = quarter_shift<float>(map, p.width, p.height, x, y);
    if (p.method == DecodeMethod::dark && dark_inside(p.width, p.height, x, y))
      shift = dark_step(p, map, x, y, peak.value, scratch);
    point = {static_cast<float>(x) + shift.x, static_cast<float>(y) + shift.y};
  }
  if (threadIdx.x != 0) return;
  const float* matrix = p.matrices ? p.matrices + 6 * (index / p.joints) : nullptr;
  store_keypoint(point, peak.value, matrix, p.keypoints + 3 * index);
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
  launch(context, decode_kernel<In, N>, dim3(static_cast<unsigned>(args.maps())), dim3(kThreads), 0, p,
         args.heatmaps.as<In>());
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
