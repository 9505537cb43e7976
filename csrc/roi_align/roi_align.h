// ROIAlign: crops of feature maps, bilinear samples averaged over bins.
//
// Floor, float32, [16, 17, 64, 48], 64 boxes to 64x48 (a map 3.3 MB, the crops 13.4 MB):
//   forward: read the maps, write the crops           16.7 MB (H200 at 4.3 TB/s: 3.9 us, less than a launch)
//   backward: read the crops' gradient, write the maps' gradient, the same 16.7 MB
//   1024 boxes: 214 MB of crops each way, 50 us.
// How it gets near: the average is separable, crop = Ay X Ax^T / count, with two banded matrices per box that are
// computed once for all channels. A crop costs 2 products of 2 or 3 weights per value instead of 4 gathers per sample.
// Backward is Ay^T G Ax / count: each thread (block) owns planes (rows of a plane) of the maps' gradient and adds the
// boxes of its image in index order, so there are no atomics, no zero fill, and the result is deterministic.
#pragma once

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

struct RoiAlign {
  TensorView maps;   // [N, C, H, W] contiguous: read forward; backward, the gradient written
  TensorView boxes;  // [R, 5] (image, x1, y1, x2, y2), float64 for float64 maps, else float32
  TensorView crops;  // [R, C, P, Q] contiguous, maps' dtype: written forward; backward, the gradient read
  double spatial_scale = 1;
  int sampling_ratio = 0;
  bool aligned = true;
  const void* plan = nullptr;  // RoiPlan<T>, on the CPU
  TensorView scratch;          // CUDA: [R (8 (P + Q) + 1)] int32, or absent
  TensorView turned;           // CUDA backward: as many elements as the crops, or absent

  int64_t images() const { return maps.shape[0]; }
  int64_t channels() const { return maps.shape[1]; }
  int height() const { return static_cast<int>(maps.shape[2]); }
  int width() const { return static_cast<int>(maps.shape[3]); }
  int64_t count() const { return boxes.shape[0]; }
  int out_height() const { return static_cast<int>(crops.shape[2]); }
  int out_width() const { return static_cast<int>(crops.shape[3]); }
};

// These make the plan and call the kernels of the chosen vector level.
void roi_align_forward_cpu(const RoiAlign& args, int threads);
void roi_align_backward_cpu(const RoiAlign& args, int threads);
POSEKD_CPU_ENTRY(roi_align_crops, RoiAlign)
POSEKD_CPU_ENTRY(roi_align_gradients, RoiAlign)
void roi_align_forward_cuda(const RoiAlign& args, const CudaContext& context);
void roi_align_backward_cuda(const RoiAlign& args, const CudaContext& context);
// The forward kernel for many small crops (roi_align_plane_cuda.cu, which says what it takes). Returns whether it ran.
bool roi_align_by_plane(const RoiAlign& args, const CudaContext& context);
// The backward kernel for them (roi_align_bins_cuda.cu), likewise.
bool roi_align_by_bins(const RoiAlign& args, const CudaContext& context);

}  // namespace posekd
