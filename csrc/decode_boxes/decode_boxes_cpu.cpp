// CPU kernel of pair_corners, compiled once per vector level: threads over the images.
#include "core/parallel.h"
#include "core/scratch.h"
#include "decode_boxes/decode_boxes.h"
#include "decode_boxes/decode_boxes_math.h"

namespace posekd {
namespace POSEKD_LEVEL {
namespace {

// An image's pairs that are boxes, in order.
struct Candidates {
  Box* boxes;
  float* scores;
  int count;
};

void list_boxes(const ImagePoints& in, Candidates& out) {
  out.count = 0;
  for (int index = 0; index < in.pairs(); ++index) {
    const Box box = box_of_pair(in, index);
    const float score = score_of_pair(in, index, box);
    if (score > 0.0f) out.boxes[out.count] = box, out.scores[out.count++] = score;
  }
}

// The first of the highest scores, or -1 where none is above 0.
int best_of(const Candidates& in) {
  int best = -1;
  float highest = 0.0f;
  for (int i = 0; i < in.count; ++i)
    if (in.scores[i] > highest) highest = in.scores[i], best = i;
  return best;
}

void take_best(const Candidates& in, float sigma, int most, float* boxes, float* scores, int64_t* count) {
  int taken = 0;
  for (; taken < most; ++taken) {
    const int best = best_of(in);
    if (best < 0) break;
    const Box box = in.boxes[best];
    boxes[4 * taken] = box.x1, boxes[4 * taken + 1] = box.y1, boxes[4 * taken + 2] = box.x2,
              boxes[4 * taken + 3] = box.y2;
    scores[taken] = in.scores[best];
    in.scores[best] = 0.0f;
    for (int i = 0; i < in.count; ++i)
      if (in.scores[i] > 0.0f) in.scores[i] = lowered(in.scores[i], overlap(in.boxes[i], box), sigma);
  }
  *count = taken;
  for (int i = 4 * taken; i < 4 * most; ++i) boxes[i] = 0.0f;
  for (int i = taken; i < most; ++i) scores[i] = 0.0f;
}

}  // namespace

void pair_corners(const PairCorners& args, int threads) {
  const int64_t corners = int64_t{6} * args.views() * args.points();
  parallel_for(args.images(), 1, threads, [&](int64_t begin, int64_t end) {
    const int64_t pairs = int64_t{1} * args.views() * args.points() * args.points();
    const ScratchOf<Box> boxes(pairs);
    const ScratchOf<float> scores(pairs);
    for (int64_t b = begin; b < end; ++b) {
      const ImagePoints in{args.corners.as<float>() + b * corners,
                           args.centers.as<float>() + 3 * b * args.num_centers(),
                           args.areas_scale.as<float>()[b],
                           args.views(),
                           args.points(),
                           args.num_centers(),
                           args.mirrored};
      Candidates found{boxes.get(), scores.get(), 0};
      list_boxes(in, found);
      take_best(found, args.sigma, args.max_boxes(), args.boxes.as<float>() + 4 * b * args.max_boxes(),
                args.scores.as<float>() + b * args.max_boxes(), args.counts.as<int64_t>() + b);
    }
  });
}

}  // namespace POSEKD_LEVEL
}  // namespace posekd
