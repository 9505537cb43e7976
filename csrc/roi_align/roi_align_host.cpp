// What is done once per call, before the kernels of a vector level run.
#if !defined(POSEKD_EMU)
#include "roi_align/roi_align.h"

#include "core/large_outputs.h"
#include "roi_align/roi_align_plan_builder.h"

namespace posekd {
void roi_align_forward_cpu(const RoiAlign& args, int threads) {
  advise_huge_pages(args.crops);
  with_roi_plan(args, threads, [&](const RoiAlign& planned) { roi_align_crops_cpu(planned, threads); });
}

void roi_align_backward_cpu(const RoiAlign& args, int threads) {
  advise_huge_pages(args.maps);
  with_roi_plan(args, threads, [&](const RoiAlign& planned) { roi_align_gradients_cpu(planned, threads); });
}

}  // namespace posekd
#endif
