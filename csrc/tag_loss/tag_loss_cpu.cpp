// CPU kernels of tag_loss, compiled once per vector level. See tag_loss.h for the floor.
#include <cstring>

#include "core/large_outputs.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "tag_loss/tag_loss.h"
#include "tag_loss/tag_loss_math.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kSerialItems = 32768;  // elements of a gradient that are not worth a second thread
constexpr int64_t kSerialJoints = 1024;  // keypoints of a forward pass that are not

template <class Args>
TagGrid grid_of(const Args& args) {
  return {static_cast<int>(args.people()), static_cast<int>(args.joints()), static_cast<int>(args.channels()),
          static_cast<int>(args.height()), static_cast<int>(args.width())};
}

// A person's tags around their mean: the mean squared distance; `slope` gets the distances.
template <class A>
struct Person {
  A mean, pull;
  int joints;
};

template <class T, class A>
Person<A> gather(const TagGrid& grid, const T* tags, const float* keypoints, A* slope) {
  Person<A> person{A(0), A(0), 0};
  for (int k = 0; k < grid.joints; ++k) {
    const int64_t pixel = tag_pixel(grid, keypoints + 3 * k, k);
    slope[k] = pixel < 0 ? A(0) : static_cast<A>(to_float(tags[pixel]));
    if (pixel >= 0) person.mean += slope[k], ++person.joints;
  }
  if (person.joints == 0) return person;
  person.mean /= static_cast<A>(person.joints);
  for (int k = 0; k < grid.joints; ++k) {
    if (tag_pixel(grid, keypoints + 3 * k, k) < 0) continue;
    slope[k] -= person.mean;
    person.pull += slope[k] * slope[k];
  }
  person.pull /= static_cast<A>(person.joints);
  return person;
}

// One image: both losses and their slopes. `people` is scratch.
template <class T, class A>
void image_forward(const TagGrid& grid, const T* tags, const float* keypoints, bool exponential, Person<A>* people,
                   A* pull, A* push, A* pull_slope, A* push_slope) {
  int present = 0;
  A pull_sum = 0, push_sum = 0;
  for (int p = 0; p < grid.people; ++p) {
    people[p] = gather(grid, tags, keypoints + int64_t{3} * p * grid.joints, pull_slope + int64_t{1} * p * grid.joints);
    pull_sum += people[p].pull;
    present += people[p].joints > 0;
  }
  const A pull_scale = pull_factor<A>(present), push_scale = push_factor<A>(present);
  for (int p = 0; p < grid.people; ++p) {
    A slope = 0;
    const A joints = static_cast<A>(people[p].joints);
    for (int q = 0; present > 1 && people[p].joints > 0 && q < grid.people; ++q) {
      if (q == p || people[q].joints == 0) continue;
      const PushTerm<A> term = push_term(people[p].mean, people[q].mean, exponential);
      push_sum += term.value;
      slope += term.slope;
    }
    // Every pair counts twice in the sum, and a keypoint is a share of its person's mean.
    push_slope[p] = people[p].joints > 0 ? 2 * push_scale * slope / joints : A(0);
    for (int k = 0; people[p].joints > 0 && k < grid.joints; ++k)
      pull_slope[int64_t{1} * p * grid.joints + k] *= 2 * pull_scale / joints;
  }
  *pull = pull_sum * pull_scale;
  *push = push_sum * push_scale;
}

template <class T>
void forward(const TagLoss& args, int threads) {
  using A = accumulate_t<T>;
  const TagGrid grid = grid_of(args);
  const int64_t joints = args.people() * args.joints(), pixels = args.channels() * args.height() * args.width();
  parallel_for(args.images(), kSerialJoints / (joints + 1) + 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<Person<A>> people(args.people());
    for (int64_t b = begin; b < end; ++b)
      image_forward(grid, args.tags.as<T>() + b * pixels, args.keypoints.as<float>() + 3 * b * joints, args.exponential,
                    people.get(), args.pull.as<A>() + b, args.push.as<A>() + b, args.pull_slope.as<A>() + b * joints,
                    args.push_slope.as<A>() + b * args.people());
  });
}

// The gradients of an image's keypoints into its zeroed maps; the first keypoint at a pixel adds up all that share it.
template <class T, class A>
void scatter(const TagGrid& grid, const int64_t* pixels, const A* slopes, T* gradient) {
  const int64_t total = int64_t{1} * grid.people * grid.joints;
  const int64_t step = grid.channels == 1 ? 1 : grid.joints;  // keypoints of another channel never share a pixel
  for (int64_t i = 0; i < total; ++i) {
    if (pixels[i] < 0) continue;
    bool first = true;
    for (int64_t j = i - step; j >= 0 && first; j -= step) first = pixels[j] != pixels[i];
    if (!first) continue;
    A sum = slopes[i];
    for (int64_t j = i + step; j < total; j += step)
      if (pixels[j] == pixels[i]) sum += slopes[j];
    gradient[pixels[i]] = from_float<T>(sum);
  }
}

template <class T>
void backward(const TagLossGradient& args, int threads) {
  using A = accumulate_t<T>;
  const TagGrid grid = grid_of(args);
  const int64_t joints = args.people() * args.joints(), size = args.channels() * args.height() * args.width();
  advise_huge_pages(args.gradient);
  parallel_for(args.images(), kSerialItems / (size + 1) + 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<int64_t> pixels(joints);
    const ScratchOf<A> slopes(joints);
    for (int64_t b = begin; b < end; ++b) {
      T* gradient = args.gradient.as<T>() + b * size;
      std::memset(static_cast<void*>(gradient), 0, static_cast<size_t>(size) * sizeof(T));
      const A pull = args.pull_upstream.as<A>()[b], push = args.push_upstream.as<A>()[b];
      for (int64_t i = 0; i < joints; ++i) {
        const int k = static_cast<int>(i % grid.joints);
        pixels.get()[i] = tag_pixel(grid, args.keypoints.as<float>() + 3 * (b * joints + i), k);
        slopes.get()[i] = pull * args.pull_slope.as<A>()[b * joints + i] +
                          push * args.push_slope.as<A>()[b * args.people() + i / grid.joints];
      }
      scatter(grid, pixels.get(), slopes.get(), gradient);
    }
  });
}

}  // namespace

void tag_loss_forward(const TagLoss& args, int threads) {
  dispatch_float(args.tags.dtype, [&](auto tag) { forward<typename decltype(tag)::type>(args, threads); });
}

void tag_loss_backward(const TagLossGradient& args, int threads) {
  dispatch_float(args.gradient.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(args, threads); });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
