#include "core/large_outputs.h"

#include <atomic>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "core/dtype.h"

namespace posekd {
namespace {

constexpr int64_t kHugeFrom = 4 << 20;
constexpr int64_t kLeastCache = 8 << 20;

int64_t detect() {
  int64_t cache = 0;
#if defined(__linux__) && defined(_SC_LEVEL3_CACHE_SIZE)
  cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  return (cache > kLeastCache ? cache : kLeastCache) / 4 * 3;
}

std::atomic<int64_t>& threshold() {
  static std::atomic<int64_t> bytes{detect()};
  return bytes;
}

}  // namespace

void advise_huge_pages(const TensorView& fresh) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (!fresh.present) return;
  const int64_t bytes = fresh.numel() * item_size(fresh.dtype);
  if (bytes < kHugeFrom) return;
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t address = reinterpret_cast<uintptr_t>(fresh.data);
  const uintptr_t begin = (address + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kHuge * kHuge;
  if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)fresh;
#endif
}

int64_t stream_from() { return threshold(); }

void set_stream_from(int64_t bytes) { threshold() = bytes < 0 ? detect() : bytes; }

bool streams(const TensorView& output, int64_t row_bytes, int64_t vector_bytes) {
  return output.numel() * item_size(output.dtype) >= stream_from() && row_bytes % vector_bytes == 0 &&
         reinterpret_cast<uintptr_t>(output.data) % static_cast<uintptr_t>(vector_bytes) == 0;
}

}  // namespace posekd
