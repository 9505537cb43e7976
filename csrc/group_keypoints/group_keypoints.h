// Associative-embedding grouping in three stages: peaks of every map, people from the peaks' tags, refinement.
//
// Floors for one image of 17x512x512 with two tag channels in float32, 30 people:
//
// - peaks: read the heatmaps, 17.8 MB (H200 at 4.3 TB/s: 4.1 us; CPU at 20 GB/s: 0.9 ms)
// - match: 17 assignments of 30x30, a serial chain; 36 KB in, 50 KB out: latency, not bytes
// - refine: read the heatmaps and the tags, 53.5 MB (H200: 12.4 us; CPU: 2.7 ms)
//
// How it gets near:
//   peaks: one pass; a pixel's window is read only when the pixel is above the threshold, or, once max_people peaks
//     stand, above the lowest of them.
//   match: shortest augmenting paths from the warm duals of the rows before; a warp shares the columns on the GPU.
//   refine: branch and bound over tiles. A tile's largest heatmap value and the box of its tags bound what any of its
//     pixels can reach; tiles are read from the highest bound down until no bound beats the best pixel. The CPU learns
//     a tile's box when it first reads the tile, so that tags of tiles which nobody needs are never read: its floor is
//     the 17.8 MB of the heatmaps.
// The arithmetic of tags is rounded step by step (no fused multiply-add, see CMakeLists.txt), so that every device,
// vector level and the plain PyTorch definition give the same people.
#pragma once

#include <cstddef>

#include "core/cpu_dispatch.h"
#include "core/tensor_view.h"

namespace posekd {

constexpr int kMaxJoints = 256;  // the keypoint order travels in the kernel's arguments

// Heatmaps and tags of a batch, both of one float type.
struct TaggedMaps {
  TensorView heatmaps;  // [B, K, H, W] contiguous
  TensorView tags;      // [B, K, H * W, T] contiguous, or [B, 1, H * W, T] shared by the keypoints

  int64_t images() const { return heatmaps.shape[0]; }
  int64_t maps() const { return heatmaps.shape[0] * heatmaps.shape[1]; }
  int joints() const { return static_cast<int>(heatmaps.shape[1]); }
  int height() const { return static_cast<int>(heatmaps.shape[2]); }
  int width() const { return static_cast<int>(heatmaps.shape[3]); }
  int64_t pixels() const { return heatmaps.shape[2] * heatmaps.shape[3]; }
  int channels() const { return static_cast<int>(tags.shape[3]); }
  // Where the tags of map b * K + k start.
  template <class T>
  T* tags_of(int64_t map) const {
    const int64_t plane = tags.shape[1] == 1 ? map / heatmaps.shape[1] : map;
    return tags.as<T>() + plane * pixels() * channels();
  }
};

struct TopKPeaks {
  TaggedMaps in;
  TensorView peaks;      // [B, K, M, 3 + T] float32: x, y, score, tags; by descending score, then pixel; zeros after
  TensorView workspace;  // CUDA: [B * K, strips, M] int64
  float threshold = 0;   // >= 0; a peak is above it
  int nms_kernel = 5;    // odd

  int max_people() const { return static_cast<int>(peaks.shape[2]); }
};

struct MatchByTag {
  TensorView peaks;      // [B, K, M, 3 + T] float32, K <= kMaxJoints
  TensorView keypoints;  // [B, capacity, K, 3 + T] float32
  TensorView scores;     // [B, capacity] float32
  TensorView counts;     // [B] int64: people found, which may exceed the capacity
  TensorView workspace;  // [B, match_workspace_bytes] uint8, aligned to 16 bytes
  double detection_threshold = 0, tag_threshold = 1;
  int16_t order[kMaxJoints] = {};
  bool ignore_too_many = false, use_detection_score = true;

  void set_order(const int* joints, size_t count) {
    for (size_t i = 0; i < count && i < kMaxJoints; ++i) order[i] = static_cast<int16_t>(joints[i]);
  }
};

// Bytes that one image needs in MatchByTag::workspace.
int64_t match_workspace_bytes(int64_t joints, int64_t max_people, int64_t channels);

struct RefinePeople {
  TaggedMaps in;
  TensorView keypoints;  // [B, P, K, 3 + T] float32
  TensorView refined;    // the same, written
  TensorView counts;     // [B] int64: the first min(count, P) are people
  TensorView means;      // workspace [B, P, T] float32
  TensorView bounds;     // workspace of CUDA: [B * K, 1 + 2 T, tiles] float32
  bool adjust = true, fill = true;

  int64_t capacity() const { return keypoints.shape[1]; }
};

// The side of a tile of the refinement, in pixels.
constexpr int kTile = 16;

POSEKD_CPU_ENTRY(top_k_peaks, TopKPeaks)
POSEKD_CPU_ENTRY(match_by_tag, MatchByTag)
POSEKD_CPU_ENTRY(refine_people, RefinePeople)
void top_k_peaks_cuda(const TopKPeaks& args, const CudaContext& context);
void match_by_tag_cuda(const MatchByTag& args, const CudaContext& context);
void refine_people_cuda(const RefinePeople& args, const CudaContext& context);

}  // namespace posekd
