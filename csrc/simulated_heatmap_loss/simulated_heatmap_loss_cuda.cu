// CUDA kernels of simulated_heatmap_loss. See simulated_heatmap_loss.h for the floor.
//
// A block takes a map. It asks for its first pixels, computes the two profiles meanwhile, and reads the map once.
#include "core/cuda_reduce.cuh"
#include "simulated_heatmap_loss/simulated_heatmap_loss.h"

namespace posekd {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kAhead = 3;  // packs of pixels a thread has on their way: a map of 64 x 48 in two turns
constexpr int kSums = 5;   // of d^2, and of d h times u, v, u^2, v^2

struct Params {
  const float* coords;                       // [rows, 2]
  const float* sigmas;                       // [rows, 2]
  const float* weight;                       // [rows] or null
  const void* teacher;                       // [rows, height * width]
  const float* upstream;                     // [] (backward)
  float* stats;                              // [rows, 5]
  float* loss;                               // []
  float *coords_gradient, *sigmas_gradient;  // [rows, 2] (backward)
  unsigned* counter;
  int64_t rows;
  int width, height;
  double scale;
};

// A Gaussian along one axis in shared memory, and it times the distance to the centre, and to the second power.
struct Profile {
  float *value, *first, *second;
};

__device__ __forceinline__ float inverse_variance(float sigma) {
  return 1.0f / (sigma * sigma + static_cast<float>(kSimulatedEpsilon));
}

__device__ __forceinline__ void fill(const Profile& profile, float centre, float sigma, int size) {
  const float exponent = -0.5f * inverse_variance(sigma);
  for (int i = threadIdx.x; i < size; i += kThreads) {
    const float u = static_cast<float>(i) - centre, g = expf(u * u * exponent);
    // Where nothing is left of the Gaussian the powers may be infinite.
    profile.value[i] = g;
    profile.first[i] = g == 0.0f ? 0.0f : g * u;
    profile.second[i] = g == 0.0f ? 0.0f : g * u * u;
  }
}

// N neighbouring values of a profile.
template <int N>
__device__ __forceinline__ void read_profile(const float* from, float (&out)[N]) {
  const auto pack = *reinterpret_cast<const Pack<float, N>*>(from);
  for (int i = 0; i < N; ++i) out[i] = pack.v[i];
}

// A thread's way through a map, pack by pack.
template <int N>
struct Walk {
  int pack, packs, x, y, in_row, step_x, step_y;

  __device__ Walk(int width, int height)
      : pack(threadIdx.x),
        packs(width / N * height),
        in_row(width / N),
        step_x(kThreads % in_row),
        step_y(kThreads / in_row) {
    y = pack / in_row;
    x = pack - y * in_row;
  }
  __device__ void step() {
    pack += kThreads;
    x += step_x;
    y += step_y;
    if (x >= in_row) x -= in_row, ++y;
  }
};

template <class T, int N>
__device__ __forceinline__ void read_ahead(const void* teacher, int64_t map, int pack, int packs,
                                           float (&t)[kAhead][N]) {
#pragma unroll
  for (int k = 0; k < kAhead; ++k)
    if (pack + k * kThreads < packs)
      read_pack<T, N>(teacher, map + static_cast<int64_t>(pack + k * kThreads) * N, t[k]);
}

// Adds N neighbouring pixels to a thread's sums.
template <int N>
__device__ __forceinline__ void add(const Profile& across, const Profile& down, int x, int y, const float (&t)[N],
                                    float (&sums)[kSums]) {
  float a0[N], a1[N], a2[N];
  read_profile(across.value + x, a0);
  read_profile(across.first + x, a1);
  read_profile(across.second + x, a2);
  const float b0 = down.value[y], b1 = down.first[y], b2 = down.second[y];
  float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float d = a0[i] * b0 - t[i];
    sums[0] += d * d;
    s0 += d * a0[i];
    s1 += d * a1[i];
    s2 += d * a2[i];
  }
  sums[1] += s1 * b0;
  sums[2] += s0 * b1;
  sums[3] += s2 * b0;
  sums[4] += s0 * b2;
}

// A block's sums: thread 0 writes the row's statistics.
__device__ __forceinline__ void write_row(const Params& p, int64_t row, float weight, float (&sums)[kSums],
                                          float (&scratch)[kWarps][kSums]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sums[i] = warp_sum(sums[i]);
    if (lane == 0) scratch[warp][i] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kSums; ++i)
    for (int w = 1; w < kWarps; ++w) sums[i] += scratch[w][i];
  const float sx = p.sigmas[2 * row], sy = p.sigmas[2 * row + 1];
  const float ix = inverse_variance(sx), iy = inverse_variance(sy);
  const float factor = static_cast<float>(2.0 * p.scale) * (weight * weight);
  float* stats = p.stats + 5 * row;
  stats[0] = weight * weight * sums[0];
  stats[1] = factor * static_cast<float>(p.width) * (ix * sums[1]);
  stats[2] = factor * static_cast<float>(p.height) * (iy * sums[2]);
  stats[3] = factor * (ix * sums[3]) * (ix * sx);
  stats[4] = factor * (iy * sums[4]) * (iy * sy);
}

// The last block to finish adds up the rows, in a fixed order.
__device__ __forceinline__ void finish(const Params& p, double* scratch) {
  if (!last_block(p.counter)) return;
  const volatile float* stats = p.stats;
  double sum = 0.0;
  for (int64_t row = threadIdx.x; row < p.rows; row += kThreads) sum += static_cast<double>(stats[5 * row]);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *p.loss = static_cast<float>(sum * p.scale);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 8) forward_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, shared);
  __shared__ float warp_sums[kWarps][kSums];
  __shared__ double scratch[kWarp];
  const int64_t row = blockIdx.x, map = row * p.width * static_cast<int64_t>(p.height);
  const float weight = p.weight ? p.weight[row] : 1.0f;
  if (weight != 0.0f) {  // for all threads of the block alike
    const Profile across{shared, shared + p.width, shared + 2 * p.width};
    float* rest = shared + 3 * p.width;
    const Profile down{rest, rest + p.height, rest + 2 * p.height};
    Walk<N> walk(p.width, p.height);
    float t[kAhead][N];
    read_ahead<T, N>(p.teacher, map, walk.pack, walk.packs, t);
    fill(across, static_cast<float>(p.width) * p.coords[2 * row], p.sigmas[2 * row], p.width);
    fill(down, static_cast<float>(p.height) * p.coords[2 * row + 1], p.sigmas[2 * row + 1], p.height);
    __syncthreads();
    float sums[kSums] = {};
    while (walk.pack < walk.packs) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (walk.pack < walk.packs) add<N>(across, down, walk.x * N, walk.y, t[k], sums);
        walk.step();
      }
      read_ahead<T, N>(p.teacher, map, walk.pack, walk.packs, t);
    }
    write_row(p, row, weight, sums, warp_sums);
  } else if (threadIdx.x < kSums) {
    p.stats[5 * row + threadIdx.x] = 0.0f;
  }
  finish(p, scratch);
}

__global__ void __launch_bounds__(kThreads) backward_kernel(Params p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, row = i / 4;
  const int number = static_cast<int>(i % 4);
  if (row >= p.rows) return;
  float* gradient = number < 2 ? p.coords_gradient : p.sigmas_gradient;
  gradient[2 * row + number % 2] = *p.upstream * p.stats[5 * row + 1 + number];
}

template <class T, int N>
void launch_forward(const Params& p, const CudaContext& context) {
  const size_t shared = 3 * sizeof(float) * (static_cast<size_t>(p.width) + static_cast<size_t>(p.height));
  launch(context, forward_kernel<T, N>, dim3(static_cast<unsigned>(p.rows)), kThreads, shared, p);
}

}  // namespace

void simulated_heatmap_loss_forward_cuda(const SimulatedHeatmapLoss& args, const CudaContext& context) {
  Params p{};
  p.coords = args.coords.as<float>();
  p.sigmas = args.sigmas.as<float>();
  p.weight = args.weight.as<float>();
  p.teacher = args.teacher.data;
  p.stats = args.stats.as<float>();
  p.loss = args.loss.as<float>();
  p.counter = args.counter.as<unsigned>();
  p.rows = args.rows();
  p.width = static_cast<int>(args.width());
  p.height = static_cast<int>(args.height());
  p.scale = args.scale();
  dispatch_float<false>(args.teacher.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool aligned = reinterpret_cast<uintptr_t>(args.teacher.data) % (4 * sizeof(T)) == 0;
    if (aligned && p.width % 4 == 0)
      launch_forward<T, 4>(p, context);
    else
      launch_forward<T, 1>(p, context);
  });
}

void simulated_heatmap_loss_backward_cuda(const SimulatedHeatmapLossGradient& args, const CudaContext& context) {
  Params p{};
  p.upstream = args.upstream.as<float>();
  p.stats = args.stats.as<float>();
  p.coords_gradient = args.coords_gradient.as<float>();
  p.sigmas_gradient = args.sigmas_gradient.as<float>();
  p.rows = args.rows();
  launch(context, backward_kernel, dim3(static_cast<unsigned>(ceil_div<int64_t>(4 * p.rows, kThreads))), kThreads, 0,
         p);
}

}  // namespace posekd
