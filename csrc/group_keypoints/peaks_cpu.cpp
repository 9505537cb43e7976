// CPU kernel of top_k_peaks, compiled once per vector level: threads over the maps.
#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/stream.h"
#include "core/vec.h"
#include "core/vec_lanes.h"
#include "group_keypoints/peaks_math.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

struct Peak {
  float value;
  int64_t pixel;
};

// The highest peaks so far, in order; of equal ones the earlier pixel stays.
class Best {
 public:
  Best(Peak* peaks, int capacity, float threshold) : peaks_(peaks), capacity_(capacity), bar_(threshold) {}

  int count() const { return count_; }
  // What a later pixel must be above to get in.
  float bar() const { return bar_; }

  void add(Peak peak) {
    int at = count_ < capacity_ ? count_++ : capacity_ - 1;
    for (; at > 0 && peaks_[at - 1].value < peak.value; --at) peaks_[at] = peaks_[at - 1];
    peaks_[at] = peak;
    if (count_ == capacity_) bar_ = peaks_[capacity_ - 1].value;
  }

 private:
  Peak* peaks_;
  int capacity_;
  int count_ = 0;
  float bar_;
};

constexpr int kChunk = 64;

// Whether any of a chunk's values is above the bar.
POSEKD_INLINE bool any_above(const float* values, float bar) {
  int above = 0;
  for (int i = 0; i < kChunk; ++i) above |= values[i] > bar;
  return above != 0;
}

// Looks at pixels [begin, end) of row y one by one.
template <class In>
void look(const In* map, MapSize size, int y, const float* line, int begin, int end, int radius, Best& best) {
  for (int x = begin; x < end; ++x)
    if (line[x] > best.bar() && is_peak(map, size, x, y, radius))
      best.add({line[x], static_cast<int64_t>(y) * size.width + x});
}

// The same for a chunk with neighbours on both sides, for a radius of 1 or more: pixels lower than one of them, or,
// where the map is float32, than the one above or below, are passed over a vector at a time.
template <class In>
void look_at_chunk(const In* map, MapSize size, int y, const float* line, int begin, int radius, Best& best) {
  constexpr int L = Vec<float>::kLanes;
  for (int x = begin; x < begin + kChunk; x += L) {
    const float* at = line + x;
    const vec<float> value = load(at);
    lanes<float> candidates = greater<float>(value, broadcast(best.bar())) & at_least<float>(value, load(at - 1)) &
                              at_least<float>(value, load(at + 1));
    if constexpr (std::is_same_v<In, float>) {
      if (y > 0) candidates &= at_least<float>(value, load(at - size.width));
      if (y + 1 < size.height) candidates &= at_least<float>(value, load(at + size.width));
    }
    for (uint32_t bits = bits_of<float>(candidates); bits; bits &= bits - 1) {
      const int pixel = x + __builtin_ctz(bits);
      look(map, size, y, line, pixel, pixel + 1, radius, best);
    }
  }
}

// `line` is row y as float.
template <class In>
void scan_row(const In* map, MapSize size, int y, const float* line, int radius, Best& best) {
  int x = 0;
  for (; x + kChunk <= size.width; x += kChunk) {
    for (int i = 0; i < kChunk; i += 64 / static_cast<int>(sizeof(In)))
      fetch_ahead<false>(map + static_cast<int64_t>(y) * size.width + x + i);
    if (!any_above(line + x, best.bar())) continue;
    if (radius > 0 && x > 0 && x + kChunk < size.width)
      look_at_chunk(map, size, y, line, x, radius, best);
    else
      look(map, size, y, line, x, x + kChunk, radius, best);
  }
  look(map, size, y, line, x, size.width, radius, best);
}

// Reads a map once, row by row; half types by way of a row in float.
template <class In>
void scan(const In* map, MapSize size, int radius, float* line, Best& best) {
  for (int y = 0; y < size.height; ++y) {
    const In* row = map + static_cast<int64_t>(y) * size.width;
    if constexpr (sizeof(In) == sizeof(float)) {
      scan_row(map, size, y, row, radius, best);
    } else {
      for (int x = 0; x < size.width; ++x) line[x] = to_float(row[x]);
      scan_row(map, size, y, line, radius, best);
    }
  }
}

template <class In>
void find_peaks(const TopKPeaks& args, int threads) {
  const MapSize size{args.in.width(), args.in.height()};
  const int people = args.max_people(), channels = args.in.channels(), row = 3 + channels;
  parallel_for(args.in.maps(), 32768 / size.pixels() + 1, threads, [&](int64_t begin, int64_t end) {
    const ScratchOf<Peak> peaks(people);
    const ScratchOf<float> line(size.width);
    for (int64_t index = begin; index < end; ++index) {
      const In* map = args.in.heatmaps.as<In>() + index * size.pixels();
      const In* tags = args.in.tags_of<In>(index);
      Best best(peaks.get(), people, args.threshold);
      scan(map, size, args.nms_kernel / 2, line.get(), best);
      float* out = args.peaks.as<float>() + index * people * row;
      std::memset(out, 0, sizeof(float) * static_cast<size_t>(people) * row);
      for (int i = 0; i < best.count(); ++i) write_peak(map, tags, channels, size, peaks.get()[i].pixel, out + i * row);
    }
  });
}

}  // namespace

void top_k_peaks(const TopKPeaks& args, int threads) {
  dispatch_float<false>(args.in.heatmaps.dtype,
                        [&](auto tag) { find_peaks<typename decltype(tag)::type>(args, threads); });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
