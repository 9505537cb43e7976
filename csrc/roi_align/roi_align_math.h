// Where ROIAlign samples, for one axis of one box: what the CPU tables and the CUDA kernels share.
//
// The rule is torchvision's (csrc/ops/cpu/roi_align_common.h), axis by axis: a sample is out of range if it is so on
// either axis, and its four weights are products of two, so the average separates into two banded matrices,
// crop = Ay X Ax^T / count. Positions round as torchvision's CPU kernel rounds them: no fused multiply-adds.
#pragma once

#include "core/dtype.h"

namespace posekd {
namespace {

// More samples per bin than this (a bin of a million pixels) are not taken.
constexpr int kMaxGrid = 1 << 20;

POSEKD_HD double rounded_product(double a, double b) { return a * b; }
POSEKD_HD double rounded_sum(double a, double b) { return a + b; }
POSEKD_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
POSEKD_HD float rounded_sum(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// `grid` samples in each of `outputs` bins of size `bin` (negative where the box is inverted), over `length` pixels.
template <class T>
struct RoiAxis {
  T start, bin;
  int grid;  // 0: no samples, the crop is zero
  int outputs, length;
};

template <class T>
POSEKD_HD RoiAxis<T> roi_axis(T low, T high, T scale, bool aligned, int sampling_ratio, int outputs, int length) {
  const T offset = aligned ? T(0.5) : T(0);
  RoiAxis<T> axis;
  axis.outputs = outputs;
  axis.length = length;
  axis.start = rounded_sum(rounded_product(low, scale), -offset);
  T size = rounded_sum(rounded_sum(rounded_product(high, scale), -offset), -axis.start);
  if (!aligned && size < T(1)) size = T(1);
  axis.bin = size / static_cast<T>(outputs);
  T grid = static_cast<T>(sampling_ratio);
  if (sampling_ratio <= 0) {
    grid = axis.bin > T(kMaxGrid) ? T(kMaxGrid) : axis.bin;  // rounded up below
    grid = grid > T(0)
               ? static_cast<T>(static_cast<int>(grid)) + (grid > static_cast<T>(static_cast<int>(grid)) ? 1 : 0)
               : T(0);
  }
  const bool finite = axis.start - axis.start == T(0) && size - size == T(0);
  axis.grid = finite ? static_cast<int>(grid) : 0;
  return axis;
}

// The number of samples that a crop's value averages.
template <class T>
POSEKD_HD T roi_count(const RoiAxis<T>& y, const RoiAxis<T>& x) {
  const T count = static_cast<T>(y.grid) * static_cast<T>(x.grid);
  return count > T(1) ? count : T(1);
}

// Two neighbouring pixels and the second one's weight; at the far border they are the same pixel.
template <class T>
struct RoiSample {
  int low, high;
  T weight;
};

// Sample i of bin p; false where it is out of range.
template <class T>
POSEKD_HD bool roi_sample(const RoiAxis<T>& axis, int p, int i, RoiSample<T>& sample) {
  const T corner = rounded_sum(axis.start, rounded_product(static_cast<T>(p), axis.bin));
  T at = rounded_sum(corner, rounded_product(static_cast<T>(i) + T(0.5), axis.bin) / static_cast<T>(axis.grid));
  if (!(at >= T(-1) && at <= static_cast<T>(axis.length))) return false;
  at = at > T(0) ? at : T(0);
  sample.low = static_cast<int>(at);
  if (sample.low >= axis.length - 1) {
    sample.low = sample.high = axis.length - 1;
    sample.weight = T(0);
  } else {
    sample.high = sample.low + 1;
    sample.weight = at - static_cast<T>(sample.low);
  }
  return true;
}

// The samples of bin p that may be in range, [begin, end): so that a huge box costs no more than the map it covers.
struct RoiRange {
  int begin, end;
};

template <class T>
POSEKD_HD RoiRange roi_range(const RoiAxis<T>& axis, int p) {
  const T step = axis.bin / static_cast<T>(axis.grid > 0 ? axis.grid : 1);
  if (axis.grid <= 16 || !(step > T(0))) return {0, axis.grid};
  const T corner = axis.start + static_cast<T>(p) * axis.bin, size = axis.bin * static_cast<T>(axis.outputs);
  const T slack = T(2) + T(1e-6) * ((axis.start < T(0) ? -axis.start : axis.start) + size) / step;
  const T begin = (T(-1) - corner) / step - slack, end = (static_cast<T>(axis.length) - corner) / step + slack;
  const T most = static_cast<T>(axis.grid);
  return {begin > T(0) ? static_cast<int>(begin < most ? begin : most) : 0,
          end > T(0) ? static_cast<int>(end < most ? end : most) : 0};
}

// The pixels that bin p reads lie in [begin, begin + count).
struct RoiBand {
  int begin, count;
};

template <class T>
POSEKD_HD RoiBand roi_band(const RoiAxis<T>& axis, int p) {
  const RoiRange range = roi_range(axis, p);
  int low = axis.length, high = -1;
  RoiSample<T> sample;
  for (int i = range.begin; i < range.end; ++i) {
    if (!roi_sample(axis, p, i, sample)) continue;
    low = sample.low < low ? sample.low : low;
    high = sample.high > high ? sample.high : high;
  }
  if (high < 0) return {0, 0};
  return {low, high - low + 1};
}

// The weights of a band's pixels, times `factor`. A pixel between the samples gets kUntouched: it must not be
// multiplied, because 0 times NaN is NaN. (A weight of 0 is multiplied, as torchvision does.)
constexpr int kUntouched = -1;

template <class T>
POSEKD_HD void add_weight(T& weight, T value) {
  weight = weight < T(0) ? value : weight + value;
}

template <class T>
POSEKD_HD void roi_weights(const RoiAxis<T>& axis, int p, const RoiBand& band, T factor, T* weights) {
  for (int k = 0; k < band.count; ++k) weights[k] = static_cast<T>(kUntouched);
  const RoiRange range = roi_range(axis, p);
  RoiSample<T> sample;
  for (int i = range.begin; i < range.end && band.count > 0; ++i) {
    if (!roi_sample(axis, p, i, sample)) continue;
    add_weight(weights[sample.low - band.begin], T(1) - sample.weight);
    add_weight(weights[sample.high - band.begin], sample.weight);
  }
  for (int k = 0; k < band.count; ++k)
    if (weights[k] > T(0)) weights[k] *= factor;
}

// The image of a box, or -1: an index that is not finite or out of range. Truncated, as torchvision does.
template <class T>
POSEKD_HD int roi_image(T index, int64_t images) {
  return index > T(-1) && index < static_cast<T>(images) ? static_cast<int>(index) : -1;
}

}  // namespace
}  // namespace posekd
