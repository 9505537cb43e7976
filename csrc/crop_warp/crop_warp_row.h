// One row of a crop out of a byte image, for the CPU: most of its pixels have all four neighbours, and those are
// done in three plain loops (coordinates, loads, arithmetic) that vectorise at every level. No gather instructions:
// they are slower than scalar loads here, and far slower on processors with mitigated microcode.
// Included by crop_warp_cpu.cpp inside namespace POSEKD_LEVEL.

// Columns [begin, end) of a row.
struct Interval {
  int begin, end;
};

// The part of `within` where low <= start + step * column <= high.
inline Interval clip(Interval within, double start, double step, double low, double high) {
  if (step == 0) return start >= low && start <= high ? within : Interval{within.begin, within.begin};
  double first = (low - start) / step, last = (high - start) / step;
  if (step < 0) {
    const double swapped = first;
    first = last, last = swapped;
  }
  Interval result = within;
  if (!(first <= within.begin)) result.begin = first >= within.end ? within.end : static_cast<int>(std::ceil(first));
  if (!(last >= within.end - 1))
    result.end = last < within.begin ? within.begin : static_cast<int>(std::floor(last)) + 1;
  if (result.end < result.begin) result.end = result.begin;
  return result;
}

// A row of the crop as a line through the image.
struct Line {
  double x, y;    // where column 0 lies
  double dx, dy;  // from column to column

  Line(const Affine<float>& affine, int row)
      : x(static_cast<double>(affine.m[1]) * row + affine.m[2]),
        y(static_cast<double>(affine.m[4]) * row + affine.m[5]),
        dx(affine.m[0]),
        dy(affine.m[3]) {}

  // The columns whose points lie in a rectangle, borders included.
  Interval inside(Interval within, double left, double right, double top, double bottom) const {
    return clip(clip(within, x, dx, left, right), y, dy, top, bottom);
  }
};

constexpr int kChunk = 256;       // columns at a time: the buffers stay in L1
constexpr int kRowsAhead = 8;     // how far ahead of the output row the image is prefetched
constexpr double kMargin = 0.01;  // pixels; above the rounding of float coordinates below kFar
constexpr double kFar = 65536;

// What the three loops hand on.
struct alignas(64) Chunk {
  float fx[kChunk], fy[kChunk];
  int32_t offset[kChunk];
  uint64_t top[kChunk], bottom[kChunk];  // the bytes of two neighbouring pixels, and what follows
};

// Fills the chunk for n columns from `begin` on, all four neighbours of which are inside the image.
template <int C>
POSEKD_INLINE void read_chunk(const Picture<uint8_t>& picture, const Line& line, int begin, int n, Chunk& chunk) {
  const float x = static_cast<float>(line.x + line.dx * begin), y = static_cast<float>(line.y + line.dy * begin);
  const float dx = static_cast<float>(line.dx), dy = static_cast<float>(line.dy);
  const int32_t stride = static_cast<int32_t>(picture.row_stride);
  for (int i = 0; i < n; ++i) {
    const float px = x + dx * static_cast<float>(i), py = y + dy * static_cast<float>(i);
    const int32_t column = static_cast<int32_t>(px), row = static_cast<int32_t>(py);  // not negative: floor
    chunk.fx[i] = px - static_cast<float>(column);
    chunk.fy[i] = py - static_cast<float>(row);
    chunk.offset[i] = row * stride + column * C;
  }
  const uint8_t *top = picture.data, *bottom = picture.data + stride;
  for (int i = 0; i < n; ++i) {
    std::memcpy(&chunk.top[i], top + chunk.offset[i], 8);
    std::memcpy(&chunk.bottom[i], bottom + chunk.offset[i], 8);
  }
}

using Floats = Vec<float>::type;
using Integers = Vec<float>::bits;
using Words = Vec<float>::words;
constexpr int kLanes = Vec<float>::kLanes;

// Even and odd 32-bit words of kLanes eight-byte words.
POSEKD_INLINE void split(const uint64_t* from, Words& low, Words& high) {
  const Words a = load_as<Words>(from), b = load_as<Words>(from + kLanes / 2);
#if POSEKD_VECTOR_BYTES == 64
  low = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  high = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif POSEKD_VECTOR_BYTES == 32
  low = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  high = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  low = __builtin_shufflevector(a, b, 0, 2, 4, 6);
  high = __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// Byte `index` of the eight, as floats.
template <int index>
POSEKD_INLINE Floats byte(Words low, Words high) {
  const Words value = ((index < 4 ? low : high) >> (index % 4 * 8)) & 255u;
  return __builtin_convertvector((Integers)value, Floats);
}

template <int C, int c>
POSEKD_INLINE Floats blend_channel(Words low_t, Words high_t, Words low_b, Words high_b, Floats fx, Floats fy) {
  const Floats a = byte<c>(low_t, high_t), b = byte<c>(low_b, high_b);
  const Floats upper = a + (byte<c + C>(low_t, high_t) - a) * fx, lower = b + (byte<c + C>(low_b, high_b) - b) * fx;
  return upper + (lower - upper) * fy;
}

// How sampled bytes become values: channel by channel,
struct Scaled {
  const float *scale, *shift;
};
// or by a colour matrix in every lane: operands in memory, because there are more of them than registers, and
// spreading each anew costs as much as using it.
struct WideTone {
  Tone one;  // the same for single pixels
  Floats m[3][4], low[3], high[3];

  void set(const Tone& tone) {
    one = tone;
    for (int c = 0; c < 3; ++c) {
      for (int i = 0; i < 4; ++i) m[c][i] = broadcast(tone.m[c][i]);
      low[c] = broadcast(tone.low[c]), high[c] = broadcast(tone.high[c]);
    }
  }
};

template <int c, int C>
POSEKD_INLINE Floats finished(const Scaled& how, const Floats (&value)[C]) {
  return value[c] * how.scale[c] + how.shift[c];
}
template <int c>
POSEKD_INLINE Floats finished(const WideTone& how, const Floats (&value)[3]) {
  const Floats* m = how.m[c];
  const Floats mixed = value[0] * m[0] + (value[1] * m[1] + (value[2] * m[2] + m[3]));
  return smaller(how.high[c], larger(how.low[c], mixed));  // NaN passes
}

// Interpolates, finishes and stores kLanes columns of every channel.
template <int C, class How>
POSEKD_INLINE void blend(const Chunk& chunk, int i, const How& how, float* const* out) {
  Words low_t, high_t, low_b, high_b;
  split(chunk.top + i, low_t, high_t);
  split(chunk.bottom + i, low_b, high_b);
  const Floats fx = load_as<Floats>(chunk.fx + i), fy = load_as<Floats>(chunk.fy + i);
  Floats value[C];
  value[0] = blend_channel<C, 0>(low_t, high_t, low_b, high_b, fx, fy);
  if constexpr (C == 3) {
    value[1] = blend_channel<C, 1>(low_t, high_t, low_b, high_b, fx, fy);
    value[2] = blend_channel<C, 2>(low_t, high_t, low_b, high_b, fx, fy);
    store_as(out[1], finished<1>(how, value));
    store_as(out[2], finished<2>(how, value));
  }
  store_as(out[0], finished<0>(how, value));
}

// Asks for the bytes that the line reads, about a cache line at a time.
POSEKD_INLINE void prefetch(const Picture<uint8_t>& picture, const Line& line, Interval columns) {
  const double reach =
      60 / (static_cast<double>(picture.column_stride) * (std::fabs(line.dx) + std::fabs(line.dy)) + 1);
  const int step = reach < 4 ? 4 : static_cast<int>(reach);
  for (int i = columns.begin; i < columns.end; i += step) {
    const double px = line.x + line.dx * i, py = line.y + line.dy * i;
    if (!(px >= 0 && px < picture.width && py >= 0 && py < picture.height)) continue;
    const uint8_t* at =
        picture.data + static_cast<int64_t>(py) * picture.row_stride + static_cast<int64_t>(px) * picture.column_stride;
    __builtin_prefetch(at, 0, 2);  // into the second-level cache: the first is too small for so many rows
    __builtin_prefetch(at + picture.row_stride, 0, 2);
  }
}

template <int C, class How>
void inner_columns(const Picture<uint8_t>& picture, const Line& line, Interval columns, const How& how,
                   float* const* planes) {
  Chunk chunk;
  for (int begin = columns.begin; begin < columns.end; begin += kChunk) {
    const int n = columns.end - begin < kChunk ? columns.end - begin : kChunk;
    read_chunk<C>(picture, line, begin, n, chunk);
    float* out[3] = {planes[0] + begin, C == 3 ? planes[1] + begin : nullptr, C == 3 ? planes[2] + begin : nullptr};
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      blend<C>(chunk, i, how, out);
      for (int c = 0; c < C; ++c) out[c] += kLanes;
    }
    if (i == n) continue;
    alignas(64) float last[3][kLanes];
    float* const rest[3] = {last[0], last[1], last[2]};
    for (int k = n; k < i + kLanes; ++k) chunk.fx[k] = chunk.fy[k] = 0, chunk.top[k] = chunk.bottom[k] = 0;
    blend<C>(chunk, i, how, rest);
    for (int c = 0; c < C; ++c) std::memcpy(out[c], last[c], static_cast<size_t>(n - i) * sizeof(float));
  }
}

// Columns at the image's border: neighbour by neighbour.
template <class T, class Pixel>
void border_columns(const Picture<Pixel>& picture, const Affine<T>& affine, int row, Interval columns, int channels,
                    const T* scale, const T* shift, T* const* planes) {
  const T x = affine.m[1] * static_cast<T>(row) + affine.m[2], y = affine.m[4] * static_cast<T>(row) + affine.m[5];
  Footprint<T> print{};
  for (int i = columns.begin; i < columns.end; ++i) {
    const bool any = locate(picture, affine.m[0] * static_cast<T>(i) + x, affine.m[3] * static_cast<T>(i) + y, print);
    for (int c = 0; c < channels; ++c) {
      const T value = any ? interpolate(print, picture.data + c * picture.channel_stride) : T(0);
      planes[c][i] = value * scale[c] + shift[c];
    }
  }
}

// The same with a colour matrix.
inline void tinted_border(const Picture<uint8_t>& picture, const Affine<float>& affine, int row, Interval columns,
                          const Tone& tone, float* const* planes) {
  const float scale[3] = {1, 1, 1}, shift[3] = {};
  border_columns(picture, affine, row, columns, 3, scale, shift, planes);
  for (int i = columns.begin; i < columns.end; ++i) {
    const float red = planes[0][i], green = planes[1][i], blue = planes[2][i];
    for (int c = 0; c < 3; ++c) planes[c][i] = apply(tone, c, red, green, blue);
  }
}

// One row of a byte image into `planes`, C lines of `width` floats; `tone` only with C = 3, or null.
template <int C>
void byte_row(const Picture<uint8_t>& picture, const Affine<float>& affine, int row, int width, const Scaled& scaled,
              const WideTone* tone, float* const* planes) {
  const Line line(affine, row);
  const double far_right = picture.width, far_bottom = picture.height;
  const Interval all{0, width},
      seen = line.inside(all, -1 - kMargin, far_right + kMargin, -1 - kMargin, far_bottom + kMargin);
  // Eight bytes from the left neighbour on must not leave the row.
  const int last = picture.width - (8 + C - 1) / C;
  Interval inner{seen.begin, seen.begin};
  const bool near = std::fabs(line.dx) * width + std::fabs(line.dy) * width < kFar && picture.width < kFar &&
                    picture.height < kFar && picture.row_stride * picture.height < INT32_MAX;
  if (near && last > 0 && picture.height > 1)
    inner = line.inside(seen, kMargin, last - kMargin, kMargin, picture.height - 1 - kMargin);
  if (inner.begin == inner.end) inner = {seen.end, seen.end};
  for (int c = 0; c < C; ++c) {
    const float border = tone ? apply(tone->one, c, 0, 0, 0) : scaled.shift[c];
    for (int i = 0; i < seen.begin; ++i) planes[c][i] = border;
    for (int i = seen.end; i < width; ++i) planes[c][i] = border;
  }
  prefetch(picture, Line(affine, row + kRowsAhead), inner);
  const Interval before{seen.begin, inner.begin}, after{inner.end, seen.end};
  if (tone) {
    if constexpr (C == 3) {
      tinted_border(picture, affine, row, before, tone->one, planes);
      inner_columns<C>(picture, line, inner, *tone, planes);
      tinted_border(picture, affine, row, after, tone->one, planes);
    }
    return;
  }
  border_columns(picture, affine, row, before, C, scaled.scale, scaled.shift, planes);
  inner_columns<C>(picture, line, inner, scaled, planes);
  border_columns(picture, affine, row, after, C, scaled.scale, scaled.shift, planes);
}
