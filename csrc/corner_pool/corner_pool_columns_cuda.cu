// Column scans of corner_pool, and the sum of a column scan and a row scan. See corner_pool.h for the floor.
//
// A block takes 32 V columns and up to 16 strips of 8 rows; a warp loads its strip into registers, strips exchange
// their maxima through shared memory, and every row is written once; a taller map is a loop over such tiles. At [4,
// 256, 128, 128] float32 a throw-away prototype took 35.0 us forward, 34.6 us backward, 48.7 us with a summand and 52.0
// us for the sum on an H200; these kernels are not yet measured.
#include "core/cuda_compat.h"
#include "corner_pool/corner_pool_device.cuh"

namespace posekd {
namespace {

constexpr int kMaxStrips = 16;  // warps of a block

// Where a thread of a column scan works: lanes run over the words of all planes, 32 / V lanes per word.
struct Columns {
  int64_t plane;
  int word, column;
};

template <int V>
__device__ __forceinline__ Columns columns_of(const CornerParams& p) {
  constexpr int kLanes = 32 / V;
  const int64_t lane = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t word = lane / kLanes, plane = word / p.words;
  const int within = static_cast<int>(word - plane * p.words);
  return {plane, within, within * 32 + static_cast<int>(threadIdx.x) % kLanes * V};
}

// The strip that begins at row `begin` of the scan.
__device__ __forceinline__ Strip strip_of(const CornerParams& p, const Columns& at, int begin) {
  const int64_t row = at.plane * p.height + (p.descending ? p.height - 1 - begin : begin);
  const int step = p.descending ? -1 : 1, rows = max(0, min(kRows, p.height - begin));
  return {row * p.width + at.column,
          row * p.words + at.word,
          step * p.width,
          step * p.words,
          rows,
          at.plane < p.planes && at.column < p.width};
}

// The maxima with which each strip of a tile begins, from the strips' own. `carry`: of the tiles before, then with this
// one. Contains a barrier.
template <int V>
__device__ __forceinline__ void enter_strip(const float (&x)[kRows][V], Pack<float, V> (*maxima)[kWarp],
                                            float (&carry)[V], float (&best)[V]) {
  const int lane = threadIdx.x, strip = threadIdx.y, strips = blockDim.y;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float most = x[0][v];
#pragma unroll
    for (int r = 1; r < kRows; ++r) most = larger(most, x[r][v]);
    maxima[strip][lane].v[v] = most;
  }
  __syncthreads();
  for (int v = 0; v < V; ++v) best[v] = carry[v];
  for (int k = 0; k < strips; ++k) {
    const Pack<float, V> other = maxima[k][lane];
    for (int v = 0; v < V; ++v) {
      if (k < strip) best[v] = larger(best[v], other.v[v]);
      carry[v] = larger(carry[v], other.v[v]);
    }
  }
}

template <class T, int V, bool kAdd>
__global__ void __launch_bounds__(kMaxStrips* kWarp, 2) column_forward(const __grid_constant__ CornerParams p) {
  __shared__ Pack<float, V> maxima[kMaxStrips][kWarp];
  const int strip = threadIdx.y, strips = blockDim.y;
  const Columns at = columns_of<V>(p);
  float carry[V];
  for (int v = 0; v < V; ++v) carry[v] = -INFINITY;
  for (int tile = 0; tile < p.height; tile += strips * kRows) {
    if (tile > 0) __syncthreads();  // all have read the maxima of the tile before
    const Strip s = strip_of(p, at, tile + strip * kRows);
    float x[kRows][V], best[V];
    load_rows<T, V>(p.input, s, -INFINITY, x);
    enter_strip<V>(x, maxima, carry, best);
    float other[kRows][V];  // asked for before the scan, all at once, and not earlier: registers
    if (kAdd) load_rows<T, V>(p.other, s, 0.0f, other);
    const unsigned bits = column_scan<V>(x, best, tile + strip == 0, p.last_wins);
    if (p.heads) store_heads<V>(p.heads, s, at.plane < p.planes, s.active ? bits : 0u);
#pragma unroll
    for (int r = 0; kAdd && r < kRows; ++r)
      for (int v = 0; v < V; ++v) x[r][v] += other[r][v];
    store_rows<T, V>(p.output, s, x);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kMaxStrips* kWarp, 2) column_backward(const __grid_constant__ CornerParams p) {
  __shared__ Pack<float, V> leads[kMaxStrips]
                                 [kWarp];         // what a strip passes on by itself: the sum before its first head
  __shared__ unsigned closed[kMaxStrips][kWarp];  // bit v: the strip has a head in column v, and passes on nothing else
  const int lane = threadIdx.x, strip = threadIdx.y, strips = blockDim.y;
  const Columns at = columns_of<V>(p);
  float carry[V];  // passed on by the tiles behind
  for (int v = 0; v < V; ++v) carry[v] = 0.0f;
  for (int tile = ceil_div(p.height, strips * kRows) - 1; tile >= 0; --tile) {
    const Strip s = strip_of(p, at, (tile * strips + strip) * kRows);
    unsigned heads = load_heads<V>(p.heads, s, at.plane < p.planes);
    float dy[kRows][V], sum[V];
    load_rows<T, V>(p.input, s, 0.0f, dy);
    heads = transpose<V>(heads);
    unsigned any = 0;
    for (int v = 0; v < V; ++v) sum[v] = 0.0f;
#pragma unroll
    for (int r = kRows - 1; r >= 0; --r)
      for (int v = 0; v < V; ++v) {
        const unsigned head = heads >> (r * V + v) & 1u;
        sum[v] = head ? 0.0f : sum[v] + dy[r][v];
        any |= head << v;
      }
    for (int v = 0; v < V; ++v) leads[strip][lane].v[v] = sum[v];
    closed[strip][lane] = any;
    __syncthreads();
    for (int v = 0; v < V; ++v) sum[v] = 0.0f;
    for (int k = strips - 1; k >= 0; --k) {
      const Pack<float, V> lead = leads[k][lane];
      const unsigned shut = closed[k][lane];
      for (int v = 0; v < V; ++v) {
        if (k == strip) sum[v] = carry[v];
        carry[v] = lead.v[v] + (shut >> v & 1u ? 0.0f : carry[v]);
      }
    }
    __syncthreads();  // before the next tile writes its sums
    heads = in_order(heads);
#pragma unroll
    for (int r = kRows - 1; r >= 0; --r)
      for (int v = 0; v < V; ++v) {
        sum[v] += dy[r][v];
        const bool head = heads >> (r * V + v) & 1u;
        dy[r][v] = head ? sum[v] : 0.0f;
        sum[v] = head ? 0.0f : sum[v];
      }
    store_rows<T, V>(p.output, s, dy);
  }
}

// A block takes a plane of at most 128 columns and 128 rows: the column scan of one map and the row scan of the other,
// added in registers.
template <class T, bool kDown>
__global__ void __launch_bounds__(kMaxStrips* kWarp, 1) sum_forward(const __grid_constant__ CornerParams p) {
  constexpr int V = 4;
  __shared__ Pack<float, V> maxima[kMaxStrips][kWarp];
  const Columns at{blockIdx.x, static_cast<int>(threadIdx.x) / 8, static_cast<int>(threadIdx.x) * V};
  const Strip s = strip_of(p, at, threadIdx.y * kRows);
  const bool in_map = at.word < p.words;
  float x[kRows][V], y[kRows][V], carry[V], best[V], before[kRows];
  load_rows<T, V>(p.input, s, -INFINITY, x);
  load_rows<T, V>(p.second, s, -INFINITY, y);
  for (int v = 0; v < V; ++v) carry[v] = -INFINITY;
  enter_strip<V>(x, maxima, carry, best);
  unsigned bits = column_scan<V>(x, best, threadIdx.y == 0, p.last_wins);
  if (p.heads) store_heads<V>(p.heads, s, in_map, s.active ? bits : 0u);
  for (int r = 0; r < kRows; ++r) before[r] = -INFINITY;
  bits = row_scan<kDown, kWarp, V>(y, before, at.column, kDown ? p.width - 1 : 0, p.last_wins);
  if (p.second_heads) store_heads<V>(p.second_heads, s, in_map, s.active ? bits : 0u);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < V; ++v) x[r][v] += y[r][v];
  store_rows<T, V>(p.output, s, x);
}

dim3 strips_of(const CornerPool& args) {
  const int64_t strips = ceil_div<int64_t>(args.height(), kRows);
  return dim3(kWarp, static_cast<unsigned>(strips < kMaxStrips ? strips : kMaxStrips));
}

template <class T, int V>
void launch_columns(const CornerPool& args, const CudaContext& context, bool gradient) {
  const CornerParams p = corner_params(args);
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.planes * p.words, V)));
  const auto run = [&](auto kernel) { launch(context, kernel, grid, strips_of(args), 0, p); };
  if (gradient) return run(column_backward<T, V>);
  run(args.other ? column_forward<T, V, true> : column_forward<T, V, false>);
}

template <class T>
void launch_sum(const CornerPool& args, const CudaContext& context) {
  const bool down = args.second_direction == CornerDirection::left;
  launch(context, down ? sum_forward<T, true> : sum_forward<T, false>, dim3(static_cast<unsigned>(args.planes())),
         strips_of(args), 0, corner_params(args));
}

}  // namespace

void corner_pool_columns(const CornerPool& args, const CudaContext& context, bool gradient) {
  dispatch_float<false>(args.input.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    aligned(args, 2) ? launch_columns<T, 2>(args, context, gradient) : launch_columns<T, 1>(args, context, gradient);
  });
}

// The conditions of the one-launch sum, all of them; the binding's caller adds two launches otherwise.
bool corner_pool_sum_cuda(const CornerPool& args, const CudaContext& context) {
  if (!aligned(args, 4) || args.width() > 4 * kWarp || args.height() > kMaxStrips * kRows) return false;
  dispatch_float<false>(args.input.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_sum<T>(args, context);
  });
  return true;
}

}  // namespace posekd
