#include "core/cpu_dispatch.h"

#include <cstdlib>
#include <cstring>

namespace posekd {
namespace {

Level detect() {
  Level level = Level::baseline;
#if defined(POSEKD_X86_LEVELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) level = Level::avx2;
  if (avx512) level = Level::avx512;
#endif
  return level;
}

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

// The level of that name when this machine has it, else the best that it has.
Level choose(const char* name) {
  const Level best = detect();
  for (int i = 0; i <= static_cast<int>(best); ++i)
    if (name && !std::strcmp(name, kNames[i])) return static_cast<Level>(i);
  return best;
}

Level& current() {
  static Level level = choose(std::getenv("POSEKD_VECTOR_LEVEL"));
  return level;
}

}  // namespace

Level vector_level() { return current(); }

bool set_vector_level(const char* name) {
  current() = choose(name);
  return !*name || !std::strcmp(name, vector_level_name());
}

const char* vector_level_name() { return kNames[static_cast<int>(current())]; }

const char* compiled_levels() {
#if defined(POSEKD_X86_LEVELS)
  return "baseline,avx2,avx512";
#else
  return "baseline";
#endif
}

}  // namespace posekd
