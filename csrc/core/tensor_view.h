// A borrowed view of somebody's tensor: what every kernel takes. No ownership, no Python, no torch.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace posekd {

constexpr int kMaxDims = 6;

enum class Device : uint8_t { cpu, cuda };

struct TensorView {
  void* data = nullptr;
  void* stream = nullptr;  // the producer's current CUDA stream (cuda only)
  int64_t shape[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};  // in elements
  int ndim = 0;
  int device_index = 0;
  DType dtype = DType::float32;
  Device device = Device::cpu;
  bool present = false;  // false: the optional argument was None

  [[gnu::always_inline]] int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  template <class T>
  [[gnu::always_inline]] T* as() const {
    return static_cast<T*>(data);
  }
  [[gnu::always_inline]] explicit operator bool() const { return present; }
};

// Where a CUDA entry point launches.
struct CudaContext {
  int device = 0;
  void* stream = nullptr;
};

}  // namespace posekd
