// Vectors of the level's own width by the compilers' vector extension: arithmetic, comparisons and selection are the
// language's operators. For <op>_cpu.cpp files only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/dtype.h"

#define POSEKD_INLINE [[gnu::always_inline]] inline
// For a lambda, between its parameters and its body: what it captures by reference then stays in registers.
#define POSEKD_INLINE_BODY __attribute__((always_inline))

// GCC turns vectors wider than the machine's into scalar code, so the width follows the level.
#if defined(__AVX512F__)
#define POSEKD_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define POSEKD_VECTOR_BYTES 32
#else
#define POSEKD_VECTOR_BYTES 16
#endif

namespace posekd {
namespace POSEKD_LEVEL {

template <class T>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(POSEKD_VECTOR_BYTES)));
  typedef int32_t bits __attribute__((vector_size(POSEKD_VECTOR_BYTES)));
  typedef uint32_t words __attribute__((vector_size(POSEKD_VECTOR_BYTES)));
  static constexpr int kLanes = POSEKD_VECTOR_BYTES / 4;
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(POSEKD_VECTOR_BYTES)));
  typedef int64_t bits __attribute__((vector_size(POSEKD_VECTOR_BYTES)));
  static constexpr int kLanes = POSEKD_VECTOR_BYTES / 8;
};
template <class T>
using vec = typename Vec<T>::type;

namespace {

template <class T>
POSEKD_INLINE vec<T> load(const T* from) {
  vec<T> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <class T>
POSEKD_INLINE void store(T* to, vec<T> value) {
  std::memcpy(to, &value, sizeof(value));
}

template <class T>
POSEKD_INLINE vec<T> broadcast(T value) {
  return value - vec<T>{};  // not +, which would lose the sign of a zero
}

template <int D, class T, int... I>
POSEKD_INLINE vec<T> add_halves(vec<T> value, std::integer_sequence<int, I...> lanes) {
  if constexpr (D == 0)
    return value;
  else
    return add_halves<D / 2, T>(value + __builtin_shufflevector(value, value, (I ^ D)...), lanes);
}
// The sum of the lanes, in every lane.
template <class T>
POSEKD_INLINE vec<T> total(vec<T> value) {
  constexpr int L = Vec<T>::kLanes;
  return add_halves<L / 2, T>(value, std::make_integer_sequence<int, L>());
}
template <class T>
POSEKD_INLINE T sum_lanes(vec<T> value) {
  return total<T>(value)[0];
}

template <class T>
POSEKD_INLINE T max_lanes(vec<T> value) {
  T best = value[0];
  for (int i = 1; i < Vec<T>::kLanes; ++i) best = value[i] > best ? value[i] : best;
  return best;
}

// Lane by lane, a where `mask` (the result of a comparison) holds, else b.
template <class M, class V>
POSEKD_INLINE V select(M mask, V a, V b) {
#if defined(__AVX2__)
  return mask ? a : b;
#else
  return (V)((mask & (M)a) | (~mask & (M)b));  // SSE2 has no blend, and GCC would go lane by lane
#endif
}

// Lane by lane a > b ? a : b, so b where either is NaN: one instruction on x86.
POSEKD_INLINE vec<float> larger(vec<float> a, vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_mask_max_ps(a, 0xFFFF, a, b);  // not _mm512_max_ps, in which GCC 12 sees an uninitialised operand
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return select(a > b, a, b);
#endif
}
POSEKD_INLINE vec<double> larger(vec<double> a, vec<double> b) { return select(a > b, a, b); }

// Lane by lane a < b ? a : b, so b where either is NaN.
POSEKD_INLINE vec<float> smaller(vec<float> a, vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_mask_min_ps(a, 0xFFFF, a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
  return _mm_min_ps(a, b);
#else
  return select(a < b, a, b);
#endif
}

// e^x for x < 88, to 2 units in the last place; below -86.6 it stays at 2.5e-38; NaN stays NaN, -inf gives 2.5e-38 too.
// (Named for what the kernels need: softmax weights and Gaussians.) Cody-Waite reduction to |r| <= ln(2)/2, and 1 + r +
// r^2 q(r) with the q that makes the largest relative error least: 3.1e-9, found by reweighted least squares.
POSEKD_INLINE vec<float> vec_exp(vec<float> x) {
  using Bits = Vec<float>::bits;
  const vec<float> clamped = larger(broadcast(-86.6f), x);  // NaN passes
  // Adding 1.5 * 2^23 + 127 rounds to an integer in the low bits, and biases it as an exponent.
  const float shifter = 12582912.0f + 127.0f;
  const vec<float> shifted = clamped * 1.44269504088896341f + shifter;
  const vec<float> n = shifted - shifter;
  const vec<float> r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  vec<float> q = r * 1.3814540e-3f + 8.3687451e-3f;
  q = q * r + 4.1668391e-2f;
  q = q * r + 1.6666520e-1f;
  q = q * r + 4.9999993e-1f;
  const vec<float> p = q * (r * r) + (r + 1.0f);
  return p * (vec<float>)((Bits)shifted << 23);  // a product, not an addition to the exponent: NaN survives
}

POSEKD_INLINE vec<double> vec_exp(vec<double> x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Any vector type from, and to, unaligned memory.
template <class V, class T>
POSEKD_INLINE V load_as(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
template <class V, class T>
POSEKD_INLINE void store_as(T* to, V value) {
  std::memcpy(to, &value, sizeof(value));
}

// Reads `count` elements as T. The compilers vectorise all of these loops but those of float16.
template <class T, class In>
POSEKD_INLINE void widen(const In* from, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(to_float(from[i]));
}

// Rounds `count` elements to Out.
template <class Out, class T>
POSEKD_INLINE void narrow(const T* from, Out* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<Out>(from[i]);
}

#if defined(__F16C__)
template <>
POSEKD_INLINE void widen<float, half_t>(const half_t* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) store_as(to + i, _mm256_cvtph_ps(load_as<__m128i>(from + i)));
  for (; i < count; ++i) to[i] = to_float(from[i]);
}

template <>
POSEKD_INLINE void narrow<half_t, float>(const float* from, half_t* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    store_as(to + i, _mm256_cvtps_ph(load_as<__m256>(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) to[i] = from_float<half_t>(from[i]);
}
#endif

// Reads `count` elements of any float type as T.
template <class T>
POSEKD_INLINE void convert(const void* from, DType dtype, int64_t offset, int64_t count, T* to) {
  dispatch_float(dtype,
                 [&](auto tag) { widen(static_cast<const typename decltype(tag)::type*>(from) + offset, to, count); });
}

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
