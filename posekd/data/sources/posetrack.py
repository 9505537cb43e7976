"""PoseTrack18: videos of people with tracks, from its own JSON. Ignored regions are masked in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from posekd.data.images import missing_files, read_rgb
from posekd.data.outlines import hull_box, outline_of
from posekd.data.records import PoseRecords, Regions
from posekd.data.regions import ignored_regions
from posekd.data.sources.coco import KeepImages, clip_box
from posekd.data.sources.detections import read_detections
from posekd.data.sources.people import image_sizes
from posekd.posetrack_json import Video, VideoFrame, VideoPerson, read_videos
from posekd.skeleton import POSETRACK, Skeleton, skeleton_from_category

PERSON = 1
"""The category of people in PoseTrack18's files."""


@dataclass(frozen=True)
class PoseTrackSettings:
    """Where PoseTrack's files are.

    Attributes:
        images: folder that the files' names are relative to (they begin with `images/`).
        annotations: a video's JSON file, or the folder of a split (`annotations/val`).
        detections: a detector's result file (HRNet format: a list of `image_id`, `category_id` 1, `bbox`, `score`) to
            take boxes from, instead of the labels, for networks that crop boxes.
        detection_threshold: detections with a lower score are left out.
        compat: reproduce the official evaluator's habits in the scores, see `metrics.posetrack`.
        on_missing_image: "refuse", or "skip" frames whose file is not there, with a counted warning: nobody is then
            labelled there either.
        keep_images: which frames to keep: those with a "labelled" person, those that are "annotated" at all
            (`is_labeled`), or "all". None is what the network needs: top-down the labelled ones, others the annotated
            ones for training and all for evaluation. With `detections` all are kept.
        apply_orientation: turn images as their EXIF tags say.
    """

    images: str
    annotations: str
    detections: str | None = None
    detection_threshold: float = 0.0
    compat: bool = False
    on_missing_image: Literal["refuse", "skip"] = "refuse"
    keep_images: KeepImages | None = None
    apply_orientation: bool = False


class PoseTrackVideos:
    """Videos with people. A `PoseSource` whose images are the frames, one video after another.

    Attributes:
        records: the people.
        videos: all frames, labels among them.
        compat: see `PoseTrackSettings`.
    """

    def __init__(self, settings: PoseTrackSettings) -> None:
        """Reads the label files; decodes nothing.

        Raises:
            FileNotFoundError: a label file, the image folder or an image is missing.
            ValueError: a malformed file; the message names file, annotation and value.
        """
        folder = Path(settings.images)
        videos = read_videos(Path(settings.annotations), "annotations")
        if not folder.is_dir():
            raise FileNotFoundError(f"image folder {folder} does not exist (setting `images`)")
        frames = [frame for video in videos for frame in video.frames]
        nameless = next((frame for frame in frames if not frame.file_name), None)
        if nameless is not None:
            raise ValueError(f"{settings.annotations}: image {nameless.image_id} has no file_name")
        paths = [str(folder / frame.file_name) for frame in frames]
        absent = set(missing_files(paths, settings.annotations, settings.on_missing_image))
        self.videos = _without(videos, {f.image_id for f, path in zip(frames, paths, strict=True) if path in absent})
        self.compat, self._orientation = settings.compat, settings.apply_orientation
        by_detector = settings.detections is not None
        kept = chosen_frames(self.videos, "all" if by_detector else settings.keep_images or "labelled")
        if not any(kept):
            raise ValueError(f"{settings.annotations}: {_why_none(settings, len(frames), len(absent))}")
        self._files = [str(folder / frame.file_name) for frames in kept for frame in frames]
        sizes = _sizes([frame for frames in kept for frame in frames], self._files, settings.apply_orientation)
        self.records = video_records(self.videos, kept, sizes, settings.annotations)
        if settings.detections is not None:
            self.records = with_detections(
                self.records, Path(settings.detections), settings.detection_threshold, settings.annotations
            )

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Decodes frame `row`, a JPEG smaller if asked for, and checks its stated size: uint8 RGB `[H, W, 3]`."""
        height, width = self.records.image_sizes[row].tolist()
        if not height:  # the header could not be read when the dataset was opened
            return read_rgb(self._files[row], apply_orientation=self._orientation)
        return read_rgb(self._files[row], (height, width), reduction, self._orientation)

    def image_name(self, row: int) -> str:
        """Path of frame `row`."""
        return self._files[row]


def _why_none(settings: PoseTrackSettings, frames: int, absent: int) -> str:
    if absent == frames:
        return f"all {frames} images are missing"
    return f"none of its {frames} frames has what keep_images: {settings.keep_images or 'labelled'} asks for" + (
        f" ({absent} images are missing)" if absent else ""
    )


def _without(videos: Sequence[Video], absent: set[int]) -> list[Video]:
    """The videos without some frames; a video of which nothing is left goes too."""
    cut = [replace(v, frames=tuple(frame for frame in v.frames if frame.image_id not in absent)) for v in videos]
    return [video for video in cut if video.frames]


def _sizes(frames: Sequence[VideoFrame], files: Sequence[str], apply_orientation: bool) -> np.ndarray:
    """Heights and widths `[M, 2]`: as the labels state them, else as the files' headers do."""
    unknown = [file for frame, file in zip(frames, files, strict=True) if frame.size is None]
    read = iter(image_sizes(unknown, apply_orientation).tolist())
    return np.array([frame.size or next(read) for frame in frames], np.int64).reshape(-1, 2)


# ---- Records, of files and of drawn videos ---------------------------------------------------------------------------


def chosen_frames(videos: Sequence[Video], keep: KeepImages) -> list[list[VideoFrame]]:
    """Of each video the frames to keep, see `PoseTrackSettings.keep_images`."""

    def is_kept(frame: VideoFrame) -> bool:
        return keep == "all" or (frame.labelled and (keep == "annotated" or any(map(has_labels, frame.people))))

    return [[frame for frame in video.frames if is_kept(frame)] for video in videos]


def has_labels(person: VideoPerson) -> bool:
    """Whether a keypoint is labelled."""
    return bool(person.there.any())


def skeleton_of(video: Video) -> Skeleton:
    """The keypoints of a video as a skeleton."""
    if video.keypoints == POSETRACK.keypoints:
        return POSETRACK
    edges = [[a + 1, b + 1] for a, b in video.edges]
    return skeleton_from_category({"name": "posetrack", "keypoints": list(video.keypoints), "skeleton": edges})


def video_records(
    videos: Sequence[Video], kept: Sequence[Sequence[VideoFrame]], sizes: np.ndarray, name: str
) -> PoseRecords:
    """The records of the labelled people in some frames of videos.

    People without a labelled keypoint are ignored regions, as are the polygons.

    Args:
        videos: of equal keypoints.
        kept: frames of each.
        sizes: int64 `[M, 2]`, height and width of each frame; 0 where they are not known.
        name: of the label file, for messages.

    Raises:
        ValueError: videos of different keypoints, or an image id that occurs twice.
    """
    skeleton = skeleton_of(videos[0])
    other = next((video for video in videos if video.keypoints != videos[0].keypoints), None)
    if other is not None:
        raise ValueError(f"{name}: {other.name} has other keypoints than {videos[0].name}: {list(other.keypoints)}")
    frames = [frame for group in kept for frame in group]
    ids = [frame.image_id for frame in frames]
    if len(set(ids)) < len(ids):
        twice = next(i for place, i in enumerate(ids) if i in ids[:place])
        raise ValueError(f"{name}: image {twice} is in two videos: image ids must differ over all files")
    entries = {i: {"height": h, "width": w} for i, (h, w) in zip(ids, sizes.tolist(), strict=True)}
    people = [(row, person) for row, frame in enumerate(frames) for person in frame.people if has_labels(person)]
    boxes = [_box(person, *sizes[row].tolist()) for row, person in people]
    points = [np.where(p.there[:, None], np.column_stack((p.points, 2.0 * p.there)), 0.0) for _, p in people]
    K, N = skeleton.num_keypoints, len(people)
    return PoseRecords(
        skeleton=skeleton,
        image_ids=np.array(ids, np.int64),
        image_sizes=sizes,
        image_rows=np.array([row for row, _ in people], np.int64),
        keypoints=np.array(points, np.float32).reshape(N, K, 3),
        boxes=np.array(boxes, np.float32).reshape(N, 4),
        box_scores=np.ones(N, np.float32),
        sample_ids=np.arange(N),
        outlines=np.array([outline_of(None, box) for box in boxes], np.float32) if N else None,
        ignored=_ignored(frames, entries, name),
        metrics=("posetrack",),
        videos=np.repeat(np.arange(len(kept)), [len(group) for group in kept]),
    )


def with_detections(records: PoseRecords, file: Path, threshold: float, listed: str) -> PoseRecords:
    """The records with a detector's boxes, of which nothing is labelled, in place of the labelled people.

    Args:
        records: with all images.
        file: the detector's file.
        threshold: see `read_detections`.
        listed: the label file, for messages.

    Raises:
        FileNotFoundError, ValueError: see `read_detections`.
    """
    rows = {image_id: row for row, image_id in enumerate(records.image_ids.tolist())}
    found = sorted(read_detections(file, rows, (PERSON,), threshold, listed), key=lambda d: rows[d.image_id])
    boxes = np.array([d.box for d in found], np.float32).reshape(-1, 4)
    return replace(
        records,
        image_rows=np.array([rows[d.image_id] for d in found], np.int64),
        keypoints=np.zeros((len(found), *records.keypoints.shape[1:]), np.float32),
        boxes=boxes,
        box_scores=np.array([d.score for d in found], np.float32),
        sample_ids=np.array([d.row for d in found], np.int64),
        outlines=None,
    )


def _box(person: VideoPerson, height: int, width: int) -> tuple[float, float, float, float]:
    """A person's box: as labelled, within the image; around the keypoints where that is none."""
    if person.box is not None and (person.box[2:] > 0).all():
        x, y, w, h = person.box.tolist()
        clean = clip_box((x, y, w, h), width, height) if height else (x, y, w, h)
        if clean is not None:
            return clean
    return hull_box(person.points[person.there])


def _ignored(frames: Sequence[VideoFrame], entries: Mapping[int, Mapping[str, int]], name: str) -> Regions:
    """Ignored polygons, and the boxes of people of whom nothing is labelled."""
    regions = []
    for frame in frames:
        if not entries[frame.image_id]["height"]:
            continue
        unlabelled = [p.box for p in frame.people if not has_labels(p) and p.box is not None]
        corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in (b.tolist() for b in unlabelled)]
        for polygon in (*frame.ignored, *(np.array(box) for box in corners)):
            if len(polygon) >= 3:
                flat = polygon.reshape(-1).tolist()
                regions.append({"image_id": frame.image_id, "iscrowd": 1, "segmentation": [flat], "id": 0})
    return ignored_regions(regions, entries, name)
