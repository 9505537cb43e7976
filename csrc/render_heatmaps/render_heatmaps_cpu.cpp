// CPU kernel of render_heatmaps, compiled once per vector level. See render_heatmaps.h for the floor.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "core/large_outputs.h"
#include "core/parallel.h"
#include "core/stream.h"
#include "core/vec.h"
#include "render_heatmaps/render_heatmaps.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kSerialPixels = 1 << 20;  // a quarter of a millisecond of one core: waking others can take as long

// A thread's buffers: one map that is kept zero but for what is drawn, the same in the type of the result, and both
// profiles of a keypoint. Behind the map and the profiles there is room for a vector, so that lines are drawn in whole
// ones.
template <class T, class Out>
class Scratch {
 public:
  Scratch(int width, int height)
      : pixels_(int64_t{1} * width * height), map_(padded(pixels_)), column_(padded(width)), row_(padded(height)) {
    const int64_t bytes =
        (map_ + column_ + row_) * static_cast<int64_t>(sizeof(T)) + pixels_ * static_cast<int64_t>(sizeof(Out));
    data_ = static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
    std::memset(data_, 0, static_cast<size_t>(map_) * sizeof(T));
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* map() const { return data_; }
  T* column() const { return data_ + map_; }
  T* row() const { return column() + column_; }
  Out* result() const { return reinterpret_cast<Out*>(row() + row_); }

 private:
  static int64_t padded(int64_t size) { return (size / Vec<T>::kLanes + 2) * Vec<T>::kLanes; }
  int64_t pixels_, map_, column_, row_;
  T* data_ = nullptr;
};

// The rectangle of a map that is not zero.
struct Drawn {
  int left, right, top, bottom;

  void add(const GaussianJoint& joint) {
    left = joint.x.begin < left ? joint.x.begin : left;
    right = joint.x.end > right ? joint.x.end : right;
    top = joint.y.begin < top ? joint.y.begin : top;
    bottom = joint.y.end > bottom ? joint.y.end : bottom;
  }
};

// The values of an axis over its window, from axis.begin on, and zeros up to a whole vector.
template <class T>
POSEKD_INLINE void profile(const GaussianAxis& axis, T sigma, T* out) {
  constexpr int L = Vec<T>::kLanes;
  const T factor = T(-1) / (2 * sigma * sigma);
  vec<T> lane;
  for (int i = 0; i < L; ++i) lane[i] = static_cast<T>(i);
  int i = 0;
  for (; axis.begin + i < axis.end; i += L) {
    const vec<T> distance = lane + (static_cast<T>(axis.begin + i) - static_cast<T>(axis.centre));
    store(out + i, vec_exp(distance * distance * factor));
  }
  for (int rest = axis.end - axis.begin; rest < i; ++rest) out[rest] = 0;
}

// Merges one keypoint into the map by the maximum. The zeros behind the profile change nothing.
template <class T, class Out>
POSEKD_INLINE void draw(const GaussianJoint& joint, T sigma, int width, const Scratch<T, Out>& scratch) {
  using V = typename Vec<T>::type;
  profile(joint.x, sigma, scratch.column());
  profile(joint.y, sigma, scratch.row());
  const int count = joint.x.end - joint.x.begin;
  for (int y = joint.y.begin; y < joint.y.end; ++y) {
    const T value = scratch.row()[y - joint.y.begin];
    T* line = scratch.map() + int64_t{1} * y * width + joint.x.begin;
    for (int i = 0; i < count; i += Vec<T>::kLanes) {
      const V drawn = load_as<V>(scratch.column() + i) * value, old = load_as<V>(line + i);
      store_as(line + i, drawn > old ? drawn : old);
    }
  }
}

// Makes the map zero again, where it was drawn on.
template <class T, class Out>
POSEKD_INLINE void clear(const Drawn& area, int width, const Scratch<T, Out>& scratch) {
  using V = typename Vec<T>::type;
  for (int y = area.top; y < area.bottom; ++y)
    for (int x = area.left; x < area.right; x += Vec<T>::kLanes)
      store_as(scratch.map() + int64_t{1} * y * width + x, V{});
}

// Draws all people of one map; gives the keypoint's weight.
template <class T, class Out>
float draw_people(const RenderHeatmaps& args, int64_t index, const Scratch<T, Out>& scratch, Drawn& area) {
  const int64_t people = args.people(), joints = args.joints();
  float weight = 0;
  for (int64_t p = 0; p < people; ++p) {
    const int64_t entry = (index / joints * people + p) * joints + index % joints;
    const GaussianJoint joint = gaussian_joint(args.kind, args.keypoints.as<float>() + 3 * entry,
                                               static_cast<float>(args.sigma), args.width(), args.height());
    weight = joint.weight > weight ? joint.weight : weight;
    if (!joint.drawn) continue;
    draw(joint, static_cast<T>(args.sigma), args.width(), scratch);
    area.add(joint);
  }
  return weight;
}

template <class Out>
void render(const RenderHeatmaps& args, int threads) {
  using T = accumulate_t<Out>;
  const int width = args.width(), height = args.height();
  const int64_t pixels = int64_t{1} * width * height, bytes = pixels * static_cast<int64_t>(sizeof(Out));
  const bool stream = args.maps() * bytes >= stream_from();
  advise_huge_pages(args.heatmaps);
  if (args.maps() * pixels < kSerialPixels) threads = 1;
  parallel_for(args.maps(), 32768 / pixels + 1, threads, [&](int64_t begin, int64_t end) {
    const Scratch<T, Out> scratch(width, height);
    for (int64_t index = begin; index < end; ++index) {
      Drawn area{width, 0, height, 0};
      args.weight.as<float>()[index] = draw_people(args, index, scratch, area);
      const void* result = scratch.map();
      if constexpr (!std::is_same_v<T, Out>) {
        narrow(scratch.map(), scratch.result(), pixels);
        result = scratch.result();
      }
      Out* out = args.heatmaps.as<Out>() + index * pixels;
      stream ? stream_copy(out, result, bytes) : void(std::memcpy(out, result, static_cast<size_t>(bytes)));
      clear(area, width, scratch);
    }
    if (stream) stream_fence();
  });
}

}  // namespace

void render_heatmaps(const RenderHeatmaps& args, int threads) {
  dispatch_float(args.heatmaps.dtype, [&](auto tag) { render<typename decltype(tag)::type>(args, threads); });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
