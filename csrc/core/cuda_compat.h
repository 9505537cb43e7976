// What a .cu file includes instead of <cuda_runtime.h>: the CUDA runtime under nvcc, its emulation otherwise.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/tensor_view.h"

#if defined(POSEKD_EMU)
#include "emu/cuda_emu.h"
#else
#include <cuda_runtime.h>

// Shared memory whose size is given at launch. One name per translation unit and element type.
#define POSEKD_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char posekd_shared[]; \
  type* const name = reinterpret_cast<type*>(posekd_shared)

namespace posekd {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // clears an error that is not sticky
  throw std::runtime_error(std::string("posekd core: ") + what + ": " + cudaGetErrorString(status));
}

// Makes `device` current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ == device) return;
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// More than 48 KB of dynamic shared memory must be asked for.
template <class... Params>
void allow_shared(void (*kernel)(Params...), size_t bytes) {
  if (bytes <= 48 * 1024) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
}

// The one way a kernel is launched: on the caller's device and stream, with the launch checked.
template <class... Params, class... Args>
void launch(const CudaContext& context, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const DeviceGuard guard(context.device);
  auto* stream = static_cast<cudaStream_t>(context.stream);
  allow_shared(kernel, shared_bytes);
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
  // clang-format on
  check_cuda(cudaGetLastError(), "kernel launch");
}

// As launch, with every `cluster` neighbouring blocks of grid.x in one cluster (core/cuda_cluster.cuh).
template <class... Params, class... Args>
void launch_clusters(const CudaContext& context, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                     unsigned cluster, Args... args) {
  if (cluster == 1) return launch(context, kernel, grid, block, shared_bytes, args...);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const DeviceGuard guard(context.device);
  allow_shared(kernel, shared_bytes);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "kernel launch");
}

// Whether the device has thread block clusters: from Hopper (compute capability 9.0) on.
inline bool has_clusters(const CudaContext& context) {
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, context.device),
             "cudaDeviceGetAttribute");
  return major >= 9;
}

// The most shared memory that a block may ask for, in bytes.
inline size_t largest_shared(const CudaContext& context) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, context.device),
             "cudaDeviceGetAttribute");
  return static_cast<size_t>(bytes);
}

}  // namespace posekd
#endif

namespace posekd {

constexpr int kWarp = 32;

// N neighbouring elements, moved by one instruction when aligned.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

namespace {

// Elements [offset, offset + N) of type T as floats; the address is that of a Pack.
template <class T, int N>
__device__ __forceinline__ void read_pack(const void* from, int64_t offset, float (&out)[N]) {
  const auto pack = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(from) + offset);
  for (int i = 0; i < N; ++i) out[i] = to_float(pack.v[i]);
}

template <class T, int N>
__device__ __forceinline__ void write_pack(void* to, int64_t offset, const float (&values)[N]) {
  Pack<T, N> pack;
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(values[i]);
  *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(to) + offset) = pack;
}

}  // namespace
}  // namespace posekd
