"""Who is who over the frames of clips: `posekd.tracking` on what is found frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from posekd.deploy.predict import Found
from posekd.skeleton import Skeleton
from posekd.tracking import Look, OneEuro, Tracker, TrackSettings

__all__ = ["OneEuro", "TrackSettings", "Tracker", "tracked"]


def tracked(
    found: Iterable[Found], skeleton: Skeleton, settings: TrackSettings, look: Look | None = None
) -> Iterator[Found]:
    """The same frames, with `track_ids` and, if asked for, smoothed keypoints; numbers begin anew with each clip.

    Args:
        found: frames in their order.
        skeleton: the keypoints.
        settings: thresholds, optical flow, filter.
        look: finds people in boxes, for `settings.propagate`.
    """
    clip, tracker = None, Tracker(skeleton, settings, look=look)
    for one in found:
        if one.clip is not clip:
            clip, tracker = one.clip, Tracker(skeleton, settings, one.clip.rate or 25.0, look)
        yield replace(one, people=tracker.update(one.people, one.frame.image, one.image_id))
