"""People followed over the videos of a dataset, after they were found in its frames."""

from __future__ import annotations

import numpy as np
import torch

from posekd.data import BadImageError, PoseSource
from posekd.structures import Instances
from posekd.tracking import Look, Tracker, TrackSettings


def follow(source: PoseSource, people: Instances, settings: TrackSettings, look: Look | None = None) -> Instances:
    """The people of a dataset of videos with their tracks' numbers, which begin anew with each video.

    Args:
        source: its records have `videos`.
        people: on the CPU, without duplicates.
        settings: thresholds, optical flow, how long somebody is looked for.
        look: finds people in boxes of an image, for `settings.propagate`.

    Returns:
        People by frame; without those, and those keypoints, that score too little.

    Raises:
        ValueError: `settings.propagate` without `look`.
    """
    records = source.records
    assert records.videos is not None
    parts = []
    for video in np.unique(records.videos):
        tracker = Tracker(records.skeleton, settings, look=look)
        for row in np.flatnonzero(records.videos == video).tolist():
            image_id = int(records.image_ids[row])
            image = _image(source, row) if settings.needs_images else None
            parts.append(tracker.update(people.take(people.image_ids == image_id), image, image_id))
    followed = Instances.concatenate(parts, records.skeleton.num_keypoints)
    return followed if parts else people.take(torch.zeros(0, dtype=torch.int64))


def _image(source: PoseSource, row: int) -> np.ndarray | None:
    """A frame; None where it cannot be read, which evaluation has refused or counted before."""
    try:
        return source.load_image(row)
    except BadImageError:
        return None
