// What a box is and how two overlap: shared by the CPU and CUDA kernels of pair_corners.
#pragma once

#include <cmath>

#include "core/dtype.h"

namespace posekd {
namespace {

constexpr float kSmallArea = 22500.0f;

struct Box {
  float x1, y1, x2, y2;
};

// The corners and centres of one image.
struct ImagePoints {
  const float* corners;
  const float* centers;
  float scale;
  int views, points, num_centers, mirrored;

  POSEKD_HD int pairs() const { return views * points * points; }
};

// Pair `index`, counted by view, upper corner and lower corner, as a box.
POSEKD_HD Box box_of_pair(const ImagePoints& in, int index) {
  const int view = index / (in.points * in.points), pair = index - view * in.points * in.points;
  const int upper = pair / in.points, lower = pair - upper * in.points;
  const float* a = in.corners + 3 * (static_cast<int64_t>(2 * view) * in.points + upper);
  const float* b = in.corners + 3 * (static_cast<int64_t>(2 * view + 1) * in.points + lower);
  const bool swapped = view >= in.views - in.mirrored;
  return {swapped ? b[0] : a[0], a[1], swapped ? a[0] : b[0], b[1]};
}

// The mean of both corners' scores and of the first centre's inside the central region; 0 if this is no box.
POSEKD_HD float score_of_pair(const ImagePoints& in, int index, const Box& box) {
  const int view = index / (in.points * in.points), pair = index - view * in.points * in.points;
  const int upper = pair / in.points, lower = pair - upper * in.points;
  const float a = in.corners[3 * (static_cast<int64_t>(2 * view) * in.points + upper) + 2];
  const float b = in.corners[3 * (static_cast<int64_t>(2 * view + 1) * in.points + lower) + 2];
  if (!(a > 0.0f && b > 0.0f && box.x2 > box.x1 && box.y2 > box.y1)) return 0.0f;
  const float area = (box.x2 - box.x1) * (box.y2 - box.y1) * in.scale;
  const float n = area <= kSmallArea ? 3.0f : 5.0f;
  const float left = ((n + 1) * box.x1 + (n - 1) * box.x2) / (2 * n);
  const float right = ((n - 1) * box.x1 + (n + 1) * box.x2) / (2 * n);
  const float above = ((n + 1) * box.y1 + (n - 1) * box.y2) / (2 * n);
  const float below = ((n - 1) * box.y1 + (n + 1) * box.y2) / (2 * n);
  for (int i = 0; i < in.num_centers; ++i) {
    const float* center = in.centers + 3 * i;
    if (center[2] > 0.0f && center[0] > left && center[0] < right && center[1] > above && center[1] < below) {
      const float score = (a + b + center[2]) / 3;
      return score > 0.0f ? score : 0.0f;  // NaN is none
    }
  }
  return 0.0f;
}

POSEKD_HD float area_of(const Box& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

POSEKD_HD float overlap(const Box& a, const Box& b) {
  const float width = fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1), height = fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1);
  const float shared = (width > 0.0f ? width : 0.0f) * (height > 0.0f ? height : 0.0f);
  return shared / (area_of(a) + area_of(b) - shared);
}

// What is left of a score beside a box that was taken.
POSEKD_HD float lowered(float score, float iou, float sigma) { return score * expf(-(iou * iou) / sigma); }

}  // namespace
}  // namespace posekd
