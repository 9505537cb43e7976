// Corner pooling: a running maximum along columns or rows, and its gradient.
//
// Floor, float32, [4, 256, 128, 128] (16.8 M elements, 67 MB per map):
//   forward: read x, write y and one bit per element       136 MB, 8.125 bytes per element (H200 at 4.3 TB/s: 31.7 us)
//   backward: read dy and the bits, write dx              the same
//   forward with a summand (corner_pool_add)              203 MB, 12.125 bytes per element
//   a column scan and a row scan added (corner_pool_sum)  206 MB, 12.25 bytes per element
// How it gets near: every map is read once and written once. What the gradient needs is one bit per element: whether it
// is the head of a segment, the run of outputs that equal it. The backward pass is then a segmented sum against the
// scan. No index tensor, no atomics, no zero fill, no flips; the order of every sum is fixed.
// CPU: rows visited in the order of the scan, vectors along the row; the running maxima of a column scan lie in L1, a
// row scan takes log2(lanes) shuffles per vector; where both are added, a row scan's result goes no further than L1.
// GPU: a warp holds 8 rows in registers; see corner_pool_device.cuh. Without local memory on sm_90; not yet measured.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

// Named after the corner that is looked for: top takes the maximum of a pixel and all below it, left of all to its
// right, bottom of all above, right of all to its left.
enum class CornerDirection : int { top = 0, bottom = 1, left = 2, right = 3 };

struct CornerPool {
  TensorView input;   // [N, C, H, W] contiguous: x (forward), dy (backward)
  TensorView other;   // [N, C, H, W] like x, added to the result, or absent (forward)
  TensorView output;  // [N, C, H, W] like the input: y (forward), dx (backward)
  // [N, C, H, ceil(W / 32)] int32: bit i of word w is column 32 w + i. Written by the forward pass, where present.
  TensorView heads;
  CornerDirection direction = CornerDirection::top;
  bool last_wins = false;  // among equal maxima, the last in the order of the scan gets the gradient; else the first
  // A second map [N, C, H, W], pooled along its rows and added to the column scan of the first, or absent.
  TensorView second;
  TensorView second_heads;  // like heads
  CornerDirection second_direction = CornerDirection::left;

  bool columns() const { return direction == CornerDirection::top || direction == CornerDirection::bottom; }
  bool descending() const { return direction == CornerDirection::top || direction == CornerDirection::left; }
  int64_t planes() const { return input.shape[0] * input.shape[1]; }
  int64_t height() const { return input.shape[2]; }
  int64_t width() const { return input.shape[3]; }
  int64_t words() const { return (width() + 31) / 32; }  // of head bits, per row
};

POSEKD_CPU_ENTRY(corner_pool_forward, CornerPool)
POSEKD_CPU_ENTRY(corner_pool_backward, CornerPool)
void corner_pool_forward_cuda(const CornerPool& args, const CudaContext& context);
void corner_pool_backward_cuda(const CornerPool& args, const CudaContext& context);

}  // namespace posekd
