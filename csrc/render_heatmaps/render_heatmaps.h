// Gaussian heatmaps from keypoints. The rules are in core/gaussian.h.
//
// Floor, [64, 17, 64, 48] float32: nothing to read, write 13.4 MB (H200 at 4.3 TB/s written: 3.1 us; one CPU core
// stores about 10 GB/s to memory, more to cache). Two exponentials per pixel at most, and they factor: W + H per
// keypoint, on the CPU, which works map by map in L1, and on the GPU, where a block draws a map from shared memory and
// pixels outside every window cost one look at two words of bits for 32 people.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/gaussian.h"
#include "core/tensor_view.h"

namespace posekd {

struct RenderHeatmaps {
  TensorView keypoints;  // [B, P, K, 3] float32, contiguous: x, y in heatmap pixels, visibility
  TensorView heatmaps;   // [B, K, H, W] contiguous, float32, float16, bfloat16 (float64: CPU)
  TensorView weight;     // [B, K] float32
  double sigma = 2;
  GaussianKind kind = GaussianKind::msra;

  int64_t maps() const { return heatmaps.shape[0] * heatmaps.shape[1]; }
  int64_t joints() const { return heatmaps.shape[1]; }
  int64_t people() const { return keypoints.shape[1]; }
  int height() const { return static_cast<int>(heatmaps.shape[2]); }
  int width() const { return static_cast<int>(heatmaps.shape[3]); }
};

POSEKD_CPU_ENTRY(render_heatmaps, RenderHeatmaps)
void render_heatmaps_cuda(const RenderHeatmaps& args, const CudaContext& context);

}  // namespace posekd
