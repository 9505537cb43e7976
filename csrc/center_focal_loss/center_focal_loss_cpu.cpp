// CPU kernels of center_focal_loss, compiled once per vector level: threads over the maps, row by row.
#include "center_focal_loss/center_focal_loss.h"
#include "center_focal_loss/center_focal_loss_math.h"
#include "core/large_outputs.h"
#include "core/parallel.h"
#include "core/scratch.h"

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

// Calls visit(pixel of the map, target, whether it counts) for every pixel of a map.
template <class Visit>
void for_each_pixel(const CenterFocalLoss& args, int64_t image, int point, Gaussian* list, float* line, Visit visit) {
  MapGaussians gaussians{list, 0};
  list_gaussians(args, image, point, gaussians);
  const int width = args.width();
  const bool* mask = args.mask ? args.mask.as<bool>() + image * args.height() * width : nullptr;
  for (int y = 0; y < args.height(); ++y) {
    draw_row(gaussians, y, width, line);
    const int64_t first = static_cast<int64_t>(y) * width;
    for (int x = 0; x < width; ++x) visit(first + x, line[x], mask == nullptr || mask[first + x]);
  }
}

template <class T>
void forward(const CenterFocalLoss& args, int threads) {
  using A = accumulate_t<T>;
  const int64_t images = args.images(), pixels = int64_t{1} * args.height() * args.width();
  double* sums = args.partial.as<double>();
  double* found = sums + kPoints * images;
  parallel_for(images * kPoints, 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<Gaussian> list(args.people());
    const ScratchOf<float> line(args.width());
    for (int64_t map = begin; map < end; ++map) {
      const int64_t image = map / kPoints, point = map % kPoints;
      const T* logits = args.logits.as<T>() + map * pixels;
      double sum = 0.0, positives = 0.0;
      for_each_pixel(args, image, static_cast<int>(point), list.get(), line.get(),
                     [&](int64_t pixel, float target, bool counted) {
                       const A logit = static_cast<A>(to_float(logits[pixel]));
                       sum += static_cast<double>(focal_term<A>(logit, static_cast<A>(target), counted).value);
                       positives += target == 1.0f;
                     });
      sums[point * images + image] = sum;
      found[point * images + image] = positives;
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
  advise_huge_pages(args.gradient);
  parallel_for(args.images() * kPoints, 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<Gaussian> list(args.people());
    const ScratchOf<float> line(args.width());
    for (int64_t map = begin; map < end; ++map) {
      const int64_t image = map / kPoints, point = map % kPoints;
      const T* logits = args.logits.as<T>() + map * pixels;
      T* gradient = args.gradient.as<T>() + map * pixels;
      const int64_t positives = args.points.as<int64_t>()[point];
      const A scale = -args.loss.as<A>()[point] / static_cast<A>(positives > 1 ? positives : 1);
      for_each_pixel(args, image, static_cast<int>(point), list.get(), line.get(),
                     [&](int64_t pixel, float target, bool counted) {
                       const A logit = static_cast<A>(to_float(logits[pixel]));
                       const A slope = focal_term<A>(logit, static_cast<A>(target), counted).slope;
                       gradient[pixel] = from_float<T>(scale * slope);
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
