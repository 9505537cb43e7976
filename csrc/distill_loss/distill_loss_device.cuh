// What the kernels of distill_loss share: their parameters, a row's facts, and the sum over rows.
#pragma once

#include "core/cuda_reduce.cuh"
#include "core/gaussian.h"
#include "distill_loss/distill_loss.h"

namespace posekd {

struct DistillParams {
  struct Map {  // of any float type; data is null where absent
    const void* data;
    DType dtype;
  };
  Map student, teacher, target;
  const float* keypoints;       // [B*K, 3]
  const float* weight;          // [B*K]
  const float* teacher_weight;  // [B*K]
  const uint8_t* mask;          // [B, H*W]
  float* stats;                 // [B*K, 5]; null: the loss is not wanted
  float* loss;                  // []
  float* terms;                 // [3]
  const float* upstream;        // []; null: 1
  void* gradient;               // [B*K, H*W]; null: not wanted
  unsigned* counter;
  int64_t pixels;
  int rows, joints, width, height;
  GaussianKind kind;
  float sigma, inverse_temperature;
  float inverse_width;  // (pixel + 0.5) * inverse_width rounds down to the pixel's line: exact below 2^22 pixels
  double alpha, beta, label_factor, mse_scale, kl_scale, kl_slope;
};

DistillParams distill_params(const DistillLoss& args);

// The kernel that keeps a row in registers (distill_loss_row_cuda.cu): loss and gradient, each if wanted. Returns
// whether it was launched: what it takes is said there.
bool distill_loss_by_row(const DistillLoss& args, const CudaContext& context);

namespace {

// What a block knows of its row before it reads the maps.
struct RowFacts {
  float label_weight, teacher_weight;
  bool use_labels, use_teacher;
};

// Reads weights and, for keypoint labels, fills the shared profiles [width] and [height]: no barrier.
__device__ __forceinline__ RowFacts open_row(const DistillParams& p, int64_t row, float* profile) {
  RowFacts facts;
  facts.label_weight = p.weight ? p.weight[row] : 1.0f;
  if (p.keypoints) {
    const GaussianJoint joint = gaussian_joint(p.kind, p.keypoints + 3 * row, p.sigma, p.width, p.height);
    facts.label_weight *= joint.weight;
    for (int i = threadIdx.x; i < p.width; i += blockDim.x)
      profile[i] = joint.drawn ? gaussian_value(joint.x, p.sigma, i) : 0.0f;
    for (int i = threadIdx.x; i < p.height; i += blockDim.x)
      profile[p.width + i] = joint.drawn ? gaussian_value(joint.y, p.sigma, i) : 0.0f;
  }
  facts.teacher_weight = p.teacher_weight ? p.teacher_weight[row] : facts.label_weight;
  facts.use_labels = (p.target.data || p.keypoints) && facts.label_weight != 0.0f;
  facts.use_teacher = p.teacher.data && facts.teacher_weight != 0.0f;
  return facts;
}

__device__ __forceinline__ float read_upstream(const DistillParams& p) { return p.upstream ? *p.upstream : 1.0f; }

// What differences and probabilities are multiplied by in a row's gradient.
struct Slopes {
  float teacher, label, kl;
};

__device__ __forceinline__ Slopes row_slopes(const DistillParams& p, const RowFacts& facts, double upstream) {
  const double tw = facts.teacher_weight, lw = facts.label_weight;
  return {static_cast<float>(upstream * p.alpha * 2.0 * p.mse_scale * tw * tw),
          static_cast<float>(upstream * p.label_factor * 2.0 * p.mse_scale * lw * lw),
          static_cast<float>(upstream * p.kl_slope * tw)};
}

// The upstream gradient, which carries the loss scale, multiplies a float16 gradient before it is rounded: that type's
// exponents would lose the bare gradient of a mean. The others keep it, and are multiplied afterwards, by whichever
// kernel: so the gradient stored in the forward pass and one computed in the backward pass have the same bits.
template <class T>
constexpr bool kScaledBeforeRounding = sizeof(T) == sizeof(half_t) && !std::is_same_v<T, bfloat16_t>;

template <class T>
__device__ __forceinline__ T scaled(float gradient, float upstream) {
  const T stored = from_float<T>(gradient);
  return kScaledBeforeRounding<T> ? stored : from_float<T>(to_float(stored) * upstream);
}

struct RowTerms {
  double v[3];
};

// Adds up the rows, in a fixed order. By the block that came last; `scratch` is shared memory for 32.
__device__ __forceinline__ void finish_loss(const DistillParams& p, RowTerms* scratch) {
  RowTerms total{{0.0, 0.0, 0.0}};
#pragma unroll 4
  for (int row = threadIdx.x; row < p.rows; row += blockDim.x)
    for (int term = 0; term < 3; ++term) total.v[term] += __ldcg(p.stats + 5 * static_cast<int64_t>(row) + term);
  total = block_reduce(
      total, scratch,
      [](const RowTerms& mine, int offset) {
        RowTerms other;
        for (int i = 0; i < 3; ++i) other.v[i] = __shfl_down_sync(0xffffffffu, mine.v[i], offset);
        return other;
      },
      [](const RowTerms& a, const RowTerms& b) {
        return RowTerms{{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2]}};
      });
  if (threadIdx.x != 0) return;
  const double scale[3] = {p.mse_scale, p.kl_scale, p.mse_scale};
  const double factor[3] = {p.alpha, p.beta, p.label_factor};
  double sum = 0.0;
  for (int term = 0; term < 3; ++term) {
    p.terms[term] = static_cast<float>(total.v[term] * scale[term]);
    if (factor[term] != 0.0) sum += factor[term] * (total.v[term] * scale[term]);
  }
  *p.loss = static_cast<float>(sum);
}

}  // namespace
}  // namespace posekd
