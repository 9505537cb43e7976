// The order by which pooling compares: NaN is above every number, and stays.
#pragma once

#include "core/dtype.h"

namespace posekd {
namespace {

// Whether `value`, met later in a scan, takes over from the maximum so far. On equality the first stays, or, if
// `kLast`, the last takes over; NaNs are equal to each other, and so are the two zeros.
template <bool kLast, class T>
POSEKD_HD bool takes_over(T value, T best) {
  if (kLast) return value >= best || value != value;
  return value > best || (value != value && best == best);
}

// The later of a pair of maxima if it is larger: associative, so that partial scans combine.
template <class T>
POSEKD_HD T larger(T earlier, T later) {
  return later > earlier || later != later ? later : earlier;
}

}  // namespace
}  // namespace posekd
