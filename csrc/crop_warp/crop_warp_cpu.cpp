// CPU kernel of crop_warp, compiled once per vector level. See crop_warp.h for the floor.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "core/large_outputs.h"
#include "core/parallel.h"
#include "core/vec.h"
#include "crop_warp/crop_warp_math.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

#include "crop_warp/crop_warp_row.h"

constexpr int kBand = 32;  // rows of a crop that a thread takes at a time

// A thread's lines, one per channel, and the numbers of each channel.
template <class T>
class RowBuffer {
 public:
  RowBuffer(int channels, int width, const Normalisation& normalisation) : width_(width) {
    const int64_t bytes = (int64_t{2} * channels * (width + 1)) * static_cast<int64_t>(sizeof(T)) +
                          channels * static_cast<int64_t>(sizeof(T*));
    planes = static_cast<T**>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
    lines_ = reinterpret_cast<T*>(planes + channels);
    pixels = lines_ + int64_t{1} * channels * width;
    scale = pixels + int64_t{1} * channels * width;
    shift = scale + channels;
    for (int c = 0; c < channels; ++c) {
      scale[c] = normalisation.identity ? T(1) : static_cast<T>(normalisation.scale[c]);
      shift[c] = normalisation.identity ? T(0) : static_cast<T>(normalisation.shift[c]);
    }
  }
  ~RowBuffer() { std::free(planes); }
  RowBuffer(const RowBuffer&) = delete;
  RowBuffer& operator=(const RowBuffer&) = delete;

  T* line(int channel) const { return lines_ + int64_t{1} * channel * width_; }

  T** planes;  // where a row is written: the lines here, or the output itself
  T* pixels;   // the same row, channels interleaved
  T *scale, *shift;

 private:
  T* lines_;
  int width_;
};

// Pixel by pixel instead of channel by channel.
template <class T>
void interleave(T* const* planes, int channels, int width, T* out) {
  if (channels == 3) {  // three streams, which the compiler turns into shuffles
    const T *a = planes[0], *b = planes[1], *c = planes[2];
    for (int i = 0; i < width; ++i) {
      out[3 * i] = a[i];
      out[3 * i + 1] = b[i];
      out[3 * i + 2] = c[i];
    }
    return;
  }
  for (int i = 0; i < width; ++i)
    for (int c = 0; c < channels; ++c) out[int64_t{1} * i * channels + c] = planes[c][i];
}

// Writes the buffered lines as row `row` of crop `m`.
template <class Out, class T>
void store_row(const CropWarp& args, const RowBuffer<T>& buffer, int64_t m, int row) {
  const int channels = args.channels(), width = args.width();
  Out* out = args.out.as<Out>();
  if (args.channels_last) {
    out += (m * args.height() + row) * width * channels;
    if constexpr (std::is_same_v<Out, T>) return interleave(buffer.planes, channels, width, out);
    interleave(buffer.planes, channels, width, buffer.pixels);
    return narrow(buffer.pixels, out, int64_t{1} * width * channels);
  }
  for (int c = 0; c < channels; ++c)
    narrow(buffer.planes[c], out + ((m * channels + c) * args.height() + row) * width, width);
}

template <class T, class Pixel>
void warp_row(const Picture<Pixel>& picture, const Affine<T>& affine, const WideTone* tone, int row,
              const CropWarp& args, const RowBuffer<T>& buffer) {
  const int channels = args.channels(), width = args.width();
  if (picture.height <= 0 || picture.width <= 0 || !finite(affine)) {
    for (int c = 0; c < channels; ++c) {
      const T border = tone ? static_cast<T>(apply(tone->one, c, 0, 0, 0)) : buffer.shift[c];
      for (int i = 0; i < width; ++i) buffer.planes[c][i] = border;
    }
    return;
  }
  if constexpr (std::is_same_v<Pixel, uint8_t>) {
    const Scaled scaled{buffer.scale, buffer.shift};
    if (channels == 3) return byte_row<3>(picture, affine, row, width, scaled, tone, buffer.planes);
    if (channels == 1) return byte_row<1>(picture, affine, row, width, scaled, tone, buffer.planes);
  }
  border_columns(picture, affine, row, {0, width}, channels, buffer.scale, buffer.shift, buffer.planes);
}

template <class T, class Pixel, class Out>
void warp(const CropWarp& args, int threads) {
  constexpr bool kSame = std::is_same_v<T, Out>;
  const int channels = args.channels(), width = args.width(), height = args.height();
  const bool direct = kSame && !args.channels_last;
  const Pictures<Pixel> pictures = pictures_of<Pixel>(args);
  const int64_t bands = (height + kBand - 1) / kBand;
  parallel_for(
      args.crops() * bands, 32768 / (int64_t{1} * kBand * width) + 1, threads, [&](int64_t begin, int64_t end) {
        const RowBuffer<T> buffer(channels, width, args.normalisation);
        for (int c = 0; c < channels; ++c) buffer.planes[c] = buffer.line(c);
        WideTone tone{};
        for (int64_t item = begin; item < end; ++item) {
          const int64_t m = item / bands;
          const int first = static_cast<int>(item % bands) * kBand,
                    last = first + kBand < height ? first + kBand : height;
          const Picture<Pixel> picture = picture_at(pictures, args.image_index ? args.image_index.as<int64_t>()[m] : m);
          if constexpr (std::is_same_v<Pixel, uint8_t>)
            if (args.color) tone.set(tone_of(args.color.as<float>() + 12 * m, buffer.scale, buffer.shift));
          Affine<T> affine;
          std::memcpy(affine.m, args.matrices.as<T>() + 6 * m, sizeof(affine.m));
          for (int row = first; row < last; ++row) {
            if constexpr (kSame)
              for (int c = 0; direct && c < channels; ++c)
                buffer.planes[c] = args.out.as<T>() + ((m * channels + c) * height + row) * width;
            warp_row(picture, affine, args.color ? &tone : nullptr, row, args, buffer);
            if (!direct) store_row<Out>(args, buffer, m, row);
          }
        }
      });
}

}  // namespace

void crop_warp(const CropWarp& args, int threads) {
  if (args.fresh) advise_huge_pages(args.out);
  if (args.out.dtype == DType::float64) return warp<double, double, double>(args, threads);
  dispatch_float<false>(args.out.dtype, [&](auto out) {
    using Out = typename decltype(out)::type;
    if (args.bytes) return warp<float, uint8_t, Out>(args, threads);
    dispatch_float(args.images.dtype, [&](auto in) { warp<float, typename decltype(in)::type, Out>(args, threads); });
  });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
