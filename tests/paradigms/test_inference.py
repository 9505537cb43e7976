"""People in images that are in memory are those that an evaluation of the same images finds, without the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import picture
from helpers.tiny_models import tiny_model
from torch import nn

from posekd.data import CocoKeypoints, LoaderSettings
from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.engine.evaluate import evaluate
from posekd.paradigms import BottomUpInference, TopDownInference
from posekd.paradigms.inference import find_in_batches, find_people, looker, open_batches
from posekd.skeleton import COCO
from posekd.structures import Instances

BATCH = 4
GROUPED = BottomUpInference(detection_threshold=0.3, refine=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CocoKeypoints:
    """Images and labels on the disk: five images of two or three people."""
    path = tmp_path_factory.mktemp("coco")
    return CocoKeypoints(write_coco(path, 5, settings=SyntheticSettings(size=(96, 128), people=(2, 3))))


@pytest.fixture(scope="module")
def images(folder: CocoKeypoints) -> list[np.ndarray]:
    return [folder.load_image(row) for row in range(folder.records.num_images)]


@pytest.fixture(scope="module")
def boxes(folder: CocoKeypoints) -> list[np.ndarray]:
    records = folder.records
    return [records.boxes[records.image_rows == row] for row in range(records.num_images)]


@pytest.fixture(scope="module")
def top_down() -> nn.Module:
    return tiny_model("elpn_v1", 17, modules=(1,))


@pytest.fixture(scope="module")
def bottom_up() -> nn.Module:
    return tiny_model("higherhrnet_w32", 17, modules=(1, 1), deconv_blocks=1)


def assert_same(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected) > 0
    assert found.image_ids.tolist() == expected.image_ids.tolist()
    for column in ("keypoints", "scores", "boxes", "box_scores", "areas"):
        torch.testing.assert_close(getattr(found, column), getattr(expected, column), rtol=0, atol=1e-4)


def with_ids_of(found: Instances, source: CocoKeypoints) -> Instances:
    """The same people under the image ids of a dataset."""
    image_ids = torch.from_numpy(source.records.image_ids)[found.image_ids]
    return Instances(**{**vars(found), "image_ids": image_ids})


@pytest.mark.parametrize(
    "settings", [None, TopDownInference(flip_test=False, decode="dark", oks_threshold=0.2), TopDownInference()]
)
@pytest.mark.parametrize("padding", [None, 1.6])
def test_crops_of_arrays_give_what_an_evaluation_gives(folder, images, boxes, top_down, settings, padding):
    loader = LoaderSettings(BATCH, workers=0, **({} if padding is None else {"padding": padding}))
    expected = evaluate(top_down, folder, settings, loader=loader).found
    found = find_people(top_down, images, COCO, settings, boxes=boxes, padding=padding, batch_size=BATCH)
    assert_same(with_ids_of(found, folder), expected)
    # sample ids count the boxes, image by image, as the records do
    assert folder.records.sample_ids[found.sample_ids].tolist() == expected.sample_ids.tolist()


@pytest.mark.parametrize(
    "settings", [GROUPED, BottomUpInference(flip_test=False, detection_threshold=0.3, oks_threshold=0.5, size=128)]
)
def test_whole_arrays_give_what_an_evaluation_gives(folder, images, bottom_up, settings):
    expected = evaluate(bottom_up, folder, settings, loader=LoaderSettings(BATCH, workers=0)).found
    found = find_people(bottom_up, images, COCO, settings, batch_size=BATCH)
    assert_same(with_ids_of(found, folder), expected)
    assert set(found.sample_ids.tolist()) == {-1}


@pytest.mark.parametrize("name", ["top_down", "bottom_up"])
def test_people_stand_by_image_and_descending_score(images, name, request):
    found = find_people(request.getfixturevalue(name), images, COCO, {"bottom_up": GROUPED}.get(name))
    order = np.lexsort((-found.scores.numpy(), found.image_ids.numpy()))
    assert order.tolist() == list(range(len(found)))
    assert set(found.image_ids.tolist()) <= set(range(len(images)))


def test_without_boxes_a_whole_image_is_the_crop(images, top_down):
    found = find_people(top_down, images, COCO)
    height, width = images[0].shape[:2]
    whole = [np.array([[0.0, 0.0, width, height]])] * len(images)
    assert_same(found, find_people(top_down, images, COCO, boxes=whole))
    assert found.boxes.tolist() == [[0, 0, width, height]] * len(images)


def test_a_score_is_the_boxs_times_the_keypoints(images, boxes, top_down):
    settings = TopDownInference(oks_threshold=1.0)
    sure = find_people(top_down, images, COCO, settings, boxes=boxes)
    half = [np.full(len(own), 0.5) for own in boxes]
    unsure = find_people(top_down, images, COCO, settings, boxes=boxes, box_scores=half)
    assert unsure.sample_ids.tolist() == sure.sample_ids.tolist()
    assert unsure.box_scores.tolist() == [0.5] * len(sure)
    torch.testing.assert_close(unsure.scores, sure.scores / 2)
    assert torch.equal(unsure.keypoints, sure.keypoints)


def test_images_without_boxes_hold_nobody(images, top_down):
    found = find_people(top_down, images, COCO, boxes=[np.zeros((0, 4))] * len(images))
    assert (len(found), tuple(found.keypoints.shape)) == (0, (0, 17, 3))


def test_no_images_hold_nobody(top_down, bottom_up):
    for model in (top_down, bottom_up):
        assert len(find_people(model, [], COCO)) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [[[0, 0, 9, 9]]] * 4}, "5 images, boxes for 4 of them"),
        ({"boxes": [[[0, 0, 9, 9]]] * 5, "box_scores": [[1.0, 1.0]] * 5}, "as many scores as boxes"),
        ({"boxes": [[[0, 0, 9, np.nan]]] * 5}, "boxes of image 0 must be finite"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(images, top_down, given: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        find_people(top_down, images, COCO, **given)
    with pytest.raises(ValueError, match=r"image 1 must be uint8 RGB \[H, W, 3\], got float32"):
        find_people(top_down, [images[0], images[1].astype(np.float32)], COCO)


def test_a_network_that_sees_whole_images_refuses_boxes(images, boxes, bottom_up):
    with pytest.raises(ValueError, match="a bottom-up network sees whole images: it needs no boxes"):
        find_people(bottom_up, images, COCO, boxes=boxes)
    with pytest.raises(ValueError, match="it needs no boxes"):
        find_people(bottom_up, images, COCO, box_scores=[np.ones(len(own)) for own in boxes])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("top_down", BottomUpInference(), "a top-down network needs TopDownInference, got BottomUpInference"),
        ("bottom_up", TopDownInference(), "a bottom-up network needs BottomUpInference, got TopDownInference"),
    ],
)
def test_settings_of_another_paradigm_are_refused(folder, images, request, name, wrong, message):
    model = request.getfixturevalue(name)
    with pytest.raises(TypeError, match=message):
        find_people(model, images, COCO, wrong)
    with pytest.raises(TypeError, match=message):
        open_batches(model, folder, wrong)
    with pytest.raises(TypeError, match=message):
        find_in_batches(model, open_batches(model, folder), COCO, wrong)
    with pytest.raises(TypeError, match=message):
        evaluate(model, folder, wrong)


IMPORTED = """
import sys
import posekd.paradigms.inference
"""
RUN = """
import numpy as np
from posekd import create_model
from posekd.skeleton import COCO
for name in ("elpn_v1", "higherhrnet_w32"):
    model = create_model(name, size=(64, 64), width=8, blocks=1, stem_width=8)
    posekd.paradigms.inference.find_people(model, [np.zeros((64, 64, 3), np.uint8)], COCO)
"""
LOADED = """
print([name for name in sorted(sys.modules) if name.startswith(("posekd.engine", "posekd.cli"))])
"""


@pytest.mark.parametrize("code", [IMPORTED + LOADED, IMPORTED + RUN + LOADED], ids=["import", "run"])
def test_inference_needs_no_engine(code):
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_looker_asks_for_people_in_boxes():
    """The same poses as `find_people` with these boxes, in the boxes' order; some networks cannot be asked."""
    image, boxes = picture(0), np.array([[5.0, 5.0, 20.0, 40.0], [20.0, 2.0, 40.0, 40.0]])
    model = tiny_model("hrnet_w32", 17)
    look = looker(model, COCO, TopDownInference())
    assert look is not None
    found = look(image, boxes)
    assert found.sample_ids.tolist() == [0, 1]
    expected = find_people(model, [image], COCO, TopDownInference(oks_threshold=1.0), boxes=[boxes])
    order = expected.sample_ids.argsort()
    torch.testing.assert_close(found.keypoints, expected.keypoints[order])
    assert looker(tiny_model("higherhrnet_w32", 17), COCO) is None
