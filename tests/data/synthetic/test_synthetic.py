"""Synthetic people: deterministic, exactly labelled, plausible, and the same dataset in memory and on disk."""

import contextlib
import io
import time
import warnings

import cv2
import numpy as np
import pytest
from pycocotools import coco as coco_api
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from posekd.data import CocoKeypoints, LoaderSettings, crop_loader
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings, render, write_coco
from posekd.data.synthetic.body import NUM_JOINTS, draw_figures
from posekd.data.synthetic.labels import _polygons
from posekd.skeleton import COCO
from posekd.viz.contact_sheet import contact_sheet

J = {name: i for i, name in enumerate(COCO.keypoints)}
SETTINGS = SyntheticSettings(images=60, size=(120, 160), seed=3)


@pytest.fixture(scope="module")
def scenes():
    return [render(SETTINGS, i) for i in range(60)]


def joints(annotation):
    return np.array(annotation["keypoints"]).reshape(NUM_JOINTS, 3)


def fill(polygons, size):
    """What COCO's own tools make of polygons, bool `[H, W]`."""
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools under NumPy 2
        return coco_mask.decode(runs) > 0


class TestDeterminism:
    def test_a_picture_depends_on_seed_split_and_index_alone(self):
        image, annotations = render(SETTINGS, 7)
        again, same = render(SyntheticSettings(images=1, size=(120, 160), seed=3, keep_images=False), 7)
        np.testing.assert_array_equal(image, again)
        assert annotations == same

    @pytest.mark.parametrize("changes", [{"seed": 4}, {"split": "val"}])
    def test_other_seeds_and_splits_give_other_pictures(self, changes):
        other = SyntheticSettings(**{"images": 60, "size": (120, 160), "seed": 3, **changes})
        assert render(SETTINGS, 7)[1] != render(other, 7)[1]

    def test_the_splits_never_share_a_picture(self):
        """Validation of seed 0 is not training of any of the first seeds."""
        small = {"images": 1, "size": (32, 32)}
        train = {render(SyntheticSettings(**small, seed=s), i)[0].tobytes() for s in range(4) for i in range(8)}
        val = {
            render(SyntheticSettings(**small, seed=s, split="val"), i)[0].tobytes() for s in range(4) for i in range(8)
        }
        assert len(train) == len(val) == 32
        assert not train & val


class TestLabels:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_mask_without_holes_survives_its_polygons_exactly(self, seed):
        rng = np.random.default_rng(seed)
        mask = np.zeros((60, 80), np.uint8)
        for _ in range(3):
            at, axes = rng.integers(5, 55, 2).tolist(), rng.integers(1, 18, 2).tolist()
            cv2.ellipse(mask, at, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
            cv2.line(mask, rng.integers(0, 60, 2).tolist(), at, 255, int(rng.integers(1, 5)))
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mask, contours, -1, 255, -1)
        np.testing.assert_array_equal(fill(_polygons(mask, cv2.boundingRect(mask)), mask.shape), mask > 0)

    def test_area_and_box_are_those_of_the_outline(self, scenes):
        for _, annotations in scenes:
            for a in annotations:
                filled = fill(a["segmentation"], SETTINGS.size)
                assert 64 <= a["area"] <= filled.sum()  # the outline also fills the hole between arm and trunk
                y, x = np.nonzero(filled)
                assert a["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]

    def test_visible_joints_lie_on_their_persons_pixels(self, scenes):
        for _, annotations in scenes:
            for a in annotations:
                filled = fill(a["segmentation"], SETTINGS.size)
                for x, y, v in joints(a):
                    if v == 2:
                        column, row = round(x), round(y)
                        assert filled[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].any()

    def test_joints_outside_the_picture_are_unlabelled(self, scenes):
        height, width = SETTINGS.size
        for _, annotations in scenes:
            for a in annotations:
                k = joints(a)
                labelled = k[:, 2] > 0
                assert (k[labelled, 0] >= -0.5).all()
                assert (k[labelled, 0] <= width - 0.5).all()
                assert (k[labelled, 1] >= -0.5).all()
                assert (k[labelled, 1] <= height - 0.5).all()
                assert not k[~labelled].any()
                assert a["num_keypoints"] == labelled.sum()

    def test_occlusion_truncation_and_views_from_behind_all_happen(self):
        wild = SyntheticSettings(images=150, size=(120, 160), difficulty=0.6)
        k = np.stack([joints(a) for i in range(150) for a in render(wild, i)[1]])
        body = k[:, J["left_shoulder"] :, 2]
        assert 0.05 < (body == 1).mean() < 0.4
        assert 0.01 < (body == 0).mean() < 0.3
        behind = (k[:, J["nose"], 2] == 0) & (k[:, J["left_shoulder"], 2] > 0) & (k[:, J["right_shoulder"], 2] > 0)
        assert 0.1 < behind.mean() < 0.6

    def test_sides_are_anatomical_and_the_face_tells_them(self, scenes):
        """Facing the camera, a person's left is on the right of the image; from behind it is the other way."""
        facing, behind = [], []
        for seed in range(40):
            figures = draw_figures(np.random.default_rng(seed), 4, (240, 320), 0.5)
            across = figures.points[:, J["left_shoulder"], 0] - figures.points[:, J["right_shoulder"], 0]
            upright = figures.points[:, J["left_hip"], 1] > figures.points[:, J["left_shoulder"], 1]
            nose = figures.points[:, J["nose"], 2] - figures.points[:, J["left_ear"] : J["right_ear"] + 1, 2].mean(1)
            near = nose / figures.heights
            facing += (across[upright & (near > 0.055)] > 0).tolist()
            behind += (across[upright & (near < -0.055)] < 0).tolist()
        assert len(facing) > 40
        assert len(behind) > 8
        assert np.mean(facing) > 0.95
        assert np.mean(behind) > 0.95

    def test_image_and_annotation_ids_are_unique(self, scenes):
        ids = [a["id"] for _, annotations in scenes for a in annotations]
        assert len(ids) == len(set(ids)) > 60
        assert all(a["image_id"] == i + 1 for i, (_, annotations) in enumerate(scenes) for a in annotations)

    def test_the_official_evaluator_gives_the_labels_themselves_ap_1(self):
        truth = coco_api.COCO()
        with contextlib.redirect_stdout(io.StringIO()):
            truth.dataset = SyntheticPeople(SETTINGS).coco_ground_truth()
            truth.createIndex()
            own = [
                {"image_id": a["image_id"], "category_id": 1, "keypoints": a["keypoints"], "score": 1.0}
                for a in truth.dataset["annotations"]
                if a["num_keypoints"]
            ]
            evaluation = COCOeval(truth, truth.loadRes(own), "keypoints")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


class TestBodies:
    def test_limbs_never_look_longer_than_they_are(self):
        """Projection only shortens, up to the trace of perspective; thigh 0.245 and forearm 0.15 of body height."""
        for seed in range(20):
            figures = draw_figures(np.random.default_rng(seed), 4, (240, 320), 0.6)
            for a, b, length in (("left_hip", "left_knee", 0.245), ("right_elbow", "right_wrist", 0.15)):
                seen = np.linalg.norm(figures.points[:, J[a], :2] - figures.points[:, J[b], :2], axis=1)
                assert (seen <= 1.35 * length * figures.heights).all()

    def test_most_people_stand_heads_up(self):
        figures = [draw_figures(np.random.default_rng(seed), 3, (240, 320), 0.2) for seed in range(40)]
        up = [f.points[:, J["nose"], 1] < f.points[:, J["left_ankle"], 1] for f in figures]
        assert np.mean(up) > 0.95


class TestSource:
    def test_the_people_asked_for(self):
        source = SyntheticPeople(SyntheticSettings(images=20, size=(120, 160), people=(1, 1), difficulty=0.0))
        assert np.bincount(source.records.image_rows).max() == 1
        assert source.records.num_images == 20

    def test_pictures_drawn_anew_equal_those_kept(self):
        kept = SyntheticPeople(SyntheticSettings(images=3, size=(120, 160)))
        anew = SyntheticPeople(SyntheticSettings(images=3, size=(120, 160), keep_images=False))
        for row in range(3):
            np.testing.assert_array_equal(kept.load_image(row), anew.load_image(row))

    def test_progress_sees_every_picture(self):
        seen = []

        def progress(indices):
            for index in indices:
                seen.append(index)
                yield index

        SyntheticPeople(SyntheticSettings(images=4, size=(64, 64)), progress)
        assert seen == [0, 1, 2, 3]

    def test_a_folder_holds_the_same_dataset(self, tmp_path):
        memory = SyntheticPeople(SyntheticSettings(images=8, size=(120, 160), seed=5, split="val"))
        settings = SyntheticSettings(size=(120, 160), split="val")
        disk = CocoKeypoints(write_coco(tmp_path, 8, 5, settings=settings, image_format="png"))
        assert (tmp_path / "annotations" / "person_keypoints_val.json").is_file()
        assert disk.records.sample_ids.tolist() == memory.records.sample_ids.tolist()
        np.testing.assert_allclose(disk.records.keypoints, memory.records.keypoints)
        np.testing.assert_array_equal(
            disk.load_image(int(disk.records.image_rows[-1])), memory.load_image(int(memory.records.image_rows[-1]))
        )
        theirs, ours = disk.coco_ground_truth(), memory.coco_ground_truth()
        assert theirs["annotations"] == ours["annotations"]
        assert theirs["categories"] == ours["categories"]

    def test_jpegs_are_close(self, tmp_path):
        settings = SyntheticSettings(size=(120, 160))
        disk = CocoKeypoints(write_coco(tmp_path, 1, settings=settings))
        exact = render(settings, 0)[0].astype(float)
        assert np.abs(disk.load_image(0) - exact).mean() < 8

    def test_it_loads(self):
        loader = crop_loader(SyntheticPeople(SETTINGS), (64, 48), LoaderSettings(16, workers=0), training=True)
        assert [len(batch) for batch in loader] == [16] * len(loader)
        assert len(loader) >= 4

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"images": 0}, "images must be 1 or more"),
            ({"split": "test"}, "split must be 'train' or 'val', got 'test'"),
            ({"seed": -1}, "seed must not be negative"),
            ({"size": (16, 320)}, "at least 32 x 32"),
            ({"people": (0, 4)}, r"low <= high, in 1..15, got \(0, 4\)"),
            ({"people": (3, 2)}, r"got \(3, 2\)"),
            ({"difficulty": 1.5}, "difficulty must be in 0..1, got 1.5"),
        ],
    )
    def test_impossible_settings_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            SyntheticSettings(**settings)

    def test_large_pictures_and_crowds_work(self):
        image, annotations = render(SyntheticSettings(size=(600, 900), people=(15, 15), difficulty=1.0), 0)
        assert image.shape == (600, 900, 3)
        assert len(annotations) > 8


def test_a_contact_sheet_tiles_the_pictures():
    sheet = contact_sheet(SyntheticSettings(size=(60, 80)), rows=2, columns=3)
    assert sheet.shape == (2 * 120, 3 * 160, 3)


def test_drawing_is_fast_enough():
    """150 images of 320 x 240 a second on one core; processor time, and half of it, since machines differ."""
    render(SyntheticSettings(), 0)
    start = time.process_time()
    for i in range(40):
        render(SyntheticSettings(), i)
    assert 40 / (time.process_time() - start) > 75
