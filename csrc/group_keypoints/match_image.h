// People of one image from the peaks of its keypoints, for a team of threads. The rules are HigherHRNet's match_by_tag.
#pragma once

#include "group_keypoints/assignment.h"
#include "group_keypoints/group_keypoints.h"

namespace posekd {
namespace {

constexpr double kFarthest = 1e12;  // tag distances beyond it count as this, so that costs stay finite

struct MatchSettings {
  double detection_threshold, tag_threshold;
  int joints, max_people, channels, capacity;
  bool ignore_too_many, use_detection_score;
  int16_t order[kMaxJoints];
};

struct MatchTensors {
  const float* peaks;  // [K, M, 3 + T]
  float* keypoints;    // [capacity, K, 3 + T]
  float* scores;       // [capacity]
  int64_t* count;      // []
};

// What the team keeps of an image while it works. Every array starts at a multiple of 16 bytes.
struct MatchWorkspace {
  Cost *cost, *u, *v, *shortest;                    // [M, M], [M], [M], [M]
  int *column_of, *row_of, *before, *done, *found;  // [M] each; `found`: the keypoint's detections as rows of its peaks
  int* tag_count;                                   // [M]
  float *tag_sum, *mean;                            // [M, T] each: of the first M people
  float* keys;                                      // [K * M]: first tags of all people
};

template <class T>
POSEKD_HD T* take(uintptr_t& at, int64_t count) {
  T* const start = reinterpret_cast<T*>(at);
  at += (static_cast<uintptr_t>(count) * sizeof(T) + 15) / 16 * 16;
  return start;
}

// Lays the arrays out from address `at` on, and moves `at` behind them.
POSEKD_HD MatchWorkspace carve(uintptr_t& at, int64_t joints, int64_t max_people, int64_t channels) {
  MatchWorkspace w;
  w.cost = take<Cost>(at, max_people * max_people);
  w.u = take<Cost>(at, max_people);
  w.v = take<Cost>(at, max_people);
  w.shortest = take<Cost>(at, max_people);
  w.column_of = take<int>(at, max_people);
  w.row_of = take<int>(at, max_people);
  w.before = take<int>(at, max_people);
  w.done = take<int>(at, max_people);
  w.found = take<int>(at, max_people);
  w.tag_count = take<int>(at, max_people);
  w.tag_sum = take<float>(at, max_people * channels);
  w.mean = take<float>(at, max_people * channels);
  w.keys = take<float>(at, joints * max_people);
  return w;
}

// x - x is 0 for finite x only.
POSEKD_TEAM bool finite(float x) { return x - x == 0.0f; }

template <class Team>
class Matcher {
 public:
  POSEKD_TEAM Matcher(const Team& team, const MatchSettings& settings, const MatchTensors& tensors,
                      const MatchWorkspace& work)
      : team_(team), s_(settings), t_(tensors), w_(work), stride_(3 + settings.channels) {}

  POSEKD_TEAM void run() {
    clear();
    for (int step = 0; step < s_.joints; ++step) {
      joint_ = s_.order[step];
      const int found = list_found();
      if (found == 0) continue;
      const int candidates = people_ < s_.max_people ? people_ : s_.max_people;
      if (s_.ignore_too_many && candidates == s_.max_people) continue;
      if (candidates > 0) assign(found, candidates);
      for (int row = 0; row < found; ++row) place(row, candidates > 0 ? person_of(row, found, candidates) : -1);
    }
    finish();
  }

 private:
  POSEKD_TEAM void clear() const {
    const int64_t size = static_cast<int64_t>(s_.capacity) * s_.joints * stride_;
    for (int64_t i = team_.lane(); i < size; i += team_.size()) t_.keypoints[i] = 0.0f;
    for (int p = team_.lane(); p < s_.capacity; p += team_.size()) t_.scores[p] = 0.0f;
    team_.sync();
  }

  // Row m of the keypoint's peaks.
  POSEKD_TEAM const float* peak(int m) const {
    return t_.peaks + (static_cast<int64_t>(joint_) * s_.max_people + m) * stride_;
  }

  // Above the threshold, with a finite score and finite tags.
  POSEKD_TEAM bool detected(const float* peak) const {
    bool usable = peak[2] > s_.detection_threshold;
    for (int i = 2; i < stride_; ++i) usable = usable && finite(peak[i]);
    return usable;
  }

  POSEKD_TEAM int list_found() const {
    int count = 0;
    for (int base = 0; base < s_.max_people; base += team_.size()) {
      const int m = base + team_.lane();
      count = team_.append(m < s_.max_people && detected(peak(m)), m, w_.found, count);
    }
    team_.sync();
    return count;
  }

  POSEKD_TEAM Cost cost(const float* peak, int person) const {
    const float* mean = w_.mean + static_cast<int64_t>(person) * s_.channels;
    double squares = 0.0;
    for (int c = 0; c < s_.channels; ++c) {
      const double d = static_cast<double>(peak[3 + c]) - static_cast<double>(mean[c]);
      squares += d * d;
    }
    double distance = sqrt(squares);
    if (!(distance <= kFarthest)) distance = kFarthest;
    return {s_.use_detection_score ? rint(distance) * 100.0 - static_cast<double>(peak[2]) : distance,
            distance < s_.tag_threshold ? distance : s_.tag_threshold};
  }

  POSEKD_TEAM void find_means(int candidates) const {
    for (int i = team_.lane(); i < candidates * s_.channels; i += team_.size())
      w_.mean[i] = w_.tag_sum[i] / static_cast<float>(w_.tag_count[i / s_.channels]);
    team_.sync();
  }

  // Solves for the fewer of detections and candidates as rows.
  POSEKD_TEAM void assign(int found, int candidates) const {
    const bool swapped = found > candidates;
    const int rows = swapped ? candidates : found, columns = swapped ? found : candidates;
    find_means(candidates);
    for (int i = 0; i < rows; ++i)
      for (int j = team_.lane(); j < columns; j += team_.size())
        w_.cost[static_cast<int64_t>(i) * columns + j] = cost(peak(w_.found[swapped ? j : i]), swapped ? i : j);
    team_.sync();
    solve(team_,
          Assignment{rows, columns, w_.cost, w_.u, w_.v, w_.shortest, w_.column_of, w_.row_of, w_.before, w_.done});
  }

  // Whom detection `row` joins, or -1: nobody, or somebody too far away (the cost's second level stops there).
  POSEKD_TEAM int person_of(int row, int found, int candidates) const {
    const bool swapped = found > candidates;
    const int person = swapped ? w_.row_of[row] : w_.column_of[row];
    if (person < 0) return -1;
    const int64_t at =
        swapped ? static_cast<int64_t>(person) * found + row : static_cast<int64_t>(row) * candidates + person;
    return w_.cost[at].second < s_.tag_threshold ? person : -1;
  }

  // The person whose first tag this is, or the number of people.
  POSEKD_TEAM int with_key(float key) const {
    int person = people_;
    for (int p = team_.lane(); p < people_; p += team_.size())
      if (w_.keys[p] == key && p < person) person = p;
    return team_.lowest(person);
  }

  // Detection `row` joins `person`, or starts one; an equal first tag is the same person, who forgets the other tags.
  POSEKD_TEAM void place(int row, int person) {
    const float* from = peak(w_.found[row]);
    const bool starts = person < 0;
    if (starts) {
      person = with_key(from[3]);
      if (person == people_) {
        if (team_.lane() == 0) w_.keys[person] = from[3];
        ++people_;
      }
    }
    if (person < s_.capacity) {
      float* to = t_.keypoints + (static_cast<int64_t>(person) * s_.joints + joint_) * stride_;
      for (int i = team_.lane(); i < stride_; i += team_.size()) to[i] = from[i];
    }
    if (person < s_.max_people && team_.lane() == 0) {
      float* sum = w_.tag_sum + static_cast<int64_t>(person) * s_.channels;
      for (int c = 0; c < s_.channels; ++c) sum[c] = starts ? from[3 + c] : sum[c] + from[3 + c];
      w_.tag_count[person] = starts ? 1 : w_.tag_count[person] + 1;
    }
    team_.sync();
  }

  // Scores: the mean over all keypoints, a missing one counting as 0.
  POSEKD_TEAM void finish() const {
    const int kept = people_ < s_.capacity ? people_ : s_.capacity;
    for (int p = team_.lane(); p < kept; p += team_.size()) {
      double sum = 0.0;
      for (int k = 0; k < s_.joints; ++k) sum += t_.keypoints[(static_cast<int64_t>(p) * s_.joints + k) * stride_ + 2];
      t_.scores[p] = static_cast<float>(sum / s_.joints);
    }
    if (team_.lane() == 0) *t_.count = people_;
  }

  const Team& team_;
  const MatchSettings& s_;
  const MatchTensors t_;
  const MatchWorkspace w_;
  const int stride_;
  int joint_ = 0;
  int people_ = 0;
};

inline MatchSettings match_settings(const MatchByTag& args) {
  MatchSettings s{};
  s.detection_threshold = args.detection_threshold;
  s.tag_threshold = args.tag_threshold;
  s.joints = static_cast<int>(args.peaks.shape[1]);
  s.max_people = static_cast<int>(args.peaks.shape[2]);
  s.channels = static_cast<int>(args.peaks.shape[3]) - 3;
  s.capacity = static_cast<int>(args.keypoints.shape[1]);
  s.ignore_too_many = args.ignore_too_many;
  s.use_detection_score = args.use_detection_score;
  for (int i = 0; i < s.joints; ++i) s.order[i] = args.order[i];
  return s;
}

// Image b's share of the tensors.
POSEKD_HD MatchTensors match_tensors(const MatchSettings& s, int64_t b, const float* peaks, float* keypoints,
                                     float* scores, int64_t* counts) {
  const int64_t stride = 3 + s.channels;
  return {peaks + b * s.joints * s.max_people * stride, keypoints + b * s.capacity * s.joints * stride,
          scores + b * s.capacity, counts + b};
}

}  // namespace
}  // namespace posekd
