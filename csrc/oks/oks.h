// Object keypoint similarity and the two greedy suppressions of duplicate poses, on the CPU.
//
// Floor: N*M*K exponentials; memory does not matter (100 poses of 17 keypoints are 27 KB). How it gets near: a pair is
// computed only where a pose that stays meets one that is still there, and no further than the threshold needs.
#pragma once

#include "core/tensor_view.h"

namespace posekd {

// All tensors are contiguous float64 but for `kept`.
struct Oks {
  TensorView a, b;              // [N, K, 2], [M, K, 2]
  TensorView areas_a, areas_b;  // [N], [M]
  const double* sigmas;         // [K]
  TensorView similarity;        // [N, M] written
};

struct OksNms {
  TensorView keypoints;  // [N, K, 2] float64
  TensorView scores;     // [N] float64
  TensorView areas;      // [N] float64
  const double* sigmas;  // [K]
  double threshold;
  bool soft;
  TensorView kept;   // [capacity] int64, written: indices, then -1
  TensorView count;  // [] int64, written
};

void oks(const Oks& args, int threads);
void oks_nms(const OksNms& args);

}  // namespace posekd
