// The per-sample ROIAlign that public libraries run on CPUs, for benchmarks: torchvision's algorithm (positions and
// weights of a box's samples precomputed once for all channels, four gathers a sample), aligned, one thread.
// Its backward scatters the same four weights; torchvision's own recomputes them for every channel and is slower.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct Sample {
  int position[4];
  float weight[4];
};

struct Shape {
  int64_t channels, height, width, boxes, out_height, out_width;
};

void corners(float at, int64_t length, bool& valid, int& low, int& high, float& fraction) {
  valid = at >= -1 && at <= length;
  at = std::max(at, 0.0f);
  low = static_cast<int>(at);
  high = low + 1;
  fraction = at - low;
  if (low >= length - 1) low = high = static_cast<int>(length) - 1, fraction = 0;
}

// All samples of one box, bin by bin; `per_bin` of them in each.
std::vector<Sample> samples_of(const float* box, const Shape& s, float scale, int ratio, int& per_bin) {
  const float left = box[1] * scale - 0.5f, top = box[2] * scale - 0.5f;
  const float bin_w = (box[3] * scale - 0.5f - left) / s.out_width, bin_h = (box[4] * scale - 0.5f - top) / s.out_height;
  const int grid_h = ratio > 0 ? ratio : std::max(0, static_cast<int>(std::ceil(bin_h)));
  const int grid_w = ratio > 0 ? ratio : std::max(0, static_cast<int>(std::ceil(bin_w)));
  per_bin = grid_h * grid_w;
  std::vector<Sample> samples;
  samples.reserve(static_cast<size_t>(s.out_height * s.out_width * per_bin));
  for (int64_t bin = 0; bin < s.out_height * s.out_width; ++bin)
    for (int i = 0; i < per_bin; ++i) {
      bool y_valid, x_valid;
      int y0, y1, x0, x1;
      float fy, fx;
      const float y = top + bin / s.out_width * bin_h + (i / grid_w + 0.5f) * bin_h / grid_h;
      const float x = left + bin % s.out_width * bin_w + (i % grid_w + 0.5f) * bin_w / grid_w;
      corners(y, s.height, y_valid, y0, y1, fy);
      corners(x, s.width, x_valid, x0, x1, fx);
      Sample sample{};
      if (y_valid && x_valid) {
        const int w = static_cast<int>(s.width);
        sample = {{y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1},
                  {(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx}};
      }
      samples.push_back(sample);
    }
  return samples;
}

}  // namespace

extern "C" void roi_align_gather(const float* maps, const float* boxes, float* crops, const Shape* shape, float scale,
                                 int ratio) {
  const Shape& s = *shape;
  const int64_t map = s.height * s.width, crop = s.out_height * s.out_width;
  for (int64_t r = 0; r < s.boxes; ++r) {
    int per_bin;
    const std::vector<Sample> samples = samples_of(boxes + 5 * r, s, scale, ratio, per_bin);
    const float count = static_cast<float>(std::max(per_bin, 1));
    for (int64_t c = 0; c < s.channels; ++c) {
      const float* from = maps + (static_cast<int64_t>(boxes[5 * r]) * s.channels + c) * map;
      const Sample* sample = samples.data();
      for (int64_t bin = 0; bin < crop; ++bin) {
        float sum = 0;
        for (int i = 0; i < per_bin; ++i, ++sample)
          for (int k = 0; k < 4; ++k) sum += sample->weight[k] * from[sample->position[k]];
        crops[(r * s.channels + c) * crop + bin] = sum / count;
      }
    }
  }
}

// `maps` is the gradient, zero before.
extern "C" void roi_align_scatter(float* maps, const float* boxes, const float* crops, const Shape* shape, float scale,
                                  int ratio) {
  const Shape& s = *shape;
  const int64_t map = s.height * s.width, crop = s.out_height * s.out_width;
  for (int64_t r = 0; r < s.boxes; ++r) {
    int per_bin;
    const std::vector<Sample> samples = samples_of(boxes + 5 * r, s, scale, ratio, per_bin);
    const float count = static_cast<float>(std::max(per_bin, 1));
    for (int64_t c = 0; c < s.channels; ++c) {
      float* to = maps + (static_cast<int64_t>(boxes[5 * r]) * s.channels + c) * map;
      const Sample* sample = samples.data();
      for (int64_t bin = 0; bin < crop; ++bin) {
        const float value = crops[(r * s.channels + c) * crop + bin] / count;
        for (int i = 0; i < per_bin; ++i, ++sample)
          for (int k = 0; k < 4; ++k) to[sample->position[k]] += sample->weight[k] * value;
      }
    }
  }
}
