// One line of corner pooling on the CPU: a row of a column scan, or a whole row scan. For corner_pool_cpu.cpp only.
//
// All loops walk down the memory (kDown) when the scan does: against mixed directions the processor's prefetchers give
// up, at three times the cost. Head bits are built in a register and stored a word at a time.
#pragma once

#include <limits>

#include "core/pooling_math.h"
#include "core/stream.h"
#include "core/vec_lanes.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

// The columns of a word of head bits: whole vectors, then (end of the row) single elements from `whole` on.
struct Word {
  int64_t index, begin, whole, end;
};

inline int64_t words_of(int64_t width) { return (width + 31) / 32; }

// The k-th word on the way down or up a row.
template <bool kDown, int kLanes>
POSEKD_INLINE Word word_at(int64_t k, int64_t width) {
  const int64_t index = kDown ? words_of(width) - 1 - k : k, begin = 32 * index;
  const int64_t end = begin + 32 < width ? begin + 32 : width;
  return {index, begin, begin + (end - begin) / kLanes * kLanes, end};
}

template <class A>
struct ForwardLine {
  const A* x;
  const A* other;  // null: nothing to add
  A* y;
  uint32_t* heads;  // null: not wanted
  int64_t width;
  bool past_cache;  // y is aligned, and larger than the cache

  POSEKD_INLINE void put(int64_t i, vec<A> value) const {
    if (other) value += load(other + i);
    past_cache ? stream(y + i, value) : store(y + i, value);
  }
  POSEKD_INLINE void put(int64_t i, A value) const { y[i] = other ? value + other[i] : value; }
  POSEKD_INLINE void mark(const Word& word, uint32_t bits) const {
    if (heads) heads[word.index] = bits;
  }
};

// The first row of a column scan: every element is its own maximum.
template <bool kDown, class A>
void first_column_line(const ForwardLine<A>& line, A* best) {
  for (int64_t i = 0; i < line.width; ++i) {
    best[i] = line.x[i];
    line.put(i, best[i]);
  }
  for (int64_t k = 0; k < words_of(line.width); ++k) {
    const Word word = word_at<kDown, 1>(k, line.width);
    line.mark(word, ~0u >> (32 - (word.end - word.begin)));
  }
}

// A further row of a column scan; `best` holds the maxima so far.
template <bool kDown, bool kLast, class A>
POSEKD_INLINE void column_line(const ForwardLine<A>& line, A* best) {
  constexpr int L = Vec<A>::kLanes;
  for (int64_t k = 0; k < words_of(line.width); ++k) {
    const Word word = word_at<kDown, L>(k, line.width);
    uint32_t bits = 0;
    for (int64_t step = 0; step < word.whole - word.begin; step += L) {
      const int64_t i = kDown ? word.whole - L - step : word.begin + step;
      fetch_ahead<kDown>(line.x + i);
      const vec<A> x = load(line.x + i), m = load(best + i);
      const lanes<A> takes = takes_over_lanes<kLast, A>(x, m);
      const vec<A> value = choose<A>(takes, x, m);
      store(best + i, value);
      line.put(i, value);
      bits |= bits_of<A>(takes) << (i - word.begin);
    }
    for (int64_t i = word.whole; i < word.end; ++i) {
      const bool takes = takes_over<kLast>(line.x[i], best[i]);
      if (takes) best[i] = line.x[i];
      line.put(i, best[i]);
      bits |= (takes ? 1u : 0u) << (i - word.begin);
    }
    line.mark(word, bits);
  }
}

template <bool kDown, class A>
POSEKD_INLINE bool has_nan(const A* x, int64_t count) {
  constexpr int L = Vec<A>::kLanes;
  const int64_t whole = count / L * L;
  lanes<A> found = {};
  for (int64_t k = 0; k < whole; k += L) found |= is_nan<A>(load(x + (kDown ? whole - L - k : k)));
  bool any = bits_of<A>(found) != 0;
  for (int64_t i = whole; i < count; ++i) any |= x[i] != x[i];
  return any;
}

// Elements [begin, word.end) of a row scan, one by one, in the scan's order; returns their bits. `best` goes on.
template <bool kDown, bool kLast, class A>
uint32_t scan_elements(const ForwardLine<A>& line, const Word& word, int64_t begin, A& best) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < word.end - begin; ++k) {
    const int64_t i = kDown ? word.end - 1 - k : begin + k;
    const bool takes = i == (kDown ? line.width - 1 : 0) || takes_over<kLast>(line.x[i], best);
    if (takes) best = line.x[i];
    line.put(i, best);
    bits |= (takes ? 1u : 0u) << (i - word.begin);
  }
  return bits;
}

template <int D, bool kDown, class A>
POSEKD_INLINE vec<A> scan_step(vec<A> value, vec<A> lowest) {
  if constexpr (D < Vec<A>::kLanes) {
    const vec<A> earlier = shift<D, kDown, A>(value, lowest);
    return scan_step<2 * D, kDown, A>(larger(value, earlier), lowest);
  } else {
    return value;
  }
}

// A row scan of a row that holds a NaN.
template <bool kDown, bool kLast, class A>
void row_line_with_nan(const ForwardLine<A>& line) {
  A best = 0;
  for (int64_t k = 0; k < words_of(line.width); ++k) {
    const Word word = word_at<kDown, 1>(k, line.width);
    line.mark(word, scan_elements<kDown, kLast>(line, word, word.begin, best));
  }
}

// A row scan, from the first column on, or (kDown) from the last one back.
template <bool kDown, bool kLast, class A>
POSEKD_INLINE void row_line(const ForwardLine<A>& line) {
  constexpr int L = Vec<A>::kLanes;
  // The shuffles compare without a thought of NaN.
  if (has_nan<kDown>(line.x, line.width)) return row_line_with_nan<kDown, kLast>(line);
  const vec<A> lowest = broadcast(-std::numeric_limits<A>::infinity());
  vec<A> carry = lowest;
  for (int64_t k = 0; k < words_of(line.width); ++k) {
    const Word word = word_at<kDown, L>(k, line.width);
    uint32_t bits = 0;
    A best = carry[0];
    if (kDown && word.whole < word.end) {
      bits = scan_elements<kDown, kLast>(line, word, word.whole, best);
      carry = broadcast(best);
    }
    for (int64_t step = 0; step < word.whole - word.begin; step += L) {
      const int64_t i = kDown ? word.whole - L - step : word.begin + step;
      fetch_ahead<kDown>(line.x + i);
      const vec<A> x = load(line.x + i), scanned = scan_step<1, kDown, A>(x, lowest);
      const vec<A> value = larger(scanned, carry);
      const vec<A> before = shift<1, kDown, A>(value, carry);
      line.put(i, value);
      bits |= bits_of<A>(kLast ? at_least<A>(x, before) : greater<A>(x, before)) << (i - word.begin);
      carry = end_lane<kDown, A>(value);
    }
    if (!kDown && word.whole < word.end) {
      best = carry[0];
      bits |= scan_elements<kDown, kLast>(line, word, word.whole, best);
    }
    // The element that begins the scan is a head, whatever it holds.
    if (k == 0) bits |= kDown ? 1u << (word.end - 1 - word.begin) : 1u;
    line.mark(word, bits);
  }
}

template <class A>
struct BackwardLine {
  const A* dy;
  A* dx;
  const uint32_t* heads;
  int64_t width;
  bool past_cache;

  POSEKD_INLINE void put(int64_t i, vec<A> value) const { past_cache ? stream(dx + i, value) : store(dx + i, value); }
};

// A row of a column scan, against the scan; `sums` holds what the rows before have passed on.
template <bool kDown, class A>
POSEKD_INLINE void column_line_backward(const BackwardLine<A>& line, A* sums) {
  constexpr int L = Vec<A>::kLanes;
  const vec<A> zero = {};
  for (int64_t k = 0; k < words_of(line.width); ++k) {
    const Word word = word_at<!kDown, L>(k, line.width);
    const uint32_t bits = line.heads[word.index];
    for (int64_t step = 0; step < word.whole - word.begin; step += L) {
      const int64_t i = kDown ? word.begin + step : word.whole - L - step;
      fetch_ahead<!kDown>(line.dy + i);
      const vec<A> sum = load(sums + i) + load(line.dy + i);
      const lanes<A> head = lanes_of<A>(bits >> (i - word.begin));
      line.put(i, choose<A>(head, sum, zero));
      store(sums + i, choose<A>(head, zero, sum));
    }
    for (int64_t i = word.whole; i < word.end; ++i) {
      const A sum = sums[i] + line.dy[i];
      const bool head = bits >> (i - word.begin) & 1;
      line.dx[i] = head ? sum : A(0);
      sums[i] = head ? A(0) : sum;
    }
  }
}

// Elements [word.whole, word.end), one by one against the scan; returns what is passed on.
template <bool kDown, class A>
A sum_elements(const BackwardLine<A>& line, const Word& word, A sum) {
  for (int64_t k = 0; k < word.end - word.whole; ++k) {
    const int64_t i = kDown ? word.whole + k : word.end - 1 - k;
    sum += line.dy[i];
    const bool head = line.heads[word.index] >> (i - word.begin) & 1;
    line.dx[i] = head ? sum : A(0);
    if (head) sum = A(0);
  }
  return sum;
}

// Doubles the reach of the segmented sums: lane i holds the sum of up to D lanes from i on (kDown: back), and bit i of
// `open` says that no head lies between them and the next D.
template <int D, bool kDown, class A>
POSEKD_INLINE vec<A> sum_step(vec<A> sum, uint32_t open) {
  if constexpr (D < Vec<A>::kLanes) {
    const vec<A> zero = {}, further = shift<D, !kDown, A>(sum, zero);
    sum = choose<A>(lanes_of<A>(open), sum + further, sum);
    return sum_step<2 * D, kDown, A>(sum, open & (kDown ? open << D : open >> D));
  } else {
    return sum;
  }
}

// The lanes that the sum from the vector before reaches: up to the first head that it meets.
template <bool kDown>
POSEKD_INLINE uint32_t reach(uint32_t heads) {
  if (heads == 0) return ~0u;
  return kDown ? (heads & (0u - heads)) * 2 - 1 : ~0u << (31 - __builtin_clz(heads));
}

// The sum of the lanes, in every lane.
template <int D, class A>
POSEKD_INLINE vec<A> total(vec<A> value) {
  if constexpr (D > 0)
    return total<D / 2, A>(value + shift<D, true, A>(value, value));
  else
    return value;
}

// A row scan's gradient. The scan went up (kDown: down) the row, so the sums come from the other side. Heads are rare
// past the scan's first few columns; until one comes, the lanes wait to be summed.
template <bool kDown, class A>
POSEKD_INLINE void row_line_backward(const BackwardLine<A>& line) {
  constexpr int L = Vec<A>::kLanes;
  const vec<A> zero = {};
  vec<A> waiting = zero;
  for (int64_t k = 0; k < words_of(line.width); ++k) {
    const Word word = word_at<!kDown, L>(k, line.width);
    if (!kDown && word.whole < word.end) waiting[0] = sum_elements<kDown>(line, word, A(0));
    for (int64_t step = 0; step < word.whole - word.begin; step += L) {
      const int64_t i = kDown ? word.begin + step : word.whole - L - step;
      const uint32_t heads = line.heads[word.index] >> (i - word.begin) & kAllLanes<A>;
      fetch_ahead<!kDown>(line.dy + i);
      const vec<A> dy = load(line.dy + i);
      if (heads == 0) {
        waiting += dy;
        line.put(i, zero);
        continue;
      }
      vec<A> sum = sum_step<1, kDown, A>(dy, ~(kDown ? heads << 1 : heads >> 1));
      sum = choose<A>(lanes_of<A>(reach<kDown>(heads)), sum + total<L / 2, A>(waiting), sum);
      line.put(i, choose<A>(lanes_of<A>(heads), sum, zero));
      waiting = zero;
      if (!(kDown ? heads >> (L - 1) : heads & 1)) waiting[0] = sum[kDown ? L - 1 : 0];
    }
    if (kDown && word.whole < word.end) sum_elements<kDown>(line, word, total<L / 2, A>(waiting)[0]);
  }
}

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
