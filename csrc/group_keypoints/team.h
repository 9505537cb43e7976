// Threads that work on one image together: one on the CPU, a warp on the GPU. Code written for a team runs on both.
#pragma once

#include "core/dtype.h"

#if defined(__CUDACC__)
#define POSEKD_TEAM __device__ inline
#else
#define POSEKD_TEAM inline
#endif

namespace posekd {
namespace {

// A cost on two levels: the second decides between equal firsts.
struct Cost {
  double first, second;
};

POSEKD_TEAM Cost operator+(Cost a, Cost b) { return {a.first + b.first, a.second + b.second}; }
POSEKD_TEAM Cost operator-(Cost a, Cost b) { return {a.first - b.first, a.second - b.second}; }
POSEKD_TEAM bool operator<(Cost a, Cost b) { return a.first < b.first || (a.first == b.first && a.second < b.second); }

struct Candidate {
  Cost cost;
  int column;
};

// The cheaper one, the lower column of equals.
POSEKD_TEAM Candidate cheaper(const Candidate& a, const Candidate& b) {
  if (a.cost < b.cost) return a;
  if (b.cost < a.cost) return b;
  return a.column < b.column ? a : b;
}

// A team of one.
struct Alone {
  POSEKD_TEAM int lane() const { return 0; }
  POSEKD_TEAM int size() const { return 1; }
  POSEKD_TEAM void sync() const {}
  POSEKD_TEAM Candidate cheapest(const Candidate& mine) const { return mine; }
  POSEKD_TEAM int lowest(int mine) const { return mine; }
  // Appends `value` of the lanes that keep it to list[count ..], in lane order; returns the new count.
  POSEKD_TEAM int append(bool keep, int value, int* list, int count) const {
    if (keep) list[count++] = value;
    return count;
  }
};

}  // namespace
}  // namespace posekd
