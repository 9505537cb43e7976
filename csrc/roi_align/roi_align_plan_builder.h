// Builds a RoiPlan. Host code, compiled once, for baseline x86-64: so that no multiply-add is fused.
#pragma once

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "roi_align/roi_align.h"
#include "roi_align/roi_align_math.h"
#include "roi_align/roi_align_plan.h"

namespace posekd {
namespace {

template <class T>
class RoiPlanBuilder {
 public:
  RoiPlanBuilder(const RoiAlign& args, int threads)
      : args_(args), P_(args.out_height()), Q_(args.out_width()), rows_(args.count() * (P_ + Q_)) {
    begin_.resize(rows_), count_.resize(rows_), offset_.resize(rows_ + 1), boxes_.resize(args.count());
    const int64_t grain = std::max<int64_t>(1, 1024 / (P_ + Q_));
    parallel_for(args.count(), grain, threads, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) find_bands(r);
    });
    for (int64_t row = 0; row < rows_; ++row) offset_[row + 1] = offset_[row] + count_[row];
    weights_.resize(offset_[rows_]);
    parallel_for(args.count(), grain, threads, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) fill_box(r);
    });
    group_by_image();
  }

  RoiPlan<T> plan() const { return {boxes_.data(), order_.data(), first_.data()}; }

 private:
  int image(int64_t r) const { return roi_image(args_.boxes.as<T>()[5 * r], args_.images()); }

  RoiAxis<T> axis(int64_t r, bool vertical) const {
    const T* box = args_.boxes.as<T>() + 5 * r + 1 + vertical;
    RoiAxis<T> axis = roi_axis(box[0], box[2], static_cast<T>(args_.spatial_scale), args_.aligned, args_.sampling_ratio,
                               vertical ? P_ : Q_, vertical ? args_.height() : args_.width());
    if (image(r) < 0) axis.grid = 0;
    return axis;
  }

  void find_bands(int64_t r) {
    const RoiAxis<T> y = axis(r, true), x = axis(r, false);
    const bool empty = y.grid == 0 || x.grid == 0;
    for (int i = 0; i < P_ + Q_; ++i) {
      const RoiBand band = empty ? RoiBand{0, 0} : i < P_ ? roi_band(y, i) : roi_band(x, i - P_);
      begin_[r * (P_ + Q_) + i] = band.begin;
      count_[r * (P_ + Q_) + i] = band.count;
    }
  }

  void fill_box(int64_t r) {
    const RoiAxis<T> y = axis(r, true), x = axis(r, false);
    const T factor = T(1) / roi_count(y, x);
    const int64_t row = r * (P_ + Q_);
    for (int i = 0; i < P_ + Q_; ++i) {
      const RoiBand band{begin_[row + i], count_[row + i]};
      T* weights = weights_.data() + offset_[row + i];
      i < P_ ? roi_weights(y, i, band, factor, weights) : roi_weights(x, i - P_, band, T(1), weights);
    }
    boxes_[r] = {image(r), bands(row, P_), bands(row + P_, Q_)};
  }

  RoiBands<T> bands(int64_t row, int outputs) const {
    int first = INT32_MAX, last = 0;
    for (int i = 0; i < outputs; ++i) {
      if (count_[row + i] == 0) continue;
      first = std::min(first, begin_[row + i]);
      last = std::max(last, begin_[row + i] + count_[row + i]);
    }
    return {&begin_[row], &count_[row], &offset_[row], weights_.data(), outputs, last > 0 ? first : 0, last};
  }

  void group_by_image() {
    first_.assign(args_.images() + 1, 0);
    order_.resize(args_.count());
    for (int64_t r = 0; r < args_.count(); ++r) ++first_[std::max(image(r), 0) + 1];
    for (int64_t n = 0; n < args_.images(); ++n) first_[n + 1] += first_[n];
    std::vector<int64_t> next(first_.begin(), first_.end());
    for (int64_t r = 0; r < args_.count(); ++r) order_[next[std::max(image(r), 0)]++] = r;
  }

  const RoiAlign& args_;
  int P_, Q_;
  int64_t rows_;
  std::vector<int> begin_, count_;
  std::vector<int64_t> offset_, order_, first_;
  std::vector<T> weights_;
  std::vector<RoiBox<T>> boxes_;
};

template <class T, class F>
void with_roi_plan_of(RoiAlign args, int threads, F&& function) {
  const RoiPlanBuilder<T> builder(args, threads);
  const RoiPlan<T> plan = builder.plan();
  args.plan = &plan;
  function(args);
}

// Calls function(args) with the plan set.
template <class F>
void with_roi_plan(const RoiAlign& args, int threads, F&& function) {
  if (args.maps.dtype == DType::float64)
    with_roi_plan_of<double>(args, threads, function);
  else
    with_roi_plan_of<float>(args, threads, function);
}

}  // namespace
}  // namespace posekd
