// A parallel loop on the OpenMP pool that the process already has (torch's), without linking to OpenMP.
#pragma once

#include <cstdint>
#include <type_traits>

namespace posekd {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function(context, begin, end) over chunks of [0, n) of `grain` items, on up to `threads` threads.
// Serial when there is one chunk, one thread, or when the process is a fork of one that ran threads:
// the OpenMP pool does not survive a fork, and waiting for it would hang.
void parallel_ranges(int64_t n, int64_t grain, int threads, RangeFunction function, void* context) noexcept;

// Which pool `parallel_ranges` uses: "openmp" (shared with the host program) or "threads" (our own).
const char* parallel_backend();

template <class F>
void parallel_for(int64_t n, int64_t grain, int threads, F&& body) {
  parallel_ranges(
      n, grain, threads,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace posekd
