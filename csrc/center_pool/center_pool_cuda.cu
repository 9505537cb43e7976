// CUDA kernels of center_pool. See center_pool.h for the floor.
//
// A block per plane, one launch each way. A warp takes every eighth row, V neighbours per lane: column results lie in
// registers and are combined through shared memory, row results come from shuffles. Planes wider than 32 * V columns
// are done in chunks of columns; what is known of a row then waits in shared memory, where one lane owns it.
#include "center_pool/center_pool.h"
#include "core/cuda_reduce.cuh"
#include "core/pooling_math.h"

namespace posekd {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

struct Params {
  const void *vertical, *horizontal, *upstream;  // inputs
  void *output, *d_vertical, *d_horizontal;      // d_horizontal may be null
  int *column_argument, *row_argument;           // forward: or null
  int height, width;
};

// A maximum and where it is; among equals the larger index, NaN above all. An argument below 0: nothing yet.
struct Peak {
  float value;
  int argument;
};

__device__ __forceinline__ Peak higher(const Peak& a, const Peak& b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  const bool equal = a.value == b.value || (a_nan && b_nan);
  const bool b_wins = equal ? b.argument > a.argument : b_nan || b.value > a.value;
  return b_wins ? b : a;
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4) forward_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, columns);  // [W] column maxima, then [H] row peaks
  __shared__ Peak partial[kWarps][kWarp * V];
  Peak* rows = reinterpret_cast<Peak*>(columns + p.width + p.width % 2);
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t plane = static_cast<int64_t>(blockIdx.x) * p.height * p.width;
  for (int chunk = 0; chunk < p.width; chunk += kWarp * V) {
    const int column = chunk + lane * V;
    const bool active = column < p.width;
    Peak best[V];
    for (int v = 0; v < V; ++v) best[v] = {-INFINITY, -1};
#pragma unroll 4
    for (int row = warp; row < p.height; row += kWarps) {
      float down[V], across[V];
      for (int v = 0; v < V; ++v) down[v] = across[v] = -INFINITY;
      if (active) {
        read_pack<T, V>(p.vertical, plane + static_cast<int64_t>(row) * p.width + column, down);
        read_pack<T, V>(p.horizontal, plane + static_cast<int64_t>(row) * p.width + column, across);
      }
      Peak peak{-INFINITY, -1};
      for (int v = 0; v < V; ++v) {
        if (takes_over<true>(down[v], best[v].value)) best[v] = {down[v], row};
        if (active && takes_over<true>(across[v], peak.value)) peak = {across[v], column + v};
      }
      for (int offset = kWarp / 2; offset > 0; offset /= 2)
        peak = higher(peak, {__shfl_xor_sync(0xffffffffu, peak.value, offset),
                             __shfl_xor_sync(0xffffffffu, peak.argument, offset)});
      if (lane == 0) rows[row] = chunk > 0 ? higher(rows[row], peak) : peak;
    }
    for (int v = 0; v < V; ++v) partial[warp][lane * V + v] = best[v];
    __syncthreads();
    for (int i = warp * kWarp + lane; i < kWarp * V && chunk + i < p.width; i += kThreads) {
      Peak peak = partial[0][i];
      for (int w = 1; w < kWarps; ++w) peak = higher(peak, partial[w][i]);
      columns[chunk + i] = peak.value;
      if (p.column_argument) p.column_argument[static_cast<int64_t>(blockIdx.x) * p.width + chunk + i] = peak.argument;
    }
    __syncthreads();  // before the next chunk, or the output
  }
  for (int row = warp; row < p.height; row += kWarps) {
    const Peak peak = rows[row];
    if (lane == 0 && p.row_argument) p.row_argument[static_cast<int64_t>(blockIdx.x) * p.height + row] = peak.argument;
    for (int column = lane * V; column < p.width; column += kWarp * V) {
      float sum[V];
      for (int v = 0; v < V; ++v) sum[v] = columns[column + v] + peak.value;
      write_pack<T, V>(p.output, plane + static_cast<int64_t>(row) * p.width + column, sum);
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4) backward_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, columns);  // [W] column sums, then [H] row sums
  __shared__ float partial[kWarps][kWarp * V];
  float* rows = columns + p.width;
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t plane = static_cast<int64_t>(blockIdx.x) * p.height * p.width;
  for (int chunk = 0; chunk < p.width; chunk += kWarp * V) {
    const int column = chunk + lane * V;
    float sums[V];
    for (int v = 0; v < V; ++v) sums[v] = 0.0f;
#pragma unroll 4
    for (int row = warp; row < p.height; row += kWarps) {
      float dy[V];
      for (int v = 0; v < V; ++v) dy[v] = 0.0f;
      if (column < p.width) read_pack<T, V>(p.upstream, plane + static_cast<int64_t>(row) * p.width + column, dy);
      float across = 0.0f;
      for (int v = 0; v < V; ++v) {
        sums[v] += dy[v];
        across += dy[v];
      }
      across = warp_sum(across);
      if (lane == 0) rows[row] = chunk > 0 ? rows[row] + across : across;
    }
    for (int v = 0; v < V; ++v) partial[warp][lane * V + v] = sums[v];
    __syncthreads();
    for (int i = warp * kWarp + lane; i < kWarp * V && chunk + i < p.width; i += kThreads) {
      float sum = partial[0][i];
      for (int w = 1; w < kWarps; ++w) sum += partial[w][i];
      columns[chunk + i] = sum;
    }
    __syncthreads();  // before the next chunk, or the output
  }
  const int* column_argument = p.column_argument + static_cast<int64_t>(blockIdx.x) * p.width;
  const int* row_argument = p.row_argument + static_cast<int64_t>(blockIdx.x) * p.height;
  for (int column = lane * V; column < p.width; column += kWarp * V) {
    int argument[V];
    float sums[V];
    for (int v = 0; v < V; ++v) argument[v] = column_argument[column + v], sums[v] = columns[column + v];
    for (int row = warp; row < p.height; row += kWarps) {
      const int64_t offset = plane + static_cast<int64_t>(row) * p.width + column;
      const int peak = row_argument[row];
      float down[V], across[V];
      for (int v = 0; v < V; ++v) {
        down[v] = argument[v] == row ? sums[v] : 0.0f;
        across[v] = peak == column + v ? rows[row] : 0.0f;
        if (!p.d_horizontal) down[v] += across[v];
      }
      write_pack<T, V>(p.d_vertical, offset, down);
      if (p.d_horizontal) write_pack<T, V>(p.d_horizontal, offset, across);
    }
  }
}

// Four neighbours at once need rows and base addresses aligned to four elements.
bool fits(const TensorView& map) {
  return reinterpret_cast<uintptr_t>(map.data) % (4 * static_cast<uintptr_t>(item_size(map.dtype))) == 0;
}

}  // namespace

void center_pool_forward_cuda(const CenterPool& args, const CudaContext& context) {
  Params p{};
  p.vertical = args.vertical.data;
  p.horizontal = args.horizontal ? args.horizontal.data : args.vertical.data;
  p.output = args.output.data;
  p.column_argument = args.column_argument.as<int>();
  p.row_argument = args.row_argument.as<int>();
  p.height = static_cast<int>(args.height()), p.width = static_cast<int>(args.width());
  const dim3 grid(static_cast<unsigned>(args.planes())), block(kWarp, kWarps);
  const size_t shared = sizeof(float) * static_cast<size_t>(p.width + 1) + sizeof(Peak) * static_cast<size_t>(p.height);
  const bool wide = p.width % 4 == 0 && fits(args.vertical) && fits(args.horizontal) && fits(args.output);
  dispatch_float<false>(args.output.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(context, wide ? forward_kernel<T, 4> : forward_kernel<T, 1>, grid, block, shared, p);
  });
}

void center_pool_backward_cuda(const CenterPoolGradient& args, const CudaContext& context) {
  Params p{};
  p.upstream = args.upstream.data;
  p.d_vertical = args.vertical.data;
  p.d_horizontal = args.horizontal.data;
  p.column_argument = args.column_argument.as<int>();
  p.row_argument = args.row_argument.as<int>();
  p.height = static_cast<int>(args.height()), p.width = static_cast<int>(args.width());
  const dim3 grid(static_cast<unsigned>(args.planes())), block(kWarp, kWarps);
  const size_t shared = sizeof(float) * static_cast<size_t>(p.width + p.height);
  const bool wide = p.width % 4 == 0 && fits(args.upstream) && fits(args.vertical) && fits(args.horizontal);
  dispatch_float<false>(args.upstream.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(context, wide ? backward_kernel<T, 4> : backward_kernel<T, 1>, grid, block, shared, p);
  });
}

}  // namespace posekd
