// CUDA kernels of oks_nms and soft_oks_nms: one launch each. Everything is float64 and rounds as on the CPU (this file
// is compiled without fused multiply-adds), up to the last bit of exp. Not yet measured.
//
// oks_nms: a warp compares one pose with all others, 32 at a time, which gives words of bits (above the threshold), and
// counts the better ones, which gives the pose's rank. The last block then goes through the poses by rank, 32 at a
// time: those are settled among themselves in registers, and what stays removes from all others at once.
//
// soft_oks_nms: a cluster of blocks, a thread for each pose. In every round the best is found, and all scores are
// lowered by their likeness to it; a round is two barriers of the cluster.
#include <algorithm>

#include "core/cuda_cluster.cuh"
#include "core/cuda_math.cuh"
#include "core/cuda_reduce.cuh"
#include "oks/oks.h"

namespace posekd {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kMaxCluster = 8;
constexpr double kEps = 2.220446049250313e-16;  // what the official code adds to an area

// One number per pose, of any float type and stride.
struct Numbers {
  const void* data;
  int64_t stride;
  DType dtype;

  __device__ __forceinline__ double at(int i) const {
    const int64_t offset = i * stride;
    if (dtype == DType::float32) return static_cast<const float*>(data)[offset];
    if (dtype == DType::float64) return static_cast<const double*>(data)[offset];
    const uint16_t bits = static_cast<const uint16_t*>(data)[offset];
    return dtype == DType::float16 ? to_float(half_t{bits}) : to_float(bfloat16_t{bits});
  }
};

struct Params {
  const void* keypoints;
  int64_t stride[3];  // of the keypoints
  Numbers scores, areas;
  int64_t* kept;
  int64_t* count;
  unsigned* bits;  // [N, words]: word w of row i holds poses 32 w to 32 w + 31
  int* order;      // [N] by rank: the pose, or its complement if it takes no part
  unsigned* counter;
  int poses, joints, words, capacity;
  double threshold;
  double width[kMaxOksJoints];  // (2 sigma)^2
};

// Coordinate c of joint k of pose i.
template <class T>
__device__ __forceinline__ double coordinate(const Params& p, int i, int k, int c) {
  return to_float(static_cast<const T*>(p.keypoints)[i * p.stride[0] + k * p.stride[1] + c * p.stride[2]]);
}

// The mean over the joints. Once it can no longer exceed `enough`, some value not above that may be returned instead.
template <class T>
__device__ __forceinline__ double similarity(const Params& p, int i, int j, double enough) {
  constexpr double kSlack = 1e-9;  // far more than the sums round
  const double area = (p.areas.at(i) + p.areas.at(j)) / 2 + kEps, joints = p.joints;
  double sum = 0;
  for (int k = 0; k < p.joints; ++k) {
    const double dx = coordinate<T>(p, i, k, 0) - coordinate<T>(p, j, k, 0);
    const double dy = coordinate<T>(p, i, k, 1) - coordinate<T>(p, j, k, 1);
    sum += exp(-(dx * dx + dy * dy) / p.width[k] / area / 2);
    if (sum + static_cast<double>(p.joints - 1 - k) + kSlack < enough * joints) break;
  }
  return sum / joints;
}

__device__ __forceinline__ bool finite(double x) { return x - x == 0; }

// Whether pose i takes part: no NaN, no inf.
template <class T>
__device__ __forceinline__ bool takes_part(const Params& p, int i) {
  bool good = finite(p.scores.at(i)) && finite(p.areas.at(i));
  for (int k = 0; k < p.joints && good; ++k)
    good = finite(coordinate<T>(p, i, k, 0)) && finite(coordinate<T>(p, i, k, 1));
  return good;
}

// A score to rank by: every pose needs a rank, also one whose score is NaN, which takes no part.
__device__ __forceinline__ double rank_score(const Params& p, int i) {
  const double score = p.scores.at(i);
  return score == score ? score : -INFINITY;
}

// ---- Hard -----------------------------------------------------------------------------------------------------------

// By a warp: row i of the bits, and the pose's place in the order.
template <class T>
__device__ __forceinline__ void compare_with_all(const Params& p, int i) {
  const int lane = threadIdx.x % kWarp;
  const double mine = rank_score(p, i);
  int before = 0;
  for (int word = 0; word < p.words; ++word) {
    const int j = word * 32 + lane;
    const bool there = j < p.poses;
    const bool alike = there && similarity<T>(p, i, j, p.threshold) > p.threshold;
    const double theirs = there ? rank_score(p, j) : -INFINITY;
    const bool first = there && (theirs > mine || (theirs == mine && j < i));
    const unsigned bits = __ballot_sync(kAllLanes, alike);
    before += __popc(__ballot_sync(kAllLanes, first));
    if (lane == 0) p.bits[static_cast<int64_t>(i) * p.words + word] = bits;
  }
  if (lane == 0) p.order[before] = takes_part<T>(p, i) ? i : ~i;
}

__device__ __forceinline__ unsigned bits_of(const Params& p, int i, int word) {
  return __ldcg(p.bits + static_cast<int64_t>(i) * p.words + word);
}

// By a warp: which of the 32 poses from rank `first` on stay. Lane l gets the number of the l-th, or -1.
__device__ __forceinline__ unsigned settle(const Params& p, int first, const unsigned* removed, int* pose) {
  const int lane = threadIdx.x % kWarp, rank = first + lane;
  const int mine = rank < p.poses ? __ldcg(p.order + rank) : -1;
  unsigned stay = __ballot_sync(kAllLanes, mine >= 0 && !(removed[mine / 32] >> (mine % 32) & 1u));
  unsigned alike = 0;  // bit l: the pose of lane l is like mine
  for (int l = 0; l < kWarp; ++l) {
    const int other = __shfl_sync(kAllLanes, mine, l);
    if (mine >= 0 && other >= 0 && bits_of(p, mine, other / 32) >> (other % 32) & 1u) alike |= 1u << l;
  }
  for (int l = 0; l < kWarp; ++l) {
    const unsigned later = l == kWarp - 1 ? 0u : kAllLanes << (l + 1), duplicates = __shfl_sync(kAllLanes, alike, l);
    if (stay >> l & 1u) stay &= ~(duplicates & later);
  }
  *pose = mine;
  return stay;
}

template <class T>
__global__ void __launch_bounds__(kThreads) hard_kernel(const __grid_constant__ Params p) {
  __shared__ unsigned removed[kMaxOksPoses / 32];
  __shared__ int staying[kWarp], stayed;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (row < p.poses) compare_with_all<T>(p, row);
  __threadfence();
  __syncthreads();  // all of the block's rows are written before the block counts as done
  if (!last_block(p.counter)) return;
  for (int i = threadIdx.x; i < p.words; i += kThreads) removed[i] = 0;
  int count = 0;
  for (int first = 0; first < p.poses; first += kWarp) {
    __syncthreads();  // the removals of those before
    if (warp == 0) {
      int pose;
      const unsigned stay = settle(p, first, removed, &pose);
      const int place = __popc(stay & ((1u << lane) - 1u));
      if (stay >> lane & 1u) {
        staying[place] = pose;
        p.kept[count + place] = pose;
      }
      if (lane == 0) stayed = __popc(stay);
    }
    __syncthreads();
    for (int word = threadIdx.x; word < p.words; word += kThreads)
      for (int i = 0; i < stayed; ++i) removed[word] |= bits_of(p, staying[i], word);
    count += stayed;
  }
  for (int i = count + static_cast<int>(threadIdx.x); i < p.poses; i += kThreads) p.kept[i] = -1;
  if (threadIdx.x == 0) *p.count = count;
}

// ---- Soft -----------------------------------------------------------------------------------------------------------

// A pose and its lowered score; below 0: none.
struct alignas(16) Candidate {
  double score;
  int pose, unused;
};

__device__ __forceinline__ Candidate better(const Candidate& a, const Candidate& b) {
  if (b.pose < 0 || a.pose < 0) return b.pose < 0 ? a : b;
  return b.score > a.score || (b.score == a.score && b.pose < a.pose) ? b : a;
}

struct SoftShared {
  Candidate warps[kWarp];
  Candidate blocks[2][kMaxCluster];  // by the round's parity: the next round writes while this one is read
};

// The best of the cluster, in every thread. Contains barriers.
__device__ __forceinline__ Candidate best_of_all(Candidate mine, SoftShared* shared, int round) {
  mine = block_reduce(
      mine, shared->warps,
      [](const Candidate& c, int offset) {
        return Candidate{__shfl_down_sync(kAllLanes, c.score, offset), __shfl_down_sync(kAllLanes, c.pose, offset), 0};
      },
      better);
  const unsigned rank = cluster_rank(), size = cluster_size();
  Candidate* const slots = shared->blocks[round % 2];
  if (threadIdx.x == 0)
    for (unsigned other = 0; other < size; ++other) store_to_rank(slots + rank, other, mine);
  cluster_arrive();
  cluster_wait();
  Candidate best = slots[0];
  for (unsigned other = 1; other < size; ++other) best = better(best, slots[other]);
  return best;
}

template <class T>
__global__ void __launch_bounds__(kThreads) soft_kernel(const __grid_constant__ Params p) {
  POSEKD_DYNAMIC_SHARED(SoftShared, shared);
  constexpr int kOwn = kMaxOksPoses / kThreads;                  // poses of a thread, where there is only one block
  double* const scores = reinterpret_cast<double*>(shared + 1);  // [kOwn, kThreads]: this thread's are its own
  const int threads = static_cast<int>(cluster_size()) * kThreads;
  const int first = static_cast<int>(cluster_rank()) * kThreads + static_cast<int>(threadIdx.x);
  unsigned alive = 0;
  for (int own = 0, i = first; own < kOwn && i < p.poses; ++own, i += threads) {
    scores[own * kThreads + threadIdx.x] = p.scores.at(i);
    if (takes_part<T>(p, i)) alive |= 1u << own;
  }
  cluster_arrive();  // nobody writes into a block that has not started
  cluster_wait();
  int count = 0;
  for (int round = 0; round < p.capacity; ++round) {
    Candidate mine{0, -1, 0};
    for (int own = 0, i = first; own < kOwn && i < p.poses; ++own, i += threads)
      if (alive >> own & 1u) mine = better(mine, {scores[own * kThreads + threadIdx.x], i, 0});
    const Candidate best = best_of_all(mine, shared, round);
    if (cluster_rank() == 0 && threadIdx.x == 0) p.kept[round] = best.pose;
    if (best.pose < 0) continue;  // -1 to the end
    ++count;
    for (int own = 0, i = first; own < kOwn && i < p.poses; ++own, i += threads) {
      if (i == best.pose) alive &= ~(1u << own);
      if (!(alive >> own & 1u)) continue;
      const double overlap = similarity<T>(p, best.pose, i, -1);
      scores[own * kThreads + threadIdx.x] *= exp(-overlap * overlap / p.threshold);
    }
  }
  if (cluster_rank() == 0 && threadIdx.x == 0) *p.count = count;
}

// ---- Launches -------------------------------------------------------------------------------------------------------

Params make_params(const OksNms& args) {
  Params p{};
  p.keypoints = args.keypoints.data;
  for (int i = 0; i < 3; ++i) p.stride[i] = args.keypoints.stride[i];
  p.scores = {args.scores.data, args.scores.stride[0], args.scores.dtype};
  p.areas = {args.areas.data, args.areas.stride[0], args.areas.dtype};
  p.kept = args.kept.as<int64_t>(), p.count = args.count.as<int64_t>();
  p.bits = args.bits.as<unsigned>(), p.order = args.order.as<int>();
  p.counter = args.counter.as<unsigned>();
  p.poses = static_cast<int>(args.keypoints.shape[0]);
  p.joints = static_cast<int>(args.keypoints.shape[1]);
  p.words = ceil_div(p.poses, 32);
  p.capacity = static_cast<int>(args.kept.shape[0]);
  p.threshold = args.threshold;
  for (int k = 0; k < p.joints; ++k) p.width[k] = (2 * args.sigmas[k]) * (2 * args.sigmas[k]);
  return p;
}

}  // namespace

void oks_nms_cuda(const OksNms& args, const CudaContext& context) {
  const Params p = make_params(args);
  const int blocks = has_clusters(context) ? std::min(kMaxCluster, ceil_div(p.poses, kThreads)) : 1;
  const int cluster = blocks > 4 ? 8 : blocks > 2 ? 4 : blocks;
  const size_t own = static_cast<size_t>(ceil_div(p.poses, cluster * kThreads));
  dispatch_float(args.keypoints.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.soft)
      launch_clusters(context, soft_kernel<T>, dim3(static_cast<unsigned>(cluster)), kThreads,
                      sizeof(SoftShared) + sizeof(double) * own * kThreads, static_cast<unsigned>(cluster), p);
    else
      launch(context, hard_kernel<T>, dim3(static_cast<unsigned>(ceil_div(p.poses, kWarps))), kThreads, 0, p);
  });
}

}  // namespace posekd
