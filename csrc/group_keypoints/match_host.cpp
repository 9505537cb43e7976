// How much workspace the matching needs: asked by whoever allocates it.
#include "group_keypoints/match_image.h"

namespace posekd {

int64_t match_workspace_bytes(int64_t joints, int64_t max_people, int64_t channels) {
  uintptr_t end = 0;
  carve(end, joints, max_people, channels);
  return static_cast<int64_t>(end);
}

}  // namespace posekd
