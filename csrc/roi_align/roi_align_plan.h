// The boxes of a call as banded matrices, grouped by image: made once, read by all threads.
#pragma once

#include <cstdint>

namespace posekd {

// A banded matrix [outputs, pixels]; row p has count[p] weights from pixel begin[p] on (kUntouched: not read).
template <class T>
struct RoiBands {
  const int* begin;
  const int* count;
  const int64_t* offset;
  const T* weights;
  int outputs;
  int first, last;  // all rows' pixels lie in [first, last)
};

template <class T>
struct RoiBox {
  int image;  // -1: none, the crop is zero
  RoiBands<T> y, x;
};

template <class T>
struct RoiPlan {
  const RoiBox<T>* boxes;
  const int64_t* order;  // box numbers by image, ascending within one; boxes without an image come with image 0
  const int64_t* first;  // [N + 1]: order[first[n]] .. order[first[n + 1] - 1] are the boxes of image n
};

}  // namespace posekd
