#pragma once

#include "core/tensor_view.h"

namespace posekd {

// in, out: [n] float32, n <= 1024. Writes the sum of `in` to every element of `out`.
void selftest_sum(const TensorView& in, const TensorView& out, bool with_barrier);
// 0: a thread returns before a barrier. 1: two warps wait at different barriers. 2: half a warp shuffles with all.
void selftest_divergent(int kind);
// Writes one element past the end.
void selftest_overrun(const TensorView& out);

}  // namespace posekd
