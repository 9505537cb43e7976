// CPU kernel of match_by_tag, compiled once per vector level: threads over images.
#include "core/parallel.h"
#include "group_keypoints/match_image.h"

namespace posekd {
namespace POSEKD_LEVEL {

void match_by_tag(const MatchByTag& args, int threads) {
  const MatchSettings settings = match_settings(args);
  const int64_t bytes = args.workspace.shape[1];
  parallel_for(args.peaks.shape[0], 1, threads, [&](int64_t begin, int64_t end) {
    const Alone team;
    for (int64_t b = begin; b < end; ++b) {
      auto at = reinterpret_cast<uintptr_t>(args.workspace.as<unsigned char>() + b * bytes);
      const MatchWorkspace work = carve(at, settings.joints, settings.max_people, settings.channels);
      const MatchTensors tensors = match_tensors(settings, b, args.peaks.as<float>(), args.keypoints.as<float>(),
                                                 args.scores.as<float>(), args.counts.as<int64_t>());
      Matcher<Alone>(team, settings, tensors, work).run();
    }
  });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
