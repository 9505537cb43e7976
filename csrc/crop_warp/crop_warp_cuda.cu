// CUDA kernels of crop_warp: a thread samples one pixel of one crop in all channels, or two of a colour image in bytes.
// See crop_warp.h for the floor.
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
  for (int c = 0; c < p.channels; ++c) {
    float value = any ? interpolate(print, picture.data + c * picture.channel_stride) : 0.0f;
    if (!p.identity) value = value * p.scale[c] + p.shift[c];
    to[c * p.channel_stride] = from_float<Out>(value);
  }
}

// ---- colour bytes: two neighbouring pixels a thread, the image's bytes as aligned words -----------------------------

constexpr int kPair = 2, kPairTileWidth = 32, kPairTileHeight = 16;

// The word of memory that holds a byte, and those after it.
__device__ __forceinline__ const uint32_t* word_of(const uint8_t* byte) {
  return reinterpret_cast<const uint32_t*>(reinterpret_cast<uintptr_t>(byte) & ~uintptr_t{3});
}

// Four bytes from `first` on, of the eight in two words.
__device__ __forceinline__ uint32_t four_bytes(uint32_t low, uint32_t high, uint32_t first) {
#if defined(POSEKD_EMU)
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (8 * first));
#else
  return __funnelshift_r(low, high, 8 * first);
#endif
}

// Byte I of a word: as the last bits of 2^23 + byte, which no conversion is needed for.
template <int I>
__device__ __forceinline__ float byte_of(uint32_t word) {
#if defined(POSEKD_EMU)
  return static_cast<float>(word >> (8 * I) & 255);
#else
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540u + I)) - 8388608.0f;
#endif
}

// A point of the image and what it is sampled from.
struct Point {
  float x, y, fx, fy;
  uint32_t first[2];    // place of the left neighbour's first byte within its word, above and below
  uint32_t word[2][3];  // three words hold the six bytes of two pixels wherever they begin
  bool inner;           // all four neighbours are inside, and so are the words
};

__device__ __forceinline__ void read_point(const Picture<uint8_t>& picture, const Affine<float>& affine, bool usable,
                                           int column, int row, Point& point) {
  const float c = static_cast<float>(column), r = static_cast<float>(row);
  point.x = affine.m[0] * c + (affine.m[1] * r + affine.m[2]);
  point.y = affine.m[3] * c + (affine.m[4] * r + affine.m[5]);
  // The last word of the lower row may reach five bytes into the row below, which must therefore be there.
  point.inner = usable && point.x >= 0.0f && point.x < static_cast<float>(picture.width - 1) && point.y >= 0.0f &&
                point.y < static_cast<float>(picture.height - 2);
  if (!point.inner) return;
  const int left = static_cast<int>(point.x), top = static_cast<int>(point.y);
  point.fx = point.x - static_cast<float>(left), point.fy = point.y - static_cast<float>(top);
  const uint8_t* at = picture.data + top * picture.row_stride + left * 3;
#pragma unroll
  for (int d = 0; d < 2; ++d) {
    const uint8_t* begin = at + d * picture.row_stride;
    const uint32_t* from = word_of(begin);
    point.first[d] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(begin) & 3);
    point.word[d][0] = from[0], point.word[d][1] = from[1], point.word[d][2] = from[2];
  }
}

// Red, green and blue of a point.
__device__ __forceinline__ void blend_point(const Picture<uint8_t>& picture, bool usable, const Point& point,
                                            float (&value)[3]) {
  if (point.inner) {
    float tap[2][6];
#pragma unroll
    for (int d = 0; d < 2; ++d) {
      const uint32_t low = four_bytes(point.word[d][0], point.word[d][1], point.first[d]);
      const uint32_t high = four_bytes(point.word[d][1], point.word[d][2], point.first[d]);
      tap[d][0] = byte_of<0>(low), tap[d][1] = byte_of<1>(low), tap[d][2] = byte_of<2>(low);
      tap[d][3] = byte_of<3>(low), tap[d][4] = byte_of<0>(high), tap[d][5] = byte_of<1>(high);
    }
    const float fx = point.fx, fy = point.fy, gx = 1 - fx, gy = 1 - fy;
#pragma unroll
    for (int c = 0; c < 3; ++c)
      value[c] = tap[0][c] * (gx * gy) + tap[0][c + 3] * (fx * gy) + tap[1][c] * (gx * fy) + tap[1][c + 3] * (fx * fy);
    return;
  }
  Footprint<float> print{};
  const bool any = usable && locate(picture, point.x, point.y, print);
#pragma unroll
  for (int c = 0; c < 3; ++c) value[c] = any ? interpolate(print, picture.data + c) : 0.0f;
}

template <bool kTinted, class Out>
__global__ void __launch_bounds__(kPairTileWidth / kPair * kPairTileHeight)
    warp_colors_kernel(WarpParams<uint8_t> p, Out* __restrict__ out) {
  const int64_t tiles = int64_t{1} * p.tiles_x * p.tiles_y, m = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int x = tile % p.tiles_x * kPairTileWidth + static_cast<int>(threadIdx.x) * kPair;
  const int y = tile / p.tiles_x * kPairTileHeight + static_cast<int>(threadIdx.y);
  if (x >= p.width || y >= p.height) return;
  const Picture<uint8_t> picture = picture_at(p.pictures, p.image_index ? p.image_index[m] : m);
  Affine<float> affine;
  for (int i = 0; i < 6; ++i) affine.m[i] = p.matrices[6 * m + i];
  const bool usable = picture.height > 0 && finite(affine);
  Point points[kPair];
#pragma unroll
  for (int i = 0; i < kPair; ++i) read_point(picture, affine, usable, x + i, y, points[i]);
  float values[3][kPair];
#pragma unroll
  for (int i = 0; i < kPair; ++i) {
    float value[3];
    blend_point(picture, usable, points[i], value);
    if constexpr (kTinted) {
      const Tone tone = tone_of(p.color + 12 * m, p.scale, p.shift);
#pragma unroll
      for (int c = 0; c < 3; ++c) values[c][i] = apply(tone, c, value[0], value[1], value[2]);
    } else {
#pragma unroll
      for (int c = 0; c < 3; ++c) values[c][i] = value[c] * p.scale[c] + p.shift[c];  // bytes always have a scale
    }
  }
  Out* to = out + m * p.crop_stride + y * p.row_stride + x * p.column_stride;
  if (p.column_stride == 1 && p.width % kPair == 0) {
#pragma unroll
    for (int c = 0; c < 3; ++c) write_pack<Out, kPair>(to, c * p.channel_stride, values[c]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPair; ++i)
    if (x + i < p.width)
      for (int c = 0; c < 3; ++c) to[i * p.column_stride + c * p.channel_stride] = from_float<Out>(values[c][i]);
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
  if constexpr (sizeof(Pixel) == 1) {
    if (p.channels == 3) {
      p.tiles_x = ceil_div(p.width, kPairTileWidth), p.tiles_y = ceil_div(p.height, kPairTileHeight);
      const dim3 grid(static_cast<unsigned>(args.crops() * p.tiles_x * p.tiles_y));
      const dim3 block(kPairTileWidth / kPair, kPairTileHeight);
      launch(context, p.color ? warp_colors_kernel<true, Out> : warp_colors_kernel<false, Out>, grid, block, 0, p,
             args.out.as<Out>());
      return;
    }
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
