// What the kernels of corner_pool share: a thread's part of a map, words of head bits, and the two scans.
//
// A warp holds R = 8 rows of 32 V columns in registers. The head bits of those rows are fields of V bits, R a lane, but
// words of 32 neighbours, one a row, in memory: they are transposed among the 32 / V lanes of a word.
#pragma once

#include "core/cuda_math.cuh"
#include "core/pooling_math.h"
#include "corner_pool/corner_pool.h"

namespace posekd {

struct CornerParams {
  const void* input;
  const void* other;  // or null
  void* output;
  unsigned* heads;         // forward: or null
  const void* second;      // a map that is pooled along its rows and added, or null
  unsigned* second_heads;  // or null
  int64_t planes;
  int height, width, words;
  bool descending, last_wins;
};

inline CornerParams corner_params(const CornerPool& args) {
  CornerParams p{};
  p.input = args.input.data;
  p.other = args.other.data;
  p.output = args.output.data;
  p.heads = args.heads.as<unsigned>();
  p.second = args.second.data;
  p.second_heads = args.second_heads.as<unsigned>();
  p.planes = args.planes();
  p.height = static_cast<int>(args.height()), p.width = static_cast<int>(args.width());
  p.words = static_cast<int>(args.words());
  p.descending = args.descending();
  p.last_wins = args.last_wins;
  return p;
}

// Whether `vector` neighbours can be moved at once: rows and base addresses are aligned to as many elements.
inline bool aligned(const CornerPool& args, int vector) {
  const auto bytes = static_cast<uintptr_t>(vector * item_size(args.input.dtype));
  const auto fits = [&](const TensorView& view) { return reinterpret_cast<uintptr_t>(view.data) % bytes == 0; };
  return args.width() % vector == 0 && fits(args.input) && fits(args.other) && fits(args.output) && fits(args.second);
}

void corner_pool_columns(const CornerPool& args, const CudaContext& context, bool gradient);
// A column scan and a row scan added in one launch. Returns whether it was launched: small planes only.
bool corner_pool_sum_cuda(const CornerPool& args, const CudaContext& context);

namespace {

constexpr int kRows = 8;  // of a warp, in registers

__device__ __forceinline__ bool takes(float value, float best, bool last_wins) {
  return last_wins ? takes_over<true>(value, best) : takes_over<false>(value, best);
}

// Fields of V bits: lane j's field r becomes lane r's field j, among the 32 / V lanes of a word. Its own inverse.
template <int V>
__device__ __forceinline__ unsigned transpose(unsigned x) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int d = 16 / V; d > 0; d /= 2) {
    const int shift = V * d;
    const unsigned low = 0xffffffffu / ((1u << shift) + 1u);  // the fields whose number lacks the bit d
    const unsigned other = __shfl_xor_sync(kAllLanes, x, d);
    x = lane & d ? (x & ~low) | ((other & ~low) >> shift) : (x & low) | ((other & low) << shift);
  }
  return x;
}

// Where a warp's strip lies: the first element of this thread, the word of head bits that its lanes share, and the
// steps to the next row of the scan.
struct Strip {
  int64_t element, word;
  int element_step, word_step;
  int rows;  // at most kRows of them lie in the map
  bool active;
};

// The head bits of a strip, field r of V bits for row r: to memory, and from it.
template <int V>
__device__ __forceinline__ void store_heads(unsigned* heads, const Strip& s, bool in_map, unsigned bits) {
  const unsigned word = transpose<V>(bits);
  const int row = threadIdx.x % kWarp % (32 / V);
  if (in_map && row < s.rows) heads[s.word + row * s.word_step] = word;
}

template <int V>
__device__ __forceinline__ unsigned load_heads(const unsigned* heads, const Strip& s, bool in_map) {
  const int row = threadIdx.x % kWarp % (32 / V);
  return in_map && row < s.rows ? heads[s.word + row * s.word_step] : 0u;
}

template <class T, int V>
__device__ __forceinline__ void load_rows(const void* map, const Strip& s, float fill, float (&x)[kRows][V]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < V; ++v) x[r][v] = fill;
    if (s.active && r < s.rows) read_pack<T, V>(map, s.element + r * s.element_step, x[r]);
  }
}

template <class T, int V>
__device__ __forceinline__ void store_rows(void* map, const Strip& s, const float (&x)[kRows][V]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (s.active && r < s.rows) write_pack<T, V>(map, s.element + r * s.element_step, x[r]);
}

// Runs the maxima `best` through a strip, which becomes the result. Returns the head bits. `start`: row 0 is the scan's
// first, and a head whatever its value.
template <int V>
__device__ __forceinline__ unsigned column_scan(float (&x)[kRows][V], float (&best)[V], bool start, bool last_wins) {
  unsigned bits = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool head = (start && r == 0) || takes(x[r][v], best[v], last_wins);
      best[v] = head ? x[r][v] : best[v];
      x[r][v] = best[v];
      bits |= (head ? 1u : 0u) << (r * V + v);
    }
  return bits;
}

// A value from the lane, of kLanes to a row, that lies `distance` earlier in the scan (kDown: which runs down the
// columns).
template <bool kDown, int kLanes, class T>
__device__ __forceinline__ T from_earlier(T value, int distance) {
  return kDown ? __shfl_down_sync(kAllLanes, value, distance, kLanes)
               : __shfl_up_sync(kAllLanes, value, distance, kLanes);
}

// How many lanes of the row come before this one in the scan.
template <bool kDown, int kLanes>
__device__ __forceinline__ int lanes_before() {
  const int lane = threadIdx.x % kLanes;
  return kDown ? kLanes - 1 - lane : lane;
}

// As column_scan, along rows that lie across kLanes lanes; this lane has the columns from `column` on, and the scan
// begins at `first`. `carry`: a row's maximum before this chunk, then with it.
template <bool kDown, int kLanes, int V>
__device__ __forceinline__ unsigned row_scan(float (&x)[kRows][V], float (&carry)[kRows], int column, int first,
                                             bool last_wins) {
  const int before = lanes_before<kDown, kLanes>();
  float most[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    most[r] = x[r][kDown ? V - 1 : 0];
    for (int i = 1; i < V; ++i) most[r] = larger(most[r], x[r][kDown ? V - 1 - i : i]);
  }
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2)
#pragma unroll
    for (int r = 0; r < kRows; ++r) {  // all rows at once: a shuffle takes its time
      const float earlier = from_earlier<kDown, kLanes>(most[r], distance);
      if (before >= distance) most[r] = larger(earlier, most[r]);
    }
  unsigned bits = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float whole = __shfl_sync(kAllLanes, most[r], kDown ? 0 : kLanes - 1, kLanes);
    const float earlier = from_earlier<kDown, kLanes>(most[r], 1);
    float best = before > 0 ? larger(carry[r], earlier) : carry[r];
    carry[r] = larger(carry[r], whole);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int v = kDown ? V - 1 - i : i;
      const bool head = column + v == first || takes(x[r][v], best, last_wins);
      best = head ? x[r][v] : best;
      x[r][v] = best;
      bits |= (head ? 1u : 0u) << (r * V + v);
    }
  }
  return bits;
}

}  // namespace
}  // namespace posekd
