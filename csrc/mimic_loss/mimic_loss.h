// Heatmap mimicking: ROIAlign of the student's maps against sets of target crops, weighted squared error, fused.
//
// Floor, float32, [16, 17, 128, 128] maps, 128 boxes to 64x48, two target sets (a map 17.8 MB, a set 26.7 MB):
//   forward: read the maps and the targets                                           71 MB (H200: 17 us)
//   backward: read both again, write the maps' gradient, and the targets' where it is wanted    89 MB, 143 MB
// How it gets near: a crop lives in cache (shared memory) between the sampling, the difference and the transposed
// sampling. Storing crops and their gradient would move 53 MB more each way. The targets' gradient is written by a
// kernel of its own on the GPU, which reads maps and targets a second time (107 MB); on the CPU by the same pass.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"
#include "roi_align/roi_align.h"

namespace posekd {

struct MimicLoss {
  TensorView maps;     // [N, K, H, W] contiguous
  TensorView boxes;    // [R, 5] (image, x1, y1, x2, y2), accumulation type
  TensorView targets;  // [M, R, K, P, Q] contiguous, any float type
  TensorView weight;   // [M, R, K] accumulation type; crops and targets of weight 0 are not read
  double spatial_scale = 1;
  int sampling_ratio = 2;
  bool aligned = true;
  TensorView stats;            // [M, R, K] accumulation type: weighted sums of squares (forward)
  TensorView loss;             // [M] accumulation type (forward)
  TensorView counter;          // [1] int32, zero between calls (CUDA forward)
  TensorView upstream;         // [M] gradient of the losses, accumulation type (backward)
  TensorView gradient;         // [N, K, H, W] maps' dtype (backward)
  TensorView target_gradient;  // [M, R, K, P, Q] targets' dtype, or absent (backward)
  const void* plan = nullptr;  // RoiPlan<T>, on the CPU

  int64_t sets() const { return targets.shape[0]; }
  // Equations 14 and 15 of SIMPLE: a mean over boxes and keypoints of sums over pixels.
  double scale() const { return 1.0 / (static_cast<double>(targets.shape[1]) * targets.shape[2]); }

  // The crop that this loss is about.
  RoiAlign roi() const {
    RoiAlign roi{maps, boxes, {}, spatial_scale, sampling_ratio, aligned, plan};
    for (int i = 0; i < 4; ++i) roi.crops.shape[i] = targets.shape[i + 1];
    return roi;
  }
};

// These plan the crops and call the kernels of the chosen vector level.
void mimic_loss_forward_cpu(const MimicLoss& args, int threads);
void mimic_loss_backward_cpu(const MimicLoss& args, int threads);
POSEKD_CPU_ENTRY(mimic_loss_sums, MimicLoss)
POSEKD_CPU_ENTRY(mimic_loss_gradients, MimicLoss)
void mimic_loss_forward_cuda(const MimicLoss& args, const CudaContext& context);
void mimic_loss_backward_cuda(const MimicLoss& args, const CudaContext& context);

}  // namespace posekd
