"""Running a network on a dataset or on images in memory. It needs no training code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from posekd.codecs.reordered import in_order_of
from posekd.data import LoaderSettings, PackedLoader, PoseSource
from posekd.data.sources.arrays import ImagesInMemory
from posekd.paradigms import Paradigm, paradigm_of
from posekd.paradigms.base import Predict
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec, Instances, Packed


def open_batches(
    model: nn.Module,
    source: PoseSource,
    settings: Any = None,
    *,
    loader: LoaderSettings | None = None,
    spec: InputSpec | None = None,
    rank: int = 0,
    world: int = 1,
) -> PackedLoader:
    """The batches of a dataset for a network, every row once.

    Args:
        model: names its paradigm; top-down if it does not.
        source: the dataset.
        settings: the paradigm's settings of inference.
        loader: batch size, workers, what to do about bad images.
        spec: the network's input; `model.spec` by default.
        rank: this process, which gets a share.
        world: number of processes.
    """
    paradigm = paradigm_of(model)
    settings = settings_for(paradigm, settings)
    return paradigm.open_loader(
        source, spec or spec_of(model), loader, training=False, inference=settings, rank=rank, world=world
    )


def find_in_batches(
    model: nn.Module,
    batches: Iterable[Packed],
    skeleton: Skeleton,
    settings: Any = None,
    *,
    spec: InputSpec | None = None,
    ask: Predict | None = None,
) -> Instances:
    """All people that a network finds in batches, on the CPU, before rescoring and before duplicates are removed.

    Results stay on the network's device until the last batch, so that nothing waits for them before.

    Args:
        model: run in eval mode on its present device, and then put back into its previous mode.
        batches: see `open_batches`.
        skeleton: the K keypoints.
        settings: the paradigm's settings of inference.
        spec: the network's input; `model.spec` by default.
        ask: how the network is asked; the paradigm's `predict` by default.

    Raises:
        ValueError: the network's output does not fit the paradigm or the keypoints.
        FloatingPointError: the network's output is not finite.
    """
    paradigm, device = paradigm_of(model), device_of(model)
    settings, spec = settings_for(paradigm, settings), spec or spec_of(model)
    # on the device once: a list would be copied with every batch, and the host would wait for it
    flip = torch.as_tensor(skeleton.flip, device=device)
    ask = paradigm.predict if ask is None else ask
    with evaluating(model):
        parts = [ask(model, packed.to(device), spec, flip, settings) for packed in batches]
    found = Instances.concatenate(parts, skeleton.num_keypoints).to("cpu")
    _refuse_non_finite(found)
    return found


def find_people(
    model: nn.Module,
    images: Sequence[np.ndarray],
    skeleton: Skeleton,
    settings: Any = None,
    *,
    boxes: Sequence[np.ndarray] | None = None,
    box_scores: Sequence[np.ndarray] | None = None,
    padding: float | None = None,
    batch_size: int = 32,
) -> Instances:
    """All people in images in memory, scored and without duplicates.

    Args:
        model: of any paradigm, on any device.
        images: uint8 RGB `[H, W, 3]` each.
        skeleton: K keypoints; those of the network, which are matched by name where its card tells them.
        settings: the paradigm's settings of inference.
        boxes: for a network that crops boxes: `[n, 4]` (x, y, width, height) per image; the whole image if None.
        box_scores: `[n]` per image, confidence of its boxes.
        padding: factor by which crops are larger than boxes, as in training; `LoaderSettings.padding` by default.
        batch_size: crops or images per batch.

    Returns:
        People by image and descending score; `image_ids` count `images` from 0, `sample_ids` the boxes.

    Raises:
        ValueError: images or boxes of another form, boxes for a network that sees whole images, or keypoints that the
            network does not have.
        FloatingPointError: the network's output is not finite.

    Examples:
        >>> import numpy as np
        >>> from posekd import create_model
        >>> from posekd.paradigms.inference import find_people
        >>> from posekd.skeleton import COCO
        >>> model = create_model("elpn_v1", size=(64, 64), width=8, modules=(1,), blocks=1, stem_width=8)
        >>> found = find_people(model, [np.zeros((120, 100, 3), np.uint8)], COCO, boxes=[np.array([[10, 10, 40, 90]])])
        >>> tuple(found.keypoints.shape), found.image_ids.tolist()
        ((1, 17, 3), [0])
    """
    paradigm = paradigm_of(model)
    if not paradigm.crops_boxes and (boxes is not None or box_scores is not None):
        raise ValueError(f"a {paradigm.title} network sees whole images: it needs no boxes")
    settings = settings_for(paradigm, settings)
    model = in_order_of(model, getattr(model, "keypoint_names", None), skeleton.keypoints, "the network")
    source = ImagesInMemory(images, skeleton, boxes, box_scores)
    loader = LoaderSettings(batch_size, workers=0)
    if padding is not None:
        loader = LoaderSettings(batch_size, workers=0, padding=padding)
    batches = open_batches(model, source, settings, loader=loader)
    return paradigm.suppress(find_in_batches(model, batches, skeleton, settings), skeleton, settings)


def looker(
    model: nn.Module,
    skeleton: Skeleton,
    settings: Any = None,
    *,
    loader: LoaderSettings | None = None,
    spec: InputSpec | None = None,
) -> Callable[[np.ndarray, np.ndarray], Instances] | None:
    """A function from an image, uint8 RGB `[H, W, 3]`, and boxes `[n, 4]` (x, y, width, height) to the people in them.

    People are as the network says, before rescoring and before duplicates are removed; `sample_ids` count the boxes.

    Args:
        model: whose keypoints are those of `skeleton`, in its order.
        skeleton: the K keypoints.
        settings: the paradigm's settings of inference.
        loader: its padding and batch size are used.
        spec: the network's input; `model.spec` by default.

    Returns:
        None for a network that cannot be asked for people in boxes.
    """
    paradigm = paradigm_of(model)
    if paradigm.look is None:
        return None
    settings, own = settings_for(paradigm, settings), replace(loader or LoaderSettings(), workers=0)

    def look(image: np.ndarray, boxes: np.ndarray) -> Instances:
        source = ImagesInMemory([image], skeleton, [boxes])
        batches = open_batches(model, source, settings, loader=own, spec=spec)
        return find_in_batches(model, batches, skeleton, settings, spec=spec, ask=paradigm.look)

    return look


def settings_for(paradigm: Paradigm, settings: Any) -> Any:
    """Settings of a paradigm's inference, its defaults for None.

    Raises:
        TypeError: settings of another paradigm.
    """
    if settings is None:
        return paradigm.inference()
    if not isinstance(settings, paradigm.inference):
        raise TypeError(
            f"a {paradigm.title} network needs {paradigm.inference.__name__}, got {type(settings).__name__}"
        )
    return settings


def device_of(model: nn.Module) -> torch.device:
    """The device of the network."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def spec_of(model: nn.Module) -> InputSpec:
    """The input that the network expects, from its attribute `spec`.

    Raises:
        ValueError: it has no such attribute.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, InputSpec):
        raise ValueError(f"{type(model).__name__} has no `spec`: give its input as `spec=InputSpec(...)`")
    return spec


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without autograd within a block; afterwards the previous mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _refuse_non_finite(found: Instances) -> None:
    bad = (~found.keypoints.isfinite().all(2).all(1)).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise FloatingPointError(
            f"the network gives NaN or infinite values for {len(bad)} of {len(found)} persons, first "
            f"{int(found.sample_ids[first])} of image {int(found.image_ids[first])}: check its weights, or evaluate "
            "in fp32"
        )
