// Thread block clusters: blocks that run at the same time on neighbouring processors and see each other's shared
// memory. Only where `has_clusters`; a kernel for older devices is compiled too, and is never launched in clusters.
#pragma once

#include "core/cuda_compat.h"

namespace posekd {
namespace {

#if defined(POSEKD_EMU)
__device__ __forceinline__ unsigned cluster_rank() { return emu::cluster_rank(); }
__device__ __forceinline__ unsigned cluster_size() { return emu::cluster_size(); }
__device__ __forceinline__ void cluster_arrive() {}
inline void cluster_wait(POSEKD_EMU_AT) { emu::barrier_cluster(file, line); }
template <class T>
__device__ __forceinline__ void store_to_rank(T* mine, unsigned rank, const T& value) {
  *static_cast<T*>(emu::shared_of_rank(mine, rank)) = value;
}
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// A barrier of the whole cluster in two halves: what was written before `arrive` is seen after `wait`. Aligned: a warp
// comes to each half together.
__device__ __forceinline__ void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Writes `value`, a multiple of 16 bytes, where `mine` stands in this block's shared memory, into that of block `rank`.
template <class T>
__device__ __forceinline__ void store_to_rank(T* mine, unsigned rank, const T& value) {
  static_assert(sizeof(T) % 16 == 0);
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(there)
      : "r"(static_cast<unsigned>(__cvta_generic_to_shared(mine))), "r"(rank));
  const auto* from = reinterpret_cast<const uint4*>(&value);
  for (unsigned i = 0; i < sizeof(T) / 16; ++i)
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(there + 16 * i), "r"(from[i].x),
                 "r"(from[i].y), "r"(from[i].z), "r"(from[i].w)
                 : "memory");
}
#else
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ unsigned cluster_size() { return 1; }
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() { __syncthreads(); }
template <class T>
__device__ __forceinline__ void store_to_rank(T* mine, unsigned, const T& value) {
  *mine = value;
}
#endif

}  // namespace
}  // namespace posekd
