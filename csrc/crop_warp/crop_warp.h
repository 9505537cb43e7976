// Crops cut out of images by affine matrices: bilinear samples, a border of zeros, normalisation, type, layout.
//
// Floor, 64 crops of 256x192 out of 640x480 RGB bytes, float32: write 37.7 MB, read what the crops cover (at most
// 59 MB). H200 at 4.3 TB/s: 9 us written, up to 14 us read. One CPU core stores about 10 GB/s: 2 ms on two cores.
// About 40 operations per pixel of three channels, and two 8-byte loads, from two rows of the image; a rotated crop
// walks across its rows, so the CPU asks for them some rows ahead. A fresh output of tens of megabytes costs 10 ms of
// page faults in pages of 4 KB: the CPU asks for huge ones.
//
// With `color` 48 bytes more are read per crop, and 9 multiply-adds and 6 comparisons done per pixel instead of 3
// multiply-adds: the matrix takes mean and std in, so only its sum is bounded. That hides behind the same bytes: the
// floor stays.
#pragma once

#include <cstddef>

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

constexpr int kMaxNormalised = 32;  // channels that mean and std can be given for

// What a sampled value is multiplied by, and what is added, by channel.
struct Normalisation {
  bool identity = true;
  double scale[kMaxNormalised] = {};
  double shift[kMaxNormalised] = {};
};

struct CropWarp {
  TensorView images;       // uint8 [bytes], or a float type [N, C, H, W] of any strides; or absent, see offsets
  TensorView offsets;      // uint8 only: int64 [N], first byte of each image; without images, its address
  TensorView shapes;       // uint8 only: int64 [N, 3], height, width, channels; HWC without gaps
  TensorView matrices;     // [M, 2, 3] float32 (float64 for a float64 result), crop pixel to image pixel, contiguous
  TensorView image_index;  // int64 [M]; or absent: crop m is of image m
  TensorView color;        // float32 [M, 3, 4] on bytes 0 to 255, contiguous; or absent. Bytes of 3 channels only
  TensorView out;          // [M, C, height, width], any float type, dense: row-major or channels last
  Normalisation normalisation;
  bool bytes = true;
  bool channels_last = false;
  bool fresh = false;  // out was allocated for this call

  // `count` is 0 for values as they are, else the number of channels.
  void set_normalisation(const double* scale, const double* shift, size_t count) {
    normalisation.identity = count == 0;
    for (size_t c = 0; c < count && c < kMaxNormalised; ++c)
      normalisation.scale[c] = scale[c], normalisation.shift[c] = shift[c];
  }
  int64_t crops() const { return out.shape[0]; }
  int channels() const { return static_cast<int>(out.shape[1]); }
  int height() const { return static_cast<int>(out.shape[2]); }
  int width() const { return static_cast<int>(out.shape[3]); }
};

POSEKD_CPU_ENTRY(crop_warp, CropWarp)
void crop_warp_cuda(const CropWarp& args, const CudaContext& context);

}  // namespace posekd
