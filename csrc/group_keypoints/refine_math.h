// The formulas of the refinement that the CPU and CUDA kernels share. Each step is rounded to float32 by itself.
#pragma once

#include <cfloat>
#include <cmath>

#include "group_keypoints/group_keypoints.h"

namespace posekd {
namespace {

struct Point {
  float x, y;
};

// A coordinate's pixel: truncated, clamped into [0, size); NaN becomes 0.
POSEKD_HD int pixel_of(float coordinate, int size) {
  if (!(coordinate >= 1.0f)) return 0;
  return coordinate >= static_cast<float>(size) ? size - 1 : static_cast<int>(coordinate);
}

// The pixel's centre plus a quarter toward the higher neighbour; equal neighbours count as the lower side. At the
// border the pixel stands in for its missing neighbour.
template <class In>
POSEKD_HD Point toward_higher(const In* map, int width, int height, int x, int y) {
  const auto at = [&](int row, int column) { return to_float(map[static_cast<int64_t>(row) * width + column]); };
  const bool right = at(y, x + 1 < width ? x + 1 : x) > at(y, x > 0 ? x - 1 : x);
  const bool below = at(y + 1 < height ? y + 1 : y, x) > at(y > 0 ? y - 1 : y, x);
  return {static_cast<float>(x) + (right ? 0.25f : -0.25f) + 0.5f,
          static_cast<float>(y) + (below ? 0.25f : -0.25f) + 0.5f};
}

// Rounds x >= 0 to the nearest integer, ties to even. (Adding 2^23 leaves no fraction bits; vectorises everywhere.)
POSEKD_HD float round_even(float x) {
  const float rounded = (x + 8388608.0f) - 8388608.0f;
  return x < 8388608.0f ? rounded : x;
}

// The square of how far `mean` lies outside [low, high].
POSEKD_HD float outside_squared(float low, float high, float mean) {
  const float below = low - mean, above = mean - high;
  float outside = below > above ? below : above;
  outside = outside > 0.0f ? outside : 0.0f;
  return outside * outside;
}

// The most that a pixel can reach whose heatmap is at most `highest` and whose tags lie in the box: rounding is
// monotone, so the bound holds in float32 as it does for reals. An empty box has low above high: nothing is reached.
// Low and high of channel c stand at box[2 c * box_stride] and box[(2 c + 1) * box_stride].
POSEKD_HD float tile_bound(float highest, const float* box, int64_t box_stride, const float* mean, int64_t mean_stride,
                           int channels) {
  float squares = 0.0f;
  for (int c = 0; c < channels; ++c)
    squares += outside_squared(box[2 * c * box_stride], box[(2 * c + 1) * box_stride], mean[c * mean_stride]);
  return highest - round_even(sqrtf(squares));
}

// What a pixel reaches: its heatmap less its rounded tag distance; -inf where the heatmap is not finite.
template <class In>
POSEKD_HD float pixel_value(float heat, const In* tag, const float* mean, int channels) {
  float squares = 0.0f;
  for (int c = 0; c < channels; ++c) {
    const float d = to_float(tag[c]) - mean[c];
    squares += d * d;
  }
  return heat <= FLT_MAX ? heat - round_even(sqrtf(squares)) : -INFINITY;
}

// The people of the batch and the maps they are refined on, as plain pointers.
template <class In>
struct RefineParams {
  const In* heatmaps;
  const In* tags;
  const float* given;     // [B, P, K, 3 + T]
  float* keypoints;       // [B, P, K, 3 + T]
  const int64_t* counts;  // [B]
  float* means;           // [B, P, T]
  float* bounds;          // CUDA: [B * K, 1 + 2 T, tiles]
  int64_t capacity, pixels;
  int joints, width, height, channels;
  bool shared_tags, adjust;

  POSEKD_HD int64_t people(int64_t b) const { return counts[b] < capacity ? counts[b] : capacity; }
  POSEKD_HD float* joint(int64_t b, int64_t person, int k) const {
    return keypoints + ((b * capacity + person) * joints + k) * (3 + channels);
  }
  POSEKD_HD float* mean(int64_t b, int64_t person) const { return means + (b * capacity + person) * channels; }
  POSEKD_HD const In* map(int64_t b, int k) const { return heatmaps + (b * joints + k) * pixels; }
  POSEKD_HD const In* tag_map(int64_t b, int k) const {
    return tags + (shared_tags ? b : b * joints + k) * pixels * channels;
  }
};

template <class In>
RefineParams<In> refine_params(const RefinePeople& args) {
  return {args.in.heatmaps.as<In>(),
          args.in.tags.as<In>(),
          args.keypoints.as<float>(),
          args.refined.as<float>(),
          args.counts.as<int64_t>(),
          args.means.as<float>(),
          args.bounds.as<float>(),
          args.capacity(),
          args.in.pixels(),
          args.in.joints(),
          args.in.width(),
          args.in.height(),
          args.in.channels(),
          args.in.tags.shape[1] == 1,
          args.adjust};
}

// Channel c of the tag under keypoint k.
template <class In>
POSEKD_HD float tag_under(const RefineParams<In>& p, const float* joint, int64_t b, int k, int c) {
  const int x = pixel_of(joint[0], p.width), y = pixel_of(joint[1], p.height);
  return to_float(p.tag_map(b, k)[(static_cast<int64_t>(y) * p.width + x) * p.channels + c]);
}

// Moves keypoint k to its place within the pixel. The pixel, and so the tag under it, stays.
template <class In>
POSEKD_HD void adjust_joint(const RefineParams<In>& p, float* joint, int64_t b, int k) {
  const int x = pixel_of(joint[0], p.width), y = pixel_of(joint[1], p.height);
  const Point moved = toward_higher(p.map(b, k), p.width, p.height, x, y);
  joint[0] = moved.x;
  joint[1] = moved.y;
}

// Whether keypoint k of the person is to be filled: it is missing, and the person's mean tag is a number.
template <class In>
POSEKD_HD bool wants(const RefineParams<In>& p, int64_t b, int64_t person, int k) {
  if (p.joint(b, person, k)[2] != 0.0f) return false;
  for (int c = 0; c < p.channels; ++c)
    if (p.mean(b, person)[c] != p.mean(b, person)[c]) return false;
  return true;
}

// Fills keypoint k from its best pixel, if the heatmap there is positive.
template <class In>
POSEKD_HD void fill_joint(const RefineParams<In>& p, int64_t b, int64_t person, int k, int64_t pixel) {
  const In* map = p.map(b, k);
  const float score = to_float(map[pixel]);
  if (!(score > 0.0f)) return;
  const Point point =
      toward_higher(map, p.width, p.height, static_cast<int>(pixel % p.width), static_cast<int>(pixel / p.width));
  float* joint = p.joint(b, person, k);
  joint[0] = point.x;
  joint[1] = point.y;
  joint[2] = score;
}

}  // namespace
}  // namespace posekd
