"""Whole images: HigherHRNet's augmentation, masks and keypoints at every resolution, as its procedure gives them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from helpers import coco_folder

from posekd.data import CocoKeypoints, CocoSettings, ImageAugmentation, ImageDataset, LoaderSettings, image_loader
from posekd.data.augment import draw_image
from posekd.data.regions import decode_mask
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.inputs import prepare_images
from posekd.skeleton import CROWDPOSE
from posekd.structures import InputSpec, Pixels

SPEC = InputSpec(size=(64, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
PLAIN = ImageAugmentation(flip=0, rotation=0, scale=(1, 1), translation=0)


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed form: column by column, beginning with a run of zeros."""
    flat = np.concatenate(([0], mask.T.ravel(), [1 - mask[-1, -1]]))
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    counts = np.diff(np.concatenate(([0], edges))).tolist()
    return {"size": list(mask.shape), "counts": counts}


@pytest.fixture
def scene(tmp_path):
    """Image 1: two people and one without keypoints. 2: a crowd alone. 3: nobody. All 60 x 80."""
    crowd = np.zeros((coco_folder.HEIGHT, coco_folder.WIDTH), np.uint8)
    crowd[20:50, 5:30] = 1
    nobody = {"num_keypoints": 0, "keypoints": [0] * 51}
    return coco_folder.labels(
        [
            coco_folder.person(10, 1),
            coco_folder.person(11, 1, bbox=[50.0, 5.0, 0.0, 0.0]),
            coco_folder.person(12, 1, **nobody, segmentation=square(40, 10, 20)),
            coco_folder.person(13, 2, **nobody, iscrowd=1, segmentation=run_lengths(crowd)),
        ]
    )


def open_scene(tmp_path, scene, keep="all", **changes) -> CocoKeypoints:
    return CocoKeypoints(coco_folder.write(tmp_path, scene, keep_images=keep, **changes))


def test_which_images_are_kept(tmp_path, scene):
    """HigherHRNet trains on images with any annotation and is tested on all; a person needs no good box."""
    labelled, annotated = (open_scene(tmp_path, scene, keep) for keep in ("labelled", "annotated"))
    everything = open_scene(tmp_path, scene, "all")
    assert labelled.records.image_ids.tolist() == [1]
    assert labelled.records.sample_ids.tolist() == [10]  # the other has a box without area: no crop
    assert len(labelled.records.ignored) == 0
    assert annotated.records.image_ids.tolist() == [1, 2]
    assert everything.records.image_ids.tolist() == [1, 2, 3]
    assert everything.records.sample_ids.tolist() == [10, 11]
    assert everything.records.ignored.image_rows.tolist() == [0, 1]


def test_crowdposes_files_have_the_edges_of_coco(tmp_path, scene):
    """14 keypoints and edges up to 17: the official files are so."""
    joints = [v for k in range(14) for v in (10.0 + k, 20.0 + k, 2)]
    scene["annotations"] = [coco_folder.person(1, 1, keypoints=joints, num_keypoints=14)]
    scene["categories"] = [{"id": 1, "name": "person", "keypoints": list(CROWDPOSE.keypoints), "skeleton": [[16, 14]]}]
    assert open_scene(tmp_path, scene).records.skeleton is CROWDPOSE


def test_a_split_without_labels_can_be_listed(tmp_path, scene):
    del scene["annotations"]
    records = open_scene(tmp_path, scene).records
    assert (len(records), records.num_images, records.keypoints.shape) == (0, 3, (0, 17, 3))


def test_masks_of_polygons_and_run_lengths(tmp_path, scene):
    records = open_scene(tmp_path, scene).records
    size = (coco_folder.HEIGHT, coco_folder.WIDTH)
    polygon, crowd = (decode_mask(records.ignored, row, size) for row in (0, 1))
    assert polygon.sum() == 255 * 400
    assert polygon[10:30, 40:60].all()
    assert crowd.sum() == 255 * 750
    assert crowd[20:50, 5:30].all()
    assert decode_mask(records.ignored, 2, size) is None


def test_compressed_run_lengths_and_empty_polygons(tmp_path, scene):
    from pycocotools import mask as rle

    crowd = scene["annotations"][3]
    packed = rle.frPyObjects(crowd["segmentation"], 60, 80)
    crowd["segmentation"] = {"size": [60, 80], "counts": packed["counts"].decode()}
    scene["annotations"][2]["segmentation"] = [[1.0, 2.0, 3.0, 4.0]]  # two corners cover nothing
    regions = open_scene(tmp_path, scene).records.ignored
    assert regions.image_rows.tolist() == [1]
    assert decode_mask(regions, 1, (60, 80)).sum() == 255 * 750


def test_a_broken_segmentation_is_named(tmp_path, scene):
    scene["annotations"][3]["segmentation"] = {"size": [60, 80]}
    with pytest.raises(ValueError, match=r"annotation 13 \(image 2\): segmentation: counts must be run lengths"):
        open_scene(tmp_path, scene)


def test_draws_are_those_of_higherhrnet():
    """Rotation even in +-30, side 0.75 to 1.5 of the short side, whole pixels of up to 40/200 of the side."""
    rng = np.random.default_rng(0)
    draws = [draw_image(ImageAugmentation(), rng, 480, 640) for _ in range(4000)]
    rotation, side = np.array([d.rotation for d in draws]), np.array([d.side for d in draws])
    assert -30 <= rotation.min() < -29 < 29 < rotation.max() <= 30
    assert rotation.std() == pytest.approx(30 / 3**0.5, rel=0.03)
    assert 0.75 * 480 <= side.min() < 365 < 710 < side.max() <= 1.5 * 480
    shift = np.array([d.center for d in draws]) - (320, 240)
    assert np.array_equal(shift, shift.round())
    assert (np.abs(shift) <= 0.2 * side[:, None]).all()
    assert np.abs(shift).max() > 0.19 * side.max()
    assert np.mean([d.flip for d in draws]) == pytest.approx(0.5, abs=0.03)


def test_a_draw_depends_on_seed_epoch_and_row_alone():
    source = SyntheticPeople(SyntheticSettings(images=4, size=(64, 96)))
    one, two = (ImageDataset(source, (64, 64), augmentation=ImageAugmentation(), seed=seed) for seed in (3, 4))
    assert one.draw((2, 1)) == one.draw((2, 1)) != one.draw((3, 1))
    assert one.draw((2, 1)) != two.draw((2, 1))


def official_matrix(center, side, res, rotation) -> np.ndarray:
    """Image to output: scale about the centre, then turn by minus the angle about the output's centre."""
    scale = np.array([[res / side, 0, res * (0.5 - center[0] / side)], [0, res / side, res * (0.5 - center[1] / side)]])
    angle = np.radians(-rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([res / 2, res / 2])
    return np.column_stack((turn @ scale[:, :2], turn @ (scale[:, 2] - middle) + middle))


def official(source, row, draw, res):
    """Image, keypoints and mask of one resolution: warp, then mirror the result."""
    records = source.records
    image = source.load_image(row)
    matrix = official_matrix(draw.center, draw.side, res, draw.rotation)
    ignored = decode_mask(records.ignored, row, image.shape[:2])
    valid = np.full(image.shape[:2], 255, np.uint8) if ignored is None else 255 - ignored
    picture = cv2.warpAffine(image.astype(np.float64), matrix, (res, res)) / 255
    mask = cv2.warpAffine(valid.astype(np.float64), matrix, (res, res)) / 255
    people = records.keypoints[records.image_rows == row].astype(np.float64)
    joints = people.copy()
    joints[..., :2] = people[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    if draw.flip:
        picture, mask = picture[:, ::-1], mask[:, ::-1]
        joints = joints[:, records.skeleton.flip]
        joints[..., 0] = res - joints[..., 0] - 1
    return picture, joints, mask


def test_pictures_joints_and_masks_of_every_resolution_are_the_official_ones(tmp_path, scene):
    source = open_scene(tmp_path, scene)
    dataset = ImageDataset(source, (64, 64), augmentation=ImageAugmentation(), seed=1)
    flips = []
    for epoch in range(6):
        keys = [(epoch, row) for row in (2, 0, 1)]
        packed = dataset.__getitems__(keys)
        batch = prepare_images(packed, SPEC, source.records.skeleton.flip)
        assert [tuple(k.shape) for k in batch.keypoints] == [(3, 2, 17, 3)] * 2
        for i, key in enumerate(keys):
            draw = dataset.draw(key)
            flips.append(draw.flip)
            picture, _, _ = official(source, key[1], draw, 64)
            # cv2 samples at 1/32 of a pixel; the images are white noise
            assert np.abs(batch.images[i].permute(1, 2, 0).numpy() - picture).mean() < 0.02
            for res, points, masks in zip((16, 32), batch.keypoints, batch.masks, strict=True):
                _, joints, mask = official(source, key[1], draw, res)
                count = len(joints)
                labelled = joints[..., 2:] > 0
                assert np.allclose(points[i, :count].numpy(), np.where(labelled, joints, 0), atol=1e-3)
                assert not points[i, count:].any()
                sure = np.abs(mask - 0.5) > 0.05
                assert np.array_equal(masks[i].numpy()[sure], mask[sure] > 0.5)
    assert {True, False} <= set(flips)


def test_two_resolutions_of_a_mirror_image_differ_by_more_than_a_factor():
    """Input column x becomes 63 - x, and heatmap column x / 4 becomes 15 - x / 4, not (63 - x) / 4."""
    source = SyntheticPeople(SyntheticSettings(images=1, size=(64, 64)))
    mirror = ImageAugmentation(flip=1, rotation=0, scale=(1, 1), translation=0)
    packed = ImageDataset(source, (64, 64), augmentation=mirror).__getitems__([(0, 0)])
    fine, coarse = packed.matrices((64, 64))[0], packed.matrices((16, 16))[0]
    assert (fine @ torch.tensor([0.0, 0, 1]))[0] == 63
    assert (coarse @ torch.tensor([0.0, 0, 1]))[0] == 60  # column 15


def test_a_region_of_bytes_gives_what_the_whole_image_gives():
    """Only the rectangle that the crop samples is sent."""
    source = SyntheticPeople(SyntheticSettings(images=2, size=(96, 160)))
    near = ImageAugmentation(rotation=20, scale=(0.5, 0.5), translation=10)
    packed = ImageDataset(source, (64, 64), augmentation=near, seed=5).__getitems__([(0, 0), (0, 1)])
    assert packed.pixels.data.numel() < 0.6 * 2 * 96 * 160 * 3
    batch = prepare_images(packed, SPEC, source.records.skeleton.flip)
    packed.pixels = Pixels(
        data=torch.from_numpy(np.stack([source.load_image(i) for i in (0, 1)]).ravel()),
        offsets=torch.tensor([0, 96 * 160 * 3]),
        shapes=torch.tensor([[96, 160, 3]] * 2),
        origins=torch.zeros(2, 2),
        index=torch.arange(2),
    )
    torch.testing.assert_close(prepare_images(packed, SPEC, source.records.skeleton.flip).images, batch.images)


def test_more_than_thirty_people(tmp_path):
    """HigherHRNet's target generation stops with an IndexError there."""
    people = [coco_folder.person(i, 1) for i in range(1, 42)]
    source = CocoKeypoints(coco_folder.write(tmp_path, coco_folder.labels(people), keep_images="all"))
    loader = image_loader(source, (64, 64), LoaderSettings(batch_size=3, workers=0), training=True)
    (packed,) = loader
    batch = prepare_images(packed, SPEC, source.records.skeleton.flip)
    assert batch.keypoints[0].shape == (3, 41, 17, 3)
    assert sorted((k[..., 2] > 0).any(-1).sum().item() for k in batch.keypoints[0]) == [0, 0, 41]


def test_outside_the_image_and_without_people(tmp_path, scene):
    """A crop larger than the image: beyond it the loss does not look; an image with nobody has valid pixels only."""
    source = open_scene(tmp_path, scene)
    wide = ImageAugmentation(flip=0, rotation=0, scale=(2, 2), translation=0)
    packed = ImageDataset(source, (60, 60), augmentation=wide).__getitems__([(0, 2)])
    batch = prepare_images(packed, InputSpec(size=(60, 60)), source.records.skeleton.flip, strides=(1,))
    rows, columns = (batch.masks[0][0].any(axis).nonzero().flatten() for axis in (1, 0))
    # 120 pixels of the 60 x 80 image on 60 pixels: rows 15 to 44, columns 10 to 49
    assert (rows.min(), rows.max()) == (15, 44)
    assert (columns.min(), columns.max()) == (10, 49)
    assert not batch.keypoints[0].any()


def test_evaluation_goes_by_size_and_sees_every_image_once():
    class Sizes:
        def __init__(self):
            self.inner = SyntheticPeople(SyntheticSettings(images=5, size=(64, 96)))
            self.records = self.inner.records
            self.records.image_sizes[[1, 3]] = (96, 64)

        def load_image(self, row):
            image = self.inner.load_image(row)
            return image if row not in (1, 3) else np.ascontiguousarray(image.transpose(1, 0, 2))

    loader = image_loader(Sizes(), (64, 64), LoaderSettings(batch_size=2, workers=0), training=False)
    batches = list(loader)
    assert len(loader) == 3
    assert [b.image_ids.tolist() for b in batches] == [[1, 3], [5], [2, 4]]
    assert all(len(set(map(tuple, b.image_sizes.tolist()))) == 1 for b in batches)
    assert all((b.pixels.shapes[:, :2] == b.image_sizes).all() for b in batches)  # all pixels
    shards = [image_loader(Sizes(), (64, 64), LoaderSettings(2, 0), training=False, rank=r, world=2) for r in (0, 1)]
    assert sorted(i for shard in shards for b in shard for i in b.image_ids.tolist()) == [1, 2, 3, 4, 5]


def test_workers_give_the_same_batches():
    source = SyntheticPeople(SyntheticSettings(images=6, size=(64, 96)))
    runs = []
    for workers in (0, 2):
        loader = image_loader(
            source, (64, 64), LoaderSettings(2, workers), training=True, augmentation=ImageAugmentation(), seed=7
        )
        runs.append([(b.image_ids, b.pixels.data, b.keypoints, b.rotations) for b in loader.epoch(1)])
    for a, b in zip(*runs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="scale is a smallest and a largest factor"):
        ImageAugmentation(scale=(1.5, 0.75))
    with pytest.raises(ValueError, match="flip is a probability"):
        ImageAugmentation(flip=2)


@pytest.mark.data
def test_real_crowds_and_unlabelled_people_are_masked(real_data):
    """coco-mini: 5 crowds and 81 people without keypoints in training, as many regions."""
    folder = real_data / "coco" / "coco-mini"
    file = folder / "annotations" / "person_keypoints_train2017.json"
    source = CocoKeypoints(CocoSettings(str(folder / "train2017"), str(file), keep_images="annotated"))
    labels = json.loads(file.read_text())
    assert source.records.num_images == len({a["image_id"] for a in labels["annotations"]}) == 36
    assert len(source.records.ignored) == 86
    area = {a["image_id"]: 0.0 for a in labels["annotations"]}
    for a in labels["annotations"]:
        area[a["image_id"]] += 0.0 if a["num_keypoints"] and not a["iscrowd"] else a["area"]
    for row, (image_id, size) in enumerate(
        zip(source.records.image_ids.tolist(), source.records.image_sizes.tolist(), strict=True)
    ):
        mask = decode_mask(source.records.ignored, row, size)
        pixels = 0 if mask is None else np.count_nonzero(mask)
        # regions may overlap, and polygons are rounded to pixels
        assert 0.5 * area[image_id] - 20 <= pixels <= 1.1 * area[image_id] + 20
