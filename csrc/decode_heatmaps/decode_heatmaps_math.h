// The formulas of decode_heatmaps that the CPU and CUDA kernels share.
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "decode_heatmaps/decode_heatmaps.h"

namespace posekd {
namespace {

template <class T>
struct Point {
  T x, y;
};

// The taps of cv2.GaussianBlur(map, (size, size), 0).
template <class T>
struct BlurTaps {
  T tap[kMaxBlur];
};

// OpenCV's own taps for kernels up to 9 wide with sigma 0, in 256ths, from the outermost to the middle one. They are
// binary fractions near the formula below, which it takes for wider kernels. (OpenCV's releases before the table had a
// row for 9 take the formula there too: at most 0.002 away.)
constexpr int kTabledBlur = 9;
constexpr int kBlurTable[4][5] = {{64, 128}, {16, 64, 96}, {8, 28, 56, 72}, {4, 13, 30, 51, 60}};

template <class T>
BlurTaps<T> tabled_taps(int size) {
  BlurTaps<T> taps{};
  const int* row = kBlurTable[size / 2 - 1];
  for (int i = 0; i < size; ++i) taps.tap[i] = static_cast<T>(row[i <= size / 2 ? i : size - 1 - i] / 256.0);
  return taps;
}

template <class T>
BlurTaps<T> blur_taps(int size) {
  if (size <= kTabledBlur) return tabled_taps<T>(size);
  const double sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8;
  double value[kMaxBlur], sum = 0;
  for (int i = 0; i < size; ++i) {
    const double distance = i - (size - 1) * 0.5;
    value[i] = std::exp(-distance * distance / (2 * sigma * sigma));
    sum += value[i];
  }
  BlurTaps<T> taps{};
  for (int i = 0; i < size; ++i) taps.tap[i] = static_cast<T>(value[i] / sum);
  return taps;
}

template <class T>
POSEKD_HD T quarter_toward(T high, T low) {
  return high > low ? T(0.25) : high < low ? T(-0.25) : T(0);
}

// HRNet's shift toward the higher neighbour, with its border rule.
template <class T, class Map>
POSEKD_HD Point<T> quarter_shift(const Map* map, int width, int height, int x, int y) {
  if (x <= 1 || x >= width - 1 || y <= 1 || y >= height - 1) return {T(0), T(0)};
  const Map* at = map + static_cast<int64_t>(y) * width + x;
  return {quarter_toward<T>(to_float(at[1]), to_float(at[-1])),
          quarter_toward<T>(to_float(at[width]), to_float(at[-width]))};
}

// Where DARK's Taylor expansion has its neighbours.
POSEKD_HD bool dark_inside(int width, int height, int x, int y) {
  return x > 1 && x < width - 2 && y > 1 && y < height - 2;
}

// Whether DARK reads entry i of the 5x5 patch around the maximum: the inner 3x3 and the four at distance two.
POSEKD_HD bool dark_reads(int i) {
  const int dx = i % 5 - 2, dy = i / 5 - 2;
  return dx * dx + dy * dy <= 2 || dx * dy == 0;
}

constexpr float kDarkFloor = 1e-10f;

// One Newton step from the maximum, given the logarithms of the patch; 0 if it is not finite.
template <class T>
POSEKD_HD Point<T> newton_step(const T (&log)[25]) {
  const T centre = log[12];
  const T gx = T(0.5) * (log[13] - log[11]), gy = T(0.5) * (log[17] - log[7]);
  const T hxx = T(0.25) * (log[14] - 2 * centre + log[10]), hyy = T(0.25) * (log[22] - 2 * centre + log[2]);
  const T hxy = T(0.25) * (log[18] - log[8] - log[16] + log[6]);
  const T determinant = hxx * hyy - hxy * hxy;
  const Point<T> step{(hxy * gy - hyy * gx) / determinant, (hxy * gx - hxx * gy) / determinant};
  // x - x is 0 for finite x only
  if (!(step.x - step.x == T(0) && step.y - step.y == T(0))) return {T(0), T(0)};
  return step;
}

// Stores (x, y, score), the point mapped by a 2x3 matrix unless that is null.
template <class T>
POSEKD_HD void store_keypoint(Point<T> point, T score, const T* matrix, T* out) {
  if (matrix) {
    const double x = point.x, y = point.y;
    point.x = static_cast<T>(matrix[0] * x + matrix[1] * y + matrix[2]);
    point.y = static_cast<T>(matrix[3] * x + matrix[4] * y + matrix[5]);
  }
  out[0] = point.x;
  out[1] = point.y;
  out[2] = score;
}

}  // namespace
}  // namespace posekd
