// Reductions over a warp, a block and a grid, in a fixed order.
#pragma once

#include "core/cuda_compat.h"

namespace posekd {

// Sum over the 32 lanes; every lane gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Combines one value per thread over the block with `combine(a, b)`; the result is in thread 0 only.
// `scratch` is shared memory for 32 values. blockDim.x is a multiple of 32. Ends without a barrier.
template <class T, class Shuffle, class Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, Shuffle shuffle_down, Combine combine) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = combine(value, shuffle_down(value, offset));
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 1; i < warps; ++i) value = combine(value, scratch[i]);
  return value;
}

// Sum over the block, as block_reduce.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  return block_reduce(
      value, scratch, [](T mine, int offset) { return __shfl_down_sync(0xffffffffu, mine, offset); },
      [](T a, T b) { return a + b; });
}

// Whether this block is the last of `blocks` to come here: it may then read, past the first-level cache (volatile or
// __ldcg), what thread 0 of every block wrote before. `counter` is 0 before the launch, and after it again. `last` is
// shared memory. Contains a barrier.
__device__ __forceinline__ bool last_of(unsigned* counter, unsigned blocks, bool* last) {
  if (threadIdx.x == 0) {
    __threadfence();
    *last = atomicInc(counter, blocks - 1) == blocks - 1;
  }
  __syncthreads();
  if (*last) __threadfence();
  return *last;
}

// As last_of, for all blocks of the grid.
__device__ __forceinline__ bool last_block(unsigned* counter) {
  __shared__ bool last;
  return last_of(counter, gridDim.x * gridDim.y * gridDim.z, &last);
}

}  // namespace posekd
