// CPU kernel of decode_heatmaps, compiled once per vector level. See decode_heatmaps.h for the floor.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/parallel.h"
#include "core/stream.h"
#include "core/vec.h"
#include "decode_heatmaps/decode_heatmaps_math.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kSerialPixels = 1 << 20;  // a quarter of a millisecond of one core: waking others can take as long

template <class T>
struct Peak {
  T value;
  int64_t index;
};

// The running maximum of each lane, the vector in which it first stood, and whether NaN was seen.
template <class T>
struct LanePeaks {
  using V = typename Vec<T>::type;
  using Bits = typename Vec<T>::bits;
  V best = V{} - std::numeric_limits<T>::infinity();
  Bits vector = {};
  Bits unordered = {};  // -1 where a NaN was seen

  POSEKD_INLINE void add(V value, Bits index) {
    const Bits higher = value > best;
    best = higher ? value : best;
    vector = higher ? index : vector;
    unordered |= value != value;
  }
  POSEKD_INLINE void merge(const LanePeaks& other) {
    const Bits better = (other.best > best) | ((other.best == best) & (other.vector < vector));
    best = better ? other.best : best;
    vector = better ? other.vector : vector;
    unordered |= other.unordered;
  }
};

// The first maximum of n values; a NaN anywhere makes the value NaN.
template <class T>
Peak<T> first_maximum(const T* x, int64_t n) {
  constexpr int L = Vec<T>::kLanes, kChains = 4;  // independent chains hide the latency of compare and select
  using V = typename Vec<T>::type;
  using Bits = typename Vec<T>::bits;
  LanePeaks<T> chains[kChains];
  Bits index = {};
  int64_t i = 0;
  for (; i + kChains * L <= n; i += kChains * L, index += kChains)
    for (int c = 0; c < kChains; ++c) {
      fetch_ahead<false>(x + i + c * L);
      chains[c].add(load_as<V>(x + i + c * L), index + c);
    }
  for (int c = 1; c < kChains; ++c) chains[0].merge(chains[c]);
  Peak<T> peak{-std::numeric_limits<T>::infinity(), 0};
  bool nan = false;
  for (int lane = 0; lane < L; ++lane) {
    const T value = chains[0].best[lane];
    const int64_t at = static_cast<int64_t>(chains[0].vector[lane]) * L + lane;
    if (value > peak.value || (value == peak.value && at < peak.index)) peak = {value, at};
    nan |= chains[0].unordered[lane] != 0;
  }
  for (; i < n; ++i) {
    nan |= x[i] != x[i];
    if (x[i] > peak.value) peak = {x[i], i};
  }
  if (nan) peak.value = std::numeric_limits<T>::quiet_NaN();
  return peak;
}

// One map as T, with room for DARK's blur. Zero outside, as the published code pads.
template <class T>
class Plane {
 public:
  Plane(const DecodeHeatmaps& args)
      : width_(args.width()),
        height_(args.height()),
        taps_(args.blur),
        radius_(args.blur / 2),
        filter_(args.method == DecodeMethod::dark ? blur_taps<T>(args.blur) : BlurTaps<T>{}) {
    const int64_t count = int64_t{1} * width_ * height_ + 2 * (width_ + 2 * radius_ + 16);
    scratch_ = static_cast<T*>(std::aligned_alloc(64, (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64));
  }
  ~Plane() { std::free(scratch_); }
  Plane(const Plane&) = delete;
  Plane& operator=(const Plane&) = delete;

  template <class In>
  const T* open(const In* map) {
    if constexpr (std::is_same_v<In, T>) {
      map_ = map;
    } else {
      widen(map, scratch_, int64_t{1} * width_ * height_);
      map_ = scratch_;
    }
    return map_;
  }

  // DARK's step from the maximum at (x, y), whose value is `score` > 0.
  Point<T> dark_step(int x, int y, T score) const {
    if (!dark_inside(width_, height_, x, y)) return {T(0), T(0)};
    T patch[25];
    blur_patch(x, y, patch);
    T rescale = 1, low = patch[12];
    for (int i = 0; i < 25; ++i) low = dark_reads(i) && !(patch[i] >= low) ? patch[i] : low;
    if (!(low >= kDarkFloor)) {  // the clamp acts, so the published rescaling does not cancel
      const T highest = blurred_maximum();
      if (!(highest > 0)) return {T(0), T(0)};
      rescale = score / highest;
    }
    for (int i = 0; i < 25; ++i) {
      const T value = patch[i] * rescale;
      patch[i] = dark_reads(i) ? std::log(value < T(kDarkFloor) ? T(kDarkFloor) : value) : T(0);
    }
    return newton_step(patch);
  }

 private:
  // Adds the vertical blur around row y, of columns [begin, end), to out[0 ..].
  POSEKD_INLINE void blur_column(int y, int begin, int end, T* out) const {
    for (int t = 0; t < taps_; ++t) {
      const int row = y + t - radius_;
      if (row < 0 || row >= height_) continue;
      const T* line = map_ + static_cast<int64_t>(row) * width_;
      const T tap = filter_.tap[t];
      for (int i = begin; i < end; ++i) out[i - begin] += tap * line[i];
    }
  }

  // The blurred values of the 5x5 pixels around (x, y).
  void blur_patch(int x, int y, T (&patch)[25]) const {
    const int first = x - 2 - radius_, count = 5 + 2 * radius_;
    const int begin = first < 0 ? 0 : first, end = first + count > width_ ? width_ : first + count;
    for (int j = 0; j < 5; ++j) {
      T line[5 + kMaxBlur] = {};
      blur_column(y - 2 + j, begin, end, line + (begin - first));
      for (int i = 0; i < 5; ++i) {
        T sum = 0;
        for (int t = 0; t < taps_; ++t) sum += filter_.tap[t] * line[i + t];
        patch[5 * j + i] = sum;
      }
    }
  }

  T blurred_maximum() const {
    T* padded = scratch_ + int64_t{1} * width_ * height_;
    T* blurred = padded + width_ + 2 * radius_;
    T highest = -std::numeric_limits<T>::infinity();
    for (int y = 0; y < height_; ++y) {
      std::memset(padded, 0, static_cast<size_t>(2 * width_ + 2 * radius_) * sizeof(T));
      blur_column(y, 0, width_, padded + radius_);
      for (int t = 0; t < taps_; ++t)
        for (int i = 0; i < width_; ++i) blurred[i] += filter_.tap[t] * padded[i + t];
      for (int i = 0; i < width_; ++i) highest = blurred[i] > highest ? blurred[i] : highest;
    }
    return highest;
  }

  int width_, height_, taps_, radius_;
  BlurTaps<T> filter_;
  const T* map_ = nullptr;
  T* scratch_ = nullptr;
};

template <class In>
void decode(const DecodeHeatmaps& args, int threads) {
  using T = accumulate_t<In>;
  const int width = args.width(), height = args.height();
  const int64_t pixels = int64_t{1} * width * height;
  if (args.maps() * pixels < kSerialPixels) threads = 1;
  parallel_for(args.maps(), 32768 / pixels + 1, threads, [&](int64_t begin, int64_t end) {
    Plane<T> plane(args);
    for (int64_t index = begin; index < end; ++index) {
      const T* map = plane.open(args.heatmaps.as<In>() + index * pixels);
      const Peak<T> peak = first_maximum(map, pixels);
      Point<T> point{T(0), T(0)};
      if (peak.value > 0) {
        const int x = static_cast<int>(peak.index % width), y = static_cast<int>(peak.index / width);
        Point<T> shift{T(0), T(0)};
        if (args.method == DecodeMethod::quarter) shift = quarter_shift<T>(map, width, height, x, y);
        if (args.method == DecodeMethod::dark) shift = plane.dark_step(x, y, peak.value);
        point = {static_cast<T>(x) + shift.x, static_cast<T>(y) + shift.y};
      }
      const T* matrix = args.matrices ? args.matrices.as<T>() + 6 * (index / args.joints()) : nullptr;
      store_keypoint(point, peak.value, matrix, args.keypoints.as<T>() + 3 * index);
    }
  });
}

}  // namespace

void decode_heatmaps(const DecodeHeatmaps& args, int threads) {
  dispatch_float(args.heatmaps.dtype, [&](auto tag) { decode<typename decltype(tag)::type>(args, threads); });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
