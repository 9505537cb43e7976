// What the CPU and the CUDA kernels of tag_loss share.
#pragma once

#include <cmath>

#include "core/dtype.h"

namespace posekd {
namespace {

// The shape of one image's problem.
struct TagGrid {
  int people, joints, channels, height, width;
};

// Where keypoint k's tag lies in an image's [channels, H, W] maps, or -1: not visible, or outside. Positions are
// truncated toward zero as by Python's int(), so -0.99 is pixel 0; NaN is outside.
POSEKD_HD int64_t tag_pixel(const TagGrid& grid, const float* keypoint, int k) {
  const float x = keypoint[0], y = keypoint[1];
  if (!(keypoint[2] > 0.0f && x > -1.0f && y > -1.0f)) return -1;
  if (!(x < static_cast<float>(grid.width) && y < static_cast<float>(grid.height))) return -1;
  const int64_t channel = grid.channels == 1 ? 0 : k;
  return (channel * grid.height + static_cast<int>(y)) * grid.width + static_cast<int>(x);
}

// One ordered pair of people with mean tags a and b: its push, and the derivative by a.
template <class A>
struct PushTerm {
  A value, slope;
};

template <class A>
POSEKD_HD PushTerm<A> push_term(A a, A b, bool exponential) {
  const A d = a - b;
  if (exponential) {
    const A e = static_cast<A>(exp(-d * d));
    return {e, -2 * d * e};
  }
  const A distance = d < 0 ? -d : d;
  if (distance > 1) return {A(0), A(0)};
  return {1 - distance, d > 0 ? A(-1) : d < 0 ? A(1) : d * 0};  // at the edge as torch.clamp; NaN stays NaN
}

// The factors that the official loss puts before its sums: 1/n before the pull, 0.5 / (n (n - 1)) before the push.
template <class A>
POSEKD_HD A pull_factor(int people) {
  return people > 0 ? 1 / static_cast<A>(people) : A(0);
}
template <class A>
POSEKD_HD A push_factor(int people) {
  return people > 1 ? static_cast<A>(0.5) / (static_cast<A>(people) * static_cast<A>(people - 1)) : A(0);
}

}  // namespace
}  // namespace posekd
