// pybind11 type caster: any DLPack producer (torch, NumPy, CuPy) becomes a TensorView.
//
// Two doors. Types that publish DLPack's C function table (torch >= 2.11) are read through it: no capsule, no
// reference counting, works on tensors that require grad, and gives the current stream. Others go through
// `__dlpack__`; the capsule lives as long as the caster, that is, until the call returns.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>

#include "core/dlpack_abi.h"
#include "core/tensor_view.h"

namespace posekd {

// The type's function table, or null. Looked up once per type: types are kept alive by the cache.
inline dlpack::ExchangeApi* exchange_api(pybind11::handle object) {
  namespace py = pybind11;
  static PyTypeObject* cached_type = nullptr;
  static dlpack::ExchangeApi* cached_api = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == cached_type) return cached_api;
  static const bool hidden = std::getenv("POSEKD_NO_DLPACK_C_API") != nullptr;  // to test the other door
  if (hidden || !py::hasattr(py::handle(reinterpret_cast<PyObject*>(type)), "__dlpack_c_exchange_api__"))
    return nullptr;
  const py::object capsule = py::handle(reinterpret_cast<PyObject*>(type)).attr("__dlpack_c_exchange_api__");
  auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw py::error_already_set();
  while (api && api->version.major != 1) api = api->previous;
  if (!api || !api->dltensor_from_py_object_no_sync) return nullptr;
  Py_XDECREF(reinterpret_cast<PyObject*>(cached_type));
  Py_INCREF(reinterpret_cast<PyObject*>(type));
  cached_type = type;
  return cached_api = api;
}

inline DType dtype_of(const dlpack::DataType& type) {
  const int key = type.code * 256 + type.bits;
  if (type.lanes == 1) switch (key) {
      case 2 * 256 + 32:
        return DType::float32;
      case 2 * 256 + 64:
        return DType::float64;
      case 2 * 256 + 16:
        return DType::float16;
      case 4 * 256 + 16:
        return DType::bfloat16;
      case 1 * 256 + 8:
        return DType::uint8;
      case 0 * 256 + 32:
        return DType::int32;
      case 0 * 256 + 64:
        return DType::int64;
      case 6 * 256 + 8:
        return DType::boolean;
    }
  throw pybind11::type_error("posekd core: unsupported element type (DLPack code " + std::to_string(type.code) + ", " +
                             std::to_string(type.bits) + " bits)");
}

inline TensorView view_of(const dlpack::Tensor& tensor) {
  TensorView view;
  if (tensor.ndim > kMaxDims)
    throw pybind11::value_error("posekd core: tensor of " + std::to_string(tensor.ndim) + " dimensions, at most " +
                                std::to_string(kMaxDims) + " are supported");
  if (tensor.device.type < 1 || (tensor.device.type > 3 && tensor.device.type != 13))
    throw pybind11::type_error("posekd core: tensor on a device that is neither CPU nor CUDA (DLPack device type " +
                               std::to_string(tensor.device.type) + ")");
  view.present = true;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.ndim = tensor.ndim;
  view.dtype = dtype_of(tensor.dtype);
  view.device = tensor.device.type == 2 || tensor.device.type == 13 ? Device::cuda : Device::cpu;
  view.device_index = tensor.device.id;
  int64_t contiguous = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    view.shape[i] = tensor.shape[i];
    view.stride[i] = tensor.strides ? tensor.strides[i] : contiguous;
    contiguous *= tensor.shape[i];
  }
  return view;
}

}  // namespace posekd

namespace pybind11::detail {

template <>
struct type_caster<posekd::TensorView> {
  PYBIND11_TYPE_CASTER(posekd::TensorView, const_name("DLPackTensor"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;  // an absent optional tensor
    if (auto* api = posekd::exchange_api(source)) {
      posekd::dlpack::Tensor tensor;
      if (api->dltensor_from_py_object_no_sync(source.ptr(), &tensor)) throw error_already_set();
      value = posekd::view_of(tensor);
      if (value.device == posekd::Device::cuda &&
          api->current_work_stream(tensor.device.type, tensor.device.id, &value.stream))
        throw error_already_set();
      return true;
    }
    return load_capsule(source);
  }

 private:
  bool load_capsule(handle source) {
    if (!hasattr(source, "__dlpack__")) return false;
    const bool torch_like = hasattr(source, "requires_grad");
    const object producer = torch_like ? source.attr("detach")() : reinterpret_borrow<object>(source);
    const auto device = producer.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    const bool cuda = device.first == 2 || device.first == 13;
    // stream=-1: no synchronisation; the kernel is launched on the producer's own current stream.
    capsule_ = cuda ? producer.attr("__dlpack__")(arg("stream") = -1) : producer.attr("__dlpack__")();
    auto* managed = static_cast<posekd::dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
    if (!managed) throw error_already_set();
    value = posekd::view_of(managed->tensor);  // the unconsumed capsule frees its tensor when it dies
    if (cuda && torch_like) {
      const object stream = module_::import("torch").attr("cuda").attr("current_stream")(device.second);
      value.stream = reinterpret_cast<void*>(stream.attr("cuda_stream").cast<uintptr_t>());
    }
    return true;
  }

  object capsule_;
};

}  // namespace pybind11::detail
