// CUDA kernels of center_pool. See center_pool.h for the floor.
//
// A block per plane, one launch each way. A warp takes every sixteenth row, several at a time, V neighbours per lane:
// column results lie in registers and are combined through shared memory; a row's maximum is found by one reduction of
// integers in the order of the values, its sum by lanes that trade halves. Planes wider than 32 * V columns are done in
// chunks of columns; what is known of a row then waits in shared memory, where one lane owns it. A throw-away prototype
// took 34.9 us forward with one map and 51.4 us with two at [4, 256, 128, 128] float32 on an H200; these kernels are
// not yet measured.
#include "center_pool/center_pool.h"

#include <climits>

#include "core/cuda_math.cuh"
#include "core/pooling_math.h"

namespace posekd {
namespace {

constexpr int kWarps = 16;
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

// NaN is above all numbers, and the two zeros are equal.
__device__ __forceinline__ int key_of(float value) { return value != value ? INT_MAX : order_of(value + 0.0f); }

// The highest of a row that lies across a warp, in every lane. Lanes hold columns in ascending order.
__device__ __forceinline__ Peak row_peak(const Peak& mine) {
  const int key = mine.argument < 0 ? INT_MIN : key_of(mine.value);
  const unsigned ties = __ballot_sync(kAllLanes, key == warp_max(key));
  const int last = 31 - __clz(static_cast<int>(ties));
  return {__shfl_sync(kAllLanes, mine.value, last), __shfl_sync(kAllLanes, mine.argument, last)};
}

// A lane's V columns of a row, fill where there are none.
template <class T, int V>
__device__ __forceinline__ void read_row(const void* map, int64_t offset, bool there, float fill, float (&x)[V]) {
  for (int v = 0; v < V; ++v) x[v] = fill;
  if (there) read_pack<T, V>(map, offset, x);
}

// Rows that a warp reads at once.
template <bool kTwo>
constexpr int kAtOnce = kTwo ? 4 : 8;

template <class T, int V, bool kTwo>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const __grid_constant__ Params p) {
  constexpr int kRows = kAtOnce<kTwo>;
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
    for (int first = warp; first < p.height; first += kRows * kWarps) {
      float down[kRows][V], across[kTwo ? kRows : 1][V];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first + r * kWarps;
        const int64_t offset = plane + static_cast<int64_t>(row) * p.width + column;
        const bool there = active && row < p.height;
        read_row<T, V>(p.vertical, offset, there, -INFINITY, down[r]);
        if constexpr (kTwo) read_row<T, V>(p.horizontal, offset, there, -INFINITY, across[r]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first + r * kWarps;
        if (row >= p.height) break;  // the same for the whole warp
        Peak peak{-INFINITY, -1};
        for (int v = 0; v < V; ++v) {
          if (takes_over<true>(down[r][v], best[v].value)) best[v] = {down[r][v], row};
          const float value = kTwo ? across[kTwo ? r : 0][v] : down[r][v];
          if (active && takes_over<true>(value, peak.value)) peak = {value, column + v};
        }
        peak = row_peak(peak);
        if (lane == 0) rows[row] = chunk > 0 ? higher(rows[row], peak) : peak;
      }
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
  for (int column = lane * V; column < p.width; column += kWarp * V) {
    float down[V];
    for (int v = 0; v < V; ++v) down[v] = columns[column + v];
#pragma unroll 4
    for (int row = warp; row < p.height; row += kWarps) {
      const Peak peak = rows[row];
      float sum[V];
      for (int v = 0; v < V; ++v) sum[v] = down[v] + peak.value;
      write_pack<T, V>(p.output, plane + static_cast<int64_t>(row) * p.width + column, sum);
    }
  }
  if (p.row_argument)
    for (int row = warp * kWarp + lane; row < p.height; row += kThreads)
      p.row_argument[static_cast<int64_t>(blockIdx.x) * p.height + row] = rows[row].argument;
}

// Sums of eight values over a warp in 9 shuffles instead of 40: lanes trade halves, so that each goes on with fewer
// values. Lane l gets the sum of value l / 4.
__device__ __forceinline__ float eight_sums(const float (&v)[8]) {
  const int lane = threadIdx.x % kWarp;
  float a[4], b[2];
  for (int i = 0; i < 4; ++i)
    a[i] = (lane & 16 ? v[i + 4] : v[i]) + __shfl_xor_sync(kAllLanes, lane & 16 ? v[i] : v[i + 4], 16);
  for (int i = 0; i < 2; ++i)
    b[i] = (lane & 8 ? a[i + 2] : a[i]) + __shfl_xor_sync(kAllLanes, lane & 8 ? a[i] : a[i + 2], 8);
  float sum = (lane & 4 ? b[1] : b[0]) + __shfl_xor_sync(kAllLanes, lane & 4 ? b[0] : b[1], 4);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  return sum + __shfl_xor_sync(kAllLanes, sum, 1);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const __grid_constant__ Params p) {
  constexpr int kRows = 8;
  POSEKD_DYNAMIC_SHARED(float, columns);  // [W] column sums, then [H] row sums
  __shared__ float partial[kWarps][kWarp * V];
  float* rows = columns + p.width;
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t plane = static_cast<int64_t>(blockIdx.x) * p.height * p.width;
  for (int chunk = 0; chunk < p.width; chunk += kWarp * V) {
    const int column = chunk + lane * V;
    float sums[V];
    for (int v = 0; v < V; ++v) sums[v] = 0.0f;
    for (int first = warp; first < p.height; first += kRows * kWarps) {
      float dy[kRows][V], across[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first + r * kWarps;
        read_row<T, V>(p.upstream, plane + static_cast<int64_t>(row) * p.width + column,
                       column < p.width && row < p.height, 0.0f, dy[r]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        across[r] = 0.0f;
        for (int v = 0; v < V; ++v) {
          sums[v] += dy[r][v];
          across[r] += dy[r][v];
        }
      }
      const float sum = eight_sums(across);
      const int row = first + lane / 4 * kWarps;
      if (lane % 4 == 0 && row < p.height) rows[row] = chunk > 0 ? rows[row] + sum : sum;
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
#pragma unroll 4
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
    if (args.horizontal)
      launch(context, wide ? forward_kernel<T, 4, true> : forward_kernel<T, 1, true>, grid, block, shared, p);
    else
      launch(context, wide ? forward_kernel<T, 4, false> : forward_kernel<T, 1, false>, grid, block, shared, p);
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
