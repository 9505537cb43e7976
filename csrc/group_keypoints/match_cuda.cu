// CUDA kernel of match_by_tag: a warp per image, one launch.
#include "core/cuda_compat.h"
#include "group_keypoints/match_image.h"

namespace posekd {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Warp {
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int size() const { return kWarp; }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  __device__ __forceinline__ Candidate cheapest(Candidate mine) const {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      Candidate other;
      other.cost.first = __shfl_xor_sync(kAllLanes, mine.cost.first, offset);
      other.cost.second = __shfl_xor_sync(kAllLanes, mine.cost.second, offset);
      other.column = __shfl_xor_sync(kAllLanes, mine.column, offset);
      mine = cheaper(mine, other);
    }
    return mine;
  }
  __device__ __forceinline__ int lowest(int mine) const {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) mine = min(mine, __shfl_xor_sync(kAllLanes, mine, offset));
    return mine;
  }
  __device__ __forceinline__ int append(bool keep, int value, int* list, int count) const {
    const unsigned votes = __ballot_sync(kAllLanes, keep), below = (1u << lane()) - 1u;
    if (keep) list[count + __popc(votes & below)] = value;
    return count + __popc(votes);
  }
};

__global__ void __launch_bounds__(kWarp)
    match_kernel(MatchSettings settings, const float* peaks, float* keypoints, float* scores, int64_t* counts,
                 unsigned char* workspace, int64_t bytes) {
  const int64_t b = blockIdx.x;
  const Warp team;
  auto at = reinterpret_cast<uintptr_t>(workspace + b * bytes);
  const MatchWorkspace work = carve(at, settings.joints, settings.max_people, settings.channels);
  const MatchTensors tensors = match_tensors(settings, b, peaks, keypoints, scores, counts);
  Matcher<Warp>(team, settings, tensors, work).run();
}

}  // namespace

void match_by_tag_cuda(const MatchByTag& args, const CudaContext& context) {
  launch(context, match_kernel, dim3(static_cast<unsigned>(args.peaks.shape[0])), dim3(kWarp), 0, match_settings(args),
         args.peaks.as<float>(), args.keypoints.as<float>(), args.scores.as<float>(), args.counts.as<int64_t>(),
         args.workspace.as<unsigned char>(), args.workspace.shape[1]);
}

}  // namespace posekd
