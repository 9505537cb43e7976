"""A step lets the device work on: the host copies nothing to it but the batch, and reads nothing but the loss.

On a GPU a tensor made from Python numbers is a copy that waits for all work queued before it, as does `.item()`. Here
the device is `meta`, which has no values: reading one fails, and constructors that take values are refused.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from helpers.tiny_pose import TinyPose
from helpers.tiny_recipe import TINY_NET, tiny_recipe
from torch.overrides import TorchFunctionMode

from posekd.data import CropAugmentation, LoaderSettings, crop_loader, image_loader
from posekd.data.loading.whole_images import ImageAugmentation
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.distill import (
    FPD,
    MAPD,
    AssociativeEmbedding,
    AssociativeEmbeddingSettings,
    FrozenTeacher,
    MAPDSettings,
    SmallerHRNet,
    Supervised,
)
from posekd.engine.build import make_prepare
from posekd.inputs import prepare_crops
from posekd.models import create_model
from posekd.paradigms import TopDownInference
from posekd.paradigms.top_down import predict
from posekd.structures import InputSpec

META = torch.device("meta")
SOURCE = SyntheticPeople(SyntheticSettings(images=3, size=(96, 96), people=(1, 2)))
SPEC = InputSpec(size=(64, 64))
RECIPE = tiny_recipe("no run", train_data={"name": "synthetic"}, train__validate_every=0)
BGR = InputSpec(size=(64, 64), bgr=True, mean=(0.4, 0.5, 0.6))
BOTTOM_UP = {**TINY_NET, "modules": [1, 1], "deconv_blocks": 1}


class NoCopies(TorchFunctionMode):
    """Refuses to make a tensor of Python numbers."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        makes = function in (torch.tensor, torch.Tensor.new_tensor)
        if makes or (function is torch.as_tensor and not isinstance(args[0], torch.Tensor)):
            raise AssertionError(f"{function.__name__}({args[-1]}): a copy from the host")
        return function(*args, **(kwargs or {}))


def taught(teacher_spec=SPEC):
    return TinyPose(SPEC, keypoints=17), FrozenTeacher(TinyPose(teacher_spec, keypoints=17))


METHODS = {
    "supervised": lambda: Supervised(TinyPose(SPEC, keypoints=17)),
    "mapd": lambda: MAPD(*taught()),
    "mapd, the letter": lambda: MAPD(*taught(), MAPDSettings(kl="clamped")),
    "mapd, another input": lambda: MAPD(*taught(BGR)),
    "fpd": lambda: FPD(*taught()),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_crops(name):
    loader = crop_loader(
        SOURCE, SPEC.size, LoaderSettings(3, workers=0), training=True, augmentation=CropAugmentation()
    )
    packed = next(loader.epoch(0))
    assert_step_copies_nothing(METHODS[name](), packed)
    packed.pixels.reductions = torch.ones(len(packed.pixels.offsets))
    assert_step_copies_nothing(METHODS[name](), packed)


@pytest.mark.parametrize("name", ["exact", "smallerhrnet"])
def test_a_step_of_whole_images(name):
    student = create_model("higherhrnet_w32", **BOTTOM_UP)
    if name == "exact":
        method = AssociativeEmbedding(student, settings=AssociativeEmbeddingSettings(kind="exact"))
    else:
        method = SmallerHRNet(student, FrozenTeacher(create_model("higherhrnet_w32", **BOTTOM_UP)))
    settings = LoaderSettings(2, workers=0)
    loader = image_loader(SOURCE, (64, 64), settings, training=True, augmentation=ImageAugmentation())
    assert_step_copies_nothing(method, next(loader.epoch(0)))


def assert_step_copies_nothing(method, packed):
    method.to(META)
    prepare_batch = make_prepare(RECIPE, method.student, SOURCE, META)
    with NoCopies():
        terms = method(prepare_batch(packed))
        torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad.device == META for p in method.student.parameters())


@pytest.mark.parametrize("how", ["quarter", "dark"])
def test_a_batch_of_an_evaluation(how, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # meta has none
    model = TinyPose(SPEC, keypoints=17).to(META).eval()
    packed = next(iter(crop_loader(SOURCE, SPEC.size, LoaderSettings(3, workers=0), training=False)))
    flip = torch.as_tensor(SOURCE.records.skeleton.flip, device=META)
    settings = TopDownInference(decode=how)
    with NoCopies(), torch.inference_mode():
        assert predict(model, packed.to(META), SPEC, flip, settings).keypoints.shape == (3, 17, 3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_copied_beside_a_busy_stream_are_whole_and_nothing_waits():
    """Many batches in turn, so that their memory is used again; torch itself refuses what waits for the device."""
    device = torch.device("cuda:0")
    method = MAPD(*taught(BGR)).to(device)
    loader = crop_loader(
        SOURCE, SPEC.size, LoaderSettings(3, workers=0), training=True, augmentation=CropAugmentation()
    )
    batches = [next(loader.epoch(epoch)) for epoch in range(20)]
    on_host = make_prepare(RECIPE, TinyPose(SPEC), SOURCE, torch.device("cpu"))
    prepare_batch = make_prepare(RECIPE, method.student, SOURCE, device)
    step_on = method(prepare_batch(batches[0].pin_memory()))  # loads what a first call loads
    torch.stack(list(step_on.values())).sum().backward()
    busy = torch.randn(4096, 4096, device=device)
    pinned = [batch.pin_memory() for batch in batches]
    torch.cuda.synchronize()
    prepared = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in pinned:
            busy = busy @ busy * 1e-3
            prepared.append(prepare_batch(batch))
            torch.stack(list(method(prepared[-1]).values())).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, found in zip(batches, prepared, strict=True):
        torch.testing.assert_close(found.images.cpu(), on_host(batch).images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.keypoints.cpu(), on_host(batch).keypoints)


def test_a_list_would_be_noticed():
    """Guard: the same with the permutation as a list, and a value that is read."""
    packed = next(iter(crop_loader(SOURCE, SPEC.size, LoaderSettings(3, workers=0), training=False))).to(META)
    with NoCopies(), pytest.raises(AssertionError, match=r"as_tensor.*a copy from the host"):
        prepare_crops(packed, SPEC, SOURCE.records.skeleton.flip)
    with pytest.raises(RuntimeError, match="meta"):
        packed.centers[0, 0].item()
