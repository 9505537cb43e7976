// Chooses, at run time, among the copies of a CPU kernel that were compiled for different vector units.
//
// A file <op>_cpu.cpp is compiled once per level, with POSEKD_LEVEL set to the level's name, and puts its
// entry points into namespace posekd::POSEKD_LEVEL. The op's header declares them with POSEKD_CPU_ENTRY.
// Such a file includes no standard containers and keeps its helpers in that namespace: a function shared
// between levels would be emitted with the widest instructions and called on machines that lack them.
#pragma once

namespace posekd {

enum class Level { baseline, avx2, avx512 };

// The widest level that both the build and this processor have; POSEKD_VECTOR_LEVEL in the environment lowers it.
Level vector_level();
// For tests: use `name` from now on ("" for the best). Returns whether this build and processor have it.
bool set_vector_level(const char* name);
const char* vector_level_name();
// The compiled levels, comma separated.
const char* compiled_levels();

}  // namespace posekd

#if defined(POSEKD_X86_LEVELS)
#define POSEKD_CPU_ENTRY(function, Args)                      \
  namespace baseline {                                        \
  void function(const Args& args, int threads);               \
  }                                                           \
  namespace avx2 {                                            \
  void function(const Args& args, int threads);               \
  }                                                           \
  namespace avx512 {                                          \
  void function(const Args& args, int threads);               \
  }                                                           \
  inline void function##_cpu(const Args& args, int threads) { \
    switch (vector_level()) {                                 \
      case Level::avx512:                                     \
        return avx512::function(args, threads);               \
      case Level::avx2:                                       \
        return avx2::function(args, threads);                 \
      default:                                                \
        return baseline::function(args, threads);             \
    }                                                         \
  }
#else
#define POSEKD_CPU_ENTRY(function, Args)        \
  namespace baseline {                          \
  void function(const Args& args, int threads); \
  }                                             \
  inline void function##_cpu(const Args& args, int threads) { return baseline::function(args, threads); }
#endif
