// Associative-embedding tag loss (Newell et al. 2017; HigherHRNet): pull and push of an image, and the gradient.
//
// Floor, float32, tags [16, 17, 128, 128] (17.8 MB), 30 people: the tags of 8160 keypoints are gathered (at most 0.5 MB
// of cache lines), and the gradient, a map of zeros with 8160 numbers, is written once: 17.8 MB (H200: 4.2 us). All
// else is arithmetic on a few kilobytes: 30 x 30 exponentials per image.
// How it gets near: the forward pass computes the slopes of pull and push by every keypoint along with the losses, and
// they are all that the backward pass reads. Keypoints that share a pixel are added up by the first of them, in order:
// no atomics, and the same bits every time.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

struct TagLoss {
  TensorView tags;          // [B, K or 1, H, W] contiguous
  TensorView keypoints;     // [B, P, K, 3] float32 contiguous, tag-map pixels
  TensorView pull;          // [B] accumulation type
  TensorView push;          // [B]
  TensorView pull_slope;    // [B, P, K]: d pull / d tag of the keypoint
  TensorView push_slope;    // [B, P]: d push / d tag, the same for all keypoints of a person
  bool exponential = true;  // push by exp(-d^2), else by max(0, 1 - |d|)

  int64_t images() const { return tags.shape[0]; }
  int64_t channels() const { return tags.shape[1]; }
  int64_t height() const { return tags.shape[2]; }
  int64_t width() const { return tags.shape[3]; }
  int64_t people() const { return keypoints.shape[1]; }
  int64_t joints() const { return keypoints.shape[2]; }
};

struct TagLossGradient {
  TensorView keypoints;      // as above
  TensorView pull_slope;     // as above
  TensorView push_slope;     // as above
  TensorView pull_upstream;  // [B] accumulation type; CUDA: any stride
  TensorView push_upstream;  // [B]
  TensorView gradient;       // [B, K or 1, H, W] dtype of the tags

  int64_t images() const { return gradient.shape[0]; }
  int64_t channels() const { return gradient.shape[1]; }
  int64_t height() const { return gradient.shape[2]; }
  int64_t width() const { return gradient.shape[3]; }
  int64_t people() const { return keypoints.shape[1]; }
  int64_t joints() const { return keypoints.shape[2]; }
};

POSEKD_CPU_ENTRY(tag_loss_forward, TagLoss)
POSEKD_CPU_ENTRY(tag_loss_backward, TagLossGradient)
void tag_loss_forward_cuda(const TagLoss& args, const CudaContext& context);
void tag_loss_backward_cuda(const TagLossGradient& args, const CudaContext& context);

}  // namespace posekd
