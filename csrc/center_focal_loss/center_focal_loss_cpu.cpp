// CPU kernels of center_focal_loss, compiled once per vector level: threads over the maps, row by row.
#include "center_focal_loss/center_focal_loss.h"
#include "center_focal_loss/center_focal_loss_math.h"
#include "core/large_outputs.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

// The Gaussians of one map, those that are there.
struct MapGaussians {
  Gaussian* list;
  int count;
};

void list_gaussians(const CenterFocalLoss& args, int64_t image, int point, MapGaussians& out) {
  const int64_t given = args.counts.as<int64_t>()[image];
  const int people = given < args.people() ? static_cast<int>(given) : args.people();
  const float* boxes = args.boxes.as<float>() + 4 * image * args.people();
  out.count = 0;
  for (int i = 0; i < people; ++i) {
    const Gaussian one = gaussian_of(boxes + 4 * i, point, args.divided);
    if (one.radius >= 0) out.list[out.count++] = one;
  }
}

// The targets of one row.
void draw_row(const MapGaussians& in, int row, int width, float* line) {
  for (int x = 0; x < width; ++x) line[x] = 0.0f;
  for (int i = 0; i < in.count; ++i) {
    const Gaussian& g = in.list[i];
    const int dy = row - g.y;
    if (dy > g.radius || dy < -g.radius) continue;
    const int begin = g.x - g.radius > 0 ? g.x - g.radius : 0;
    const int end = g.x + g.radius + 1 < width ? g.x + g.radius + 1 : width;
    for (int x = begin; x < end; ++x) {
      const float value = std::exp(-static_cast<float>((x - g.x) * (x - g.x) + dy * dy) * g.sharpness);
      if (value > line[x]) line[x] = value;
    }
  }
}

// ln x for positive normal x, to 2 units in the last place: exponent and mantissa apart (Cephes' logf, 1989).
POSEKD_INLINE vec<float> vec_log(vec<float> x) {
  using Bits = Vec<float>::bits;
  const Bits bits = (Bits)x;
  vec<float> m = (vec<float>)((bits & 0x007fffff) | 0x3f800000);  // 1 <= m < 2
  vec<float> n = __builtin_convertvector((bits >> 23) - 127, vec<float>);
  const auto large = m > broadcast(1.41421356f);
  n = select(large, n + 1.0f, n);
  const vec<float> r = select(large, m * 0.5f, m) - 1.0f;
  vec<float> y = r * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  const vec<float> z = r * r;
  return n * 0.693359375f + (r + (n * -2.12194440e-4f + (y * r * z - z * 0.5f)));
}

// A row: its logits and targets, and what a pixel that is no point weighs, (1 - target)^4 or 0. Padded to whole
// vectors.
template <class A>
struct Row {
  A* logits;
  float* targets;
  A* weights;
};

constexpr int kPad = 16;

template <class A, class T>
void fill_row(const T* logits, const bool* mask, int width, Row<A>& row) {
  for (int x = 0; x < width; ++x) {
    const A rest = 1 - static_cast<A>(row.targets[x]), square = rest * rest;
    row.logits[x] = static_cast<A>(to_float(logits[x]));
    row.weights[x] = mask != nullptr && !mask[x] ? A(0) : square * square;
  }
  for (int x = width; x < width + kPad; ++x) row.logits[x] = A(0), row.weights[x] = A(0);
}

// What each pixel adds (`value`), or its slope times `scale`, over the row's logits; points are left for the caller.
template <bool kSlope>
void map_row(Row<float>& row, int width, float scale) {
  constexpr int L = Vec<float>::kLanes;
  const vec<float> low = broadcast(Clamps<float>::low), high = broadcast(Clamps<float>::high);
  for (int x = 0; x < width; x += L) {
    const vec<float> raw = 1.0f / (1.0f + vec_exp(-load(row.logits + x)));
    const auto below = raw<low, above = raw> high;
    const vec<float> p = select(below, low, select(above, high, raw)), q = 1.0f - p;
    const vec<float> weight = load(row.weights + x) * p * p, log_q = vec_log(q);
    vec<float> out = weight * log_q;
    if constexpr (kSlope) {
      const vec<float> zero = broadcast(0.0f);
      out = select(below, zero, select(above, zero, weight * (2.0f * q * log_q - p) * scale));
    }
    store(row.logits + x, out);
  }
}

template <bool kSlope>
void map_row(Row<double>& row, int width, double scale) {
  for (int x = 0; x < width; ++x) {
    const double target = row.targets[x] == 1.0f ? 0.0 : row.targets[x];
    const FocalTerm<double> term = focal_term<double>(row.logits[x], target, row.weights[x] != 0);
    row.logits[x] = kSlope ? term.slope * scale : term.value;
  }
}

// Goes through a map: visit(row number, row, number of points in it), each row mapped, its points exact.
template <bool kSlope, class T, class A, class Visit>
void for_each_row(const CenterFocalLoss& args, int64_t map, A scale, MapGaussians& gaussians, Row<A>& row,
                  Visit visit) {
  const int64_t image = map / kPoints, pixels = int64_t{1} * args.height() * args.width();
  const int width = args.width();
  list_gaussians(args, image, static_cast<int>(map % kPoints), gaussians);
  for (int y = 0; y < args.height(); ++y) {
    const int64_t first = static_cast<int64_t>(y) * width;
    const T* logits = args.logits.as<T>() + map * pixels + first;
    draw_row(gaussians, y, width, row.targets);
    fill_row<A>(logits, args.mask ? args.mask.as<bool>() + image * pixels + first : nullptr, width, row);
    map_row<kSlope>(row, width, scale);
    int points = 0;
    for (int i = 0; i < gaussians.count; ++i) {
      const Gaussian& g = gaussians.list[i];
      if (g.y != y || g.x < 0 || g.x >= width || row.targets[g.x] != 1.0f) continue;
      row.targets[g.x] = 0.5f;  // of several people at one pixel the first
      const FocalTerm<A> term = focal_term<A>(static_cast<A>(to_float(logits[g.x])), A(1), true);
      row.logits[g.x] = kSlope ? term.slope * scale : term.value;
      ++points;
    }
    visit(first, row.logits, points);
  }
}

template <class T>
void forward(const CenterFocalLoss& args, int threads) {
  using A = accumulate_t<T>;
  const int64_t images = args.images();
  const int width = args.width();
  double* sums = args.partial.as<double>();
  double* found = sums + kPoints * images;
  parallel_for(images * kPoints, 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<Gaussian> list(args.people());
    const ScratchOf<float> targets(width);
    const ScratchOf<A> logits(width + kPad), weights(width + kPad);
    MapGaussians gaussians{list.get(), 0};
    Row<A> row{logits.get(), targets.get(), weights.get()};
    for (int64_t map = begin; map < end; ++map) {
      double sum = 0.0, positives = 0.0;
      for_each_row<false, T>(args, map, A(1), gaussians, row, [&](int64_t, const A* values, int points) {
        double own = 0.0;
        for (int x = 0; x < width; ++x) own += static_cast<double>(values[x]);
        sum += own;
        positives += points;
      });
      sums[map % kPoints * images + map / kPoints] = sum;
      found[map % kPoints * images + map / kPoints] = positives;
    }
  });
  for (int point = 0; point < kPoints; ++point) {
    double sum = 0.0, positives = 0.0;
    for (int64_t image = 0; image < images; ++image)
      sum += sums[point * images + image], positives += found[point * images + image];
    args.loss.as<A>()[point] = static_cast<A>(-sum / (positives > 1.0 ? positives : 1.0));
    args.points.as<int64_t>()[point] = static_cast<int64_t>(positives);
  }
}

template <class T>
void backward(const CenterFocalLoss& args, int threads) {
  using A = accumulate_t<T>;
  const int64_t pixels = int64_t{1} * args.height() * args.width();
  const int width = args.width();
  advise_huge_pages(args.gradient);
  parallel_for(args.images() * kPoints, 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<Gaussian> list(args.people());
    const ScratchOf<float> targets(width);
    const ScratchOf<A> logits(width + kPad), weights(width + kPad);
    MapGaussians gaussians{list.get(), 0};
    Row<A> row{logits.get(), targets.get(), weights.get()};
    for (int64_t map = begin; map < end; ++map) {
      T* gradient = args.gradient.as<T>() + map * pixels;
      const int64_t positives = args.points.as<int64_t>()[map % kPoints];
      const A scale = -args.loss.as<A>()[map % kPoints] / static_cast<A>(positives > 1 ? positives : 1);
      for_each_row<true, T>(args, map, scale, gaussians, row, [&](int64_t first, const A* values, int) {
        for (int x = 0; x < width; ++x) gradient[first + x] = from_float<T>(values[x]);
      });
    }
  });
}

}  // namespace

void center_focal_loss_forward(const CenterFocalLoss& args, int threads) {
  dispatch_float(args.logits.dtype, [&](auto tag) { forward<typename decltype(tag)::type>(args, threads); });
}

void center_focal_loss_backward(const CenterFocalLoss& args, int threads) {
  dispatch_float(args.logits.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(args, threads); });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
