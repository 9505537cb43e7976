// Boxes from the corners and centres of a batch (CenterNet's decoding): `pair_corners`.
//
// Floor, B = 48, one view of 32 + 32 corners and 32 centres: 221 kB are read and 61 kB written (H200: 0.1 us). The work
// is 1024 pairs an image with up to 32 centres each, and 32 rounds over the pairs that are boxes. How it gets near: on
// the CPU those pairs are listed once, few of a trained network's; on the GPU a block has an image and its scores stay
// in cache, so that nothing waits for the host.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

struct PairCorners {
  TensorView corners;      // [B, V, 2, k, 3] float32 contiguous: x, y, score; score 0 is none
  TensorView centers;      // [B, c, 3] float32 contiguous, by descending score
  TensorView areas_scale;  // [B] float32
  TensorView boxes;        // [B, max_boxes, 4] float32
  TensorView scores;       // [B, max_boxes] float32
  TensorView counts;       // [B] int64
  TensorView workspace;    // CUDA: [B, V k k] float32
  int mirrored = 0;        // of the last views left and right corners are exchanged
  float sigma = 0.5f;

  int64_t images() const { return corners.shape[0]; }
  int views() const { return static_cast<int>(corners.shape[1]); }
  int points() const { return static_cast<int>(corners.shape[3]); }
  int num_centers() const { return static_cast<int>(centers.shape[1]); }
  int max_boxes() const { return static_cast<int>(scores.shape[1]); }
};

POSEKD_CPU_ENTRY(pair_corners, PairCorners)
void pair_corners_cuda(const PairCorners& args, const CudaContext& context);

}  // namespace posekd
