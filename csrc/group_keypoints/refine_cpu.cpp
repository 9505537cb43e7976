// CPU kernel of refine, compiled once per vector level: threads over the keypoints of the images.
//
// All people who miss a keypoint search its map together. Each first reads the few tiles with the highest bounds, which
// mostly settles it; then the tiles are gone through once, each read into L1 for all whom its bound does not exclude.
#include <cstring>

#include "core/parallel.h"
#include "group_keypoints/refine_tiles.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

constexpr int kProbes = 4;  // tiles that a person reads before the common pass

// The people who miss one keypoint, and the best pixel of each so far. Arrays are padded with people for whom
// no pixel is better.
class Searchers {
 public:
  Searchers(int64_t capacity, int channels)
      : stride_(padded(capacity)),
        channels_(channels),
        people_(stride_),
        pixel_(stride_),
        numbers_(stride_ * (2 + channels)) {}

  int64_t count() const { return count_; }
  int64_t stride() const { return stride_; }
  int64_t person(int64_t i) const { return people_.get()[i]; }
  float* mean(int channel) const { return numbers_.get() + channel * stride_; }
  float* best() const { return numbers_.get() + channels_ * stride_; }
  float* bound() const { return numbers_.get() + (channels_ + 1) * stride_; }
  int32_t* pixel() const { return pixel_.get(); }

  void clear() { count_ = 0; }
  void add(int64_t person, const float* mean) {
    people_.get()[count_] = person;
    for (int c = 0; c < channels_; ++c) this->mean(c)[count_] = mean[c];
    best()[count_] = kNothing;
    pixel()[count_] = 0;  // with no value yet, no pixel comes before it
    ++count_;
  }
  void pad() {
    for (int64_t i = count_; i < padded(count_); ++i) {
      for (int c = 0; c < channels_; ++c) mean(c)[i] = 0.0f;
      best()[i] = INFINITY;
      pixel()[i] = 0;
    }
  }

 private:
  const int64_t stride_;
  const int channels_;
  const ScratchOf<int64_t> people_;
  const ScratchOf<int32_t> pixel_;
  const ScratchOf<float> numbers_;
  int64_t count_ = 0;
};

template <class In, int kChannels>
class JointSearch {
 public:
  explicit JointSearch(const RefineParams<In>& p)
      : p_(p), tiles_(p), searchers_(p.capacity, p.channels), bounds_(padded(tiles_.count())) {}

  void fill(int64_t b, int k) {
    searchers_.clear();
    for (int64_t person = 0; person < p_.people(b); ++person)
      if (wants(p_, b, person, k)) searchers_.add(person, p_.mean(b, person));
    if (searchers_.count() == 0) return;
    searchers_.pad();
    tiles_.open(b, k);
    for (int64_t i = 0; i < searchers_.count(); ++i) probe(i);
    for (int64_t tile = 0; tile < tiles_.count(); ++tile) visit(tile);
    for (int64_t i = 0; i < searchers_.count(); ++i)
      if (searchers_.best()[i] > kNothing) fill_joint(p_, b, searchers_.person(i), k, searchers_.pixel()[i]);
  }

 private:
  // A searcher reads the tiles of the highest bounds, until none beats the best so far.
  void probe(int64_t i) {
    const float *highest = tiles_.highest(), *box = tiles_.box(0), *mean = searchers_.mean(0) + i;
    const int64_t count = padded(tiles_.count());
    float* bounds = bounds_.get();
    for (int64_t t = 0; t < count; ++t)
      bounds[t] = tile_bound(highest[t], box + t, count, mean, searchers_.stride(), tiles_.channels());
    for (int probes = 0; probes < kProbes; ++probes) {
      const int64_t tile = highest_bound();
      if (!(bounds[tile] > searchers_.best()[i])) return;
      bounds[tile] = kNothing;
      tiles_.read(tile);
      look(tile, i);
    }
  }

  int64_t highest_bound() const {
    const float* bounds = bounds_.get();
    const float best = extreme<1>(bounds, padded(tiles_.count()));
    int64_t tile = 0;
    while (tile < tiles_.count() - 1 && bounds[tile] != best) ++tile;
    return tile;
  }

  // Whether the tile's bound lets anybody hope; fills the searchers' bounds. An equal value counts if it may come
  // from an earlier pixel.
  bool anybody(int64_t tile) const {
    const int64_t count = padded(tiles_.count()), stride = searchers_.stride();
    const float highest = tiles_.highest()[tile], *box = tiles_.box(0) + tile, *mean = searchers_.mean(0);
    const float* best = searchers_.best();
    const int32_t *pixel = searchers_.pixel(), first = static_cast<int32_t>(tiles_.first_pixel(tile));
    float* bound = searchers_.bound();
    int any = 0;
    for (int64_t i = 0; i < padded(searchers_.count()); ++i) {
      const float b = tile_bound(highest, box, count, mean + i, stride, tiles_.channels());
      const int hopes = (b > best[i]) | ((b == best[i]) & (first < pixel[i]));
      bound[i] = hopes ? b : kNothing;
      any |= hopes;
    }
    return any != 0;
  }

  void visit(int64_t tile) {
    if (tiles_.highest()[tile] == kNothing || !anybody(tile)) return;
    tiles_.read(tile);  // now its box is known: ask again
    if (!anybody(tile)) return;
    for (int64_t i = 0; i < searchers_.count(); ++i)
      if (searchers_.bound()[i] > kNothing) look(tile, i);
  }

  // Searcher i looks at the pixels of the tile that was read last.
  void look(int64_t tile, int64_t i) {
    alignas(64) float value[kTilePixels];
    find_values(i, value);
    const float highest = extreme<1>(value, kTilePixels);
    float& best = searchers_.best()[i];
    if (highest < best || highest == kNothing) return;
    int at = 0;
    while (value[at] != highest) ++at;
    const int32_t pixel = static_cast<int32_t>(tiles_.pixel(tile, at));
    if (highest == best && pixel > searchers_.pixel()[i]) return;
    best = highest;
    searchers_.pixel()[i] = pixel;
  }

  // pixel_value of every pixel.
  POSEKD_INLINE void find_values(int64_t i, float* value) const {
    const float* heat = tiles_.heat();
    for (int at = 0; at < kTilePixels; ++at) {
      float squares = 0.0f;
      for (int c = 0; c < tiles_.channels(); ++c) {
        const float d = tiles_.tag(c)[at] - searchers_.mean(c)[i];
        squares += d * d;
      }
      value[at] = heat[at] - round_even(sqrtf(squares));
    }
  }

  const RefineParams<In>& p_;
  Tiles<In, kChannels> tiles_;
  Searchers searchers_;
  const ScratchOf<float> bounds_;
};

template <class In, int kChannels>
void fill_missing(const RefineParams<In>& p, int64_t images, int threads) {
  parallel_for(images * p.joints, 1, threads, [&](int64_t begin, int64_t end) {
    JointSearch<In, kChannels> search(p);
    for (int64_t index = begin; index < end; ++index) search.fill(index / p.joints, static_cast<int>(index % p.joints));
  });
}

// Stores the mean tag under a person's keypoints (NaN without keypoints), and adjusts the keypoints where that is asked
// for.
template <class In>
void mean_and_adjust(const RefineParams<In>& p, int64_t b, int64_t person) {
  float* mean = p.mean(b, person);
  for (int c = 0; c < p.channels; ++c) mean[c] = 0.0f;
  int count = 0;
  for (int k = 0; k < p.joints; ++k) {
    float* joint = p.joint(b, person, k);
    if (!(joint[2] > 0.0f)) continue;
    for (int c = 0; c < p.channels; ++c) mean[c] += tag_under(p, joint, b, k, c);
    ++count;
    if (p.adjust) adjust_joint(p, joint, b, k);
  }
  for (int c = 0; c < p.channels; ++c) mean[c] = count > 0 ? mean[c] / static_cast<float>(count) : NAN;
}

template <class In>
void refine(const RefinePeople& args, int threads) {
  const RefineParams<In> p = refine_params<In>(args);
  const int64_t images = args.in.images();
  parallel_for(images, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t size = p.capacity * p.joints * (3 + p.channels);
      std::memcpy(p.keypoints + b * size, p.given + b * size, sizeof(float) * static_cast<size_t>(size));
      for (int64_t person = 0; person < p.people(b); ++person) mean_and_adjust(p, b, person);
    }
  });
  if (!args.fill) return;
  if (p.channels == 1) return fill_missing<In, 1>(p, images, threads);
  if (p.channels == 2) return fill_missing<In, 2>(p, images, threads);
  fill_missing<In, 0>(p, images, threads);
}

}  // namespace

void refine_people(const RefinePeople& args, int threads) {
  dispatch_float<false>(args.in.heatmaps.dtype, [&](auto tag) { refine<typename decltype(tag)::type>(args, threads); });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
