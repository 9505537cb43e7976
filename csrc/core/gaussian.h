// Target heatmaps: a Gaussian per keypoint, by the published rules. Separable: value(x, y) = profile_x(x) *
// profile_y(y).
#pragma once

#include <cmath>

#include "core/dtype.h"

namespace posekd {

// msra: deep-high-resolution-net, `generate_target`. higherhrnet: HigherHRNet, `HeatmapGenerator`.
// exact: the continuous centre, no window.
enum class GaussianKind : int { msra = 0, higherhrnet = 1, exact = 2 };

namespace {

// One axis of a keypoint's Gaussian: exp(-(pixel - centre)^2 / (2 sigma^2)) for begin <= pixel < end, 0 elsewhere.
struct GaussianAxis {
  float centre;
  int begin;
  int end;
  bool inside;  // whether this axis keeps the keypoint: outside, the keypoint's weight is 0
};

POSEKD_HD int round_half_even(float value) { return static_cast<int>(rintf(value)); }

// `position` in heatmap pixels along an axis of `size` pixels. A position that is not finite is outside.
POSEKD_HD GaussianAxis gaussian_axis(GaussianKind kind, float position, float sigma, int size) {
  GaussianAxis axis{0.0f, 0, 0, false};
  // Beyond this an int would overflow; no window reaches back from there.
  if (!(fabsf(position) < 1.0e6f)) return axis;
  if (kind == GaussianKind::exact) {
    // DARK's encoding: no window. Its visibility test takes the window's ends as Python's int() does, truncated toward
    // zero: an end above -1 counts as 0, which is on the map.
    const float low = position - 3.0f * sigma, high = position + 3.0f * sigma + 1.0f;
    return {position, 0, size, low < static_cast<float>(size) && high > -1.0f};
  }
  float low, high, half;
  int begin, end;
  if (kind == GaussianKind::msra) {
    // Toward zero, as Python's int(). In double: 0.49999997f + 0.5f would round to 1.
    const int pixel = static_cast<int>(static_cast<double>(position) + 0.5);
    half = 3.0f * sigma;
    low = static_cast<float>(pixel) - half;
    high = static_cast<float>(pixel) + half + 1.0f;
    begin = static_cast<int>(low);
    end = static_cast<int>(high);
    // The published test keeps a keypoint whose window ends exactly at 0: weight 1, map all zero.
    axis.inside = begin < size && end >= 0;
    axis.centre = static_cast<float>(begin) + floorf((2.0f * half + 1.0f) / 2.0f);
  } else {
    const int pixel = static_cast<int>(position);  // toward zero: -0.99 counts as pixel 0
    half = 3.0f * sigma + 1.0f;
    low = static_cast<float>(pixel) - half;
    high = static_cast<float>(pixel) + half + 1.0f;
    begin = round_half_even(low);
    end = round_half_even(high);
    axis.inside = pixel >= 0 && pixel < size;
    axis.centre = static_cast<float>(begin) + half;
  }
  axis.begin = begin < 0 ? 0 : begin;
  axis.end = end > size ? size : end;
  if (axis.end < axis.begin) axis.end = axis.begin;
  return axis;
}

POSEKD_HD float gaussian_value(const GaussianAxis& axis, float sigma, int pixel) {
  if (pixel < axis.begin || pixel >= axis.end) return 0.0f;
  const float distance = static_cast<float>(pixel) - axis.centre;
  return expf(-(distance * distance) / (2.0f * sigma * sigma));
}

// A keypoint's weight by the published visibility rules, and whether its Gaussian is drawn at all.
struct GaussianJoint {
  GaussianAxis x, y;
  float weight;
  bool drawn;
};

// `keypoint` is (x, y, visibility), a visibility of NaN counting as 0.
POSEKD_HD GaussianJoint gaussian_joint(GaussianKind kind, const float* keypoint, float sigma, int width, int height) {
  GaussianJoint joint{gaussian_axis(kind, keypoint[0], sigma, width), gaussian_axis(kind, keypoint[1], sigma, height),
                      0.0f, false};
  const float visibility = keypoint[2];
  if (joint.x.inside && joint.y.inside && visibility > 0.0f)
    joint.weight = kind == GaussianKind::higherhrnet || visibility > 1.0f ? 1.0f : visibility;
  joint.drawn = joint.weight > (kind == GaussianKind::higherhrnet ? 0.0f : 0.5f);
  return joint;
}

}  // namespace
}  // namespace posekd
