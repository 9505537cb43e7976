// CUDA kernels of top_k_peaks: every strip of every map lists its highest peaks, then every map merges its strips.
#include "core/cuda_compat.h"
#include "group_keypoints/peaks_math.h"

namespace posekd {
namespace {

constexpr int kThreads = 128;
constexpr int kPixels = 8;                  // a thread's pixels per round
constexpr int kRound = kThreads * kPixels;  // how many peaks a round can add

// A peak as one number that sorts by score, then by the earlier pixel; 0 is none. Scores are positive.
using Key = unsigned long long;

__device__ __forceinline__ Key key_of(float score, unsigned pixel) {
  return static_cast<Key>(__float_as_uint(score)) << 32 | (0xffffffffu - pixel);
}
__device__ __forceinline__ int64_t pixel_of_key(Key key) { return 0xffffffffu - static_cast<unsigned>(key); }

constexpr int power_of_two_from(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// A block's list in shared memory: the highest `people` keys so far, and a round's worth of new ones.
struct KeyList {
  Key* keys;
  int* count;
  int people, capacity;

  __device__ __forceinline__ void clear() const {
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
  }
  __device__ __forceinline__ void add(Key key) const { keys[atomicAdd(count, 1)] = key; }

  // Sorts in descending order and keeps the first `people`. For the whole block; returns what a key must exceed.
  __device__ Key keep_highest() const {
    __syncthreads();
    const int held = *count;
    int size = 2;
    while (size < held) size *= 2;
    for (int i = held + threadIdx.x; i < size; i += kThreads) keys[i] = 0;
    for (int run = 2; run <= size; run *= 2)
      for (int gap = run / 2; gap > 0; gap /= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < size / 2; i += kThreads) {
          const int low = i / gap * 2 * gap + i % gap, high = low + gap;
          const Key a = keys[low], b = keys[high];
          if ((a < b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
        }
      }
    __syncthreads();
    if (threadIdx.x == 0 && held > people) *count = people;
    __syncthreads();
    return held >= people ? keys[people - 1] : 0;
  }

  // After a round that added keys: makes room for the next when there is none.
  __device__ __forceinline__ Key make_room(Key bar) const {
    __syncthreads();
    const int held = *count;
    __syncthreads();
    return held + kRound > capacity ? keep_highest() : bar;
  }
};

// Room for the kept keys and a round, and for sorting them.
int list_capacity(int people) { return power_of_two_from(people + kRound); }

// A map has fewer than 2^31 pixels.
template <class In, int N>
__global__ void __launch_bounds__(kThreads, 8)
    strip_kernel(const In* __restrict__ heatmaps, MapSize size, int strip_rows, int radius, float threshold, int people,
                 int capacity, Key* __restrict__ workspace) {
  POSEKD_DYNAMIC_SHARED(Key, keys);
  __shared__ int count;
  const KeyList list{keys, &count, people, capacity};
  list.clear();
  const In* map = heatmaps + blockIdx.x * size.pixels();
  const unsigned width = size.width, begin = blockIdx.y * strip_rows * width;
  const unsigned end = min(begin + strip_rows * width, static_cast<unsigned>(size.pixels()));
  Key bar = 0;
  for (unsigned round = begin; round < end; round += kRound) {
    Pack<In, N> packs[kPixels / N];
#pragma unroll
    for (int k = 0; k < kPixels / N; ++k) {
      const unsigned at = round + (k * kThreads + threadIdx.x) * N;
      if (at < end) packs[k] = *reinterpret_cast<const Pack<In, N>*>(map + at);
    }
    unsigned above = 0;  // a bit per pixel of this thread
#pragma unroll
    for (int k = 0; k < kPixels / N; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (round + (k * kThreads + threadIdx.x) * N < end && to_float(packs[k].v[i]) > threshold)
          above |= 1u << (k * N + i);
    for (; above; above &= above - 1) {
      const unsigned slot = __ffs(static_cast<int>(above)) - 1;
      const unsigned pixel = round + (slot / N * kThreads + threadIdx.x) * N + slot % N;
      const Key key = key_of(to_float(map[pixel]), pixel);
      if (key <= bar) continue;
      const unsigned y = pixel / width, x = pixel - y * width;
      if (is_peak(map, size, static_cast<int>(x), static_cast<int>(y), radius)) list.add(key);
    }
    bar = list.make_room(bar);
  }
  list.keep_highest();
  Key* out = workspace + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * people;
  for (int i = threadIdx.x; i < people; i += kThreads) out[i] = i < count ? keys[i] : 0;
}

template <class In>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const Key* __restrict__ workspace, int strips, const In* __restrict__ heatmaps,
                 const In* __restrict__ tags, int channels, int maps_a_tag_map, MapSize size, int people, int capacity,
                 float* __restrict__ peaks) {
  POSEKD_DYNAMIC_SHARED(Key, keys);
  __shared__ int count;
  const KeyList list{keys, &count, people, capacity};
  list.clear();
  const int64_t index = blockIdx.x, total = static_cast<int64_t>(strips) * people;
  Key bar = 0;
  for (int64_t round = 0; round < total; round += kRound) {
    for (int k = 0; k < kPixels; ++k) {
      const int64_t at = round + k * kThreads + threadIdx.x;
      const Key key = at < total ? workspace[index * total + at] : 0;
      if (key > bar) list.add(key);
    }
    bar = list.make_room(bar);
  }
  list.keep_highest();
  const In* map = heatmaps + index * size.pixels();
  const In* tag_map = tags + index / maps_a_tag_map * size.pixels() * channels;
  for (int i = threadIdx.x; i < people; i += kThreads) {
    float* row = peaks + (index * people + i) * (3 + channels);
    if (i < count)
      write_peak(map, tag_map, channels, size, pixel_of_key(keys[i]), row);
    else
      for (int c = 0; c < 3 + channels; ++c) row[c] = 0.0f;
  }
}

template <class In, int N>
void launch_peaks(const TopKPeaks& args, const CudaContext& context) {
  const MapSize size{args.in.width(), args.in.height()};
  const int people = args.max_people(), capacity = list_capacity(people);
  const int strips = static_cast<int>(args.workspace.shape[1]), strip_rows = ceil_div(size.height, strips);
  const size_t shared = sizeof(Key) * static_cast<size_t>(capacity);
  const int maps_a_tag_map = args.in.tags.shape[1] == 1 ? args.in.joints() : 1;
  Key* workspace = args.workspace.as<Key>();
  const auto maps = static_cast<unsigned>(args.in.maps());
  launch(context, strip_kernel<In, N>, dim3(maps, static_cast<unsigned>(strips)), dim3(kThreads), shared,
         args.in.heatmaps.as<In>(), size, strip_rows, args.nms_kernel / 2, args.threshold, people, capacity, workspace);
  launch(context, merge_kernel<In>, dim3(maps), dim3(kThreads), shared, workspace, strips, args.in.heatmaps.as<In>(),
         args.in.tags.as<In>(), args.in.channels(), maps_a_tag_map, size, people, capacity, args.peaks.as<float>());
}

}  // namespace

void top_k_peaks_cuda(const TopKPeaks& args, const CudaContext& context) {
  dispatch_float<false>(args.in.heatmaps.dtype, [&](auto tag) {
    using In = typename decltype(tag)::type;
    constexpr int kVector = 16 / sizeof(In) < kPixels ? 16 / sizeof(In) : kPixels;
    const bool aligned = reinterpret_cast<uintptr_t>(args.in.heatmaps.data) % 16 == 0;
    if (aligned && args.in.width() % kVector == 0)
      launch_peaks<In, kVector>(args, context);
    else
      launch_peaks<In, 1>(args, context);
  });
}

}  // namespace posekd
