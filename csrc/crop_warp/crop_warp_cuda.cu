// CUDA kernel of crop_warp: a thread samples one pixel of one crop in all channels. See crop_warp.h for the floor.
#include "core/cuda_compat.h"
#include "crop_warp/crop_warp_math.h"

namespace posekd {
namespace {

constexpr int kTileWidth = 32, kTileHeight = 8;

template <class Pixel>
struct WarpParams {
  Pictures<Pixel> pictures;
  const float* matrices;       // [M, 2, 3]
  const int64_t* image_index;  // [M] or null
  const float* color;          // [M, 3, 4] or null
  int channels, height, width, tiles_x, tiles_y;
  int64_t crop_stride, channel_stride, row_stride, column_stride;  // of the output, in elements
  bool identity;
  float scale[kMaxNormalised], shift[kMaxNormalised];
};

template <class Pixel, class Out>
__global__ void __launch_bounds__(kTileWidth* kTileHeight) warp_kernel(WarpParams<Pixel> p, Out* __restrict__ out) {
  const int64_t tiles = int64_t{1} * p.tiles_x * p.tiles_y, m = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int x = tile % p.tiles_x * kTileWidth + static_cast<int>(threadIdx.x);
  const int y = tile / p.tiles_x * kTileHeight + static_cast<int>(threadIdx.y);
  if (x >= p.width || y >= p.height) return;
  const Picture<Pixel> picture = picture_at(p.pictures, p.image_index ? p.image_index[m] : m);
  Affine<float> affine;
  for (int i = 0; i < 6; ++i) affine.m[i] = p.matrices[6 * m + i];
  const float column = static_cast<float>(x), row = static_cast<float>(y);
  Footprint<float> print{};
  const bool any = picture.height > 0 && finite(affine) &&
                   locate(picture, affine.m[0] * column + (affine.m[1] * row + affine.m[2]),
                          affine.m[3] * column + (affine.m[4] * row + affine.m[5]), print);
  Out* to = out + m * p.crop_stride + y * p.row_stride + x * p.column_stride;
  if constexpr (sizeof(Pixel) == 1) {
    if (p.color) {  // one crop a block, so all of it decides alike
      float value[3];
      for (int c = 0; c < 3; ++c) value[c] = any ? interpolate(print, picture.data + c) : 0.0f;
      const Tone tone = tone_of(p.color + 12 * m, p.scale, p.shift);
      for (int c = 0; c < 3; ++c)
        to[c * p.channel_stride] = from_float<Out>(apply(tone, c, value[0], value[1], value[2]));
      return;
    }
  }
  for (int c = 0; c < p.channels; ++c) {
    float value = any ? interpolate(print, picture.data + c * picture.channel_stride) : 0.0f;
    if (!p.identity) value = value * p.scale[c] + p.shift[c];
    to[c * p.channel_stride] = from_float<Out>(value);
  }
}

template <class Pixel, class Out>
void launch_warp(const CropWarp& args, const CudaContext& context) {
  WarpParams<Pixel> p{};
  p.pictures = pictures_of<Pixel>(args);
  p.matrices = args.matrices.as<float>();
  p.image_index = args.image_index ? args.image_index.as<int64_t>() : nullptr;
  p.color = args.color ? args.color.as<float>() : nullptr;
  p.channels = args.channels(), p.height = args.height(), p.width = args.width();
  p.tiles_x = ceil_div(p.width, kTileWidth), p.tiles_y = ceil_div(p.height, kTileHeight);
  p.crop_stride = int64_t{1} * p.channels * p.height * p.width;
  p.column_stride = args.channels_last ? p.channels : 1;
  p.row_stride = p.column_stride * p.width;
  p.channel_stride = args.channels_last ? 1 : int64_t{1} * p.height * p.width;
  p.identity = args.normalisation.identity;
  for (int c = 0; c < kMaxNormalised; ++c) {
    p.scale[c] = static_cast<float>(args.normalisation.scale[c]);
    p.shift[c] = static_cast<float>(args.normalisation.shift[c]);
  }
  const int64_t blocks = args.crops() * p.tiles_x * p.tiles_y;
  launch(context, warp_kernel<Pixel, Out>, dim3(static_cast<unsigned>(blocks)), dim3(kTileWidth, kTileHeight), 0, p,
         args.out.as<Out>());
}

}  // namespace

void crop_warp_cuda(const CropWarp& args, const CudaContext& context) {
  dispatch_float<false>(args.out.dtype, [&](auto out) {
    using Out = typename decltype(out)::type;
    if (args.bytes) return launch_warp<uint8_t, Out>(args, context);
    dispatch_float<false>(args.images.dtype,
                          [&](auto in) { launch_warp<typename decltype(in)::type, Out>(args, context); });
  });
}

}  // namespace posekd
