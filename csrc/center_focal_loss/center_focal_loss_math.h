// Gaussians of corners and centres, and a pixel's term: shared by the CPU and CUDA kernels of center_focal_loss.
#pragma once

#include <cmath>

#include "core/dtype.h"

namespace posekd {
namespace {

constexpr int kPoints = 3;
constexpr double kOverlap = 0.7;
constexpr double kFarthest = 1.0e6;  // pixels: beyond it nothing of a Gaussian is on a map

POSEKD_HD double quadratic_root(double a, double b, double c, double sign, bool divided) {
  const double inside = b * b - 4 * a * c;
  return (b + sign * sqrt(inside > 0 ? inside : 0)) / (divided ? 2 * a : 2);
}

// CornerNet's `gaussian_radius` for an IoU of 0.7; `divided`: by 2a, as it is, or by 2, as CenterNet has it.
POSEKD_HD double gaussian_radius(double height, double width, bool divided) {
  const double both = height + width, area = height * width, sign = divided ? -1.0 : 1.0;
  const double outer = quadratic_root(1, both, area * (1 - kOverlap) / (1 + kOverlap), sign, divided);
  const double inner = quadratic_root(4, 2 * both, area * (1 - kOverlap), sign, divided);
  const double mixed = quadratic_root(4 * kOverlap, -2 * kOverlap * both, area * (kOverlap - 1), 1, divided);
  const double least = outer < inner ? outer : inner;
  return least < mixed ? least : mixed;
}

// One point's Gaussian: its pixel, how far its window reaches (below 0: there is none), and 1 / (2 sigma^2).
struct Gaussian {
  int x, y, radius;
  float sharpness;
};

POSEKD_HD Gaussian gaussian_of(const float* box, int point, bool divided) {
  const double x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3];
  const bool there = x2 > x1 && y2 > y1 && x1 > -kFarthest && y1 > -kFarthest && x2 < kFarthest && y2 < kFarthest;
  if (!there) return {0, 0, -1, 0.0f};
  const double reach = gaussian_radius(ceil(y2 - y1), ceil(x2 - x1), divided);
  const int radius = reach > 0 ? static_cast<int>(reach) : 0;
  const double x = point == 0 ? x1 : point == 1 ? x2 : (x1 + x2) / 2;
  const double y = point == 0 ? y1 : point == 1 ? y2 : (y1 + y2) / 2;
  const double sigma = (2 * radius + 1) / (point == 2 ? 5.0 : 6.0);
  return {static_cast<int>(floor(x)), static_cast<int>(floor(y)), radius, static_cast<float>(1 / (2 * sigma * sigma))};
}

template <class A>
struct Clamps;
template <>
struct Clamps<float> {
  static constexpr float low = 1e-4f, high = 1 - 1e-4f;
};
template <>
struct Clamps<double> {
  static constexpr double low = 1e-4, high = 1 - 1e-4;
};

// A pixel's term of the sum, and its derivative by the logit (0 where the probability is clamped).
template <class A>
struct FocalTerm {
  A value, slope;
};

POSEKD_HD float exp_of(float x) { return expf(x); }
POSEKD_HD double exp_of(double x) { return exp(x); }
POSEKD_HD float log_of(float x) { return logf(x); }
POSEKD_HD double log_of(double x) { return log(x); }

template <class A>
POSEKD_HD FocalTerm<A> focal_term(A logit, A target, bool counted) {
  const A raw = 1 / (1 + exp_of(-logit));
  const A p = raw < Clamps<A>::low ? Clamps<A>::low : raw > Clamps<A>::high ? Clamps<A>::high : raw;  // NaN stays
  const A q = 1 - p;
  const bool clamped = raw < Clamps<A>::low || raw > Clamps<A>::high;
  if (target == 1) {
    const A log_p = log_of(p);
    return {q * q * log_p, clamped ? A(0) : q * q * (q - 2 * p * log_p)};
  }
  if (!counted) return {A(0), A(0)};
  const A far = (1 - target) * (1 - target), weight = far * far * p * p, log_q = log_of(q);
  return {weight * log_q, clamped ? A(0) : weight * (2 * q * log_q - p)};
}

}  // namespace
}  // namespace posekd
