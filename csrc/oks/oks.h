// Object keypoint similarity and the two greedy suppressions of duplicate poses.
//
// Floor: N*M*K exponentials; memory does not matter (100 poses of 17 keypoints are 27 KB). How it gets near: on the CPU
// a pair is computed only where a pose that stays meets one that is still there; on a GPU all pairs are (1,000 poses:
// 17 million exponentials at most, some 50 us of an H200's float64), and one block chooses; both no further than the
// threshold needs. Soft: N*K exponentials a round, on the few processors of a cluster.
#pragma once

#include "core/tensor_view.h"

namespace posekd {

constexpr int kMaxOksPoses = 4096, kMaxOksJoints = 256;  // of the CUDA kernels

// On the CPU all tensors are contiguous float64 but for `kept`; on a GPU of any float type, with any strides.
struct Oks {
  TensorView a, b;              // [N, K, 2], [M, K, 2]
  TensorView areas_a, areas_b;  // [N], [M]
  const double* sigmas;         // [K]
  TensorView similarity;        // [N, M] written
};  // CPU only

struct OksNms {
  TensorView keypoints;  // [N, K, 2]
  TensorView scores;     // [N]
  TensorView areas;      // [N]
  const double* sigmas;  // [K]
  double threshold;
  bool soft;
  TensorView kept;   // [capacity] int64, written: indices, then -1
  TensorView count;  // [] int64, written
  // Scratch of the hard one on a GPU: [N, ceil(N / 32)] and [N] int32; and [1] int32, zero between calls.
  TensorView bits, order, counter;
};

void oks(const Oks& args, int threads);
void oks_nms_cpu(const OksNms& args, int threads);
void oks_nms_cuda(const OksNms& args, const CudaContext& context);

}  // namespace posekd
