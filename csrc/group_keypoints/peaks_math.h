// When a pixel is a peak, and how a peak is written down: shared by the CPU and CUDA kernels of top_k_peaks.
#pragma once

#include <cfloat>

#include "group_keypoints/group_keypoints.h"

namespace posekd {
namespace {

struct MapSize {
  int width, height;
  POSEKD_HD int64_t pixels() const { return static_cast<int64_t>(width) * height; }
};

// Whether no pixel within `radius` of (x, y), in the map, is above it or NaN. Its neighbours left and right are the
// likeliest to be above, so its row comes first.
template <class In>
POSEKD_HD bool highest_around(const In* map, MapSize size, int x, int y, int radius) {
  const float value = to_float(map[static_cast<int64_t>(y) * size.width + x]);
  const int left = x > radius ? x - radius : 0, right = x + radius < size.width ? x + radius : size.width - 1;
  for (int d = 0; d <= 2 * radius; ++d) {
    const int row = y + (d % 2 ? (d + 1) / 2 : -(d / 2));  // y, y + 1, y - 1, y + 2, ...
    if (row < 0 || row >= size.height) continue;
    const In* line = map + static_cast<int64_t>(row) * size.width;
    for (int i = left; i <= right; ++i)
      if (!(to_float(line[i]) <= value)) return false;
  }
  return true;
}

// Whether (x, y), whose value is above the threshold (so not NaN), is a peak: highest, and not infinite.
template <class In>
POSEKD_HD bool is_peak(const In* map, MapSize size, int x, int y, int radius) {
  return to_float(map[static_cast<int64_t>(y) * size.width + x]) <= FLT_MAX && highest_around(map, size, x, y, radius);
}

// Writes a peak's row: x, y, score, tags.
template <class In>
POSEKD_HD void write_peak(const In* map, const In* tags, int channels, MapSize size, int64_t pixel, float* row) {
  row[0] = static_cast<float>(pixel % size.width);
  row[1] = static_cast<float>(pixel / size.width);
  row[2] = to_float(map[pixel]);
  for (int c = 0; c < channels; ++c) row[3 + c] = to_float(tags[pixel * channels + c]);
}

}  // namespace
}  // namespace posekd
