// distill_loss with a row in registers: loss and gradient in one pass over the maps, a block a row, or a cluster of
// blocks for a row that does not fit into one. See distill_loss.h for the floor.
//
// A throw-away prototype of this design took, forward and backward, 17.5 us at [64, 17, 64, 48] in float32 (bfloat16:
// 12.3 to 13) and 38.9 to 41.2 us at [32, 17, 128, 128] (28.5 to 29.2) on an H200; this kernel is not yet measured.
//
// Every thread loads kPacks times 16 bytes of each map, computes both exponentials relative to its warp's maxima, and
// keeps them with the linear part of the gradient. The block exchanges one record a warp; the softmaxes then need one
// factor for each map.
#include <algorithm>

#include "core/cuda_cluster.cuh"
#include "core/cuda_math.cuh"
#include "distill_loss/distill_loss_device.cuh"

namespace posekd {
namespace {

constexpr int kMaxThreads = 256, kMaxCluster = 8;
constexpr float kLog2e = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;

enum class Labels { map, keypoints };  // an absent one is a map that is not there

// What a warp knows of its part of a row. z and a are relative to the maxima, which are those of s/T and t/T in units
// of log 2.
struct alignas(16) Record {
  float z_s, z_t, max_s, max_t;
  float a, teacher, label, unused;  // a: sum of exp(t/T - max_t) * (t - s)
};

// Five sums over a warp in 8 shuffles instead of 25: lanes trade halves, so that each goes on with fewer sums. Lanes 0,
// 16, 8, 24 and 4 hold the first to the fifth.
__device__ __forceinline__ float five_sums(float v0, float v1, float v2, float v3, float v4) {
  const int lane = threadIdx.x % kWarp;
  const bool b16 = lane & 16, b8 = lane & 8, b4 = lane & 4;
  float x = (b16 ? v1 : v0) + __shfl_xor_sync(kAllLanes, b16 ? v0 : v1, 16);
  float y = (b16 ? v3 : v2) + __shfl_xor_sync(kAllLanes, b16 ? v2 : v3, 16);
  float z = v4 + __shfl_xor_sync(kAllLanes, v4, 16);
  x = (b8 ? y : x) + __shfl_xor_sync(kAllLanes, b8 ? x : y, 8);
  z += __shfl_xor_sync(kAllLanes, z, 8);
  x = (b4 ? z : x) + __shfl_xor_sync(kAllLanes, b4 ? x : z, 4);
  x += __shfl_xor_sync(kAllLanes, x, 2);
  return x + __shfl_xor_sync(kAllLanes, x, 1);
}

__device__ __forceinline__ void write_record(Record* to, float sum, float max_s, float max_t) {
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) to->z_s = sum, to->max_s = max_s, to->max_t = max_t;
  if (lane == 16) to->z_t = sum;
  if (lane == 8) to->a = sum;
  if (lane == 24) to->teacher = sum;
  if (lane == 4) to->label = sum;
}

// A row's sums: z_s and z_t relative to max_s and max_t.
__device__ __forceinline__ Record merge(const Record& x, const Record& y) {
  Record sum;
  sum.max_s = fmaxf(x.max_s, y.max_s);
  sum.max_t = fmaxf(x.max_t, y.max_t);
  const float xt = fast_exp2(x.max_t - sum.max_t), yt = fast_exp2(y.max_t - sum.max_t);
  sum.z_s = x.z_s * fast_exp2(x.max_s - sum.max_s) + y.z_s * fast_exp2(y.max_s - sum.max_s);
  sum.z_t = x.z_t * xt + y.z_t * yt;
  sum.a = x.a * xt + y.a * yt;
  sum.teacher = x.teacher + y.teacher;
  sum.label = x.label + y.label;
  return sum;
}

// All records of the row, at most two a lane, by each warp for itself; every lane gets the result.
__device__ __forceinline__ Record merge_records(const Record* records, int count) {
  const int lane = threadIdx.x % kWarp;
  Record mine{0.0f, 0.0f, -FLT_MAX, -FLT_MAX, 0.0f, 0.0f, 0.0f, 0.0f};
  if (lane < count) mine = records[lane];
  if (lane + kWarp < count) mine = merge(mine, records[lane + kWarp]);
  Record sum;
  sum.max_s = warp_max(mine.max_s);
  sum.max_t = warp_max(mine.max_t);
  const float factor = fast_exp2(mine.max_t - sum.max_t);
  sum.z_s = warp_sum(mine.z_s * fast_exp2(mine.max_s - sum.max_s));
  sum.z_t = warp_sum(mine.z_t * factor);
  sum.a = warp_sum(mine.a * factor);
  sum.teacher = warp_sum(mine.teacher);
  sum.label = warp_sum(mine.label);
  return sum;
}

template <class T>
__device__ __forceinline__ uint4 load(const void* map, int64_t row, int64_t packs, int pack) {
  return __ldg(static_cast<const uint4*>(map) + row * packs + pack);
}

// Labels of 16 bytes of neighbours, which lie in one line of the map: the product of the two profiles.
template <int N>
__device__ __forceinline__ void draw(const DistillParams& p, const float* profile, int pixel, float (&out)[N]) {
  const int y = static_cast<int>((static_cast<float>(pixel) + 0.5f) * p.inverse_width), x = pixel - y * p.width;
  const float factor = profile[p.width + y];
#pragma unroll
  for (int k = 0; k < N; k += 4) {
    const float4 across = *reinterpret_cast<const float4*>(profile + x + k);
    out[k] = across.x * factor, out[k + 1] = across.y * factor;
    out[k + 2] = across.z * factor, out[k + 3] = across.w * factor;
  }
}

// A thread's part of a row: what it has loaded, then what the gradient needs.
template <class T, int kPacks>
struct Part {
  uint4 s[kPacks], t[kPacks], g[kPacks];
};
template <class T, int kPacks>
struct Kept {
  float linear[kPacks][kVector<T>], exp_s[kPacks][kVector<T>], exp_t[kPacks][kVector<T>];
};

template <class T, int kPacks>
__device__ __forceinline__ float largest(const uint4 (&packs)[kPacks], const bool (&valid)[kPacks]) {
  float result = -FLT_MAX;
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    float v[kVector<T>];
    unpack<T>(packs[j], v);
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k)
      if (valid[j]) result = fmaxf(result, v[k]);
  }
  return result;
}

// The values that a row's statistics are written as: see distill_loss.h.
__device__ __forceinline__ void write_stats(const DistillParams& p, int row, const RowFacts& facts, const Record& sum,
                                            float lse_s, float lse_t) {
  float* stats = p.stats + 5 * static_cast<int64_t>(row);
  const float tw = facts.teacher_weight, lw = facts.label_weight;
  const bool empty = sum.max_s == -FLT_MAX && sum.max_t == -FLT_MAX && sum.z_s == 0.0f && sum.z_t == 0.0f;
  stats[0] = facts.use_teacher ? tw * tw * sum.teacher : 0.0f;
  stats[1] =
      facts.use_teacher && !empty ? tw * (sum.a / sum.z_t * p.inverse_temperature + (lse_s - lse_t) * kLn2) : 0.0f;
  stats[2] = facts.use_labels ? lw * lw * sum.label : 0.0f;
  stats[3] = lse_s * kLn2;
  stats[4] = lse_t * kLn2;
}

// Shared memory: the records of the row's warps, the double sums of the last block, its flag, the profiles.
struct Shared {
  Record records[kMaxCluster * kMaxThreads / kWarp];
  RowTerms scratch[kWarp];
  RowFacts facts;  // these two are read where they are needed: registers are short while the row is in them
  Slopes slopes;
  bool last;
};

template <class T, Labels kLabels, int kPacks>
__global__ void __launch_bounds__(kMaxThreads, kPacks == 4 ? 2 : 3)
    row_kernel(const __grid_constant__ DistillParams p) {
  constexpr int kSize = kVector<T>;
  POSEKD_DYNAMIC_SHARED(Shared, shared);
  float* const profile = reinterpret_cast<float*>(shared + 1);
  const int blocks = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  const int row = static_cast<int>(blockIdx.x) / blocks, threads = static_cast<int>(blockDim.x);
  const int row_packs = static_cast<int>(p.pixels) / kSize, first = rank * kPacks * threads + threadIdx.x;
  if (blocks > 1) cluster_arrive();  // nobody writes into a block that has not started

  // Rows of weight 0 are loaded too: the weight comes no sooner than the maps.
  Part<T, kPacks> part;
  bool valid[kPacks];
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int pack = first + j * threads;
    valid[j] = pack < row_packs;
    part.s[j] = part.t[j] = part.g[j] = uint4{0, 0, 0, 0};
    if (!valid[j]) continue;
    part.s[j] = load<T>(p.student.data, row, row_packs, pack);
    if (p.teacher.data) part.t[j] = load<T>(p.teacher.data, row, row_packs, pack);
    if (kLabels == Labels::map && p.target.data) part.g[j] = load<T>(p.target.data, row, row_packs, pack);
  }
  const RowFacts known = open_row(p, row, profile);
  if (threadIdx.x == 0) {
    shared->facts = known;
    shared->slopes = row_slopes(p, known, kScaledBeforeRounding<T> ? read_upstream(p) : 1.0f);
  }
  __syncthreads();
  const bool use_teacher = shared->facts.use_teacher, use_labels = shared->facts.use_labels;

  const float scale = kLog2e * p.inverse_temperature;
  float max_s = -FLT_MAX, max_t = -FLT_MAX;
  if (use_teacher) {
    max_s = fmaxf(warp_max(largest<T>(part.s, valid)) * scale, -FLT_MAX);
    max_t = fmaxf(warp_max(largest<T>(part.t, valid)) * scale, -FLT_MAX);
  }
  Kept<T, kPacks> kept;
  float z_s = 0.0f, z_t = 0.0f, a = 0.0f, teacher = 0.0f, label = 0.0f;
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    float s[kSize], t[kSize], g[kSize];
    unpack<T>(part.s[j], s);
    unpack<T>(part.t[j], t);
    if (kLabels == Labels::map)
      unpack<T>(part.g[j], g);
    else
      draw(p, profile, valid[j] ? (first + j * threads) * kSize : 0, g);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      float linear = 0.0f, exp_s = 0.0f, exp_t = 0.0f;
      if (use_teacher && valid[j]) {
        const float d = s[k] - t[k];
        exp_s = fast_exp2(fmaf(s[k], scale, -max_s));
        exp_t = fast_exp2(fmaf(t[k], scale, -max_t));
        z_s += exp_s;
        z_t += exp_t;
        teacher = fmaf(d, d, teacher);
        if (t[k] != -INFINITY) a = fmaf(-exp_t, d, a);  // 0 log 0 = 0
        linear = shared->slopes.teacher * d;
      }
      if (use_labels && valid[j]) {
        const float d = s[k] - g[k];
        label = fmaf(d, d, label);
        linear = fmaf(shared->slopes.label, d, linear);
      }
      kept.linear[j][k] = linear, kept.exp_s[j][k] = exp_s, kept.exp_t[j][k] = exp_t;
    }
  }

  const int warps = threads / kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Record* const mine = shared->records + rank * warps + warp;
  write_record(mine, five_sums(z_s, z_t, a, teacher, label), max_s, max_t);
  if (blocks > 1) {
    __syncwarp();
    const Record record = *mine;
    cluster_wait();
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane < blocks && lane != rank) store_to_rank(mine, lane, record);
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  const Record sum = merge_records(shared->records, blocks * warps);
  const float lse_s = sum.max_s + log2f(sum.z_s), lse_t = sum.max_t + log2f(sum.z_t);
  if (p.stats && rank == 0 && threadIdx.x == 0) write_stats(p, row, shared->facts, sum, lse_s, lse_t);
  if (p.gradient) {
    const float upstream = read_upstream(p), kl = shared->slopes.kl;
    const bool use_teacher = shared->facts.use_teacher;
    const float factor_s = use_teacher ? kl * fast_exp2(mine->max_s - lse_s) : 0.0f;
    const float factor_t = use_teacher ? kl * fast_exp2(mine->max_t - lse_t) : 0.0f;
    uint4* const to = static_cast<uint4*>(p.gradient) + static_cast<int64_t>(row) * row_packs;
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      float v[kSize];
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        v[k] = fmaf(factor_s, kept.exp_s[j][k], fmaf(-factor_t, kept.exp_t[j][k], kept.linear[j][k]));
        if (!kScaledBeforeRounding<T> && p.upstream) v[k] = to_float(from_float<T>(v[k])) * upstream;
      }
      if (valid[j]) to[first + j * threads] = pack<T>(v);
    }
  }
  if (p.stats && rank == 0 && last_of(p.counter, static_cast<unsigned>(p.rows), &shared->last))
    finish_loss(p, shared->scratch);
}

// How a row is divided.
struct Division {
  int cluster, packs, threads;
};

Division divide(int64_t row_packs, int item_bytes) {
  if (item_bytes == 4 && row_packs <= 3 * kMaxThreads) return {1, 3, 0};
  const int packs = item_bytes == 4 ? 4 : 2;
  int cluster = 1;
  while (static_cast<int64_t>(cluster) * packs * kMaxThreads < row_packs) cluster *= 2;
  return {cluster, packs, 0};
}

bool on_packs(const TensorView& map) { return reinterpret_cast<uintptr_t>(map.data) % 16 == 0; }

// The fast path's conditions, all of them.
bool fits(const DistillLoss& args, const CudaContext& context) {
  const DType dtype = args.student.dtype;
  const int64_t size = 16 / item_size(dtype), row_packs = args.pixels() / size;
  const auto like = [&](const TensorView& map) { return !map || (map.dtype == dtype && on_packs(map)); };
  if (args.mask || dtype == DType::float64 || args.pixels() % size != 0 || args.pixels() == 0) return false;
  if (!like(args.student) || !like(args.teacher) || !like(args.target) || !like(args.gradient)) return false;
  if (args.keypoints && args.student.shape[3] % size != 0) return false;  // 16 bytes in one line of the map
  if (args.rows() > INT32_MAX / kMaxCluster ||
      row_packs > kMaxCluster * (dtype == DType::float32 ? 4 : 2) * kMaxThreads)
    return false;
  return divide(row_packs, static_cast<int>(item_size(dtype))).cluster == 1 || has_clusters(context);
}

template <class T, Labels kLabels>
void launch_rows(const DistillLoss& args, const CudaContext& context) {
  const DistillParams p = distill_params(args);
  const int64_t row_packs = args.pixels() / kVector<T>;
  const Division division = divide(row_packs, sizeof(T));
  const int64_t threads = ceil_div<int64_t>(row_packs, division.cluster * division.packs);
  const size_t profile = p.keypoints ? sizeof(float) * static_cast<size_t>(p.width + p.height) : 0;
  const auto run = [&](auto kernel) {
    launch_clusters(context, kernel, dim3(static_cast<unsigned>(p.rows * division.cluster)),
                    dim3(static_cast<unsigned>(ceil_div<int64_t>(threads, kWarp) * kWarp)), sizeof(Shared) + profile,
                    static_cast<unsigned>(division.cluster), p);
  };
  if constexpr (sizeof(T) == 4)
    run(division.packs == 3 ? row_kernel<T, kLabels, 3> : row_kernel<T, kLabels, 4>);
  else
    run(row_kernel<T, kLabels, 2>);
}

}  // namespace

bool distill_loss_keeps_gradient_cuda(const DistillLoss& args, const CudaContext& context) {
  return args.gradient && args.gradient.dtype != DType::float16 && fits(args, context);
}

bool distill_loss_by_row(const DistillLoss& args, const CudaContext& context) {
  if (!fits(args, context)) return false;
  dispatch_float<false>(args.student.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.keypoints)
      launch_rows<T, Labels::keypoints>(args, context);
    else
      launch_rows<T, Labels::map>(args, context);
  });
  return true;
}

}  // namespace posekd
