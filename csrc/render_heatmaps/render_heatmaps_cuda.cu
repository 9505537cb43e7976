// CUDA kernels of render_heatmaps. See render_heatmaps.h for the floor.
//
// A block draws a map, or a part of a large one: the profiles of its people along both axes, W + H values each, wait in
// shared memory, and so does, for every row and for every 16 bytes of columns, a word of bits that says whose Gaussian
// reaches it. A throw-away prototype took 6.0 us for one person a map and 15 us for 16 people merged at [64, 17, 64,
// 48] on an H200; this kernel is not yet measured. Where profiles do not fit, every pixel computes its own values.
#include <algorithm>

#include "core/cuda_compat.h"
#include "render_heatmaps/render_heatmaps.h"

namespace posekd {
namespace {

constexpr int kThreads = 128;
constexpr int kPeople = 32;     // a block holds at a time: bits of a word
constexpr int kPartPacks = 16;  // of a thread, before a map is divided

struct RenderParams {
  const float* keypoints;  // [B, P, K, 3]
  float* weight;           // [B, K]
  int64_t joints, people;
  int width, height;
  int parts, part;  // blocks of a map, packs of each
  float sigma;
  float inverse_groups;  // (pack + 0.5) * inverse_groups rounds down to the pack's line
  GaussianKind kind;
};

// The joints of `count` people of a map, from person `first` on, into shared memory; and the largest weight. By the
// whole block, without a barrier.
__device__ __forceinline__ void open_people(const RenderParams& p, int64_t map, int64_t first, int count,
                                            GaussianJoint* people) {
  const int64_t batch = map / p.joints, joint = map - batch * p.joints;
  if (static_cast<int>(threadIdx.x) >= count) return;
  const int64_t entry = (batch * p.people + first + threadIdx.x) * p.joints + joint;
  people[threadIdx.x] = gaussian_joint(p.kind, p.keypoints + 3 * entry, p.sigma, p.width, p.height);
}

__device__ __forceinline__ float largest_weight(const GaussianJoint* people, int count, float weight) {
  for (int i = 0; i < count; ++i) weight = fmaxf(weight, people[i].weight);
  return weight;
}

// Shared memory of the profile kernel behind the people: words of bits for rows and for groups of N columns, profiles.
struct Profiles {
  unsigned *rows, *groups;
  float* values;  // [people, W + H]
};

__device__ __forceinline__ Profiles carve(unsigned char* shared, const RenderParams& p, int groups) {
  auto* rows = reinterpret_cast<unsigned*>(shared + sizeof(GaussianJoint) * kPeople);
  return {rows, rows + p.height, reinterpret_cast<float*>(rows + (p.height + groups + 3) / 4 * 4)};
}

// Draws the profiles of the people, with N columns to a group. By the whole block, without a barrier behind.
template <int N>
__device__ __forceinline__ void draw_profiles(const RenderParams& p, const GaussianJoint* people, int count,
                                              const Profiles& profiles) {
  const int sides = p.width + p.height;
  for (int i = threadIdx.x; i < count * sides; i += kThreads) {
    const int person = i / sides, at = i - person * sides, pixel = at < p.width ? at : at - p.width;
    if (!people[person].drawn) continue;  // nobody reads its profile: it has no bits
    const float value = gaussian_value(at < p.width ? people[person].x : people[person].y, p.sigma, pixel);
    profiles.values[i] = value;
    if (value > 0.0f) atomicOr(at < p.width ? profiles.groups + pixel / N : profiles.rows + pixel, 1u << person);
  }
}

// The people of one group of N pixels of row y merged into `values` by the maximum.
template <int N>
__device__ __forceinline__ void merge(const RenderParams& p, const Profiles& profiles, int y, int group,
                                      float (&values)[N]) {
  const int sides = p.width + p.height;
  for (unsigned left = profiles.rows[y] & profiles.groups[group]; left; left &= left - 1) {
    const float* profile = profiles.values + (__ffs(static_cast<int>(left)) - 1) * sides;
    const float row = profile[p.width + y];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = fmaxf(values[i], row * profile[group * N + i]);
  }
}

template <class Out, int N>
__global__ void __launch_bounds__(kThreads) profile_kernel(const __grid_constant__ RenderParams p, Out* heatmaps) {
  POSEKD_DYNAMIC_SHARED(unsigned char, shared);
  auto* people = reinterpret_cast<GaussianJoint*>(shared);
  const int groups = p.width / N, packs = groups * p.height;
  const Profiles profiles = carve(shared, p, groups);
  const int64_t map = blockIdx.x / p.parts;
  const int part = static_cast<int>(blockIdx.x % p.parts), end = min((part + 1) * p.part, packs);
  auto* out = reinterpret_cast<Pack<Out, N>*>(heatmaps) + map * packs;
  float weight = 0.0f;
  int64_t first = 0;
  do {  // once, too, for a map of zeros where there is nobody
    const int count = static_cast<int>(min(p.people - first, static_cast<int64_t>(kPeople)));
    __syncthreads();  // the people before have been read
    open_people(p, map, first, count, people);
    for (int i = threadIdx.x; i < p.height + groups; i += kThreads) profiles.rows[i] = 0;
    __syncthreads();
    draw_profiles<N>(p, people, count, profiles);
    if (part == 0 && threadIdx.x == 0) weight = largest_weight(people, count, weight);
    __syncthreads();
    for (int i = part * p.part + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
      const int y = static_cast<int>((static_cast<float>(i) + 0.5f) * p.inverse_groups);
      float values[N] = {};
      if (first > 0) read_pack<Out, N>(out + i, 0, values);  // rounded, as their maximum will be
      merge<N>(p, profiles, y, i - y * groups, values);
      write_pack<Out, N>(out + i, 0, values);
    }
    first += kPeople;
  } while (first < p.people);
  if (part == 0 && threadIdx.x == 0) p.weight[map] = weight;
}

// Any size: a thread a pixel, both exponentials of every person.
template <class Out>
__global__ void __launch_bounds__(kThreads) pixel_kernel(const __grid_constant__ RenderParams p, Out* heatmaps) {
  __shared__ GaussianJoint people[kPeople];
  const int64_t map = blockIdx.x / p.parts, pixels = static_cast<int64_t>(p.width) * p.height;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x % p.parts) * kThreads + threadIdx.x;
  const int y = static_cast<int>(pixel / p.width), x = static_cast<int>(pixel - static_cast<int64_t>(y) * p.width);
  float value = 0.0f, weight = 0.0f;
  for (int64_t first = 0; first < p.people; first += kPeople) {
    const int count = static_cast<int>(min(p.people - first, static_cast<int64_t>(kPeople)));
    __syncthreads();  // the people before have been read
    open_people(p, map, first, count, people);
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      if (!people[i].drawn) continue;
      const float row = gaussian_value(people[i].y, p.sigma, y);
      if (row > 0.0f) value = fmaxf(value, row * gaussian_value(people[i].x, p.sigma, x));
    }
    weight = largest_weight(people, count, weight);
  }
  if (blockIdx.x % p.parts == 0 && threadIdx.x == 0) p.weight[map] = weight;
  if (pixel < pixels) heatmaps[map * pixels + pixel] = from_float<Out>(value);
}

size_t profile_bytes(const RenderHeatmaps& args, int vector) {
  const size_t sides = static_cast<size_t>(args.width() + args.height());
  const size_t words = static_cast<size_t>(args.height() + args.width() / vector + 3) / 4 * 4;
  const size_t people = static_cast<size_t>(std::min<int64_t>(args.people(), kPeople));
  return sizeof(GaussianJoint) * kPeople + 4 * words + 4 * sides * people;
}

// The conditions of the profile kernel with `vector` pixels at once, all of them.
bool fits(const RenderHeatmaps& args, const CudaContext& context, int vector) {
  const auto bytes = static_cast<uintptr_t>(vector * item_size(args.heatmaps.dtype));
  if (reinterpret_cast<uintptr_t>(args.heatmaps.data) % bytes != 0 || args.width() % vector != 0) return false;
  const int64_t packs = static_cast<int64_t>(args.width() / vector) * args.height();
  return packs < 1 << 20 && profile_bytes(args, vector) <= largest_shared(context);
}

RenderParams make_params(const RenderHeatmaps& args) {
  RenderParams p{};
  p.keypoints = args.keypoints.as<float>();
  p.weight = args.weight.as<float>();
  p.joints = args.joints(), p.people = args.people();
  p.width = args.width(), p.height = args.height();
  p.sigma = static_cast<float>(args.sigma);
  p.kind = args.kind;
  return p;
}

template <class Out, int N>
void launch_profiles(const RenderHeatmaps& args, const CudaContext& context) {
  RenderParams p = make_params(args);
  const int packs = p.width / N * p.height;
  p.parts = ceil_div(packs, kThreads * kPartPacks);
  p.part = ceil_div(packs, p.parts);
  p.inverse_groups = 1.0f / static_cast<float>(p.width / N);
  launch(context, profile_kernel<Out, N>, dim3(static_cast<unsigned>(args.maps() * p.parts)), kThreads,
         profile_bytes(args, N), p, args.heatmaps.as<Out>());
}

template <class Out>
void launch_pixels(const RenderHeatmaps& args, const CudaContext& context) {
  RenderParams p = make_params(args);
  p.parts = static_cast<int>(ceil_div<int64_t>(static_cast<int64_t>(p.width) * p.height, kThreads));
  launch(context, pixel_kernel<Out>, dim3(static_cast<unsigned>(args.maps() * p.parts)), kThreads, 0, p,
         args.heatmaps.as<Out>());
}

}  // namespace

void render_heatmaps_cuda(const RenderHeatmaps& args, const CudaContext& context) {
  dispatch_float<false>(args.heatmaps.dtype, [&](auto tag) {
    using Out = typename decltype(tag)::type;
    constexpr int kVector = 16 / sizeof(Out);
    if (fits(args, context, kVector)) return launch_profiles<Out, kVector>(args, context);
    if (fits(args, context, 1)) return launch_profiles<Out, 1>(args, context);
    launch_pixels<Out>(args, context);
  });
}

}  // namespace posekd
