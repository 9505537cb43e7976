// CUDA kernels of refine: mean tags and adjustment, the tiles' bounds, then a block for every keypoint that is missing.
#include "core/cuda_reduce.cuh"
#include "group_keypoints/refine_math.h"

namespace posekd {
namespace {

constexpr int kThreads = 128;
constexpr int kSlots = 64;  // blocks per map that share the people

// Mean of one channel of the tags under a person's keypoints, for a warp: a lane reads a keypoint's tag, and all lanes
// add the tags up in the order of the keypoints, as the definition does. NaN without keypoints.
template <class In>
__device__ float mean_tag(const RefineParams<In>& p, int64_t b, int64_t person, int channel) {
  float sum = 0.0f;
  int count = 0;
  for (int base = 0; base < p.joints; base += kWarp) {
    const int k = base + static_cast<int>(threadIdx.x) % kWarp;
    const float* joint = k < p.joints ? p.joint(b, person, k) : nullptr;
    const bool present = joint && joint[2] > 0.0f;
    const float tag = present ? tag_under(p, joint, b, k, channel) : 0.0f;
    unsigned votes = __ballot_sync(0xffffffffu, present);
    count += __popc(votes);
    for (; votes; votes &= votes - 1) sum += __shfl_sync(0xffffffffu, tag, __ffs(static_cast<int>(votes)) - 1);
  }
  return count > 0 ? sum / static_cast<float>(count) : NAN;
}

// A warp per person, or a place for one: copies, finds the mean tag, adjusts. The places of an image fill
// `blocks` blocks of a one-dimensional grid: the other dimensions end at 65535.
template <class In>
__global__ void __launch_bounds__(kThreads) mean_kernel(RefineParams<In> p, unsigned blocks) {
  const int64_t b = blockIdx.x / blocks, place = blockIdx.x % blocks;
  const int64_t person = place * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (person >= p.capacity) return;  // the whole warp
  const int64_t row = static_cast<int64_t>(p.joints) * (3 + p.channels), begin = (b * p.capacity + person) * row;
  for (int64_t i = lane; i < row; i += kWarp) p.keypoints[begin + i] = p.given[begin + i];
  if (person >= p.people(b)) return;
  __syncwarp();
  for (int c = 0; c < p.channels; ++c) {
    const float mean = mean_tag(p, b, person, c);
    if (lane == 0) p.mean(b, person)[c] = mean;
  }
  if (!p.adjust) return;
  for (int k = lane; k < p.joints; k += kWarp) {
    float* joint = p.joint(b, person, k);
    if (joint[2] > 0.0f) adjust_joint(p, joint, b, k);
  }
}

// Over the 16 threads that share a tile's columns.
template <class Choose>
__device__ __forceinline__ float reduce_tile(float value, Choose choose) {
  for (int offset = kTile / 2; offset > 0; offset /= 2)
    value = choose(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// One row of tiles of one map: a thread goes down a column of pixels.
template <class In>
__global__ void __launch_bounds__(kThreads) bounds_kernel(RefineParams<In> p, int across, int64_t tiles) {
  const auto lower = [](float a, float b) { return a < b ? a : b; };
  const auto higher = [](float a, float b) { return a > b ? a : b; };
  const int64_t map_index = blockIdx.x, b = map_index / p.joints;
  const int k = static_cast<int>(map_index % p.joints);
  const int begin = static_cast<int>(blockIdx.y) * kTile, end = min(begin + kTile, p.height);
  float* out = p.bounds + map_index * (1 + 2 * p.channels) * tiles + static_cast<int64_t>(blockIdx.y) * across;
  for (int x = threadIdx.x; x < ceil_div(p.width, kWarp) * kWarp; x += kThreads) {  // whole warps, for the shuffles
    float highest = -INFINITY;
    if (x < p.width)
      for (int y = begin; y < end; ++y) {
        const float value = to_float(p.map(b, k)[static_cast<int64_t>(y) * p.width + x]);
        if (value <= FLT_MAX) highest = higher(value, highest);
      }
    highest = reduce_tile(highest, higher);
    const bool writes = x % kTile == 0 && x < p.width;
    if (writes) out[x / kTile] = highest;
    for (int c = 0; c < p.channels; ++c) {
      float low = INFINITY, high = -INFINITY;
      if (x < p.width)
        for (int y = begin; y < end; ++y) {
          const float tag = to_float(p.tag_map(b, k)[(static_cast<int64_t>(y) * p.width + x) * p.channels + c]);
          low = lower(tag, low);  // the comparison is false for NaN, which so leaves the box as it is
          high = higher(tag, high);
        }
      low = reduce_tile(low, lower);
      high = reduce_tile(high, higher);
      if (!writes) continue;
      out[(1 + 2 * c) * tiles + x / kTile] = low;
      out[(2 + 2 * c) * tiles + x / kTile] = high;
    }
  }
}

// A value and where it stands; the larger value, the earlier pixel of equals.
struct Best {
  float value;
  int64_t pixel;
};

__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.pixel < b.pixel ? a : b;
}

__device__ __forceinline__ Best shuffle(const Best& mine, int offset) {
  return {__shfl_xor_sync(0xffffffffu, mine.value, offset), __shfl_xor_sync(0xffffffffu, mine.pixel, offset)};
}

__device__ __forceinline__ Best warp_best(Best best) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) best = better(best, shuffle(best, offset));
  return best;
}

// Over the block; every thread gets it. Begins and ends with a barrier's worth of safety for `scratch`.
__device__ __forceinline__ Best block_best(Best best, Best* scratch) {
  best = warp_best(best);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = best;
  __syncthreads();
  best = scratch[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) best = better(best, scratch[warp]);
  return best;
}

// The search for one missing keypoint of one person.
template <class In>
struct Search {
  const RefineParams<In>& p;
  const In* map;
  const In* tags;
  const float* bounds;  // [1 + 2 T, tiles]
  const float* mean;    // [T]
  int across;
  int64_t tiles;

  __device__ __forceinline__ float bound(int64_t tile) const {
    return tile_bound(bounds[tile], bounds + tiles + tile, tiles, mean, 1, p.channels);
  }
  __device__ __forceinline__ int64_t first_pixel(int64_t tile) const {
    return tile / across * kTile * p.width + tile % across * kTile;
  }
  __device__ __forceinline__ bool may_beat(float bound, int64_t tile, const Best& best) const {
    return bound > best.value || (bound == best.value && bound > -INFINITY && first_pixel(tile) < best.pixel);
  }

  // The best of a tile and `best`, for a warp; every lane gets it.
  __device__ Best read_tile(int64_t tile, Best best) const {
    const int x0 = static_cast<int>(tile % across) * kTile, y0 = static_cast<int>(tile / across) * kTile;
    for (int i = threadIdx.x % kWarp; i < kTile * kTile; i += kWarp) {
      const int x = x0 + i % kTile, y = y0 + i / kTile;
      if (x >= p.width || y >= p.height) continue;
      const int64_t pixel = static_cast<int64_t>(y) * p.width + x;
      const float value = pixel_value(to_float(map[pixel]), tags + pixel * p.channels, mean, p.channels);
      if (value > -INFINITY) best = better(best, Best{value, pixel});  // the comparison is false for NaN
    }
    return warp_best(best);
  }

  // The first pixel of the largest value of the map; p.pixels when no pixel has one. For the whole block.
  __device__ int64_t best_pixel(Best* scratch) const {
    Best tile{-INFINITY, tiles};
    for (int64_t t = threadIdx.x; t < tiles; t += kThreads) tile = better(tile, Best{bound(t), t});
    tile = block_best(tile, scratch);
    Best best{-INFINITY, p.pixels};
    if (tile.value == -INFINITY) return p.pixels;
    best = read_tile(tile.pixel, best);  // every warp reads the likeliest tile, then its share of the others
    for (int64_t base = threadIdx.x / kWarp * kWarp; base < tiles; base += kThreads) {
      const int64_t t = base + threadIdx.x % kWarp;
      const bool open = t < tiles && t != tile.pixel && may_beat(bound(t), t, best);
      unsigned votes = __ballot_sync(0xffffffffu, open);
      for (; votes; votes &= votes - 1) best = read_tile(base + __ffs(static_cast<int>(votes)) - 1, best);
    }
    return block_best(best, scratch).pixel;
  }
};

template <class In>
__global__ void __launch_bounds__(kThreads) search_kernel(RefineParams<In> p, int across, int64_t tiles) {
  __shared__ Best scratch[kThreads / kWarp];
  const int64_t map_index = blockIdx.x, b = map_index / p.joints;
  const int k = static_cast<int>(map_index % p.joints);
  for (int64_t person = blockIdx.y; person < p.people(b); person += gridDim.y) {
    if (!wants(p, b, person, k)) continue;  // the same for every thread
    const Search<In> search{
        p,      p.map(b, k), p.tag_map(b, k), p.bounds + map_index * (1 + 2 * p.channels) * tiles, p.mean(b, person),
        across, tiles};
    const int64_t pixel = search.best_pixel(scratch);
    __syncthreads();  // everyone has seen that the keypoint is missing
    if (threadIdx.x == 0 && pixel < p.pixels) fill_joint(p, b, person, k, pixel);
  }
}

template <class In>
void launch_refine(const RefinePeople& args, const CudaContext& context) {
  const RefineParams<In> p = refine_params<In>(args);
  const int across = ceil_div(p.width, kTile), down = ceil_div(p.height, kTile);
  const int64_t tiles = static_cast<int64_t>(across) * down;
  const auto images = static_cast<unsigned>(args.in.images()), maps = static_cast<unsigned>(args.in.maps());
  const auto capacity = static_cast<unsigned>(args.capacity());
  const unsigned blocks = ceil_div(capacity, unsigned{kThreads / kWarp});
  launch(context, mean_kernel<In>, dim3(images * blocks), dim3(kThreads), 0, p, blocks);
  if (!args.fill) return;
  launch(context, bounds_kernel<In>, dim3(maps, static_cast<unsigned>(down)), dim3(kThreads), 0, p, across, tiles);
  launch(context, search_kernel<In>, dim3(maps, min(capacity, unsigned{kSlots})), dim3(kThreads), 0, p, across, tiles);
}

}  // namespace

void refine_people_cuda(const RefinePeople& args, const CudaContext& context) {
  dispatch_float<false>(args.in.heatmaps.dtype,
                        [&](auto tag) { launch_refine<typename decltype(tag)::type>(args, context); });
}

}  // namespace posekd
