#pragma once

#include "core/tensor_view.h"

namespace posekd {

// in, out: [n] float32, n <= 1024. Writes the sum of `in` to every element of `out`.
void selftest_sum(const TensorView& in, const TensorView& out, bool with_barrier);
// 0: a thread returns before a barrier. 1: two warps wait at different barriers. 2: half a warp shuffles with all.
void selftest_divergent(int kind);
// out: [256 n] float32, in blocks of 64 threads, four to a cluster. Writes 0 + 1 + 2 + 3 everywhere, unless (1) a block
// returns before the cluster's barrier or (2) there is none.
void selftest_cluster(const TensorView& out, int kind);
// in, out: [n] float32, n <= 1024. Writes `in` reversed, by asynchronous copies, which are waited for if `waits`.
void selftest_copy(const TensorView& in, const TensorView& out, bool waits);
// Writes one element past the end.
void selftest_overrun(const TensorView& out);

}  // namespace posekd
