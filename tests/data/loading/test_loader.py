"""Packed batches: one copy of an image, only the pixels the crops need, and bad images named."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coco_folder import HEIGHT, WIDTH, labels, person, write
from hypothesis import given, settings
from hypothesis import strategies as st

from posekd import ops
from posekd.data import (
    BadImageError,
    CocoKeypoints,
    CropAugmentation,
    CropDataset,
    LoaderSettings,
    PoseRecords,
    crop_loader,
)
from posekd.data.loading.cache import CachedImages
from posekd.inputs import prepare_crops
from posekd.skeleton import COCO
from posekd.structures import InputSpec, map_tensors

SIZE = (32, 24)
SMALL_BOX = [30.0, 20.0, 9.0, 12.0]


@pytest.fixture
def folder(tmp_path):
    """Six persons on three images; the last person of image 1 is small."""
    persons = [person(10 * image + i, image) for image in (1, 2, 3) for i in (0, 1)]
    persons[1]["bbox"] = SMALL_BOX
    return write(tmp_path, labels(persons))


class Noise:
    """A source of random images in memory, with people wherever the test wants them."""

    def __init__(self, boxes, rows, size=(70, 90)):
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        N, M = len(boxes), max(rows) + 1
        keypoints = np.full((N, 17, 3), 2, np.float32)
        keypoints[..., :2] = boxes[:, None, :2] + boxes[:, None, 2:] * np.linspace(0, 1, 17)[:, None]
        self.records = PoseRecords(
            COCO, np.arange(M) + 1, np.tile(size, (M, 1)), np.array(rows), keypoints.astype(np.float32), boxes,
            np.ones(N, np.float32), np.arange(N) + 100,
        )  # fmt: skip
        self.reads = 0
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(M)]

    def load_image(self, row):
        self.reads += 1
        return self.images[row]

    def image_name(self, row):
        return f"noise {row}"

    def coco_ground_truth(self):
        return {}


def region(batch, slot):
    pixels = batch.pixels
    start, shape = int(pixels.offsets[slot]), tuple(pixels.shapes[slot].tolist())
    return pixels.data[start : start + int(np.prod(shape))].view(shape)


def tensors(batch):
    """Every tensor of a batch, those of its pixels too."""
    found = []
    map_tensors(batch, lambda tensor: found.append(tensor) or tensor)
    return found


class TestPacking:
    def test_people_of_one_image_share_its_pixels(self, folder):
        batch = CropDataset(CocoKeypoints(folder), SIZE).__getitems__([(0, 0), (0, 2), (0, 1)])
        assert batch.pixels.index.tolist() == [0, 1, 0]
        assert len(batch.pixels.offsets) == 2
        assert batch.image_ids.tolist() == [1, 2, 1]
        assert batch.sample_ids.tolist() == [10, 20, 11]

    def test_only_the_rectangle_around_the_crops_travels(self):
        """A 12 x 16 box becomes a 15 x 20 crop; two pixels of margin on each side."""
        source = Noise([[40, 30, 12, 16]], [0])
        batch = CropDataset(source, (64, 48)).__getitems__([(0, 0)])
        height, width, channels = batch.pixels.shapes[0].tolist()
        assert channels == 3
        assert 15 <= width <= 15 + 2 * 2 + 2
        assert 20 <= height <= 20 + 2 * 2 + 2
        x, y = batch.pixels.origins[0].int().tolist()
        np.testing.assert_array_equal(region(batch, 0), source.images[0][y : y + height, x : x + width])
        assert batch.pixels.data.numel() == height * width * 3

    @settings(max_examples=40, deadline=None)
    @given(
        boxes=st.lists(
            st.tuples(st.floats(-60, 120), st.floats(-60, 120), st.floats(2, 90), st.floats(2, 90)),
            min_size=1, max_size=4,
        ),
        seed=st.integers(0, 1000),
    )  # fmt: skip
    def test_a_warp_of_the_regions_equals_a_warp_of_the_images(self, boxes, seed):
        source = Noise(boxes, [i % 2 for i in range(len(boxes) - 1)] + [0])
        dataset = CropDataset(source, SIZE, augmentation=CropAugmentation(scale=0.5), seed=seed)
        batch = dataset.__getitems__([(3, i) for i in range(len(boxes))])
        matrices = batch.matrices(SIZE).double()
        shifted = matrices.clone()
        shifted[..., 2] -= batch.pixels.origins[batch.pixels.index]
        regions = [region(batch, slot) for slot in range(len(batch.pixels.shapes))]
        packed = ops.crop_warp(regions, shifted.float(), SIZE, image_index=batch.pixels.index)
        images = [torch.from_numpy(image) for image in source.images]
        rows = torch.from_numpy(source.records.image_rows)
        whole = ops.crop_warp(images, matrices.float(), SIZE, image_index=rows)
        torch.testing.assert_close(packed, whole, rtol=0, atol=2e-3)  # float32 coordinates, noise of 255 a pixel

    def test_crop_follows_the_box(self, folder):
        batch = CropDataset(CocoKeypoints(folder), (64, 48)).__getitems__([(0, 0)])
        x, y, w, h = batch.boxes[0].tolist()
        assert batch.centers[0].tolist() == [x + w / 2, y + h / 2]
        assert batch.scales[0].tolist() == pytest.approx([1.25 * max(w, h * 0.75), 1.25 * max(h, w / 0.75)])

    def test_evaluation_draws_nothing(self, folder):
        batch = CropDataset(CocoKeypoints(folder), SIZE).__getitems__([(5, i) for i in range(6)])
        assert batch.rotations.tolist() == [0] * 6
        assert batch.zooms.tolist() == [1] * 6
        assert not batch.flips.any()

    def test_batches_move_whole(self, folder):
        batch = CropDataset(CocoKeypoints(folder), SIZE).__getitems__([(0, 0)])
        moved = tensors(batch.to("cpu"))
        assert len(moved) == len(tensors(batch)) == 17
        assert all(torch.equal(a, b) for a, b in zip(moved, tensors(batch), strict=True))
        assert {tensor.device.type for tensor in tensors(batch.to("meta"))} == {"meta"}


class TestDeterminism:
    def draws(self, folder, seed=0, epoch=0, rows=range(6)):
        dataset = CropDataset(CocoKeypoints(folder), SIZE, augmentation=CropAugmentation(), seed=seed)
        batch = dataset.__getitems__([(epoch, row) for row in rows])
        return torch.stack((batch.rotations, batch.zooms, batch.flips.float()))

    def test_a_draw_depends_on_seed_epoch_and_person_alone(self, folder):
        first = self.draws(folder)
        assert torch.equal(first[:, [4, 2]], self.draws(folder, rows=(4, 2)))
        assert not torch.equal(first, self.draws(folder, seed=1))
        assert not torch.equal(first, self.draws(folder, epoch=1))

    def test_workers_change_nothing(self, folder):
        source = CocoKeypoints(folder)

        def epochs(workers, start_method=None):
            loader = crop_loader(
                source, SIZE, LoaderSettings(batch_size=2, workers=workers, start_method=start_method),
                training=True, augmentation=CropAugmentation(),
            )  # fmt: skip
            return [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]

        for a, b in zip(epochs(0), epochs(2), strict=True):
            for i, (own, other) in enumerate(zip(tensors(a), tensors(b), strict=True)):
                assert torch.equal(own, other), i

    def test_a_resumed_epoch_gives_the_batches_that_were_left(self, folder):
        loader = crop_loader(
            CocoKeypoints(folder), SIZE, LoaderSettings(batch_size=2, workers=0), training=True,
            augmentation=CropAugmentation(),
        )  # fmt: skip
        whole = list(loader.epoch(4))
        rest = list(loader.epoch(4, start=1))
        assert len(rest) == len(whole) - 1 == len(loader) - 1
        assert torch.equal(rest[0].rotations, whole[1].rotations)

    def test_an_epoch_left_early_does_not_leak_into_the_next(self, folder):
        def loader(workers):
            loading = LoaderSettings(batch_size=1, workers=workers)
            return crop_loader(CocoKeypoints(folder), SIZE, loading, training=True, augmentation=CropAugmentation())

        abandoned = loader(1)
        next(iter(abandoned.epoch(0)))
        for a, b in zip(abandoned.epoch(1), loader(0).epoch(1), strict=True):
            assert a.sample_ids.tolist() == b.sample_ids.tolist()
            assert torch.equal(a.rotations, b.rotations)

    def test_evaluation_is_everyone_in_order(self, folder):
        loader = crop_loader(CocoKeypoints(folder), SIZE, LoaderSettings(batch_size=4, workers=0), training=False)
        assert [len(batch) for batch in loader] == [4, 2]
        assert torch.cat([batch.sample_ids for batch in loader]).tolist() == [10, 11, 20, 21, 30, 31]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


class TestBadImages:
    def loader(self, folder, on_bad_image, **options):
        loading = LoaderSettings(**{"batch_size": 2, "workers": 0, "on_bad_image": on_bad_image, **options})
        return crop_loader(CocoKeypoints(folder), SIZE, loading, training=False)

    def test_are_refused_by_name(self, folder):
        truncate(Path(folder.images) / "2.png")
        with pytest.raises(BadImageError, match=r"2.png: the file is truncated"):
            list(self.loader(folder, "refuse"))

    def test_are_refused_by_name_from_a_worker_too(self, folder):
        truncate(Path(folder.images) / "2.png")
        with pytest.raises(BadImageError, match=r"2.png: the file is truncated") as e:
            list(self.loader(folder, "refuse", workers=1))
        assert str(e.value).startswith(folder.images)  # no traceback of the worker's
        assert "\n" not in str(e.value)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_are_skipped_counted_and_reported_once(self, folder, workers):
        truncate(Path(folder.images) / "2.png")
        loader = self.loader(folder, "skip", batch_size=3, workers=workers)
        with pytest.warns(UserWarning, match=r"2.png: the file is truncated.*skipped") as record:
            batches = list(loader)
        assert len(record) == 1
        assert [batch.sample_ids.tolist() for batch in batches] == [[10, 11], [30, 31]]
        assert loader.skipped == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(list(loader)) == 2
        assert loader.skipped == 4

    @pytest.mark.filterwarnings("ignore:.*truncated")
    def test_a_batch_that_lost_everyone_is_left_out_loudly(self, folder):
        truncate(Path(folder.images) / "2.png")
        with pytest.warns(UserWarning, match="a whole batch was left out"):
            batches = list(self.loader(folder, "skip"))
        assert [batch.sample_ids.tolist() for batch in batches] == [[10, 11], [30, 31]]

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_an_epoch_without_a_readable_image_is_an_error(self, folder):
        for path in Path(folder.images).iterdir():
            truncate(path)
        with pytest.raises(BadImageError, match=r"none of the images could be read; the first: .*1.png"):
            list(self.loader(folder, "skip"))

    def test_a_black_picture_stands_in_for_one_whose_size_could_not_be_read(self):
        source = Noise([[10, 10, 20, 20]], [0])
        source.records = dataclasses.replace(source.records, image_sizes=np.zeros((1, 2), np.int64))
        batch = CropDataset(source, SIZE).stand_in(0, torch.tensor([0]))
        images = prepare_crops(batch, InputSpec(SIZE, mean=(0, 0, 0)), COCO.flip).images
        assert images.shape == (1, 3, *SIZE)
        assert not images.any()

    def test_another_size_than_stated(self, folder):
        import cv2

        cv2.imwrite(str(Path(folder.images) / "2.png"), np.zeros((HEIGHT // 2, WIDTH // 2, 3), np.uint8))
        with pytest.raises(BadImageError, match=r"2.png: the image is 40 x 30, but its annotations say 80 x 60"):
            list(self.loader(folder, "refuse"))


class TestCache:
    def test_each_image_is_decoded_once(self):
        source = Noise([[10, 10, 20, 20]] * 4, [0, 0, 1, 1])
        loader = crop_loader(source, SIZE, LoaderSettings(2, workers=0, cache_images=True), training=True)
        for epoch in range(3):
            assert len(list(loader.epoch(epoch))) == 2
        assert source.reads == 2

    def test_workers_inherit_a_full_cache(self):
        source = Noise([[10, 10, 20, 20]] * 4, [0, 0, 1, 1])
        loader = crop_loader(source, SIZE, LoaderSettings(2, workers=1, cache_images=True), training=False)
        assert source.reads == 2
        assert len(list(loader)) == 2

    def test_the_cached_source_is_the_same_dataset(self, folder):
        source = CocoKeypoints(folder)
        cached = CachedImages(source)
        np.testing.assert_array_equal(cached.load_image(1), source.load_image(1))
        assert cached.image_name(1) == source.image_name(1)

    def test_more_than_half_of_the_memory_is_refused(self):
        source = Noise([[10, 10, 20, 20]], [0])
        source.records = dataclasses.replace(source.records, image_sizes=np.array([[10**6, 10**7]]))
        with pytest.raises(MemoryError, match=r"cache_images: 1 decoded images need 27939.7 GiB, more than half"):
            CachedImages(source)


@pytest.mark.data
def test_real_images_travel_as_less_than_a_third_of_their_pixels(real_data):
    """A shuffled batch of coco-mini persons, against sending one whole image a person."""
    from posekd.data import CocoSettings

    folder = real_data / "coco" / "coco-mini"
    source = CocoKeypoints(
        CocoSettings(str(folder / "train2017"), str(folder / "annotations" / "person_keypoints_train2017.json"))
    )
    loader = crop_loader(source, (256, 192), LoaderSettings(16, workers=0), training=True)
    sent = whole = 0
    for batch in loader.epoch(0):
        rows = np.searchsorted(np.sort(source.records.image_ids), batch.image_ids.numpy())
        sizes = source.records.image_sizes[np.argsort(source.records.image_ids)][rows]
        sent, whole = sent + batch.pixels.data.numel(), whole + int(sizes.prod(1).sum()) * 3
    assert sent < whole / 3


class TestEpochsThatFollowOneAnother:
    """What a training loop says beforehand, so that its workers do not stop at the end of an epoch."""

    @staticmethod
    def loader(workers: int, **settings: object):
        boxes, rows = np.tile([5.0, 5, 40, 60], (7, 1)), list(range(7))
        given = LoaderSettings(batch_size=1, workers=workers, prefetch=1, **settings)
        return crop_loader(Noise(boxes, rows), SIZE, given, training=True, augmentation=CropAugmentation(), seed=3)

    @staticmethod
    def same(one, other):
        return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_have_the_batches_that_they_have_alone(self, workers):
        alone, following = self.loader(0), self.loader(workers)
        following.follow(3, 6)  # a step takes two batches: the seventh is left over
        for epoch in range(3):
            batches = following.epoch(epoch)
            found = [next(batches) for _ in range(6)]  # as the loop pulls them: to the last one, and no further
            assert all(map(self.same, found, alone.epoch(epoch)))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_may_be_entered_and_left_anywhere(self, workers):
        alone, following = self.loader(0), self.loader(workers)
        following.follow(4, 7)
        for epoch, start, count in (
            (1, 3, 2),
            (1, 5, 2),
            (2, 0, 3),
            (0, 6, 1),
            (2, 0, 7),
            (3, 0, 7),
            (5, 1, 6),
            (3, 2, 1),
        ):
            batches = following.epoch(epoch, start)
            found = [next(batches) for _ in range(count)]
            assert all(map(self.same, found, alone.epoch(epoch, start))), (epoch, start)

    def test_the_workers_go_on_at_the_end_of_an_epoch(self):
        loader = self.loader(1)
        loader.follow(2, 7)
        list(loader.epoch(0))
        stream = loader._stream
        assert stream is not None
        assert (stream.epoch, stream.batch) == (1, 0)
        list(loader.epoch(1))
        assert loader._stream is None, "nothing comes after the last epoch"

    def test_after_an_image_that_cannot_be_read_the_workers_begin_anew(self, monkeypatch):
        loader = self.loader(0)
        loader.follow(2, 7)
        source, plan = loader.dataset.source, loader.plan
        third = plan.batch(0, 2)[0][1]
        read = source.load_image

        def broken(row):
            if row == third:
                raise BadImageError("broken")
            return read(row)

        with monkeypatch.context() as patch:
            patch.setattr(source, "load_image", broken)
            batches = loader.epoch(0)
            next(batches), next(batches)
            with pytest.raises(BadImageError, match="broken"):
                next(batches)
        assert self.same(next(loader.epoch(0, 2)), next(self.loader(0).epoch(0, 2)))
