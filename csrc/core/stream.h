// Stores that go past the caches, for outputs too large to stay in them (core/large_outputs.h says when): a plain store
// reads its line first.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/vec.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

// Stores past the cache, for outputs larger than it: no line is read before it is written. `to` is aligned to a vector.
template <class T>
POSEKD_INLINE void stream(T* to, vec<T> value) {
#if defined(__AVX512F__)
  typedef long long words __attribute__((vector_size(64)));
  __builtin_ia32_movntdq512(reinterpret_cast<words*>(to), (words)value);
#elif defined(__AVX2__)
  typedef long long words __attribute__((vector_size(32)));
  __builtin_ia32_movntdq256(reinterpret_cast<words*>(to), (words)value);
#else
  store(to, value);
#endif
}

// Asks for the line a page ahead of a scan (or, kDown, behind it): the processor's own prefetchers stop at a page's
// end.
template <bool kDown, class T>
POSEKD_INLINE void fetch_ahead(const T* from) {
  constexpr int64_t kAhead = 4096;
  __builtin_prefetch(reinterpret_cast<const char*>(from) + (kDown ? -kAhead : kAhead));
}

// Asks for the line of an output some lines ahead of a scan: a store waits in its queue until its line has come, and a
// scan has too few stores in that queue to keep the memory busy.
template <bool kDown, class T>
POSEKD_INLINE void own_ahead(T* to) {
  constexpr int64_t kAhead = 2048;
  __builtin_prefetch(reinterpret_cast<char*>(to) + (kDown ? -kAhead : kAhead), 1);
}

// memcpy past the caches. Call stream_fence() once after the last of them.
POSEKD_INLINE void stream_copy(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(target) % 64);
  if (bytes < 64 + head) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  std::memcpy(target, source, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64)  // whole lines, or the processor writes them in parts
    for (int k = 0; k < 64; k += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + i + k), load_as<__m128i>(source + i + k));
  std::memcpy(target + i, source + i, static_cast<size_t>(bytes - i));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// Makes streamed stores visible to other threads before anything that this thread stores later.
POSEKD_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
