// Predicates of a vector's lanes, lanes against bits of a word, and shifts across lanes. For <op>_cpu.cpp files only.
#pragma once

#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/vec.h"

namespace posekd {
namespace POSEKD_LEVEL {

template <class T>
using mask = typename Vec<T>::bits;  // integers as wide as the lanes of vec<T>

// Which lanes hold: a mask register's bits where the machine has them (the compiler would go through vectors and back),
// else the result of the language's comparison, a lane of all ones or all zeros.
#if defined(__AVX512F__)
constexpr bool kMaskRegisters = true;
template <class T>
using lanes = uint32_t;
#else
constexpr bool kMaskRegisters = false;
template <class T>
using lanes = mask<T>;
#endif

namespace {

template <class T>
constexpr uint32_t kAllLanes = static_cast<uint32_t>((uint64_t{1} << Vec<T>::kLanes) - 1);

#if defined(__AVX512F__)

template <int kOperation, class T>
POSEKD_INLINE lanes<T> compare(vec<T> a, vec<T> b) {
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, kOperation);
  if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, kOperation);
}
template <class T>
POSEKD_INLINE lanes<T> greater(vec<T> a, vec<T> b) {
  return compare<_CMP_GT_OQ, T>(a, b);
}
template <class T>
POSEKD_INLINE lanes<T> at_least(vec<T> a, vec<T> b) {
  return compare<_CMP_GE_OQ, T>(a, b);
}
template <class T>
POSEKD_INLINE lanes<T> equal(vec<T> a, vec<T> b) {
  return compare<_CMP_EQ_OQ, T>(a, b);
}
template <class T>
POSEKD_INLINE lanes<T> is_nan(vec<T> a) {
  return compare<_CMP_UNORD_Q, T>(a, a);
}
template <class T>
POSEKD_INLINE lanes<T> equal_index(mask<T> a, mask<T> b) {
  if constexpr (sizeof(T) == 4) return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
  if constexpr (sizeof(T) == 8) return _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b);
}

// Lane by lane, a where it holds, else b. V is vec<T> or mask<T>.
template <class T, class V>
POSEKD_INLINE V choose(lanes<T> which, V a, V b) {
  if constexpr (sizeof(T) == 4) return (V)_mm512_mask_blend_ps(static_cast<__mmask16>(which), (__m512)b, (__m512)a);
  if constexpr (sizeof(T) == 8) return (V)_mm512_mask_blend_pd(static_cast<__mmask8>(which), (__m512d)b, (__m512d)a);
}

template <class T>
POSEKD_INLINE uint32_t bits_of(lanes<T> which) {
  return which;
}
template <class T>
POSEKD_INLINE lanes<T> lanes_of(uint32_t bits) {
  return bits & kAllLanes<T>;
}

#else

template <class T>
POSEKD_INLINE lanes<T> greater(vec<T> a, vec<T> b) {
  return a > b;
}
template <class T>
POSEKD_INLINE lanes<T> at_least(vec<T> a, vec<T> b) {
  return a >= b;
}
template <class T>
POSEKD_INLINE lanes<T> equal(vec<T> a, vec<T> b) {
  return a == b;
}
template <class T>
POSEKD_INLINE lanes<T> is_nan(vec<T> a) {
  return a != a;
}
template <class T>
POSEKD_INLINE lanes<T> equal_index(mask<T> a, mask<T> b) {
  return a == b;
}

// Lane by lane, a where it holds, else b. V is vec<T> or mask<T>.
template <class T, class V>
POSEKD_INLINE V choose(lanes<T> which, V a, V b) {
  return select(which, a, b);
}

// Bit i: whether lane i holds.
template <class T>
POSEKD_INLINE uint32_t bits_of(lanes<T> which) {
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(__builtin_ia32_movmskps256((vec<float>)which));
  if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(__builtin_ia32_movmskpd256((vec<double>)which));
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(__builtin_ia32_movmskps((vec<float>)which));
  if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(__builtin_ia32_movmskpd((vec<double>)which));
#endif
  uint32_t bits = 0;
  for (int i = 0; i < Vec<T>::kLanes; ++i) bits |= (which[i] ? 1u : 0u) << i;
  return bits;
}

template <class T, int... I>
POSEKD_INLINE mask<T> bit_of_lane(std::integer_sequence<int, I...>) {
  return mask<T>{(int64_t{1} << I)...};
}

// Lane i holds where bit i does; further bits are ignored.
template <class T>
POSEKD_INLINE lanes<T> lanes_of(uint32_t bits) {
  const mask<T> own = bit_of_lane<T>(std::make_integer_sequence<int, Vec<T>::kLanes>());
  return ((mask<T>{} + static_cast<decltype(own[0] + 0)>(bits)) & own) != 0;
}

#endif

// Lanes that take over from the maximum so far: `takes_over` of core/pooling_math.h.
template <bool kLast, class T>
POSEKD_INLINE lanes<T> takes_over_lanes(vec<T> value, vec<T> best) {
#if defined(__AVX512F__)
  // Two comparisons, the second under the mask of the first: nothing leaves the mask registers. The operations NLE and
  // NGE hold for NaN as well.
  if constexpr (sizeof(T) == 4) {
    const __mmask16 number = compare<_CMP_ORD_Q, T>(kLast ? value : best, kLast ? value : best);
    if constexpr (kLast) return _knot_mask16(_mm512_mask_cmp_ps_mask(number, (__m512)value, (__m512)best, _CMP_NGE_UQ));
    return _mm512_mask_cmp_ps_mask(number, (__m512)value, (__m512)best, _CMP_NLE_UQ);
  } else {
    const __mmask8 number = compare<_CMP_ORD_Q, T>(kLast ? value : best, kLast ? value : best);
    if constexpr (kLast)
      return _knot_mask8(_mm512_mask_cmp_pd_mask(number, (__m512d)value, (__m512d)best, _CMP_NGE_UQ));
    return _mm512_mask_cmp_pd_mask(number, (__m512d)value, (__m512d)best, _CMP_NLE_UQ);
  }
#else
  if constexpr (kLast) return at_least<T>(value, best) | is_nan<T>(value);
  return greater<T>(value, best) | (is_nan<T>(value) & ~is_nan<T>(best));
#endif
}

template <class T, int... I>
POSEKD_INLINE mask<T> lane_numbers(std::integer_sequence<int, I...>) {
  return mask<T>{I...};
}

template <int D, class V, int... I>
POSEKD_INLINE V shift_up(V fill, V value, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  return __builtin_shufflevector(fill, value, (L + I - D)...);
}

// Lane i of the result is lane i - D of `value`; the first D lanes are the last D of `fill`. With kDown the mirror
// image: lane i is lane i + D, and the last D lanes are the first of `fill`.
template <int D, bool kDown, class T>
POSEKD_INLINE vec<T> shift(vec<T> value, vec<T> fill) {
  constexpr int L = Vec<T>::kLanes;
  const auto indices = std::make_integer_sequence<int, L>();
  if constexpr (kDown) return shift_up<L - D>(value, fill, indices);
  return shift_up<D>(fill, value, indices);
}

template <int Lane, class V, int... I>
POSEKD_INLINE V broadcast_lane(V value, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(value, value, (I * 0 + Lane)...);
}

// The last lane of `value` (kDown: the first) in every lane.
template <bool kDown, class T>
POSEKD_INLINE vec<T> end_lane(vec<T> value) {
  constexpr int L = Vec<T>::kLanes;
  return broadcast_lane<kDown ? 0 : L - 1>(value, std::make_integer_sequence<int, L>());
}

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
