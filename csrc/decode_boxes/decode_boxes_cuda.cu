// CUDA kernel of pair_corners: a block per image. Every thread scores its share of the pairs; then, round by round, the
// block finds the best and every thread lowers its share.
#include "core/cuda_reduce.cuh"
#include "decode_boxes/decode_boxes.h"
#include "decode_boxes/decode_boxes_math.h"

namespace posekd {
namespace {

constexpr int kThreads = 256;

// A pair as one number that sorts by score, then by the earlier pair; 0 is none. Scores are not negative.
using Key = unsigned long long;

__device__ __forceinline__ Key key_of(float score, int index) {
  return score > 0.0f ? static_cast<Key>(__float_as_uint(score)) << 32 | (0xffffffffu - static_cast<unsigned>(index))
                      : 0;
}

struct Params {
  const float *corners, *centers, *areas_scale;
  float *boxes, *scores, *workspace;
  int64_t* counts;
  int views, points, num_centers, mirrored, max_boxes;
  float sigma;
};

__global__ void __launch_bounds__(kThreads) pair_kernel(Params p) {
  __shared__ Key scratch[kWarp], highest;
  const int64_t image = blockIdx.x;
  const ImagePoints in{p.corners + image * 6 * p.views * p.points,
                       p.centers + image * 3 * p.num_centers,
                       p.areas_scale[image],
                       p.views,
                       p.points,
                       p.num_centers,
                       p.mirrored};
  const int pairs = in.pairs();
  float* scores = p.workspace + image * pairs;  // a thread reads only what it has written
  for (int i = threadIdx.x; i < pairs; i += kThreads) scores[i] = score_of_pair(in, i, box_of_pair(in, i));
  float* box_out = p.boxes + image * 4 * p.max_boxes;
  float* score_out = p.scores + image * p.max_boxes;
  int taken = 0;
  for (; taken < p.max_boxes; ++taken) {
    Key best = 0;
    for (int i = threadIdx.x; i < pairs; i += kThreads) {
      const Key key = key_of(scores[i], i);
      best = key > best ? key : best;
    }
    best = block_reduce(
        best, scratch, [](Key mine, int offset) { return __shfl_down_sync(0xffffffffu, mine, offset); },
        [](Key a, Key b) { return a > b ? a : b; });
    if (threadIdx.x == 0) highest = best;
    __syncthreads();
    best = highest;
    if (best == 0) break;
    const int index = static_cast<int>(0xffffffffu - static_cast<unsigned>(best));
    const Box box = box_of_pair(in, index);
    if (threadIdx.x == 0) {
      box_out[4 * taken] = box.x1;
      box_out[4 * taken + 1] = box.y1;
      box_out[4 * taken + 2] = box.x2;
      box_out[4 * taken + 3] = box.y2;
      score_out[taken] = __uint_as_float(static_cast<unsigned>(best >> 32));
    }
    for (int i = threadIdx.x; i < pairs; i += kThreads) {
      if (i == index)
        scores[i] = 0.0f;
      else if (scores[i] > 0.0f)
        scores[i] = lowered(scores[i], overlap(box_of_pair(in, i), box), p.sigma);
    }
    __syncthreads();  // `highest` and `scratch` are written again
  }
  for (int i = 4 * taken + threadIdx.x; i < 4 * p.max_boxes; i += kThreads) box_out[i] = 0.0f;
  for (int i = taken + threadIdx.x; i < p.max_boxes; i += kThreads) score_out[i] = 0.0f;
  if (threadIdx.x == 0) p.counts[image] = taken;
}

}  // namespace

void pair_corners_cuda(const PairCorners& args, const CudaContext& context) {
  const Params p{args.corners.as<float>(),
                 args.centers.as<float>(),
                 args.areas_scale.as<float>(),
                 args.boxes.as<float>(),
                 args.scores.as<float>(),
                 args.workspace.as<float>(),
                 args.counts.as<int64_t>(),
                 args.views(),
                 args.points(),
                 args.num_centers(),
                 args.mirrored,
                 args.max_boxes(),
                 args.sigma};
  launch(context, pair_kernel, dim3(static_cast<unsigned>(args.images())), dim3(kThreads), 0, p);
}

}  // namespace posekd
