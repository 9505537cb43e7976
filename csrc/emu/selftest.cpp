// Small kernels with known faults, so that the tests can show that the emulation finds them.
#include "emu/selftest.h"

#include "core/cuda_compat.h"

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

__global__ void overrun_kernel(float* out, int64_t count) { out[count + threadIdx.x] = 1.0f; }

}  // namespace

void selftest_sum(const TensorView& in, const TensorView& out, bool with_barrier) {
  launch(CudaContext{}, sum_kernel, 1, static_cast<unsigned>(in.numel()), sizeof(float) * in.numel(), in.as<float>(),
         out.as<float>(), with_barrier);
}

void selftest_divergent(int kind) { launch(CudaContext{}, divergent_kernel, 1, 64, 0, kind); }

void selftest_overrun(const TensorView& out) {
  launch(CudaContext{}, overrun_kernel, 1, 1, 0, out.as<float>(), out.numel());
}

}  // namespace posekd
