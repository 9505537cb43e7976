#include "oks/oks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/parallel.h"

namespace posekd {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();  // what the official code adds to an area

// exp(-d^2 / (2 sigma)^2 / area / 2), where the area of a pair of poses is the mean of the two.
double joint_similarity(const double* a, const double* b, double area, double sigma) {
  const double dx = a[0] - b[0], dy = a[1] - b[1], width = 2 * sigma;
  return std::exp(-(dx * dx + dy * dy) / (width * width) / area / 2);
}

// The mean over the keypoints. Once it can no longer exceed `enough`, some value not above that may be returned
// instead.
double similarity(const double* a, const double* b, double area_a, double area_b, const double* sigmas, int64_t K,
                  double enough = -1) {
  constexpr double kSlack = 1e-9;  // far more than the sums round
  const double area = (area_a + area_b) / 2 + kEps, joints = static_cast<double>(K);
  double sum = 0;
  for (int64_t k = 0; k < K; ++k) {
    sum += joint_similarity(a + 2 * k, b + 2 * k, area, sigmas[k]);
    if (sum + static_cast<double>(K - 1 - k) + kSlack < enough * joints) break;
  }
  return sum / joints;
}

class Poses {
 public:
  explicit Poses(const OksNms& args) : args_(args), K_(args.keypoints.shape[1]) {}

  double similarity_of(int64_t i, int64_t j, double enough = -1) const {
    const double *points = args_.keypoints.as<double>(), *areas = args_.areas.as<double>();
    return similarity(points + 2 * K_ * i, points + 2 * K_ * j, areas[i], areas[j], args_.sigmas, K_, enough);
  }

  // The poses that take part: those without NaN and inf. By descending score, the earlier of two equal ones first.
  std::vector<int64_t> in_order() const {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < args_.keypoints.shape[0]; ++i)
      if (finite(i)) order.push_back(i);
    const double* scores = args_.scores.as<double>();
    std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return scores[i] > scores[j]; });
    return order;
  }

 private:
  bool finite(int64_t i) const {
    const double* points = args_.keypoints.as<double>() + 2 * K_ * i;
    return std::isfinite(args_.scores.as<double>()[i]) && std::isfinite(args_.areas.as<double>()[i]) &&
           std::all_of(points, points + 2 * K_, [](double x) { return std::isfinite(x); });
  }

  const OksNms& args_;
  int64_t K_;
};

std::vector<int64_t> hard(const OksNms& args) {
  const Poses poses(args);
  std::vector<int64_t> kept;
  for (const int64_t i : poses.in_order()) {
    const auto covers = [&](int64_t stays) { return poses.similarity_of(stays, i, args.threshold) > args.threshold; };
    if (std::none_of(kept.begin(), kept.end(), covers)) kept.push_back(i);
  }
  return kept;
}

// Instead of removing, multiplies the scores of the others by exp(-oks^2 / threshold) each time one is taken.
std::vector<int64_t> soft(const OksNms& args) {
  const Poses poses(args);
  std::vector<int64_t> left = poses.in_order(), kept;
  std::sort(left.begin(), left.end());
  std::vector<double> scores(args.scores.as<double>(), args.scores.as<double>() + args.scores.shape[0]);
  while (!left.empty() && static_cast<int64_t>(kept.size()) < args.kept.shape[0]) {
    const auto best =
        std::max_element(left.begin(), left.end(), [&](int64_t i, int64_t j) { return scores[i] < scores[j]; });
    kept.push_back(*best);
    left.erase(best);
    for (const int64_t i : left) {
      const double overlap = poses.similarity_of(kept.back(), i);
      scores[i] *= std::exp(-overlap * overlap / args.threshold);
    }
  }
  return kept;
}

}  // namespace

void oks(const Oks& args, int threads) {
  const int64_t N = args.a.shape[0], M = args.b.shape[0], K = args.a.shape[1];
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, M * K));
  parallel_for(N, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < M; ++j)
        args.similarity.as<double>()[i * M + j] =
            similarity(args.a.as<double>() + 2 * K * i, args.b.as<double>() + 2 * K * j, args.areas_a.as<double>()[i],
                       args.areas_b.as<double>()[j], args.sigmas, K);
  });
}

void oks_nms_cpu(const OksNms& args, int) {
  const std::vector<int64_t> kept = args.soft ? soft(args) : hard(args);
  int64_t* out = args.kept.as<int64_t>();
  std::fill(std::copy(kept.begin(), kept.end(), out), out + args.kept.shape[0], int64_t{-1});
  *args.count.as<int64_t>() = static_cast<int64_t>(kept.size());
}

}  // namespace posekd
