// Row scans of corner_pool, and its entry points. See corner_pool.h for the floor.
//
// A group of 16 or 32 lanes takes 8 neighbouring rows, V neighbours a lane and row, and scans all eight by shuffles
// at once; a longer row is a loop over such chunks. At [4, 256, 128, 128] float32 a throw-away prototype took 33.9 us
// forward and 34.2 us backward on an H200; these kernels are not yet measured.
#include "core/cuda_compat.h"
#include "corner_pool/corner_pool_device.cuh"

namespace posekd {
namespace {

constexpr int kWarps = 4;  // of a block

// The strip of this lane's group; this lane has the columns from `column` on.
template <int kLanes>
__device__ __forceinline__ Strip strip_of(const CornerParams& p, int column) {
  constexpr int kGroups = kWarp / kLanes;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t row = (warp * kGroups + threadIdx.x % kWarp / kLanes) * kRows, left = p.planes * p.height - row;
  const int rows = static_cast<int>(left < 0 ? 0 : left < kRows ? left : kRows);
  return {row * p.width + column, row * p.words + column / 32, p.width, p.words, rows, column < p.width};
}

// Columns of a chunk: every lane of a word's group is in the map if the word is.
__device__ __forceinline__ bool word_in_map(const CornerParams& p, int column) { return column / 32 < p.words; }

template <class T, int V, bool kDown, int kLanes, bool kAdd>
__global__ void __launch_bounds__(kWarps* kWarp, V == 1 ? 8 : 5) row_forward(const __grid_constant__ CornerParams p) {
  constexpr int kChunk = kLanes * V;
  const int chunks = ceil_div(p.width, kChunk);
  float carry[kRows];
  for (int r = 0; r < kRows; ++r) carry[r] = -INFINITY;
  for (int k = 0; k < chunks; ++k) {
    const int column = (kDown ? chunks - 1 - k : k) * kChunk + static_cast<int>(threadIdx.x) % kLanes * V;
    const Strip s = strip_of<kLanes>(p, column);
    float x[kRows][V];
    load_rows<T, V>(p.input, s, -INFINITY, x);
    const unsigned bits = row_scan<kDown, kLanes, V>(x, carry, column, kDown ? p.width - 1 : 0, p.last_wins);
    if constexpr (kAdd) {
      float other[kRows][V];
      load_rows<T, V>(p.other, s, 0.0f, other);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < V; ++v) x[r][v] += other[r][v];
    }
    store_rows<T, V>(p.output, s, x);
    if (p.heads) store_heads<V>(p.heads, s, word_in_map(p, column), s.active ? bits : 0u);
  }
}

// How many lanes that come earlier in the sums pass something on to this one: up to the nearest with a head, itself
// included. `heads`: whether this lane has one. `open`: whether there is none up to the row's end.
template <bool kDown, int kLanes>
__device__ __forceinline__ int lanes_that_count(bool heads, bool* open) {
  const int lane = threadIdx.x % kLanes, base = threadIdx.x % kWarp - lane;
  const unsigned group = __ballot_sync(kAllLanes, heads) >> base & (kAllLanes >> (kWarp - kLanes));
  const unsigned earlier = kDown ? group & ((2u << lane) - 1u) : group >> lane;
  *open = earlier == 0;
  if (kDown) return earlier ? lane - (31 - __clz(static_cast<int>(earlier))) : lane;
  return earlier ? __ffs(static_cast<int>(earlier)) - 1 : kLanes - 1 - lane;
}

// Sums run against the scan, so the lane that comes earlier in them is the later one of the scan.
template <class T, int V, bool kDown, int kLanes>
__global__ void __launch_bounds__(kWarps* kWarp, V == 1 ? 8 : 5) row_backward(const __grid_constant__ CornerParams p) {
  constexpr int kChunk = kLanes * V;
  const int chunks = ceil_div(p.width, kChunk);
  float carry[kRows];
  for (int r = 0; r < kRows; ++r) carry[r] = 0.0f;
  for (int k = 0; k < chunks; ++k) {
    const int column = (kDown ? k : chunks - 1 - k) * kChunk + static_cast<int>(threadIdx.x) % kLanes * V;
    const Strip s = strip_of<kLanes>(p, column);
    const unsigned words = load_heads<V>(p.heads, s, word_in_map(p, column));
    float dy[kRows][V], sum[kRows];
    load_rows<T, V>(p.input, s, 0.0f, dy);
    const unsigned heads = transpose<V>(words);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = 0.0f;
      for (int i = 0; i < V; ++i) {
        const int v = kDown ? i : V - 1 - i;
        sum[r] = heads >> (r * V + v) & 1u ? 0.0f : sum[r] + dy[r][v];
      }
      bool open;
      const int count = lanes_that_count<kDown, kLanes>((heads >> (r * V) & ((1u << V) - 1u)) != 0, &open);
#pragma unroll
      for (int distance = 1; distance < kLanes; distance *= 2) {
        const float earlier = from_earlier<!kDown, kLanes>(sum[r], distance);
        if (distance <= count) sum[r] += earlier;
      }
      sum[r] += open ? carry[r] : 0.0f;  // what this lane passes on
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float whole = __shfl_sync(kAllLanes, sum[r], kDown ? kLanes - 1 : 0, kLanes);
      const float earlier = from_earlier<!kDown, kLanes>(sum[r], 1);
      float passed = lanes_before<!kDown, kLanes>() > 0 ? earlier : carry[r];
      carry[r] = whole;
      for (int i = 0; i < V; ++i) {
        const int v = kDown ? i : V - 1 - i;
        passed += dy[r][v];
        const bool head = heads >> (r * V + v) & 1u;
        dy[r][v] = head ? passed : 0.0f;
        passed = head ? 0.0f : passed;
      }
    }
    store_rows<T, V>(p.output, s, dy);
  }
}

template <class T, int V, bool kDown, int kLanes>
void launch_lanes(const CornerPool& args, const CudaContext& context, bool gradient) {
  const CornerParams p = corner_params(args);
  const int64_t rows = p.planes * p.height;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(rows, kWarps * kRows * (kWarp / kLanes))));
  const auto run = [&](auto kernel) { launch(context, kernel, grid, kWarps * kWarp, 0, p); };
  if (gradient) return run(row_backward<T, V, kDown, kLanes>);
  run(args.other ? row_forward<T, V, kDown, kLanes, true> : row_forward<T, V, kDown, kLanes, false>);
}

template <class T, bool kDown>
void launch_rows(const CornerPool& args, const CudaContext& context, bool gradient) {
  if (!aligned(args, 4)) return launch_lanes<T, 1, kDown, 32>(args, context, gradient);
  if (args.width() <= 64) return launch_lanes<T, 4, kDown, 16>(args, context, gradient);
  launch_lanes<T, 4, kDown, 32>(args, context, gradient);
}

void pool(const CornerPool& args, const CudaContext& context, bool gradient) {
  if (args.columns()) return corner_pool_columns(args, context, gradient);
  dispatch_float<false>(args.input.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.descending() ? launch_rows<T, true>(args, context, gradient) : launch_rows<T, false>(args, context, gradient);
  });
}

}  // namespace

void corner_pool_forward_cuda(const CornerPool& args, const CudaContext& context) {
  if (!args.second) return pool(args, context, false);
  if (corner_pool_sum_cuda(args, context)) return;
  CornerPool across = args, down = args;  // in two launches, the second of which adds in place
  across.input = args.second, across.heads = args.second_heads, across.direction = args.second_direction;
  across.second = down.second = {};
  pool(across, context, false);
  down.other = args.output;
  pool(down, context, false);
}

void corner_pool_backward_cuda(const CornerPool& args, const CudaContext& context) { pool(args, context, true); }

}  // namespace posekd
