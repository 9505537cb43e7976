// Memory that a thread keeps while it works on its share of an op. For <op>_cpu.cpp files only.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

// `count` elements, aligned to 64 bytes, not initialised.
template <class T>
class ScratchOf {
 public:
  explicit ScratchOf(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>(padded_bytes(count))))) {}
  ~ScratchOf() { std::free(data_); }
  ScratchOf(const ScratchOf&) = delete;
  ScratchOf& operator=(const ScratchOf&) = delete;
  T* get() const { return data_; }

 private:
  static int64_t padded_bytes(int64_t count) { return (count * static_cast<int64_t>(sizeof(T)) + 127) / 64 * 64; }
  T* data_;
};

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
