// The element types that tensors may have, and 16-bit floats that compile on the host, in emulation and on the device.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define POSEKD_HD __host__ __device__ __forceinline__
#else
#define POSEKD_HD inline
#endif

namespace posekd {

enum class DType : uint8_t { float32, float64, float16, bfloat16, uint8, int32, int64, boolean };

struct half_t {
  uint16_t bits;
};

struct bfloat16_t {
  uint16_t bits;
};

template <class T>
struct Tag {
  using type = T;
};

// The type in which sums over T are kept: double for double, float for everything else.
template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename accumulate<T>::type;

// Unnamed: every translation unit keeps its own copies, because units are compiled for different vector levels.
namespace {

inline int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    default:
      return 1;
  }
}

inline const char* name(DType dtype) {
  constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16", "uint8", "int32", "int64", "bool"};
  return names[static_cast<int>(dtype)];
}

POSEKD_HD float to_float(float value) { return value; }
POSEKD_HD double to_float(double value) { return value; }
POSEKD_HD float to_float(uint8_t value) { return static_cast<float>(value); }

POSEKD_HD float to_float(half_t value) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(value.bits));
#else
  _Float16 wide;
  std::memcpy(&wide, &value.bits, sizeof(wide));
  return static_cast<float>(wide);
#endif
}

POSEKD_HD float to_float(bfloat16_t value) {
#if defined(__CUDACC__)
  return __bfloat162float(__ushort_as_bfloat16(value.bits));
#else
  const uint32_t wide = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
#endif
}

// Rounds to nearest, ties to even, into T.
template <class T>
POSEKD_HD T from_float(float value) {
  return static_cast<T>(value);
}
template <class T>
POSEKD_HD T from_float(double value) {
  return static_cast<T>(value);
}

template <>
POSEKD_HD half_t from_float<half_t>(float value) {
#if defined(__CUDACC__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const _Float16 narrow = static_cast<_Float16>(value);
  half_t result;
  std::memcpy(&result.bits, &narrow, sizeof(narrow));
  return result;
#endif
}

template <>
POSEKD_HD bfloat16_t from_float<bfloat16_t>(float value) {
#if defined(__CUDACC__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  const uint32_t rounded = wide + 0x7fffu + ((wide >> 16) & 1u);
  const bool nan = (wide & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded >> 16)};
#endif
}

template <>
POSEKD_HD half_t from_float<half_t>(double value) {
  return from_float<half_t>(static_cast<float>(value));
}
template <>
POSEKD_HD bfloat16_t from_float<bfloat16_t>(double value) {
  return from_float<bfloat16_t>(static_cast<float>(value));
}

// Calls f(Tag<T>{}) for the floating type named by dtype. kWide: whether float64 is compiled too.
template <bool kWide = true, class F>
void dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32:
      return f(Tag<float>{});
    case DType::float16:
      return f(Tag<half_t>{});
    case DType::bfloat16:
      return f(Tag<bfloat16_t>{});
    case DType::float64:
      if constexpr (kWide) return f(Tag<double>{});
      [[fallthrough]];
    default:
      throw std::invalid_argument(std::string("posekd core: no kernel for ") + name(dtype));
  }
}

}  // namespace
}  // namespace posekd
