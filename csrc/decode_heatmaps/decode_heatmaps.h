// Keypoints from heatmaps: the first maximum of a map, refined, and mapped to the image.
//
// Floor, [64, 17, 64, 48] float32: read 13.4 MB (H200 at 4.3 TB/s: 3.1 us; one CPU core reads about 10 GB/s from
// memory, more from cache), write 13 KB. One comparison per pixel. DARK's refinement needs 13 pixels of the blurred
// map, 5 (k + 5) k + 13 k operations for a blur of k taps; the whole blurred map only where one of the 13 is so small
// that the published clamp at 1e-10 acts, for then its rescaling does not cancel.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

enum class DecodeMethod : int { argmax = 0, quarter = 1, dark = 2 };

constexpr int kMaxBlur = 63;  // taps

struct DecodeHeatmaps {
  TensorView heatmaps;   // [B, K, H, W] contiguous, any float type
  TensorView matrices;   // [B, 2, 3] in the accumulation type, heatmap pixel to image pixel; or absent
  TensorView keypoints;  // [B, K, 3] in the accumulation type: x, y, score
  DecodeMethod method = DecodeMethod::quarter;
  int blur = 11;  // taps of DARK's blur, odd

  int64_t maps() const { return heatmaps.shape[0] * heatmaps.shape[1]; }
  int64_t joints() const { return heatmaps.shape[1]; }
  int height() const { return static_cast<int>(heatmaps.shape[2]); }
  int width() const { return static_cast<int>(heatmaps.shape[3]); }
};

POSEKD_CPU_ENTRY(decode_heatmaps, DecodeHeatmaps)
void decode_heatmaps_cuda(const DecodeHeatmaps& args, const CudaContext& context);

}  // namespace posekd
