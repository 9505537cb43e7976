// How large outputs are written: on huge pages, and past the cache when they would not fit in it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor_view.h"

namespace posekd {

// Asks Linux to back a fresh output of 4 MB or more by huge pages: page faults of 4 KB cost more than most kernels.
// Changes no content, needs no success, and touches only memory that lies wholly inside the output.
void advise_huge_pages(const TensorView& fresh);

// Bytes of output from which on stores go past the cache (core/stream.h): three quarters of the last-level cache, as
// glibc's memcpy has it. Below that, a line that is still in cache from its last use would first have to be thrown out:
// rendering into just freed memory takes 1.9 ms with such stores, 0.7 ms without (13 MB, 480 MB of cache).
int64_t stream_from();
// For tests: `bytes` from now on, -1 for this machine's own.
void set_stream_from(int64_t bytes);

// Whether every row of `output` can be written past the cache in whole vectors, and the output is large enough for it.
bool streams(const TensorView& output, int64_t row_bytes, int64_t vector_bytes);

}  // namespace posekd
