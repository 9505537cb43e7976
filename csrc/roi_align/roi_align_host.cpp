// What is done once a call, before the kernels of a vector level run.
#if !defined(POSEKD_EMU)
#include "roi_align/roi_align.h"

#include "core/huge_pages.h"
#include "roi_align/roi_align_plan_builder.h"

namespace posekd {
namespace {

constexpr int64_t kHugeFrom = 4 << 20;  // bytes of a fresh output for which huge pages pay

void advise(const TensorView& fresh) {
  const int64_t bytes = fresh.numel() * item_size(fresh.dtype);
  if (bytes >= kHugeFrom) advise_huge_pages(fresh.data, static_cast<size_t>(bytes));
}

}  // namespace

void roi_align_forward_cpu(const RoiAlign& args, int threads) {
  advise(args.crops);
  with_roi_plan(args, threads, [&](const RoiAlign& planned) { roi_align_crops_cpu(planned, threads); });
}

void roi_align_backward_cpu(const RoiAlign& args, int threads) {
  advise(args.maps);
  with_roi_plan(args, threads, [&](const RoiAlign& planned) { roi_align_gradients_cpu(planned, threads); });
}

}  // namespace posekd
#endif
