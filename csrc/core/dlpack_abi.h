// The part of DLPack's C ABI (version 1.3) that posekd reads, written out from its specification:
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace posekd::dlpack {

struct Device {
  int32_t type;  // 1 CPU, 2 CUDA, 3 CUDA pinned host memory, 13 CUDA managed memory
  int32_t id;
};

struct DataType {
  uint8_t code;  // 0 signed, 1 unsigned, 2 IEEE float, 4 bfloat, 6 bool
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major contiguous
  uint64_t byte_offset;
};

// What a "dltensor" capsule holds.
struct ManagedTensor {
  Tensor tensor;
  void* manager_context;
  void (*deleter)(ManagedTensor* self);
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

// The C function table behind `type(x).__dlpack_c_exchange_api__` (capsule name "dlpack_exchange_api").
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*dltensor_from_py_object_no_sync)(void* py_object, Tensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace posekd::dlpack
