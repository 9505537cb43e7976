// Small kernels with known faults, so that the tests can show that the emulation finds them.
#include "emu/selftest.h"

#include "core/cuda_cluster.cuh"
#include "core/cuda_copy.cuh"

namespace posekd {
namespace {

// Sums blockDim.x values through shared memory; without the barrier the result depends on the order of threads.
__global__ void sum_kernel(const float* in, float* out, bool with_barrier) {
  POSEKD_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  float sum = 0.0f;
  for (unsigned i = 0; i < blockDim.x; ++i) sum += values[i];
  out[threadIdx.x] = sum;
}

__global__ void divergent_kernel(int kind) {
  if (kind == 0 && threadIdx.x == 3) return;
  if (kind == 1 && threadIdx.x >= 32)
    __syncthreads();
  else
    __syncthreads();
  if (kind == 2 && threadIdx.x % 2) (void)__shfl_xor_sync(0xffffffffu, 1, 1);
}

// Each block tells its rank to all blocks of its cluster, and adds up what it was told.
__global__ void cluster_kernel(float* out, int kind) {
  struct alignas(16) Rank {
    float rank, unused[3];
  };
  POSEKD_DYNAMIC_SHARED(Rank, ranks);
  const unsigned rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x < size) store_to_rank(ranks + rank, threadIdx.x, Rank{static_cast<float>(rank)});
  if (kind == 1 && blockIdx.x == 1) return;
  if (kind != 2) cluster_arrive(), cluster_wait();
  float sum = 0.0f;
  for (unsigned i = 0; i < size; ++i) sum += ranks[i].rank;
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void copy_kernel(const float* in, float* out, bool waits) {
  POSEKD_DYNAMIC_SHARED(float, values);
  copy_async<4>(values + threadIdx.x, in + threadIdx.x);
  if (waits) copy_wait();
  __syncthreads();
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void overrun_kernel(float* out, int64_t count) { out[count + threadIdx.x] = 1.0f; }

}  // namespace

void selftest_sum(const TensorView& in, const TensorView& out, bool with_barrier) {
  launch(CudaContext{}, sum_kernel, 1, static_cast<unsigned>(in.numel()), sizeof(float) * in.numel(), in.as<float>(),
         out.as<float>(), with_barrier);
}

void selftest_divergent(int kind) { launch(CudaContext{}, divergent_kernel, 1, 64, 0, kind); }

void selftest_cluster(const TensorView& out, int kind) {
  constexpr unsigned kCluster = 4, kThreads = 64;
  launch_clusters(CudaContext{}, cluster_kernel, static_cast<unsigned>(out.numel()) / kThreads, kThreads, 16 * kCluster,
                  kCluster, out.as<float>(), kind);
}

void selftest_copy(const TensorView& in, const TensorView& out, bool waits) {
  launch(CudaContext{}, copy_kernel, 1, static_cast<unsigned>(in.numel()), sizeof(float) * in.numel(), in.as<float>(),
         out.as<float>(), waits);
}

void selftest_overrun(const TensorView& out) {
  launch(CudaContext{}, overrun_kernel, 1, 1, 0, out.as<float>(), out.numel());
}

}  // namespace posekd
