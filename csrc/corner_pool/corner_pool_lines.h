// One line of corner pooling on the CPU: a row of a column scan, or a whole row scan. For corner_pool_cpu.cpp only.
//
// All loops walk down the memory (kDown) when the scan does: against mixed directions the processor's prefetchers give
// up, at three times the cost. Head bits are built in a register and stored a word at a time.
#pragma once

#include <limits>
#include <type_traits>

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

// Calls body(word, full) for the words of a row, down or up. `full` is a compile-time truth for words of 32 columns,
// whose loops over vectors then have a length that the compiler knows.
template <bool kDown, class A, class Body>
POSEKD_INLINE void for_words(int64_t width, Body&& body) {
  const int64_t full = width / 32;
  const Word part{full, 32 * full, width - width % Vec<A>::kLanes, width};
  if (kDown && part.begin < width) body(part, std::false_type{});
  for (int64_t k = 0; k < full; ++k) {
    const int64_t index = kDown ? full - 1 - k : k;
    body(Word{index, 32 * index, 32 * index + 32, 32 * index + 32}, std::true_type{});
  }
  if (!kDown && part.begin < width) body(part, std::false_type{});
}

template <class A>
struct ForwardLine {
  const A* x;
  const A* other;  // null: nothing to add
  A* y;
  uint32_t* heads;  // null: not wanted
  int64_t width;
  bool past_cache;  // y is aligned, and larger than the cache

  // Asks for what comes after element i.
  template <bool kDown>
  POSEKD_INLINE void fetch_after(int64_t i) const {
    fetch_ahead<kDown>(x + i);
    if (!past_cache) own_ahead<kDown>(y + i);
  }
  POSEKD_INLINE void put(int64_t i, vec<A> value) const {
    if (other) value += load(other + i);
    past_cache ? stream(y + i, value) : store(y + i, value);
  }
  POSEKD_INLINE void put(int64_t i, A value) const { y[i] = other ? value + other[i] : value; }
  POSEKD_INLINE void mark(int64_t word, uint32_t bits) const {
    if (heads) heads[word] = bits;
  }
};

// The first row of a column scan: every element is its own maximum.
template <bool kDown, class A>
void first_column_line(const ForwardLine<A>& line, A* best) {
  for (int64_t i = 0; i < line.width; ++i) {
    best[i] = line.x[i];
    line.put(i, best[i]);
  }
  for_words<kDown, A>(line.width, [&](const Word& word, auto) POSEKD_INLINE_BODY {
    line.mark(word.index, ~0u >> (32 - (word.end - word.begin)));
  });
}

// Where the next row of a column scan lies, in elements and in words of head bits.
struct NextRow {
  int64_t elements, words;
};

// kRows further rows of a column scan, `line` the first; `best` holds the maxima so far. Several at once, because every
// row's visit to `best` takes a place in the queue of stores, where those to y wait for memory.
template <int kRows, bool kDown, bool kLast, class A>
POSEKD_INLINE void column_lines(const ForwardLine<A>& line, NextRow next, A* best) {
  constexpr int L = Vec<A>::kLanes;
  for_words<kDown, A>(line.width, [&](const Word& word, auto) POSEKD_INLINE_BODY {
    uint32_t bits[kRows] = {};
#pragma GCC unroll 8
    for (int64_t step = 0; step < word.whole - word.begin; step += L) {
      const int64_t i = kDown ? word.whole - L - step : word.begin + step;
      vec<A> m = load(best + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = i + r * next.elements;
        line.template fetch_after<kDown>(at);
        const vec<A> x = load(line.x + at);
        const lanes<A> takes = takes_over_lanes<kLast, A>(x, m);
        m = choose<A>(takes, x, m);
        line.put(at, m);
        bits[r] |= bits_of<A>(takes) << (i - word.begin);
      }
      store(best + i, m);
    }
    for (int64_t i = word.whole; i < word.end; ++i) {
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = i + r * next.elements;
        const bool takes = takes_over<kLast>(line.x[at], best[i]);
        if (takes) best[i] = line.x[at];
        line.put(at, best[i]);
        bits[r] |= (takes ? 1u : 0u) << (i - word.begin);
      }
    }
    for (int r = 0; r < kRows; ++r) line.mark(word.index + r * next.words, bits[r]);
  });
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

// The larger of two, of equals (zeros of either sign) the one that keeps the place.
template <bool kLast, class A>
POSEKD_INLINE vec<A> larger_of(vec<A> later, vec<A> earlier) {
  return kLast ? larger(earlier, later) : larger(later, earlier);
}

template <int D, bool kDown, bool kLast, class A>
POSEKD_INLINE vec<A> scan_step(vec<A> value, vec<A> lowest) {
  if constexpr (D < Vec<A>::kLanes) {
    const vec<A> earlier = shift<D, kDown, A>(value, lowest);
    return scan_step<2 * D, kDown, kLast, A>(larger_of<kLast, A>(value, earlier), lowest);
  } else {
    return value;
  }
}

// A row scan of a row that holds a NaN.
template <bool kDown, bool kLast, class A>
void row_line_with_nan(const ForwardLine<A>& line) {
  A best = 0;
  for_words<kDown, A>(line.width, [&](const Word& word, auto) POSEKD_INLINE_BODY {
    line.mark(word.index, scan_elements<kDown, kLast>(line, word, word.begin, best));
  });
}

// Whole vectors of one word of a row scan; returns their bits. `carry` is the maximum so far in every lane. The
// shuffles compare without a thought of NaN, so `nan` collects which lanes held one.
template <bool kDown, bool kLast, class A>
POSEKD_INLINE uint32_t scan_vectors(const ForwardLine<A>& line, const Word& word, vec<A>& carry, lanes<A>& nan) {
  constexpr int L = Vec<A>::kLanes;
  const vec<A> lowest = broadcast(-std::numeric_limits<A>::infinity());
  uint32_t bits = 0;
#pragma GCC unroll 8
  for (int64_t step = 0; step < word.whole - word.begin; step += L) {
    const int64_t i = kDown ? word.whole - L - step : word.begin + step;
    line.template fetch_after<kDown>(i);
    const vec<A> x = load(line.x + i), scanned = scan_step<1, kDown, kLast, A>(x, lowest);
    const vec<A> value = larger_of<kLast, A>(scanned, carry), before = shift<1, kDown, A>(value, carry);
    nan |= is_nan<A>(x);
    line.put(i, value);
    bits |= bits_of<A>(kLast ? at_least<A>(x, before) : greater<A>(x, before)) << (i - word.begin);
    carry = larger_of<kLast, A>(end_lane<kDown, A>(scanned),
                                carry);  // not of `value`: the vectors wait for one operation only
  }
  return bits;
}

// A row scan, from the first column on, or (kDown) from the last one back.
template <bool kDown, bool kLast, class A>
POSEKD_INLINE void row_line(const ForwardLine<A>& line) {
  vec<A> carry = broadcast(-std::numeric_limits<A>::infinity());
  lanes<A> nan = {};
  for_words<kDown, A>(line.width, [&](const Word& word, auto full) POSEKD_INLINE_BODY {
    if constexpr (full) return line.mark(word.index, scan_vectors<kDown, kLast>(line, word, carry, nan));
    uint32_t bits = 0;
    if (!kDown) bits = scan_vectors<kDown, kLast>(line, word, carry, nan);
    A best = carry[0];
    bits |= scan_elements<kDown, kLast>(line, word, word.whole, best);
    if (kDown) {
      carry = broadcast(best);
      nan |= is_nan<A>(carry);
      bits |= scan_vectors<kDown, kLast>(line, word, carry, nan);
    }
    line.mark(word.index, bits);
  });
  if (bits_of<A>(nan)) return row_line_with_nan<kDown, kLast>(line);
  // The element that begins the scan is a head, whatever it holds.
  if (line.heads) line.heads[kDown ? (line.width - 1) / 32 : 0] |= kDown ? 1u << ((line.width - 1) & 31) : 1u;
}

template <class A>
struct BackwardLine {
  const A* dy;
  A* dx;
  const uint32_t* heads;
  int64_t width;
  bool past_cache;

  template <bool kDown>
  POSEKD_INLINE void fetch_after(int64_t i) const {
    fetch_ahead<kDown>(dy + i);
    if (!past_cache) own_ahead<kDown>(dx + i);
  }
  POSEKD_INLINE void put(int64_t i, vec<A> value) const { past_cache ? stream(dx + i, value) : store(dx + i, value); }
};

// kRows rows of a column scan, against the scan; `sums` holds what the rows before have passed on.
template <int kRows, bool kDown, class A>
POSEKD_INLINE void column_lines_backward(const BackwardLine<A>& line, NextRow next, A* sums) {
  constexpr int L = Vec<A>::kLanes;
  const vec<A> zero = {};
  for_words<!kDown, A>(line.width, [&](const Word& word, auto) POSEKD_INLINE_BODY {
    uint32_t bits[kRows];
    for (int r = 0; r < kRows; ++r) bits[r] = line.heads[word.index + r * next.words];
#pragma GCC unroll 8
    for (int64_t step = 0; step < word.whole - word.begin; step += L) {
      const int64_t i = kDown ? word.begin + step : word.whole - L - step;
      vec<A> sum = load(sums + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = i + r * next.elements;
        line.template fetch_after<!kDown>(at);
        sum += load(line.dy + at);
        const lanes<A> head = lanes_of<A>(bits[r] >> (i - word.begin));
        line.put(at, choose<A>(head, sum, zero));
        sum = choose<A>(head, zero, sum);
      }
      store(sums + i, sum);
    }
    for (int64_t i = word.whole; i < word.end; ++i) {
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = i + r * next.elements;
        const A sum = sums[i] + line.dy[at];
        const bool head = bits[r] >> (i - word.begin) & 1;
        line.dx[at] = head ? sum : A(0);
        sums[i] = head ? A(0) : sum;
      }
    }
  });
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
  if (kDown) return heads ^ (heads - 1);
  return ~0u << (31 - __builtin_clz(heads | 1));
}

// A row scan's gradient. The scan went up (kDown: down) the row, so the sums come from the other side.
template <bool kDown, class A>
POSEKD_INLINE void row_line_backward(const BackwardLine<A>& line) {
  constexpr int L = Vec<A>::kLanes;
  const vec<A> zero = {};
  vec<A> carry = zero;
  for_words<!kDown, A>(line.width, [&](const Word& word, auto) POSEKD_INLINE_BODY {
    const uint32_t bits = line.heads[word.index];
    if (!kDown && word.whole < word.end) carry = broadcast(sum_elements<kDown>(line, word, A(0)));
#pragma GCC unroll 8
    for (int64_t step = 0; step < word.whole - word.begin; step += L) {
      const int64_t i = kDown ? word.begin + step : word.whole - L - step;
      const uint32_t heads = bits >> (i - word.begin) & kAllLanes<A>;
      line.template fetch_after<!kDown>(i);
      const vec<A> dy = load(line.dy + i);
      // Heads are rare past the scan's first columns; where masks are cheap, a mispredicted branch costs more.
      if (!kMaskRegisters && heads == 0) {
        line.put(i, zero);
        carry += total<A>(dy);
        continue;
      }
      const vec<A> own = sum_step<1, kDown, A>(dy, ~(kDown ? heads << 1 : heads >> 1));
      const vec<A> sum = choose<A>(lanes_of<A>(reach<kDown>(heads)), own + carry, own);
      line.put(i, choose<A>(lanes_of<A>(heads), sum, zero));
      carry = end_lane<!kDown, A>(choose<A>(lanes_of<A>(heads), zero, sum));
    }
    if (kDown && word.whole < word.end) sum_elements<kDown>(line, word, carry[0]);
  });
}

}  // namespace
}  // namespace POSEKD_LEVEL
}  // namespace posekd
