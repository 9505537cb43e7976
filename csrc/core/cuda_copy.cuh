// Copies from global to shared memory that go on while the thread does something else (cp.async, from Ampere on).
#pragma once

#include "core/cuda_compat.h"

namespace posekd {
namespace {

// Asks for kBytes (4, 8 or 16), both addresses aligned to as many. They are there after copy_wait() by this thread, and
// for the other threads after a barrier behind that.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if defined(POSEKD_EMU)
  emu::copy_later(shared, global, kBytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)  // past the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
#else
  *static_cast<Pack<uint8_t, kBytes>*>(shared) = *static_cast<const Pack<uint8_t, kBytes>*>(global);
#endif
}

__device__ __forceinline__ void copy_wait() {
#if defined(POSEKD_EMU)
  emu::finish_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace
}  // namespace posekd
