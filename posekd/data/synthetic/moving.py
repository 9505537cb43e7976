"""Synthetic videos: people who walk through a scene and swing their limbs, with identities, in PoseTrack18's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from posekd.data.records import PoseRecords
from posekd.data.sources.posetrack import PoseTrackSettings, chosen_frames, video_records
from posekd.data.synthetic import body
from posekd.data.synthetic.body import Figures, draw_figures
from posekd.data.synthetic.labels import annotate
from posekd.data.synthetic.paint import SPLITS, Wardrobe, check_drawn, draw_wardrobe, paint_figures
from posekd.data.synthetic.scene import develop, paint_background, paint_occluders
from posekd.files import replacing
from posekd.posetrack_json import NO_SCORE, Video, VideoFrame, VideoPerson, write_videos
from posekd.skeleton import POSETRACK

_KIND = 18  # of the draws, so that no still has the same
SWING = 0.4  # how far a body goes towards its other pose, and back
_HEAD_SIDE = 2.5  # side of the head's box in head radii


@dataclass(frozen=True)
class SyntheticVideoSettings:
    """What to draw.

    Attributes:
        videos: number of videos.
        frames: frames of each.
        split: "train" or "val"; the two never share a video, whatever the seeds.
        seed: video i of (split, seed) is always the same.
        size: `(height, width)` of the frames in pixels.
        people: fewest and most people in a video.
        difficulty: 0..1; more clutter, occlusion, grain, unusual poses and mismatched clothes.
        speed: how far people walk from frame to frame, at most, as a share of the width.
        keep_images: keep rendered frames in memory; otherwise they are drawn anew each time.
        compat: reproduce the official evaluator's habits in the scores, see `metrics.posetrack`.
    """

    videos: int = 20
    frames: int = 10
    split: Literal["train", "val"] = "train"
    seed: int = 0
    size: tuple[int, int] = (240, 320)
    people: tuple[int, int] = (2, 4)
    difficulty: float = 0.2
    speed: float = 0.03
    keep_images: bool = True
    compat: bool = False

    def __post_init__(self) -> None:
        for name in ("videos", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        check_drawn(self.split, self.seed, self.size, self.people, self.difficulty)
        if not 0 <= self.speed <= 1:
            raise ValueError(f"speed is a share of the width in 0..1, got {self.speed}")


# ---- Drawing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """What stays the same over a video.

    Attributes:
        begin: people as they stand in the first frame.
        other: points `[P, 27, 3]` of the same people in another pose, at the same place.
        velocities: `[P, 2]` in pixels per frame.
        phases: `[P]`, where in their swing people are in the first frame, radians.
        paces: `[P]`, radians of their swing per frame.
        wardrobe: clothes.
        light: `[2]`, unit vector in the image towards the light.
        background: uint8 `[H, W, 4]`.
        seed: of everything that is drawn again in each frame, alike.
    """

    begin: Figures
    other: np.ndarray
    velocities: np.ndarray
    phases: np.ndarray
    paces: np.ndarray
    wardrobe: Wardrobe
    light: np.ndarray
    background: np.ndarray
    seed: list[int]


def _draw_scene(s: SyntheticVideoSettings, index: int) -> _Scene:
    seed = [_KIND, SPLITS[s.split], s.seed, index]
    rng = np.random.default_rng(seed)
    background = paint_background(rng, s.size, s.difficulty)
    count = int(rng.integers(s.people[0], s.people[1] + 1))
    begin = draw_figures(rng, count, s.size, s.difficulty)
    other = draw_figures(rng, count, s.size, s.difficulty)
    centers = [_center(figures) for figures in (begin, other)]
    scale = (begin.heights / other.heights)[:, None, None]
    moved = (other.points - centers[1]) * scale + centers[0]
    angle = rng.uniform(-np.pi, 0)
    pace = s.speed * s.size[1] * rng.uniform(0.3, 1.0, count) * rng.choice((-1.0, 1.0), count)
    return _Scene(
        begin=begin,
        other=moved,
        velocities=np.stack((pace, 0.1 * pace * rng.standard_normal(count)), 1),
        phases=rng.uniform(0, 2 * np.pi, count),
        paces=rng.uniform(0.3, 0.7, count),
        wardrobe=draw_wardrobe(rng, count, s.difficulty),
        light=np.array((np.cos(angle), np.sin(angle))),
        background=background,
        seed=seed,
    )


def _center(figures: Figures) -> np.ndarray:
    return figures.points[:, [body.L_HIP, body.R_HIP]].mean(1, keepdims=True)


def _figures_at(scene: _Scene, frame: int) -> Figures:
    swing = SWING * (1 - np.cos(scene.phases + frame * scene.paces))[:, None, None] / 2
    points = scene.begin.points + swing * (scene.other - scene.begin.points)
    points[..., :2] += frame * scene.velocities[:, None]
    return replace(scene.begin, points=points)


def _render(s: SyntheticVideoSettings, scene: _Scene, frame: int) -> tuple[np.ndarray, Figures, np.ndarray]:
    """A frame, uint8 RGB `[H, W, 3]`; its people; the painter's label plane."""
    canvas, figures = scene.background.copy(), _figures_at(scene, frame)
    rng = np.random.default_rng([*scene.seed, 1])  # the same stripes, occluders and grain in every frame
    paint_figures(canvas, figures, scene.wardrobe, rng, scene.light)
    rng = np.random.default_rng([*scene.seed, 2])
    paint_occluders(canvas, rng, scene.begin.points[:, : body.NUM_JOINTS, :2], s.difficulty)
    return develop(canvas, rng, s.difficulty), figures, canvas[..., 3]


def render_video(settings: SyntheticVideoSettings, index: int) -> tuple[Video, list[np.ndarray]]:
    """Draws one video.

    Args:
        settings: everything but `videos` and `keep_images` matters.
        index: number of the video, from 0.

    Returns:
        Its labels, and the frames, uint8 RGB `[H, W, 3]` each. Somebody who leaves the image and comes back keeps the
        track; whoever can hardly be seen is an ignored region.
    """
    s, scene = settings, _draw_scene(settings, index)
    name = f"{index + 1:06d}_synthetic_{s.split}"
    frames, images = [], []
    for number in range(s.frames):
        image, figures, plane = _render(s, scene, number)
        image_id = 10_000 * (index + 1) + number
        people, ignored = _label(figures, plane, image_id)
        file = f"images/{s.split}/{name}/{number:06d}.jpg"
        frames.append(VideoFrame(image_id, file, people, ignored, size=s.size))
        images.append(image)
    return Video(name, POSETRACK.keypoints, POSETRACK.edges, tuple(frames)), images


def _label(
    figures: Figures, plane: np.ndarray, image_id: int
) -> tuple[tuple[VideoPerson, ...], tuple[np.ndarray, ...]]:
    """PoseTrack's labels: neck and head top beside COCO's keypoints, no ears, a box of the head."""
    people, ignored = [], []
    height, width = plane.shape
    for entry in annotate(figures, plane, image_id, 0):
        p, box = entry["id"], np.array(entry["bbox"])
        if not entry["num_keypoints"]:
            x, y, w, h = box.tolist()
            ignored.append(np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]))
            continue
        labels = np.array(entry["keypoints"]).reshape(-1, 3)
        points, there = labels[:, :2].copy(), labels[:, 2] > 0
        points[1:3] = figures.points[p, [body.NECK, body.CROWN], :2].round(2)
        there[1:3] = ((points[1:3] >= 0) & (points[1:3] < (width, height))).all(1)
        there[3:5] = False  # PoseTrack18 lists ears and labels none
        side = _HEAD_SIDE * body.HEAD_RADIUS * figures.heights[p]
        head = np.array([*(figures.points[p, body.HEAD, :2] - side / 2), side, side])
        people.append(
            VideoPerson(
                id=100 * image_id + p,
                points=np.where(there[:, None], points, 0.0),
                there=there,
                scores=np.full(len(there), NO_SCORE),
                track=p,
                head=head,
                box=box,
            )
        )
    return tuple(people), tuple(ignored)


# ---- As a dataset, and as files ------------------------------------------------------------------------------------


class SyntheticVideos:
    """The videos of some settings as a dataset. A `PoseSource` whose images are the frames, one video after another.

    Attributes:
        records: the people.
        videos: all frames with their labels.
        compat: see `SyntheticVideoSettings`.

    Args:
        settings: what to draw.
        progress: wraps the iteration over videos, for a progress bar.
    """

    records: PoseRecords

    def __init__(
        self, settings: SyntheticVideoSettings, progress: Callable[[Iterable[int]], Iterable[int]] | None = None
    ) -> None:
        self.settings, self.compat = settings, settings.compat
        self._kept: list[np.ndarray] = []
        self.videos: list[Video] = []
        indices: Iterable[int] = range(settings.videos)
        for index in indices if progress is None else progress(indices):
            video, images = render_video(settings, index)
            self.videos.append(video)
            if settings.keep_images:
                self._kept += images
        kept = chosen_frames(self.videos, "all")
        sizes = np.tile(np.array(settings.size, np.int64), (sum(map(len, kept)), 1))
        self.records = video_records(self.videos, kept, sizes, f"synthetic {settings.split}")
        if not len(self.records):
            raise ValueError(f"none of the {settings.videos} videos shows a person; draw more")

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Frame `row`, always whole: uint8 RGB `[H, W, 3]`; do not write to it."""
        if self._kept:
            return self._kept[row]
        index, frame = divmod(row, self.settings.frames)
        return _render(self.settings, _draw_scene(self.settings, index), frame)[0]

    def image_name(self, row: int) -> str:
        """Name of frame `row`, for messages."""
        index, frame = divmod(row, self.settings.frames)
        return f"synthetic {self.settings.split} video {index} frame {frame} (seed {self.settings.seed})"


def write_posetrack(folder: str | Path, settings: SyntheticVideoSettings, **changes: Any) -> PoseTrackSettings:
    """Writes videos as PoseTrack18's files: `images/<split>/<video>/000000.jpg`, `annotations/<split>/<video>.json`.

    Args:
        folder: created if it does not exist.
        settings: what to draw.
        changes: settings of the dataset that reads it back.

    Returns:
        The settings that read it back.

    Raises:
        OSError: a file cannot be written.
    """
    root = Path(folder)
    labels = root / "annotations" / settings.split
    for index in range(settings.videos):
        video, images = render_video(settings, index)
        for frame, image in zip(video.frames, images, strict=True):
            done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
            if not done:
                raise OSError(f"{root / frame.file_name}: OpenCV cannot write it")
            with replacing(root / frame.file_name) as temporary:
                temporary.write_bytes(data.tobytes())
        write_videos([video], labels)
    return PoseTrackSettings(str(root), str(labels), **changes)
