// CPU kernels of simulated_heatmap_loss, compiled once per vector level. See simulated_heatmap_loss.h for the floor.
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "simulated_heatmap_loss/simulated_heatmap_loss.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int64_t kSerialPixels = 32768;  // not worth a second thread
// Vectors of columns that go down a map together: each has five registers, and three are shared.
constexpr int kTogether = POSEKD_VECTOR_BYTES == 64 ? 4 : 2;

template <class T>
constexpr int64_t padded(int64_t count) {
  return (count + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
}

template <class T, int... I>
POSEKD_INLINE vec<T> lane_numbers(std::integer_sequence<int, I...>) {
  return vec<T>{static_cast<T>(I)...};
}
template <class T>
POSEKD_INLINE vec<T> lane_numbers() {
  return lane_numbers<T>(std::make_integer_sequence<int, Vec<T>::kLanes>());
}

// A Gaussian along one axis, and it times the distance to the centre, and to the second power; 0 past the end.
template <class T>
struct Profile {
  T *value, *first, *second;
  T inverse_variance = 0;

  // The profile in `buffer`, of 3 * padded(size) elements.
  Profile(T* buffer, int64_t size) : value(buffer), first(buffer + padded<T>(size)), second(first + padded<T>(size)) {}

  void fill(T centre, T sigma, int64_t size) {
    constexpr int L = Vec<T>::kLanes;
    inverse_variance = T(1) / (sigma * sigma + static_cast<T>(kSimulatedEpsilon));
    const vec<T> zero = {};
    for (int64_t i = 0; i < size; i += L) {
      const vec<T> position = lane_numbers<T>() + static_cast<T>(i), u = position - centre;
      const vec<T> exponent = u * u * (inverse_variance * T(-0.5));
      vec<T> g = vec_exp(exponent);
      if constexpr (sizeof(T) == 4) g = select(exponent < T(-86.6), zero, g);  // where vec_exp stays above 0
      g = select(position >= static_cast<T>(size), zero, g);
      // Where nothing is left of the Gaussian the powers may be infinite.
      store(value + i, g);
      store(first + i, select(g == zero, zero, g * u));
      store(second + i, select(g == zero, zero, g * u * u));
    }
  }
};

// The five sums of a row.
template <class T>
struct Sums {
  T squares = 0, x = 0, xx = 0, y = 0, yy = 0;
};

// A map's pixels as T; columns past the map's width are zeros.
template <class T>
struct Plane {
  const T* data;
  int64_t stride, ahead;  // ahead: elements to what is read next, fetched meanwhile
};

// Adds N vectors of columns, which begin at `from`; of the last the first `counted` lanes were taken before.
template <class T, int N, bool kOverlap>
POSEKD_INLINE void add_columns(const Plane<T>& map, int64_t height, const Profile<T>& px, const Profile<T>& py,
                               const int64_t (&from)[N], int64_t counted, Sums<T>& sums) {
  const vec<T> zero = {};
  const auto taken = lane_numbers<T>() < static_cast<T>(counted);
  vec<T> a[N], squares[N] = {}, c0[N] = {}, c1[N] = {}, c2[N] = {};
  for (int n = 0; n < N; ++n) {
    a[n] = load(px.value + from[n]);
    if (kOverlap && n == N - 1) a[n] = select(taken, zero, a[n]);
  }
  const T* row = map.data;
  for (int64_t y = 0; y < height; ++y, row += map.stride) {
    const vec<T> b0 = broadcast(py.value[y]), b1 = broadcast(py.first[y]), b2 = broadcast(py.second[y]);
    for (int n = 0; n < N; ++n) {
      __builtin_prefetch(row + from[n] + map.ahead, 0, 2);
      vec<T> t = load(row + from[n]);
      if (kOverlap && n == N - 1) t = select(taken, zero, t);
      const vec<T> d = a[n] * b0 - t;
      squares[n] += d * d;
      c0[n] += d * b0;
      c1[n] += d * b1;
      c2[n] += d * b2;
    }
  }
  vec<T> all = {}, x = {}, xx = {}, yy = {}, y = {};
  for (int n = 0; n < N; ++n) {
    all += squares[n];
    x += c0[n] * load(px.first + from[n]);
    xx += c0[n] * load(px.second + from[n]);
    y += c1[n] * a[n];
    yy += c2[n] * a[n];
  }
  sums.squares += sum_lanes<T>(all);
  sums.x += sum_lanes<T>(x);
  sums.xx += sum_lanes<T>(xx);
  sums.y += sum_lanes<T>(y);
  sums.yy += sum_lanes<T>(yy);
}

// Columns from vector `first` on, N vectors of them. The last vector of a map ends with the map's width.
template <class T, int N>
POSEKD_INLINE void add_vectors(const Plane<T>& map, int64_t height, int64_t width, const Profile<T>& px,
                               const Profile<T>& py, int64_t first, Sums<T>& sums) {
  constexpr int L = Vec<T>::kLanes;
  int64_t from[N];
  for (int n = 0; n < N; ++n) from[n] = (first + n) * L;
  const int64_t over = (first + N) * L - width;
  if (over <= 0) return add_columns<T, N, false>(map, height, px, py, from, 0, sums);
  from[N - 1] -= over;
  add_columns<T, N, true>(map, height, px, py, from, over, sums);
}

// The sums of a map; `width` is at least a vector.
template <class T>
Sums<T> sum_map(const Plane<T>& map, int64_t height, int64_t width, const Profile<T>& px, const Profile<T>& py) {
  const int64_t vectors = padded<T>(width) / Vec<T>::kLanes;
  Sums<T> sums;
  int64_t at = 0;
  for (; at + kTogether <= vectors; at += kTogether) add_vectors<T, kTogether>(map, height, width, px, py, at, sums);
  const int64_t rest = vectors - at;
  if (rest == 3) add_vectors<T, 3>(map, height, width, px, py, at, sums);
  if (rest == 2) add_vectors<T, 2>(map, height, width, px, py, at, sums);
  if (rest == 1) add_vectors<T, 1>(map, height, width, px, py, at, sums);
  return sums;
}

template <class T>
class Worker {
 public:
  explicit Worker(const SimulatedHeatmapLoss& args)
      : args_(args),
        width_(args.width() < Vec<T>::kLanes ? Vec<T>::kLanes : args.width()),
        direct_(args.teacher.dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32) && width_ == args.width()),
        profiles_(3 * (padded<T>(args.width()) + padded<T>(args.height()))),
        copy_(direct_ ? 1 : width_ * args.height()),
        px_(profiles_.get(), args.width()),
        py_(profiles_.get() + 3 * padded<T>(args.width()), args.height()) {}

  // The row's statistics.
  void process(int64_t row) {
    T* out = args_.stats.as<T>() + 5 * row;
    const T w = weight(row);
    if (w == T(0)) {
      for (int i = 0; i < 5; ++i) out[i] = T(0);
      return;
    }
    const T W = static_cast<T>(args_.width()), H = static_cast<T>(args_.height());
    const T *centre = args_.coords.as<T>() + 2 * row, *sigma = args_.sigmas.as<T>() + 2 * row;
    px_.fill(W * centre[0], sigma[0], args_.width());
    py_.fill(H * centre[1], sigma[1], args_.height());
    const Sums<T> sums = sum_map(read(row), args_.height(), width_, px_, py_);
    const T factor = static_cast<T>(2 * args_.scale()) * (w * w);
    const T ix = px_.inverse_variance, iy = py_.inverse_variance;
    out[0] = w * w * sums.squares;
    out[1] = factor * W * (ix * sums.x);
    out[2] = factor * H * (iy * sums.y);
    out[3] = factor * (ix * sums.xx) * (ix * sigma[0]);
    out[4] = factor * (iy * sums.yy) * (iy * sigma[1]);
  }

 private:
  T weight(int64_t row) const { return args_.weight ? args_.weight.as<T>()[row] : T(1); }

  Plane<T> read(int64_t row) const {
    const int64_t pixels = args_.pixels(), columns = args_.width();
    if (direct_) {
      const bool more = row + 1 < args_.rows() && weight(row + 1) != T(0);
      return {args_.teacher.as<T>() + row * pixels, columns, more ? pixels : 0};
    }
    T* to = copy_.get();
    if (width_ == columns) {
      convert(args_.teacher.data, args_.teacher.dtype, row * pixels, pixels, to);
    } else {  // narrower than a vector
      for (int64_t i = 0; i < width_ * args_.height(); ++i) to[i] = T(0);
      for (int64_t y = 0; y < args_.height(); ++y)
        convert(args_.teacher.data, args_.teacher.dtype, row * pixels + y * columns, columns, to + y * width_);
    }
    return {to, width_, 0};
  }

  const SimulatedHeatmapLoss& args_;
  int64_t width_;  // of what is read: at least a vector
  bool direct_;    // the teacher is read where it lies
  ScratchOf<T> profiles_, copy_;
  Profile<T> px_, py_;
};

// Rows a thread takes at once: enough that the row fetched ahead is mostly its own, few enough that threads end
// together.
int64_t grain(const SimulatedHeatmapLoss& args, int threads) {
  const int64_t share = args.rows() / (8 * static_cast<int64_t>(threads < 1 ? 1 : threads));
  const int64_t least = kSerialPixels / (args.pixels() + 1) + 1;
  return share < least ? least : share > 32 && least < 32 ? 32 : share;
}

template <class T>
void forward(const SimulatedHeatmapLoss& args, int threads) {
  parallel_for(args.rows(), grain(args, threads), threads, [&](int64_t begin, int64_t end) {
    Worker<T> worker(args);
    for (int64_t row = begin; row < end; ++row) worker.process(row);
  });
  double total = 0;
  for (int64_t row = 0; row < args.rows(); ++row) total += static_cast<double>(args.stats.as<T>()[5 * row]);
  *args.loss.as<T>() = static_cast<T>(total * args.scale());
}

template <class T>
void backward(const SimulatedHeatmapLossGradient& args) {
  const T upstream = *args.upstream.as<T>();
  T *coords = args.coords_gradient.as<T>(), *sigmas = args.sigmas_gradient.as<T>();
  for (int64_t row = 0; row < args.rows(); ++row) {
    const T* slopes = args.stats.as<T>() + 5 * row + 1;
    coords[2 * row] = upstream * slopes[0];
    coords[2 * row + 1] = upstream * slopes[1];
    sigmas[2 * row] = upstream * slopes[2];
    sigmas[2 * row + 1] = upstream * slopes[3];
  }
}

}  // namespace

void simulated_heatmap_loss_forward(const SimulatedHeatmapLoss& args, int threads) {
  args.stats.dtype == DType::float64 ? forward<double>(args, threads) : forward<float>(args, threads);
}

void simulated_heatmap_loss_backward(const SimulatedHeatmapLossGradient& args, int) {
  args.stats.dtype == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
