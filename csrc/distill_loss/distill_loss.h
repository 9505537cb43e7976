// Heatmap distillation: MSE to a teacher, KL of spatial softmaxes, MSE to labels, fused.
//
// Floor, float32, [64, 17, 64, 48] (3.3 M elements, 13.4 MB per map), teacher and heatmap labels:
//   loss and gradient in one pass: read s, t, g, write ds    53 MB (H200 at 4.3 TB/s: 12.5 us)
//   two passes: read s, t, g; read s, t, g, write ds        93 MB (9.3 + 12.5 us)
// Labels given as keypoints save the read of g. Two exponentials per element.
// How it gets near: one pass over the inputs. The CPU keeps a row (one keypoint's map, 12 KB) in L1 between the
// maximum, the exponentials and the gradient; the GPU keeps it in registers (distill_loss_row_cuda.cu). The gradient
// is then stored for an upstream gradient of 1, and multiplied in place in the backward pass unless that is 1. What
// would be rounded away: float16 cannot hold the bare gradient of a mean, and takes two passes; in float32 and
// bfloat16, which reach down to 1e-38, the result is within one ulp of that of two passes. Maps that do not fit take
// two passes as well, with a running maximum per thread (online softmax).
//
// A row is one (b, k) map of H*W pixels. Rows of weight 0 are not used, whatever stands in them. Statistics per row, in
// the accumulation type:
//   stats[row] = { sum of masked (s-t)^2, KL / T^2, sum of masked (s-g)^2, log-sum-exp of s/T, of t/T }
#pragma once

#include "core/cpu_dispatch.h"
#include "core/gaussian.h"
#include "core/tensor_view.h"

namespace posekd {

struct DistillLoss {
  TensorView student;         // [B, K, H, W] contiguous
  TensorView teacher;         // [B, K, H, W] or absent
  TensorView target;          // [B, K, H, W] or absent
  TensorView keypoints;       // [B, K, 3] float32, heatmap pixels, or absent
  TensorView weight;          // [B, K] accumulation type: of the labels
  TensorView teacher_weight;  // [B, K] accumulation type: of the teacher's two terms
  TensorView mask;            // [B, H, W] bool, or absent
  TensorView stats;           // [B*K, 5] accumulation type, written by the forward pass
  TensorView loss;            // [] accumulation type (forward)
  TensorView terms;           // [3] accumulation type: teacher MSE, KL, label MSE, unweighted (forward)
  TensorView upstream;        // [] gradient of the loss, accumulation type (backward)
  TensorView gradient;        // [B, K, H, W] student's dtype; absent in a forward pass without gradient
  TensorView counter;         // [1] int32, zero between calls (CUDA forward)
  double alpha = 0, beta = 0, temperature = 1, sigma = 2;
  GaussianKind kind = GaussianKind::msra;

  void set(double alpha_, double beta_, double temperature_, double sigma_, int kind_) {
    alpha = alpha_, beta = beta_, temperature = temperature_, sigma = sigma_;
    kind = static_cast<GaussianKind>(kind_);
  }

  // What the row sums are multiplied by: the means over B*K*H*W and B*K.
  double mse_scale() const { return 0.5 / (static_cast<double>(student.shape[0]) * student.shape[1] * pixels()); }
  double kl_scale() const {
    return temperature * temperature / (static_cast<double>(student.shape[0]) * student.shape[1]);
  }
  double label_factor() const { return 1.0 - alpha - beta; }
  int64_t rows() const { return student.shape[0] * student.shape[1]; }
  int64_t pixels() const { return student.shape[2] * student.shape[3]; }
};

POSEKD_CPU_ENTRY(distill_loss_forward, DistillLoss)
POSEKD_CPU_ENTRY(distill_loss_backward, DistillLoss)
void distill_loss_forward_cuda(const DistillLoss& args, const CudaContext& context);
void distill_loss_backward_cuda(const DistillLoss& args, const CudaContext& context);
// Whether the CUDA forward pass writes the gradient that it is given to fill.
bool distill_loss_keeps_gradient_cuda(const DistillLoss& args, const CudaContext& context);
// Multiplies `gradient` by `upstream` (CUDA only).
void distill_loss_scale_cuda(const DistillLoss& args, const CudaContext& context);

}  // namespace posekd
