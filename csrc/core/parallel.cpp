#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#endif

namespace posekd {
namespace {

// GNU's entry point for a parallel region; LLVM's and Intel's runtimes export it too.
using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

std::atomic<bool> ran_threads{false};
std::atomic<bool> forked{false};

#if defined(__linux__)
int find_openmp(dl_phdr_info* info, size_t, void* found) {
  const std::string path = info->dlpi_name ? info->dlpi_name : "";
  const std::string file = path.substr(path.find_last_of('/') + 1);
  const bool openmp = file.rfind("libgomp", 0) == 0 || file.rfind("libiomp5", 0) == 0 || file.rfind("libomp", 0) == 0;
  std::string& best = *static_cast<std::string*>(found);
  // Another package may have brought a runtime of its own; torch's is the one whose threads we share.
  if (openmp && (best.empty() || path.find("/torch/") != std::string::npos)) best = path;
  return 0;
}
#endif

// Looked up until found: torch, which brings the runtime, may be imported after the core.
GompParallel openmp() {
  static std::atomic<GompParallel> entry{nullptr};
#if defined(__linux__)
  if (!entry) {
    std::string path;
    dl_iterate_phdr(find_openmp, &path);
    if (void* library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD))
      entry = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  }
#endif
  return entry;
}

struct Job {
  int64_t n;
  int64_t grain;
  RangeFunction function;
  void* context;
  std::atomic<int64_t> next{0};
};

void work(void* pointer) {
  Job& job = *static_cast<Job*>(pointer);
  for (int64_t begin; (begin = job.next.fetch_add(job.grain)) < job.n;)
    job.function(job.context, begin, std::min(begin + job.grain, job.n));
}

void watch_forks() {
#if defined(__linux__)
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { forked = forked || ran_threads; }); });
#endif
}

}  // namespace

const char* parallel_backend() { return openmp() ? "openmp" : "threads"; }

void parallel_ranges(int64_t n, int64_t grain, int threads, RangeFunction function, void* context) noexcept {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  threads = static_cast<int>(std::min<int64_t>(threads, (n + grain - 1) / grain));
  if (threads <= 1 || forked) return function(context, 0, n);
  watch_forks();
  ran_threads = true;
  Job job{n, grain, function, context};
  if (GompParallel parallel = openmp()) return parallel(work, &job, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(work, &job);
  work(&job);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace posekd
