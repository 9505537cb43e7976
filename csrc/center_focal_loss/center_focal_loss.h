// CenterNet's focal loss of corners and centres, targets drawn from boxes inside the kernel.
//
// Floor, float32, logits [48, 3, 128, 128] (9.4 MB): read once in the forward pass; read once and the gradient written
// in the backward pass, 18.9 MB (H200: 2 and 4 us). Targets are never stored. A pixel takes an exponential and a
// logarithm, and one exponential for each Gaussian whose window it is in: few, because windows are small. How it gets
// near: rows (CPU) and strips of rows (CUDA) first find out whose windows reach them.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

struct CenterFocalLoss {
  TensorView logits;    // [B, 3, H, W] contiguous
  TensorView boxes;     // [B, P, 4] float32 contiguous
  TensorView counts;    // [B] int64
  TensorView mask;      // [B, H, W] bool, optional
  TensorView loss;      // [3] accumulation type; backward: the upstream gradient
  TensorView points;    // [3] int64
  TensorView partial;   // forward: [2, 3, blocks] float64, sums and points of each block (CPU: of each image)
  TensorView gradient;  // backward: [B, 3, H, W] dtype of the logits
  TensorView counter;   // CUDA forward
  bool divided = false;

  int64_t images() const { return logits.shape[0]; }
  int height() const { return static_cast<int>(logits.shape[2]); }
  int width() const { return static_cast<int>(logits.shape[3]); }
  int people() const { return static_cast<int>(boxes.shape[1]); }
};

constexpr int kFocalStripRows = 8;  // rows that a CUDA block has; STRIP_ROWS of posekd/ops/center_focal_loss.py

POSEKD_CPU_ENTRY(center_focal_loss_forward, CenterFocalLoss)
POSEKD_CPU_ENTRY(center_focal_loss_backward, CenterFocalLoss)
void center_focal_loss_forward_cuda(const CenterFocalLoss& args, const CudaContext& context);
void center_focal_loss_backward_cuda(const CenterFocalLoss& args, const CudaContext& context);

}  // namespace posekd
