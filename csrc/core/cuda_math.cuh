// What the device does in one instruction and C++ has no word for, with host stand-ins.
#pragma once

#include "core/cuda_compat.h"

namespace posekd {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// 2^x to 2 ulp; 0 where the result is below 2^-126.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// Integers in the order of the floats, -0 below +0; a NaN with its sign bit clear is above everything. Its own inverse.
__device__ __forceinline__ int ordered(int bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }
__device__ __forceinline__ int order_of(float value) { return ordered(__float_as_int(value)); }
__device__ __forceinline__ float value_of(int order) { return __int_as_float(ordered(order)); }

// Largest over the 32 lanes; every lane gets it. One instruction from Ampere on.
__device__ __forceinline__ int warp_max(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
#else
  return __reduce_max_sync(kAllLanes, value);
#endif
}
__device__ __forceinline__ float warp_max(float value) { return value_of(warp_max(order_of(value))); }

// The same bits, of which the compiler believes that they have just come. It would keep what it makes of each bit
// across a barrier, in a register each.
__device__ __forceinline__ unsigned in_order(unsigned bits) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(bits));
#endif
  return bits;
}

// 16 bytes of neighbouring elements, as they are moved.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T>
__device__ __forceinline__ void unpack(const uint4& bytes, float (&out)[kVector<T>]) {
  const unsigned words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if constexpr (sizeof(T) == 4)
      out[i] = __uint_as_float(words[i]);
    else
      out[i] = to_float(T{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))});
  }
}

template <class T>
__device__ __forceinline__ uint4 pack(const float (&values)[kVector<T>]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      words[i] = __float_as_uint(values[i]);
    else
      words[i] = static_cast<unsigned>(from_float<T>(values[2 * i]).bits) |
                 static_cast<unsigned>(from_float<T>(values[2 * i + 1]).bits) << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace
}  // namespace posekd
