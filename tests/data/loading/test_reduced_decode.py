"""JPEGs decoded at 1/2, 1/4 or 1/8: crops are those of whole images, and none gets fewer pixels than it has."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from helpers.coco_folder import labels, person

from posekd import geometry
from posekd.data import (
    CocoKeypoints,
    CocoSettings,
    CropAugmentation,
    CropDataset,
    ImageAugmentation,
    ImageDataset,
    LoaderSettings,
    crop_loader,
    image_loader,
)
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.inputs import prepare_crops, prepare_images
from posekd.structures import InputSpec

HEIGHT, WIDTH = 479, 641  # odd: a reduced image is rounded up
SIZE = (64, 48)
SPEC = InputSpec(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BOXES = {10: [150, 90, 320, 330], 11: [200, 120, 160, 220], 12: [300, 200, 90, 120], 13: [310, 210, 20, 30]}
"""Annotation id -> box whose crop of 48 columns has 8.3, 4.3, 2.3 and 0.6 image pixels each."""


def smooth(height=HEIGHT, width=WIDTH):
    """An image of slow waves, RGB, whose pixels every way of averaging preserves."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 37 + y / 53), np.cos(x / 41 - y / 29), np.sin(y / 61)]
    return (127 + 100 * np.stack(waves, -1)).round().astype(np.uint8)


def folder(path, pictures, ids=tuple(BOXES), extension="jpg"):
    """A COCO folder of these RGB images, each with people of some of the boxes."""
    (path / "images").mkdir(parents=True)
    people = [
        person(100 * image + i, image, bbox=BOXES[i], area=999, keypoints=_joints(BOXES[i]))
        for image in range(1, len(pictures) + 1)
        for i in ids
    ]
    content = labels(people, range(1, len(pictures) + 1))
    for entry, picture in zip(content["images"], pictures, strict=True):
        name = f"{entry['id']}.{extension}"
        entry |= {"file_name": name, "height": picture.shape[0], "width": picture.shape[1]}
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if extension == "jpg" else []
        cv2.imwrite(str(path / "images" / name), picture[..., ::-1], quality)
    (path / "labels.json").write_text(json.dumps(content))
    return CocoKeypoints(CocoSettings(str(path / "images"), str(path / "labels.json")))


def _joints(box):
    x, y, w, h = box
    rng = np.random.default_rng(0)
    return [v for a, b in rng.uniform(0.1, 0.9, (17, 2)) for v in (x + a * w, y + b * h, 2)]


def both_ways(source, keys, **options):
    """The batch of some keys from whole images, and from reduced ones."""
    return [CropDataset(source, SIZE, reduced_decode=r, **options).__getitems__(keys) for r in (False, True)]


AUGMENTATION = CropAugmentation(scale=0.4, rotation=60.0, rotation_probability=0.8)


@pytest.mark.parametrize(("row", "reduction"), [(0, 8), (1, 4), (2, 2), (3, 1)])
def test_a_crop_of_a_smooth_picture_is_that_of_the_whole_one(tmp_path, row, reduction):
    """Within 6 of 255 grey values, 1 on average, but for the edge of the image, where the border of zeros begins."""
    source = folder(tmp_path, [smooth()])
    whole, reduced = both_ways(source, [(0, row)])
    assert (reduced.pixels.reductions.tolist() or [1]) == [reduction]
    assert reduced.pixels.data.numel() < 1.5 * whole.pixels.data.numel() / reduction**2
    one, other = (prepare_crops(batch, SPEC, range(17)) for batch in (whole, reduced))
    assert torch.equal(one.keypoints, other.keypoints)
    assert torch.equal(one.matrices, other.matrices), "a crop's place is told in pixels of the whole image"
    inside = inside_of(one.matrices[0], source, row)
    difference = (one.images - other.images).abs() * 255 * inside
    assert difference.max() < 6
    assert difference.mean() < 1
    if reduction > 1:  # guard: the corner of a pixel in place of its centre is noticed
        reduced.pixels.origins += (reduction - 1) / 2 / reduction
        shifted = (one.images - prepare_crops(reduced, SPEC, range(17)).images).abs() * 255 * inside
        assert shifted.mean() > 1.5 * difference.mean()


@pytest.mark.parametrize("epoch", range(4))
def test_augmented_crops_agree_too(tmp_path, epoch):
    """Rotation, mirror and zoom, people of all sizes together."""
    source = folder(tmp_path, [smooth(), smooth(423, 630)])
    keys = [(epoch, row) for row in (0, 1, 2, 4, 5)]
    whole, reduced = both_ways(source, keys, augmentation=AUGMENTATION)
    one, other = (prepare_crops(batch, SPEC, range(17)) for batch in (whole, reduced))
    assert reduced.pixels.reductions.max() > 1
    inside = torch.stack([inside_of(one.matrices[i], source, key[1]) for i, key in enumerate(keys)])
    difference = (one.images - other.images).abs().amax(1) * 255 * inside
    assert difference.max() < 8
    assert torch.equal(one.keypoints, other.keypoints)


def inside_of(matrix, source, row):
    """Which pixels of a crop are sampled 8 pixels or more inside its image, `[H, W]` of 0 and 1."""
    height, width = source.records.image_sizes[source.records.image_rows[row]]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    at = np.stack([x, y, np.ones_like(x)], -1) @ matrix.numpy().T
    return torch.from_numpy(((at >= 8) & (at <= np.array([width, height]) - 9)).all(-1).astype(np.float32))


def test_a_bright_spot_is_where_its_keypoint_says(tmp_path):
    """Spots at the keypoints of the largest person, found in the crop of the reduced image within half a pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    joints = np.array(_joints(BOXES[10])).reshape(17, 3)
    pictures = [
        np.repeat((255 * np.exp(-((x - jx) ** 2 + (y - jy) ** 2) / (2 * 16**2)))[..., None], 3, -1).astype(np.uint8)
        for jx, jy, _ in joints
    ]
    source = folder(tmp_path, pictures, ids=(10,))
    _, reduced = both_ways(source, [(0, row) for row in range(17)])
    assert reduced.pixels.reductions.tolist() == [8] * 17
    batch = prepare_crops(reduced, SPEC, range(17))
    mass = batch.images[:, 0].clamp_min(0.05) - 0.05
    grid_y, grid_x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    for joint in range(17):
        weight = mass[joint] / mass[joint].sum()
        found = torch.stack(((weight * grid_x).sum(), (weight * grid_y).sum()))
        assert (found - batch.keypoints[joint, joint, :2]).norm() < 0.25


def test_no_crop_gets_fewer_pixels_than_it_has_and_none_could_be_reduced_further(tmp_path):
    """Over many draws of the zoom; people of one image share its pixels, so the smallest decides."""
    source = folder(tmp_path, [smooth(), smooth()])
    dataset = CropDataset(source, SIZE, augmentation=AUGMENTATION, reduced_decode=True)
    seen = set()
    for epoch in range(60):
        keys = [(epoch, row) for row in ((0, 1, 4), (0, 5, 6), (1, 4, 7))[epoch % 3]]
        batch = dataset.__getitems__(keys)
        reductions = batch.pixels.reductions if batch.pixels.reductions.numel() else torch.ones(2)
        pixels = batch.matrices(SIZE)[:, :, 0].norm(dim=1)  # image pixels a crop pixel
        for slot, r in enumerate(reductions.tolist()):
            own = pixels[batch.pixels.index == slot].min()
            assert own >= r * (1 - 1e-5) or r == 1
            assert own < 2 * r * (1 + 1e-5) or r == 8
            seen.add(r)
    assert seen == {1, 2, 4, 8}


def test_the_person_who_needs_most_decides_for_an_image(tmp_path):
    source = folder(tmp_path, [smooth(), smooth()])
    dataset = CropDataset(source, SIZE, reduced_decode=True)
    assert dataset.reductions([(0, 0), (0, 4)]) == {0: 8, 1: 8}
    assert dataset.reductions([(0, 0), (0, 2), (0, 1), (0, 4)]) == {0: 2, 1: 8}
    assert dataset.__getitems__([(0, 3), (0, 0)]).pixels.reductions.numel() == 0, "nothing travels where all are whole"


class TestWhole:
    """What stays whole: other formats, drawn and cached images, evaluation."""

    def test_a_png(self, tmp_path):
        source = folder(tmp_path, [smooth()], extension="png")
        whole, asked = both_ways(source, [(0, 0)])
        assert asked.pixels.reductions.numel() == 0
        assert torch.equal(whole.pixels.data, asked.pixels.data)

    def test_a_png_beside_a_jpeg(self, tmp_path):
        source = folder(tmp_path, [smooth(), smooth()])
        cv2.imwrite(str(tmp_path / "images" / "2.jpg"), smooth()[..., ::-1])
        png = cv2.imencode(".png", smooth()[..., ::-1])[1].tobytes()
        (tmp_path / "images" / "2.jpg").write_bytes(png)
        whole, asked = both_ways(source, [(0, 0), (0, 4)])
        assert asked.pixels.reductions.tolist() == [8, 1]
        one, other = (prepare_crops(batch, SPEC, range(17)).images for batch in (whole, asked))
        assert torch.equal(one[1], other[1])
        assert 0 < (one[0] - other[0])[:, 8:-8].abs().max() * 255 < 6

    def test_pictures_that_are_drawn(self):
        source = SyntheticPeople(SyntheticSettings(images=2, size=(480, 640), people=(1, 1)))
        whole, asked = both_ways(source, [(0, 0), (0, 1)])
        assert torch.equal(whole.pixels.data, asked.pixels.data)

    def test_cached_pictures(self, tmp_path):
        settings = LoaderSettings(4, workers=0, cache_images=True, reduced_decode=True)
        loader = crop_loader(folder(tmp_path, [smooth()]), SIZE, settings, training=True)
        assert next(loader.epoch(0)).pixels.reductions.numel() == 0

    def test_evaluation(self, tmp_path):
        source, settings = folder(tmp_path, [smooth()], ids=(10,)), LoaderSettings(1, workers=0, reduced_decode=True)
        reductions = [
            next(crop_loader(source, SIZE, settings, training=training).epoch(0)).pixels.reductions.tolist()
            for training in (True, False)
        ]
        assert reductions == [[8], []]
        assert not LoaderSettings().reduced_decode


def test_workers_change_nothing(tmp_path):
    source = folder(tmp_path, [smooth()] * 3, ids=(10, 11))

    def batches(workers):
        settings = LoaderSettings(2, workers=workers, reduced_decode=True)
        return list(crop_loader(source, SIZE, settings, training=True, augmentation=AUGMENTATION).epoch(1))

    for a, b in zip(batches(0), batches(1), strict=True):
        assert torch.equal(a.pixels.data, b.pixels.data)
        assert torch.equal(a.pixels.reductions, b.pixels.reductions)
        assert a.pixels.reductions.max() > 1


def test_a_picture_one_column_narrower_than_stated_is_refused_as_ever(tmp_path):
    """Half of 641 and of 642 columns are both 321."""
    source = folder(tmp_path, [smooth(HEIGHT, 642)])
    cv2.imwrite(str(tmp_path / "images" / "1.jpg"), smooth()[..., ::-1])
    with pytest.raises(RuntimeError, match=r"the image is 641 x 479, but its annotations say 642 x 479"):
        both_ways(source, [(0, 2)])


def test_whole_images_of_bottom_up_training(tmp_path):
    source = folder(tmp_path, [smooth(), smooth(960, 1281)], ids=(10,))
    spec = InputSpec(size=(128, 128), mean=SPEC.mean, std=SPEC.std)
    augmentation = ImageAugmentation(rotation=25.0, scale=(0.6, 0.8), translation=5.0)
    whole, reduced = (
        ImageDataset(source, spec.size, augmentation=augmentation, reduced_decode=r).__getitems__([(0, 0), (0, 1)])
        for r in (False, True)
    )
    assert reduced.pixels.reductions.tolist() == [2, 4]
    one, other = (prepare_images(batch, spec, range(17)) for batch in (whole, reduced))
    difference = (one.images - other.images).abs() * 255
    assert difference.mean() < 1
    assert difference.quantile(0.99) < 6, "but for the border"
    assert torch.equal(one.keypoints[1], other.keypoints[1])
    settings = LoaderSettings(2, workers=0, reduced_decode=True)
    loader = image_loader(source, spec.size, settings, training=True, augmentation=augmentation)
    assert next(loader.epoch(0)).pixels.reductions.max() > 1


def test_a_matrix_into_a_reduced_picture():
    """The first of 2 x 2 pixels lies a quarter of a reduced pixel before the centre; a factor of 1 changes no bit."""
    matrices = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.3, -1.7, 123.456], [1.7, 0.3, -7.1]]])
    reduced = geometry.reduce_matrices(matrices, torch.tensor([2.0, 1.0]))
    assert reduced[0].tolist() == [[0.5, 0.0, -0.25], [0.0, 0.5, -0.25]]
    assert torch.equal(reduced[1], matrices[1])


@pytest.mark.data
def test_real_crops_agree_with_the_whole_picture(real_data, record_property):
    """coco-mini's training people in crops of 64 x 48, of which most are reduced.

    A reduced image is averaged, so it is closer to the whole image averaged over as many pixels (within 2 grey
    values on average) than to the whole image sampled, which skips pixels (within 8).
    """
    root = real_data / "coco" / "coco-mini"
    settings = CocoSettings(str(root / "train2017"), str(root / "annotations" / "person_keypoints_train2017.json"))
    source = CocoKeypoints(settings)

    class Averaged(CocoKeypoints):
        def load_image(self, row, reduction=1):
            image = super().load_image(row)
            height, width = image.shape[:2]
            padded = np.pad(image, ((0, -height % reduction), (0, -width % reduction), (0, 0)), mode="edge")
            blocks = padded.reshape(padded.shape[0] // reduction, reduction, -1, reduction, 3)
            return blocks.mean((1, 3)).round().astype(np.uint8)

    sampled, averaged, reduced_people = [], [], 0
    for row in range(len(source.records)):
        whole, reduced = both_ways(source, [(0, row)])
        if not reduced.pixels.reductions.numel():
            continue
        reduced_people += 1
        mean = CropDataset(Averaged(settings), SIZE, reduced_decode=True).__getitems__([(0, row)])
        images = [prepare_crops(batch, SPEC, range(17)).images * 255 for batch in (whole, reduced, mean)]
        sampled.append(float((images[0] - images[1]).abs().mean()))
        averaged.append(float((images[2] - images[1]).abs().mean()))
    assert reduced_people > 30
    assert max(averaged) < 2
    assert np.mean(sampled) < 8
    assert np.mean(averaged) < 0.2 * np.mean(sampled)
