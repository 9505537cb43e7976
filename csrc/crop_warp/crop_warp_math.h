// The formulas of crop_warp that the CPU and CUDA kernels share.
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "crop_warp/crop_warp.h"

namespace posekd {
namespace {

// One image; strides in elements. Height 0: nothing to sample, the crop is zero.
template <class Pixel>
struct Picture {
  const Pixel* data;
  int64_t channel_stride, row_stride, column_stride;
  int height, width;
};

// Where images lie, as plain pointers that a kernel can take.
template <class Pixel>
struct Pictures {
  const Pixel* data;
  int64_t count;
  int64_t bytes;           // uint8: length of the buffer, or -1 where offsets are addresses
  const int64_t* offsets;  // uint8
  const int64_t* shapes;   // uint8
  int64_t strides[4];      // float: in elements, of N, C, H, W
  int channels, height, width;
};

template <class Pixel>
inline Pictures<Pixel> pictures_of(const CropWarp& args) {
  Pictures<Pixel> pictures{};
  pictures.data = args.images.as<Pixel>();
  pictures.channels = args.channels();
  if (args.bytes) {
    pictures.count = args.offsets.shape[0];
    pictures.bytes = args.images ? args.images.shape[0] : -1;
    pictures.offsets = args.offsets.as<int64_t>();
    pictures.shapes = args.shapes.as<int64_t>();
  } else {
    pictures.count = args.images.shape[0];
    for (int i = 0; i < 4; ++i) pictures.strides[i] = args.images.stride[i];
    pictures.height = static_cast<int>(args.images.shape[2]);
    pictures.width = static_cast<int>(args.images.shape[3]);
  }
  return pictures;
}

// The image of one crop. An index that names none, and an image outside its buffer, come back with height 0.
POSEKD_HD Picture<uint8_t> picture_at(const Pictures<uint8_t>& all, int64_t index) {
  Picture<uint8_t> picture{nullptr, 1, 0, all.channels, 0, 0};
  if (index < 0 || index >= all.count) return picture;
  const int64_t *shape = all.shapes + 3 * index, offset = all.offsets[index], longest = int64_t{1} << 30;
  if (shape[0] <= 0 || shape[1] <= 0 || shape[0] > longest || shape[1] > longest || shape[2] != all.channels)
    return picture;
  if (all.bytes >= 0) {
    if (offset < 0 || offset > all.bytes || shape[0] * shape[1] * shape[2] > all.bytes - offset) return picture;
    picture.data = all.data + offset;
  } else {
    picture.data = reinterpret_cast<const uint8_t*>(offset);
  }
  picture.row_stride = shape[1] * shape[2];
  picture.height = static_cast<int>(shape[0]);
  picture.width = static_cast<int>(shape[1]);
  return picture;
}

template <class Pixel>
POSEKD_HD Picture<Pixel> picture_at(const Pictures<Pixel>& all, int64_t index) {
  if (index < 0 || index >= all.count) return {nullptr, 0, 0, 0, 0, 0};
  return {all.data + index * all.strides[0], all.strides[1], all.strides[2], all.strides[3], all.height, all.width};
}

template <class T>
struct Affine {
  T m[6];  // x = m[0] column + m[1] row + m[2], y = m[3] column + m[4] row + m[5]
};

template <class T>
POSEKD_HD bool finite(const Affine<T>& affine) {
  bool all = true;
  for (int i = 0; i < 6; ++i) all = all && affine.m[i] - affine.m[i] == T(0);  // false for NaN and infinity
  return all;
}

// The four neighbours of a point: offsets from the image's data, weights, and which are inside.
template <class T>
struct Footprint {
  int64_t offset[4];
  T weight[4];
  bool inside[4];
};

// False where no neighbour is inside.
template <class T, class Pixel>
POSEKD_HD bool locate(const Picture<Pixel>& picture, T x, T y, Footprint<T>& print) {
  if (!(x > T(-1) && x < T(picture.width) && y > T(-1) && y < T(picture.height))) return false;  // nor where NaN
  const int column = static_cast<int>(x) - (x < 0), row = static_cast<int>(y) - (y < 0);         // floor, down to -1
  const T fx = x - static_cast<T>(column), fy = y - static_cast<T>(row);
  for (int i = 0; i < 4; ++i) {
    const int dx = i & 1, dy = i >> 1;
    print.offset[i] = (row + dy) * picture.row_stride + (column + dx) * picture.column_stride;
    print.weight[i] = (dx ? fx : 1 - fx) * (dy ? fy : 1 - fy);
    print.inside[i] = column + dx >= 0 && column + dx < picture.width && row + dy >= 0 && row + dy < picture.height;
  }
  return true;
}

// The bilinear value of a channel. A neighbour outside is not read; one inside counts even at weight 0 (NaN, inf).
template <class T, class Pixel>
POSEKD_HD T interpolate(const Footprint<T>& print, const Pixel* channel) {
  T sum = 0;
  for (int i = 0; i < 4; ++i)
    if (print.inside[i]) sum += static_cast<T>(to_float(channel[print.offset[i]])) * print.weight[i];
  return sum;
}

// The colour matrix of one crop with the normalisation taken in: sampled bytes to values of the output. Bounded to
// 0..255 and then scaled and shifted is the same as scaled and shifted and then bounded to where 0 and 255 go.
struct Tone {
  float m[3][4];  // value c = m[c][0] red + m[c][1] green + m[c][2] blue + m[c][3]
  float low[3], high[3];
};

POSEKD_HD Tone tone_of(const float* color, const float* scale, const float* shift) {
  Tone tone;
  for (int c = 0; c < 3; ++c) {
    for (int i = 0; i < 4; ++i) tone.m[c][i] = color[4 * c + i] * scale[c];
    tone.m[c][3] += shift[c];
    const float white = 255.0f * scale[c] + shift[c];
    tone.low[c] = scale[c] < 0 ? white : shift[c];
    tone.high[c] = scale[c] < 0 ? shift[c] : white;
  }
  return tone;
}

// One channel; NaN passes.
POSEKD_HD float apply(const Tone& tone, int c, float red, float green, float blue) {
  const float* m = tone.m[c];
  const float value = m[0] * red + (m[1] * green + (m[2] * blue + m[3]));
  return value < tone.low[c] ? tone.low[c] : value > tone.high[c] ? tone.high[c] : value;
}

}  // namespace
}  // namespace posekd
