// CUDA kernels of corner_pool. See corner_pool.h for the floor.
//
// A column scan gives a block 32 * V columns and 8 strips of R rows: a warp loads its strip into registers (128 bytes
// per thread in flight and more), strips exchange their maxima through shared memory, and every row is written once. A
// row scan gives a row to 8, 16 or 32 lanes, V neighbours per lane, and scans by shuffles. Both build words of head
// bits from V bits per lane. The backward kernels have the same shape and run against the scan.
#include "core/cuda_compat.h"
#include "core/pooling_math.h"
#include "corner_pool/corner_pool.h"

namespace posekd {
namespace {

constexpr int kStrips = 8;  // warps per block
constexpr int kThreads = kStrips * kWarp;
constexpr int kUnroll = 4;  // rows that a group of lanes scans at once
constexpr unsigned kAllLanes = 0xffffffffu;

struct Params {
  const void* input;
  const void* other;  // or null
  void* output;
  unsigned* heads;  // forward: or null
  int64_t planes, height, width, words;
  int lanes;  // of a row scan's row
  bool descending, last_wins;
};

__device__ __forceinline__ bool takes(float value, float best, bool last_wins) {
  return last_wins ? takes_over<true>(value, best) : takes_over<false>(value, best);
}

// The word of which each of 32 / V neighbouring lanes holds V bits, in all of them.
template <int V>
__device__ __forceinline__ unsigned gather_word(unsigned bits) {
  constexpr int kLanes = 32 / V;
  unsigned word = bits << (threadIdx.x % kLanes * V);
  for (int offset = 1; offset < kLanes; offset *= 2) word |= __shfl_xor_sync(kAllLanes, word, offset);
  return word;
}

// ---- Columns ------------------------------------------------------------------------------------------------------

// Where a thread of a column scan works: lanes run over the words of all planes, 32 / V lanes per word.
struct Columns {
  int64_t plane, word, column;
  bool active;
};

template <int V>
__device__ __forceinline__ Columns columns_of(const Params& p) {
  constexpr int kLanes = 32 / V;
  const int64_t lane = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t word = lane / kLanes;
  Columns at;
  at.plane = word / p.words;
  at.word = word - at.plane * p.words;
  at.column = at.word * 32 + lane % kLanes * V;
  at.active = at.plane < p.planes && at.column < p.width;
  return at;
}

// A strip of a tile: its first element, and the steps to the next row of the scan.
struct Strip {
  int64_t element, element_step;
  int64_t word, word_step;
  int rows;  // at most R of them lie in the map
};

template <int R>
__device__ __forceinline__ Strip strip_of(const Params& p, const Columns& at, int64_t begin) {
  const int64_t row = at.plane * p.height + (p.descending ? p.height - 1 - begin : begin), step = p.descending ? -1 : 1;
  const int64_t left = p.height - begin;
  return {row * p.width + at.column, step * p.width, row * p.words + at.word, step * p.words,
          static_cast<int>(left < 0   ? 0
                           : left < R ? left
                                      : R)};
}

template <class T, int V, int R>
__global__ void __launch_bounds__(kThreads, 2) column_forward(Params p) {
  __shared__ float maxima[kStrips][kWarp][V];
  const int lane = threadIdx.x, strip = threadIdx.y;
  const Columns at = columns_of<V>(p);
  float carry[V];  // maximum of the tiles before
  for (int v = 0; v < V; ++v) carry[v] = -INFINITY;
  for (int64_t tile = 0; tile < p.height; tile += kStrips * R) {
    const Strip s = strip_of<R>(p, at, tile + strip * R);
    float x[R][V], best[V];
    for (int v = 0; v < V; ++v) best[v] = -INFINITY;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) x[r][v] = -INFINITY;
      if (at.active && r < s.rows) read_pack<T, V>(p.input, s.element + r * s.element_step, x[r]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) best[v] = larger(best[v], x[r][v]);
    for (int v = 0; v < V; ++v) maxima[strip][lane][v] = best[v];
    __syncthreads();
    for (int v = 0; v < V; ++v) {
      best[v] = carry[v];
      for (int k = 0; k < kStrips; ++k) {
        const float other = maxima[k][lane][v];
        if (k < strip) best[v] = larger(best[v], other);
        carry[v] = larger(carry[v], other);
      }
    }
    __syncthreads();  // before the next tile writes its maxima
    const bool start = tile + strip == 0;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= s.rows) break;  // the same for the whole warp
      unsigned bits = 0;
      for (int v = 0; v < V; ++v) {
        const bool head = (start && r == 0) || takes(x[r][v], best[v], p.last_wins);
        best[v] = head ? x[r][v] : best[v];
        x[r][v] = best[v];
        bits |= (head && at.active ? 1u : 0u) << v;
      }
      if (at.active) {
        if (p.other) {
          float other[V];
          read_pack<T, V>(p.other, s.element + r * s.element_step, other);
          for (int v = 0; v < V; ++v) x[r][v] += other[v];
        }
        write_pack<T, V>(p.output, s.element + r * s.element_step, x[r]);
      }
      if (p.heads) {
        const unsigned word = gather_word<V>(bits);
        if (lane % (32 / V) == 0 && at.plane < p.planes) p.heads[s.word + r * s.word_step] = word;
      }
    }
  }
}

template <class T, int V, int R>
__global__ void __launch_bounds__(kThreads, 2) column_backward(Params p) {
  static_assert(V * R <= 64, "the head bits of a strip lie in one 64-bit number");
  constexpr uint64_t kBits = (1u << V) - 1u;
  __shared__ float leads[kStrips][kWarp][V];   // what a strip passes on by itself: the sum before its first head
  __shared__ unsigned closed[kStrips][kWarp];  // bit v: the strip has a head in column v, and passes on nothing else
  const int lane = threadIdx.x, strip = threadIdx.y;
  const Columns at = columns_of<V>(p);
  float carry[V];  // passed on by the tiles behind
  for (int v = 0; v < V; ++v) carry[v] = 0.0f;
  const int64_t tiles = ceil_div<int64_t>(p.height, kStrips * R);
  for (int64_t tile = tiles - 1; tile >= 0; --tile) {
    const Strip s = strip_of<R>(p, at, (tile * kStrips + strip) * R);
    float dy[R][V], sum[V];
    uint64_t heads = 0;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) dy[r][v] = 0.0f;
      if (at.active && r < s.rows) read_pack<T, V>(p.input, s.element + r * s.element_step, dy[r]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!at.active || r >= s.rows) continue;
      const unsigned word = p.heads[s.word + r * s.word_step];
      heads |= (word >> (lane % (32 / V) * V) & kBits) << (r * V);
    }
    unsigned any = 0;
    for (int v = 0; v < V; ++v) sum[v] = 0.0f;
#pragma unroll
    for (int r = R - 1; r >= 0; --r) {
      any |= static_cast<unsigned>(heads >> (r * V) & kBits);
      for (int v = 0; v < V; ++v) sum[v] = heads >> (r * V + v) & 1u ? 0.0f : sum[v] + dy[r][v];
    }
    for (int v = 0; v < V; ++v) leads[strip][lane][v] = sum[v];
    closed[strip][lane] = any;
    __syncthreads();
    for (int v = 0; v < V; ++v) {
      for (int k = kStrips - 1; k >= 0; --k) {
        if (k == strip) sum[v] = carry[v];
        carry[v] = leads[k][lane][v] + (closed[k][lane] >> v & 1u ? 0.0f : carry[v]);
      }
    }
    __syncthreads();  // before the next tile writes its sums
#pragma unroll
    for (int r = R - 1; r >= 0; --r) {
      for (int v = 0; v < V; ++v) {
        sum[v] += dy[r][v];
        const bool head = heads >> (r * V + v) & 1u;
        dy[r][v] = head ? sum[v] : 0.0f;
        sum[v] = head ? 0.0f : sum[v];
      }
      if (at.active && r < s.rows) write_pack<T, V>(p.output, s.element + r * s.element_step, dy[r]);
    }
  }
}

// ---- Rows ---------------------------------------------------------------------------------------------------------

// A value from the lane that lies `distance` earlier in the scan (kDown: the scan runs down the columns).
template <bool kDown, class T>
__device__ __forceinline__ T from_earlier(T value, int distance, int lanes) {
  return kDown ? __shfl_down_sync(kAllLanes, value, distance, lanes)
               : __shfl_up_sync(kAllLanes, value, distance, lanes);
}

// How many lanes of the row come before this one in the scan.
template <bool kDown>
__device__ __forceinline__ int lanes_before(int lanes) {
  const int lane = threadIdx.x % lanes;
  return kDown ? lanes - 1 - lane : lane;
}

// Row u of the kUnroll rows of this lane's group.
__device__ __forceinline__ int64_t group_row(const Params& p, int u) {
  const int groups = kWarp / p.lanes;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kStrips + threadIdx.y;
  return (warp * kUnroll + u) * groups + threadIdx.x / p.lanes;
}

template <class T, int V, bool kDown>
__global__ void __launch_bounds__(kThreads) row_forward(Params p) {
  const int lanes = p.lanes, chunk = lanes * V, before = lanes_before<kDown>(lanes);
  const int64_t rows = p.planes * p.height, chunks = ceil_div<int64_t>(p.width, chunk);
  float carry[kUnroll];
  for (int u = 0; u < kUnroll; ++u) carry[u] = -INFINITY;
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t column = (kDown ? chunks - 1 - k : k) * chunk + threadIdx.x % lanes * V;
    float x[kUnroll][V];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      for (int v = 0; v < V; ++v) x[u][v] = -INFINITY;
      if (group_row(p, u) < rows && column < p.width)
        read_pack<T, V>(p.input, group_row(p, u) * p.width + column, x[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = group_row(p, u);
      const bool active = row < rows && column < p.width;
      float best = -INFINITY;
      for (int i = 0; i < V; ++i) best = larger(best, x[u][kDown ? V - 1 - i : i]);
      for (int distance = 1; distance < lanes; distance *= 2) {
        const float earlier = from_earlier<kDown>(best, distance, lanes);
        if (before >= distance) best = larger(earlier, best);
      }
      const float whole = __shfl_sync(kAllLanes, best, kDown ? 0 : lanes - 1, lanes);
      const float earlier = from_earlier<kDown>(best, 1, lanes);
      best = before > 0 ? larger(carry[u], earlier) : carry[u];
      carry[u] = larger(carry[u], whole);
      unsigned bits = 0;
      for (int i = 0; i < V; ++i) {
        const int v = kDown ? V - 1 - i : i;
        const bool start = column + v == (kDown ? p.width - 1 : 0);
        const bool head = start || takes(x[u][v], best, p.last_wins);
        best = head ? x[u][v] : best;
        x[u][v] = best;
        bits |= (head && active ? 1u : 0u) << v;
      }
      if (active) {
        if (p.other) {
          float other[V];
          read_pack<T, V>(p.other, row * p.width + column, other);
          for (int v = 0; v < V; ++v) x[u][v] += other[v];
        }
        write_pack<T, V>(p.output, row * p.width + column, x[u]);
      }
      if (p.heads) {
        const unsigned word = gather_word<V>(bits);
        if (active && column % 32 == 0) p.heads[row * p.words + column / 32] = word;
      }
    }
  }
}

template <class T, int V, bool kDown>
__global__ void __launch_bounds__(kThreads) row_backward(Params p) {
  // Sums run against the scan, so the lane that comes earlier in them is the later one of the scan.
  const int lanes = p.lanes, chunk = lanes * V, before = lanes_before<!kDown>(lanes);
  const int64_t rows = p.planes * p.height, chunks = ceil_div<int64_t>(p.width, chunk);
  float carry[kUnroll];
  for (int u = 0; u < kUnroll; ++u) carry[u] = 0.0f;
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t column = (kDown ? k : chunks - 1 - k) * chunk + threadIdx.x % lanes * V;
    float dy[kUnroll][V];
    unsigned heads[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      heads[u] = 0;
      for (int v = 0; v < V; ++v) dy[u][v] = 0.0f;
      const int64_t row = group_row(p, u);
      if (row >= rows || column >= p.width) continue;
      read_pack<T, V>(p.input, row * p.width + column, dy[u]);
      heads[u] = p.heads[row * p.words + column / 32] >> (column % 32) & ((1u << V) - 1u);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float sum = 0.0f;
      for (int i = 0; i < V; ++i) {
        const int v = kDown ? i : V - 1 - i;
        sum = heads[u] >> v & 1u ? 0.0f : sum + dy[u][v];
      }
      int closed = heads[u] != 0;
      for (int distance = 1; distance < lanes; distance *= 2) {
        const float earlier = from_earlier<!kDown>(sum, distance, lanes);
        const int earlier_closed = from_earlier<!kDown>(closed, distance, lanes);
        if (before >= distance) {
          if (!closed) sum += earlier;
          closed |= earlier_closed;
        }
      }
      sum += closed ? 0.0f : carry[u];  // what this lane passes on
      const float whole = __shfl_sync(kAllLanes, sum, kDown ? lanes - 1 : 0, lanes);
      const float earlier = from_earlier<!kDown>(sum, 1, lanes);
      sum = before > 0 ? earlier : carry[u];
      carry[u] = whole;
      for (int i = 0; i < V; ++i) {
        const int v = kDown ? i : V - 1 - i;
        sum += dy[u][v];
        const bool head = heads[u] >> v & 1u;
        dy[u][v] = head ? sum : 0.0f;
        sum = head ? 0.0f : sum;
      }
      const int64_t row = group_row(p, u);
      if (row < rows && column < p.width) write_pack<T, V>(p.output, row * p.width + column, dy[u]);
    }
  }
}

// ---- Launches -----------------------------------------------------------------------------------------------------

Params make_params(const CornerPool& args, int vector) {
  Params p{};
  p.input = args.input.data;
  p.other = args.other.data;
  p.output = args.output.data;
  p.heads = args.heads.as<unsigned>();
  p.planes = args.planes(), p.height = args.height(), p.width = args.width(), p.words = args.words();
  p.descending = args.descending();
  p.last_wins = args.last_wins;
  p.lanes = 32 / vector;  // at least a word
  while (p.lanes < kWarp && p.lanes * vector < p.width) p.lanes *= 2;
  return p;
}

// Four neighbours at once need rows and base addresses aligned to four elements.
bool aligned(const CornerPool& args) {
  const auto bytes = 4 * static_cast<uintptr_t>(item_size(args.input.dtype));
  const auto fits = [&](const TensorView& view) { return reinterpret_cast<uintptr_t>(view.data) % bytes == 0; };
  return args.width() % 4 == 0 && fits(args.input) && fits(args.other) && fits(args.output);
}

constexpr int kShortRows = 4, kLongRows = 16;  // rows of a strip in registers

template <class T, int V>
void launch_columns(const CornerPool& args, const CudaContext& context, bool gradient) {
  const Params p = make_params(args, V);
  const dim3 block(kWarp, kStrips), grid(static_cast<unsigned>(ceil_div<int64_t>(p.planes * p.words, V)));
  const bool low = p.height <= kStrips * kShortRows;
  if (gradient)
    launch(context, low ? column_backward<T, V, kShortRows> : column_backward<T, V, kLongRows>, grid, block, 0, p);
  else
    launch(context, low ? column_forward<T, V, kShortRows> : column_forward<T, V, kLongRows>, grid, block, 0, p);
}

template <class T, int V>
void launch_rows(const CornerPool& args, const CudaContext& context, bool gradient) {
  const Params p = make_params(args, V);
  const int64_t rows = p.planes * p.height, rows_a_block = kStrips * kUnroll * (kWarp / p.lanes);
  const dim3 block(kWarp, kStrips), grid(static_cast<unsigned>(ceil_div(rows, rows_a_block)));
  if (gradient)
    launch(context, p.descending ? row_backward<T, V, true> : row_backward<T, V, false>, grid, block, 0, p);
  else
    launch(context, p.descending ? row_forward<T, V, true> : row_forward<T, V, false>, grid, block, 0, p);
}

void pool(const CornerPool& args, const CudaContext& context, bool gradient) {
  dispatch_float<false>(args.input.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.columns())
      aligned(args) ? launch_columns<T, 4>(args, context, gradient) : launch_columns<T, 1>(args, context, gradient);
    else
      aligned(args) ? launch_rows<T, 4>(args, context, gradient) : launch_rows<T, 1>(args, context, gradient);
  });
}

}  // namespace

void corner_pool_forward_cuda(const CornerPool& args, const CudaContext& context) { pool(args, context, false); }

void corner_pool_backward_cuda(const CornerPool& args, const CudaContext& context) { pool(args, context, true); }

}  // namespace posekd
