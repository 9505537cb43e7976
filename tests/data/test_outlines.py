"""Outlines of people: their hull in every direction, from polygons, run lengths or the box."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle

from posekd.data.outlines import DIRECTIONS, outline_of
from posekd.data.sources.coco import CocoKeypoints, CocoSettings
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings, write_coco

BOX = (10.0, 20.0, 30.0, 8.0)


def hull(points: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """Lowest and highest coordinates of points turned by an angle in degrees, `[2, 2]`."""
    turn = np.deg2rad(angle)
    turned = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.stack((turned.min(0), turned.max(0)))


def disc(radius: float = 50.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    return 60 + radius * np.stack((np.cos(angles), np.sin(angles)), 1)


def test_a_turned_hull_is_that_of_the_segmentation_and_not_of_its_box():
    """A disc stays as wide as it is; its box, turned by 45 degrees, would be 41 % wider."""
    points = disc()
    outline = outline_of([points[:120].ravel().tolist(), points[100:].ravel().tolist()], BOX)
    assert outline.shape == (DIRECTIONS, 2)
    for angle in (0, 13, 45, 90, 128):
        np.testing.assert_allclose(hull(outline, angle), hull(points, angle), atol=0.5)
    np.testing.assert_allclose(hull(outline), hull(points), atol=1e-4)  # upright it is exact


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths(compressed):
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 12:31], mask[20:30, 20:25] = 1, 1
    runs = rle.encode(np.asfortranarray(mask))
    if not compressed:
        flat = mask.ravel("F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
        runs = {"size": [40, 50], "counts": counts}
    assert hull(outline_of(runs, BOX)).tolist() == [[12, 5], [31, 30]]


@pytest.mark.parametrize(
    "segmentation",
    [None, [], [[1.0, 2.0]], [[1.0, 2.0, "a", 3.0, 4.0, 5.0]], [[float("nan")] * 6], {"counts": [3]}, 7],
    ids=str,
)
def test_whatever_is_no_segmentation_leaves_the_box(segmentation):
    assert hull(outline_of(segmentation, BOX)).tolist() == [[10, 20], [40, 28]]


def test_datasets_have_them_where_whole_images_are_seen(tmp_path):
    drawn = SyntheticPeople(SyntheticSettings(images=2, size=(96, 96), people=(1, 2)))
    hulls = np.array([hull(points) for points in drawn.records.outlines])
    expected = np.concatenate((drawn.records.boxes[:, :2], drawn.records.boxes.reshape(-1, 2, 2).sum(1)), 1)
    np.testing.assert_allclose(hulls.reshape(-1, 4), expected, atol=1.0)
    folder = write_coco(tmp_path, 2, settings=SyntheticSettings(size=(96, 96), people=(1, 2)))
    files = CocoSettings(folder.images, folder.annotations, keep_images="all")
    np.testing.assert_allclose(CocoKeypoints(files).records.outlines, drawn.records.outlines, atol=1e-3)
    assert CocoKeypoints(CocoSettings(folder.images, folder.annotations)).records.outlines is None
