// CUDA kernel of render_heatmaps: a thread draws 16 bytes of one map; a block shares the keypoints of the map's people.
#include "core/cuda_compat.h"
#include "render_heatmaps/render_heatmaps.h"

namespace posekd {
namespace {

constexpr int kThreads = 128;
constexpr int kPeople = 64;  // keypoints a block holds at a time

struct RenderParams {
  const float* keypoints;  // [B, P, K, 3]
  float* weight;           // [B, K]
  int64_t joints, people;
  int width, height, tiles;  // tiles: blocks per map
  float sigma;
  GaussianKind kind;
};

// The Gaussian over N neighbouring pixels, merged into `values` by the maximum. (x, y) is the first pixel.
template <int N>
__device__ __forceinline__ void merge(const GaussianJoint& joint, float sigma, int width, int x, int y,
                                      float (&values)[N]) {
  if (!joint.drawn) return;
  float row = gaussian_value(joint.y, sigma, y);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (row > 0.0f) values[i] = fmaxf(values[i], row * gaussian_value(joint.x, sigma, x));
    if (++x == width) {
      x = 0;
      row = gaussian_value(joint.y, sigma, ++y);
    }
  }
}

template <class Out, int N>
__global__ void __launch_bounds__(kThreads) render_kernel(RenderParams p, Out* __restrict__ heatmaps) {
  __shared__ GaussianJoint shared[kPeople];
  const int64_t map = blockIdx.x / p.tiles, batch = map / p.joints, joint = map % p.joints;
  const int tile = static_cast<int>(blockIdx.x % p.tiles);
  const int pixels = p.width * p.height, first = (tile * kThreads + static_cast<int>(threadIdx.x)) * N;
  float values[N] = {};
  float weight = 0.0f;
  for (int64_t chunk = 0; chunk < p.people; chunk += kPeople) {
    const int count = static_cast<int>(p.people - chunk < kPeople ? p.people - chunk : kPeople);
    if (static_cast<int>(threadIdx.x) < count) {
      const int64_t entry = (batch * p.people + chunk + threadIdx.x) * p.joints + joint;
      shared[threadIdx.x] = gaussian_joint(p.kind, p.keypoints + 3 * entry, p.sigma, p.width, p.height);
    }
    __syncthreads();
    if (first < pixels)
      for (int i = 0; i < count; ++i) merge<N>(shared[i], p.sigma, p.width, first % p.width, first / p.width, values);
    if (tile == 0 && threadIdx.x == 0)
      for (int i = 0; i < count; ++i) weight = fmaxf(weight, shared[i].weight);
    __syncthreads();
  }
  if (tile == 0 && threadIdx.x == 0) p.weight[map] = weight;
  if (first >= pixels) return;
  Pack<Out, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<Out>(values[i]);
  *reinterpret_cast<Pack<Out, N>*>(heatmaps + map * pixels + first) = pack;  // N divides the map, see launch_render
}

template <class Out, int N>
void launch_render(const RenderHeatmaps& args, const CudaContext& context) {
  RenderParams p{args.keypoints.as<float>(),
                 args.weight.as<float>(),
                 args.joints(),
                 args.people(),
                 args.width(),
                 args.height(),
                 0,
                 static_cast<float>(args.sigma),
                 args.kind};
  p.tiles = ceil_div(p.width * p.height, kThreads * N);
  launch(context, render_kernel<Out, N>, dim3(static_cast<unsigned>(args.maps() * p.tiles)), dim3(kThreads), 0, p,
         args.heatmaps.as<Out>());
}

}  // namespace

void render_heatmaps_cuda(const RenderHeatmaps& args, const CudaContext& context) {
  dispatch_float<false>(args.heatmaps.dtype, [&](auto tag) {
    using Out = typename decltype(tag)::type;
    constexpr int kVector = 16 / sizeof(Out);
    const bool aligned = reinterpret_cast<uintptr_t>(args.heatmaps.data) % 16 == 0;
    if (aligned && args.width() * args.height() % kVector == 0)
      launch_render<Out, kVector>(args, context);
    else
      launch_render<Out, 1>(args, context);
  });
}

}  // namespace posekd
