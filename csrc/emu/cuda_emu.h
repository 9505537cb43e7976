// CUDA on the CPU, for tests: the real .cu sources compiled as C++, one fiber per CUDA thread, block by block.
//
// What is here: threadIdx/blockIdx/blockDim/gridDim, static and dynamic shared memory, __syncthreads, __syncwarp,
// __shfl_{,up,down,xor}_sync, __ballot/__any/__all_sync, atomics, __ldg, the integer and float intrinsics that
// our kernels use, clusters (barrier and the other blocks' dynamic shared memory) and asynchronous copies, which happen
// when they are waited for. Not here: CUB, cooperative groups, bulk copies, wgmma, textures, streams.
// Threads of a block run one at a time until they wait, in forward, reverse or shuffled order, so a missing barrier
// shows as a wrong result in one of the orders. Waiting at different barriers, or at one that a thread of the block
// will never reach, is reported as an error with the line. Dynamic shared memory starts as NaN bytes in each block.
// Blocks of a cluster run together and would share what is declared __shared__: such kernels use dynamic memory only.
#pragma once

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "core/tensor_view.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__
#define __restrict__ __restrict
#define __shared__ static

struct uint3 {
  unsigned x, y, z;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace posekd::emu {

enum class Order { forward, reverse, shuffled };

// Where the running thread is. The scheduler writes these before it resumes a fiber.
extern uint3 thread_index, block_index;
extern dim3 block_dim, grid_dim;

void set_order(Order order, unsigned seed);
// The largest second and third dimension of a grid: a device's 65535, or less, for tests that must reach it.
void set_grid_rows(unsigned largest);
void* dynamic_shared();

// Waits until every thread of the block (warp: of `mask`) waits at this line. Throws on divergence.
void barrier_block(const char* file, int line);
void barrier_warp(unsigned mask, const char* file, int line);

// Publishes 8 bytes, waits for the warp, and gives a reader of the lanes' bytes, valid until the next exchange.
const uint64_t* exchange(unsigned mask, uint64_t bytes, const char* file, int line);
unsigned lane();

// Waits until every thread of the cluster waits at this line.
void barrier_cluster(const char* file, int line);
unsigned cluster_rank();
unsigned cluster_size();
// What stands in the dynamic shared memory of block `rank` where `mine` stands in this block's.
void* shared_of_rank(void* mine, unsigned rank);

// Copies when this thread waits for its copies.
void copy_later(void* to, const void* from, size_t bytes);
void finish_copies();

void run(const std::function<void()>& thread, dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster = 1);

template <class T>
uint64_t to_bytes(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bytes = 0;
  std::memcpy(&bytes, &value, sizeof(T));
  return bytes;
}

template <class T>
T from_bytes(uint64_t bytes) {
  T value;
  std::memcpy(&value, &bytes, sizeof(T));
  return value;
}

}  // namespace posekd::emu

#define threadIdx (::posekd::emu::thread_index)
#define blockIdx (::posekd::emu::block_index)
#define blockDim (::posekd::emu::block_dim)
#define gridDim (::posekd::emu::grid_dim)
#define POSEKD_EMU_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define POSEKD_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::posekd::emu::dynamic_shared())

inline void __syncthreads(POSEKD_EMU_AT) { posekd::emu::barrier_block(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, POSEKD_EMU_AT) { posekd::emu::barrier_warp(mask, file, line); }

// Lanes beyond the segment of `width` keep their own value, as on the device.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, POSEKD_EMU_AT) {
  const uint64_t* lanes = posekd::emu::exchange(mask, posekd::emu::to_bytes(value), file, line);
  const unsigned base = posekd::emu::lane() / width * width;
  return posekd::emu::from_bytes<T>(lanes[base + (static_cast<unsigned>(source) % width)]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, POSEKD_EMU_AT) {
  const uint64_t* lanes = posekd::emu::exchange(mask, posekd::emu::to_bytes(value), file, line);
  const unsigned me = posekd::emu::lane();
  return me % width < delta ? value : posekd::emu::from_bytes<T>(lanes[me - delta]);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, POSEKD_EMU_AT) {
  const uint64_t* lanes = posekd::emu::exchange(mask, posekd::emu::to_bytes(value), file, line);
  const unsigned me = posekd::emu::lane();
  return me % width + delta >= static_cast<unsigned>(width) ? value : posekd::emu::from_bytes<T>(lanes[me + delta]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, POSEKD_EMU_AT) {
  const uint64_t* lanes = posekd::emu::exchange(mask, posekd::emu::to_bytes(value), file, line);
  const unsigned me = posekd::emu::lane(), other = me ^ static_cast<unsigned>(lane_mask);
  return other / width != me / width ? value : posekd::emu::from_bytes<T>(lanes[other]);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, POSEKD_EMU_AT) {
  const uint64_t* lanes = posekd::emu::exchange(mask, predicate != 0, file, line);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i)
    if ((mask >> i & 1u) && lanes[i]) votes |= 1u << i;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, POSEKD_EMU_AT) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, POSEKD_EMU_AT) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
inline unsigned __activemask() { return 0xffffffffu; }

// Threads never interleave inside an atomic here.
template <class T, class U>
T atomicAdd(T* address, U value) {
  const T old = *address;
  *address = old + static_cast<T>(value);
  return old;
}
template <class T, class U>
T atomicMax(T* address, U value) {
  const T old = *address;
  *address = std::max(old, static_cast<T>(value));
  return old;
}
template <class T, class U>
T atomicMin(T* address, U value) {
  const T old = *address;
  *address = std::min(old, static_cast<T>(value));
  return old;
}
template <class T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
T atomicCAS(T* address, T compare, T value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}
template <class T>
T atomicOr(T* address, T value) {
  const T old = *address;
  *address = old | value;
  return old;
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const unsigned old = *address;
  *address = old >= limit ? 0 : old + 1;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
inline int __reduce_max_sync(unsigned mask, int value, POSEKD_EMU_AT) {
  const uint64_t* lanes = posekd::emu::exchange(mask, posekd::emu::to_bytes(value), file, line);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1u) value = std::max(value, posekd::emu::from_bytes<int>(lanes[i]));
  return value;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(int value) { return value ? __builtin_clz(static_cast<unsigned>(value)) : 32; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __brev(unsigned value) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (value >> i & 1u) << (31 - i);
  return result;
}
inline unsigned __float_as_uint(float value) { return posekd::emu::from_bytes<unsigned>(posekd::emu::to_bytes(value)); }
inline int __float_as_int(float value) { return posekd::emu::from_bytes<int>(posekd::emu::to_bytes(value)); }
inline float __uint_as_float(unsigned value) { return posekd::emu::from_bytes<float>(posekd::emu::to_bytes(value)); }
inline float __int_as_float(int value) { return posekd::emu::from_bytes<float>(posekd::emu::to_bytes(value)); }
inline float __expf(float value) { return std::exp(value); }
inline float __logf(float value) { return std::log(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float value) { return 1.0f / value; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float value) { return std::sqrt(value); }
using std::isfinite;
using std::isnan;
using std::max;
using std::min;

namespace posekd {

template <class... Params, class... Args>
void launch(const CudaContext&, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  emu::run([&] { kernel(static_cast<Params>(args)...); }, grid, block, shared_bytes);
}

template <class... Params, class... Args>
void launch_clusters(const CudaContext&, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                     unsigned cluster, Args... args) {
  emu::run([&] { kernel(static_cast<Params>(args)...); }, grid, block, shared_bytes, cluster);
}

inline bool has_clusters(const CudaContext&) { return true; }
inline size_t largest_shared(const CudaContext&) { return 227 * 1024; }

}  // namespace posekd
