// What is done once per call, before and after the kernels of a vector level run.
#if !defined(POSEKD_EMU)
#include "mimic_loss/mimic_loss.h"
#include "roi_align/roi_align_plan_builder.h"

namespace posekd {
namespace {

// The losses, from the crops' sums in a fixed order.
template <class T>
void add_up(const MimicLoss& args) {
  const int64_t crops = args.targets.shape[1] * args.targets.shape[2];
  for (int64_t m = 0; m < args.sets(); ++m) {
    double sum = 0;
    for (int64_t i = 0; i < crops; ++i) sum += static_cast<double>(args.stats.as<T>()[m * crops + i]);
    args.loss.as<T>()[m] = static_cast<T>(sum * args.scale());
  }
}

MimicLoss planned(const MimicLoss& args, const RoiAlign& roi) {
  MimicLoss result = args;
  result.plan = roi.plan;
  return result;
}

}  // namespace

void mimic_loss_forward_cpu(const MimicLoss& args, int threads) {
  with_roi_plan(args.roi(), threads, [&](const RoiAlign& roi) { mimic_loss_sums_cpu(planned(args, roi), threads); });
  args.stats.dtype == DType::float64 ? add_up<double>(args) : add_up<float>(args);
}

void mimic_loss_backward_cpu(const MimicLoss& args, int threads) {
  with_roi_plan(args.roi(), threads,
                [&](const RoiAlign& roi) { mimic_loss_gradients_cpu(planned(args, roi), threads); });
}

}  // namespace posekd
#endif
