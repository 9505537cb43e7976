// One keypoint's maps cut into tiles, with what is known of each tile. For refine_cpu.cpp only.
#pragma once

#include "core/scratch.h"
#include "core/vec.h"
#include "group_keypoints/refine_math.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr float kNothing = -INFINITY;
constexpr int kTilePixels = kTile * kTile;
constexpr int kLanes = 16;  // arrays over tiles and people are padded to it: the widest vector

constexpr int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// The largest (kSign 1) or smallest (kSign -1) of `count` values, a multiple of kLanes; NaN is passed over.
template <int kSign>
POSEKD_INLINE float extreme(const float* values, int64_t count) {
  constexpr int L = Vec<float>::kLanes, kChains = kLanes / L;
  vec<float> chain[kChains];
  for (int c = 0; c < kChains; ++c) chain[c] = broadcast(kSign * -INFINITY);
  for (int64_t i = 0; i < count; i += kLanes)
    for (int c = 0; c < kChains; ++c) {
      const vec<float> value = load(values + i + c * L);
      chain[c] = select(kSign > 0 ? value > chain[c] : value < chain[c], value, chain[c]);
    }
  float best = chain[0][0];
  for (int c = 0; c < kChains; ++c)
    for (int l = 0; l < L; ++l) best = (kSign > 0 ? chain[c][l] > best : chain[c][l] < best) ? chain[c][l] : best;
  return best;
}

// kChannels 0: their number is known at run time.
template <class In, int kChannels>
class Tiles {
 public:
  explicit Tiles(const RefineParams<In>& p)
      : p_(p),
        count_channels_(p.channels),
        across_((p.width + kTile - 1) / kTile),
        count_(across_ * ((p.height + kTile - 1) / kTile)),
        numbers_(padded(count_) * (1 + 2 * channels())),
        line_(padded(p.width)),
        planes_((1 + channels()) * kTilePixels) {}

  POSEKD_INLINE int channels() const { return kChannels ? kChannels : count_channels_; }
  int64_t count() const { return count_; }
  // Largest finite heatmap value of every tile; -inf without one, and in the padding.
  const float* highest() const { return numbers_.get(); }
  // Box of the tags of every tile: low of channel c at side 2 c, high at 2 c + 1. All of space until a tile is read.
  float* box(int side) const { return numbers_.get() + (1 + side) * padded(count_); }
  int64_t first_pixel(int64_t tile) const { return tile / across_ * kTile * p_.width + tile % across_ * kTile; }
  // Pixel i of a tile, counted row by row, as a pixel of the map.
  int64_t pixel(int64_t tile, int i) const {
    return first_pixel(tile) + static_cast<int64_t>(i / kTile) * p_.width + i % kTile;
  }

  // Turns to a keypoint: reads its heatmap, and forgets the boxes.
  void open(int64_t b, int k) {
    map_ = p_.map(b, k);
    tag_map_ = p_.tag_map(b, k);
    for (int64_t tile = count_; tile < padded(count_); ++tile) numbers_.get()[tile] = kNothing;
    for (int y = 0; y < p_.height; y += kTile) find_highest(y, numbers_.get() + y / kTile * across_);
    for (int c = 0; c < channels(); ++c)
      for (int64_t tile = 0; tile < padded(count_); ++tile)
        box(2 * c)[tile] = -INFINITY, box(2 * c + 1)[tile] = INFINITY;
    held_ = -1;
  }

  // Reads a tile: its pixels into `heat` and `tag`, and the box of its tags.
  void read(int64_t tile) {
    if (tile == held_) return;
    held_ = tile;
    const int x = static_cast<int>(tile % across_) * kTile, y = static_cast<int>(tile / across_) * kTile;
    const int columns = p_.width - x < kTile ? p_.width - x : kTile;
    const int rows = p_.height - y < kTile ? p_.height - y : kTile;
    if (columns == kTile && rows == kTile) {
      for (int row = 0; row < kTile; ++row)
        read_row(row, kTile, first_pixel(tile) + static_cast<int64_t>(row) * p_.width);
    } else {
      blank();
      for (int row = 0; row < rows; ++row)
        read_row(row, columns, first_pixel(tile) + static_cast<int64_t>(row) * p_.width);
    }
    for (int c = 0; c < channels(); ++c) find_box(c, tile);
  }
  // The pixels of the tile that was read last, [kTile, kTile]: -inf where the heatmap is not finite or beyond the map.
  const float* heat() const { return planes_.get(); }
  float* tag(int channel) const { return planes_.get() + (1 + channel) * kTilePixels; }

 private:
  // The maxima of the row of tiles that starts at image row y: down the columns, then across each tile.
  void find_highest(int y, float* highest) const {
    float* line = line_.get();
    for (int64_t x = 0; x < padded(p_.width); ++x) line[x] = kNothing;
    for (int row = y; row < y + kTile && row < p_.height; ++row) {
      const In* from = map_ + static_cast<int64_t>(row) * p_.width;
      for (int x = 0; x < p_.width; ++x) {
        const float value = to_float(from[x]), finite = value <= FLT_MAX ? value : kNothing;
        line[x] = finite > line[x] ? finite : line[x];
      }
    }
    for (int64_t tile = 0; tile < across_; ++tile) highest[tile] = extreme<1>(line + tile * kTile, kTile);
  }

  // Pixels without a value, and with tags that widen no box.
  void blank() const {
    for (int i = 0; i < kTilePixels; ++i) planes_.get()[i] = kNothing;
    for (int c = 0; c < channels(); ++c)
      for (int i = 0; i < kTilePixels; ++i) tag(c)[i] = NAN;
  }

  POSEKD_INLINE void read_row(int row, int columns, int64_t from) const {
    // The rows of a tile lie far apart, so nothing else fetches the next tile, which likely is read next.
    __builtin_prefetch(map_ + from + kTile);
    for (int i = 0; i < kTile * channels() * static_cast<int>(sizeof(In)); i += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(tag_map_ + (from + kTile) * channels()) + i);
    float* heat = planes_.get() + row * kTile;
    for (int i = 0; i < columns; ++i) {
      const float value = to_float(map_[from + i]);
      heat[i] = value <= FLT_MAX ? value : kNothing;
    }
    for (int c = 0; c < channels(); ++c)
      for (int i = 0; i < columns; ++i) tag(c)[row * kTile + i] = to_float(tag_map_[(from + i) * channels() + c]);
  }

  void find_box(int channel, int64_t tile) const {
    box(2 * channel)[tile] = extreme<-1>(tag(channel), kTilePixels);
    box(2 * channel + 1)[tile] = extreme<1>(tag(channel), kTilePixels);
  }

  const RefineParams<In>& p_;
  const int count_channels_;
  const int64_t across_, count_;
  const ScratchOf<float> numbers_, line_, planes_;
  const In* map_ = nullptr;
  const In* tag_map_ = nullptr;
  int64_t held_ = -1;
};

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
