// Simulated heatmaps of regressed keypoints against a teacher's heatmaps (DistilPose): weighted squared error, fused.
//
// Floor, float32, [64, 17, 64, 48] (3.3 M elements, 13.4 MB):
//   forward, with the gradient: read the teacher once                13.4 MB (H200 at 4.3 TB/s: 3.1 us)
//   backward: scale 4352 numbers                                      35 KB
// Five multiply-adds per element; 112 exponentials per map, those of the two profiles, instead of 3072.
// How it gets near: a map is a product of two profiles, so it is never stored, and the gradient needs five sums of the
// difference d = h - t only: d^2, and d h times u, u^2, v, v^2 with (u, v) the pixel minus the centre. They are taken
// while the teacher is read. The CPU keeps them by column in registers; on the GPU a block takes a map. Few maps leave
// a GPU partly idle: below 132 maps (an H200's multiprocessors) the time is that of one block.
//
// A row is one (b, k) map of H*W pixels. Rows of weight 0 are not read. Per row, in the accumulation type:
//   stats[row] = { sum of (w d)^2, derivative of the loss by x, y (fractions), by sigma_x, sigma_y }
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

struct SimulatedHeatmapLoss {
  TensorView coords;   // [B, K, 2] accumulation type, fractions of width and height
  TensorView sigmas;   // [B, K, 2] accumulation type, heatmap pixels
  TensorView teacher;  // [B, K, H, W] contiguous, any float type
  TensorView weight;   // [B, K] accumulation type, or absent: 1
  TensorView stats;    // [B, K, 5] accumulation type
  TensorView loss;     // [] accumulation type
  TensorView counter;  // [1] int32, zero between calls (CUDA)

  int64_t rows() const { return teacher.shape[0] * teacher.shape[1]; }
  int64_t height() const { return teacher.shape[2]; }
  int64_t width() const { return teacher.shape[3]; }
  int64_t pixels() const { return height() * width(); }
  double scale() const { return 1.0 / (static_cast<double>(rows()) * static_cast<double>(pixels())); }
};

struct SimulatedHeatmapLossGradient {
  TensorView upstream;         // [] gradient of the loss
  TensorView stats;            // as above
  TensorView coords_gradient;  // [B, K, 2]
  TensorView sigmas_gradient;  // [B, K, 2]

  int64_t rows() const { return stats.shape[0] * stats.shape[1]; }
};

// Added to the squared sigmas, as released: a sigma of 0 is a Gaussian that reaches no neighbour.
constexpr double kSimulatedEpsilon = 1e-9;

POSEKD_CPU_ENTRY(simulated_heatmap_loss_forward, SimulatedHeatmapLoss)
POSEKD_CPU_ENTRY(simulated_heatmap_loss_backward, SimulatedHeatmapLossGradient)
void simulated_heatmap_loss_forward_cuda(const SimulatedHeatmapLoss& args, const CudaContext& context);
void simulated_heatmap_loss_backward_cuda(const SimulatedHeatmapLossGradient& args, const CudaContext& context);

}  // namespace posekd
