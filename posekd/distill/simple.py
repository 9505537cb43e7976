"""SIMPLE: one network trained to detect and to pose, which then mimics a top-down teacher (Zhang et al. 2021).

First stage, with heatmaps H, label heatmaps G, and the points of people's boxes:

    L = L_pose + alpha L_det + L_group                     L_pose = 1/K sum_k ||H_k - G_k||^2      (Equation 8)
    L_det = focal losses of corners and centres + smooth L1 of their offsets        (CenterNet's; `people_detection`)

The norm sums over pixels and the mean is over the batch: with alpha = 1 a mean over pixels, some 1e-3, would vanish
beside focal losses of order 1. From epoch `mimic_from` on, for the N boxes that the student itself has found (Section
5, Algorithm 1), each cropped from the original pixels for the teacher and by ROIAlign from the student's heatmaps:

    L + beta (L_m1 + L_m2),      L_mi = 1/(N K) sum_n sum_k ||H^s_nk - phi_i(H_nk)||^2             (Equations 14, 15)

with the teacher's heatmaps and with label heatmaps of the crop; phi_i are 3x3 convolutions that start as the identity
and are dropped afterwards. They stand on the side of the target, which could drift towards the student; `adapter_grad:
false` holds it still. L_group, which the paper does not print, teaches the grouping network which of the student's own
peaks inside a box are the person's; no gradient of it reaches the heatmaps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from posekd import geometry
from posekd.codecs import CODECS, heatmaps, people
from posekd.codecs.anchored_people import AnchoredMaps
from posekd.codecs.people import PeopleMaps
from posekd.distill.associative_embedding import heatmap_terms
from posekd.distill.base import FrozenTeacher, Method, name_terms
from posekd.distill.features import FeatureMimic
from posekd.distill.people_boxes import Matched, find_and_match, peaks_to_keep
from posekd.distill.people_detection import DETECTION
from posekd.inputs import warp
from posekd.ops import mimic_loss, render_heatmaps, roi_align
from posekd.structures import ImageBatch

Mimic = Literal["none", "labels", "features", "teacher", "both"]
_TAUGHT = ("features", "teacher", "both")


@dataclass(frozen=True)
class SimpleSettings:
    """Settings of SIMPLE's training; the defaults are the paper's, or a choice where it is silent.

    Attributes:
        mimic: what the student's boxes mimic from `mimic_from` on, as in Table 3: nothing, `labels` (ground truth), the
            teacher's `features`, its heatmaps (`teacher`), or `both`, labels and heatmaps.
        mimic_from: the first epoch of the second stage, counted from 1.
        alpha: weight of the detection losses.
        beta: weight of the mimicking losses.
        grouping: weight of the grouping network's loss.
        sigma: standard deviation of the label Gaussians in pixels of the maps.
        kind: how they are drawn, see `ops.render_heatmaps`.
        radius: of the Gaussians of corners and centres: `centernet` or `cornernet`, see `ops.center_focal_loss`.
        boxes_per_image: boxes that are cropped of an image.
        keypoint_threshold: heatmap value above which there is a peak to group.
        keypoint_sigma: OKS constant by which a peak is near enough to a keypoint (COCO's are 0.025 to 0.107).
        adapter_grad: whether the adapters are trained.

    Raises:
        ValueError: a negative weight, or a setting out of its range.
    """

    mimic: Mimic = "both"
    mimic_from: int = 151
    alpha: float = 1.0
    beta: float = 1.0
    grouping: float = 1.0
    sigma: float = 2.0
    kind: Literal["msra", "higherhrnet", "exact"] = "exact"
    radius: Literal["centernet", "cornernet"] = "centernet"
    boxes_per_image: int = 8
    keypoint_threshold: float = 0.1
    keypoint_sigma: float = 0.07
    adapter_grad: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "grouping"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a weight and cannot be negative, got {getattr(self, name)}")
        for name in ("sigma", "keypoint_sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("mimic_from", "boxes_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.keypoint_threshold < 0:
            raise ValueError(f"keypoint_threshold must be 0 or more, got {self.keypoint_threshold}")


class Simple(Method):
    """SIMPLE's losses of both stages.

    Args:
        student: gives what `codecs.people` or `codecs.anchored_people` reads, and has `group`.
        teacher: a top-down network; needed where `settings.mimic` asks one.
        settings: see `SimpleSettings`.

    Raises:
        ValueError: mimicking without a teacher.
    """

    paradigm = "single_network"
    outputs = tuple(DETECTION)
    fixed_shapes = False  # crops as many people as there are, and looks at their boxes

    def __init__(
        self, student: nn.Module, teacher: FrozenTeacher | None = None, settings: SimpleSettings | None = None
    ) -> None:
        settings = settings or SimpleSettings()
        if settings.mimic in _TAUGHT and teacher is None:
            raise ValueError(
                f"method.mimic is {settings.mimic!r}, which learns from a top-down teacher, and none was given: name a "
                "teacher, or choose labels or none"
            )
        super().__init__(student, teacher)
        self.settings, self.epoch = settings, 0
        output = getattr(student, "output", people.NAME)
        self.codec: Any = CODECS[output]
        self.detection, self.detection_names = DETECTION[output]
        if getattr(getattr(student, "config", None), "embeddings", False):
            self.detection_names += ("embeddings",)
        K = cast(int, student.num_keypoints)
        both = settings.mimic == "both"
        self.adapters = nn.ModuleDict(
            {name: identity_adapter(K) for name in ("teacher", "labels") if both or settings.mimic == name}
        )
        self.features: FeatureMimic | None = None
        if settings.mimic == "features":
            assert teacher is not None
            self.features = FeatureMimic(student, teacher)
        self.adapters.requires_grad_(settings.adapter_grad)

    def start_epoch(self, epoch: int) -> None:
        """Mimicking begins with epoch `mimic_from` - 1, counted from 0."""
        self.epoch = epoch

    @property
    def mimicking(self) -> bool:
        """Whether this is the second stage."""
        return self.settings.mimic != "none" and self.epoch + 1 >= self.settings.mimic_from

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """`{"pose", "grouping"}`, those of detection and, in the second stage, what is mimicked; each weighted."""
        settings = self.settings
        said = self.codec.read(self.student(batch.images))
        terms = self._pose(said.heatmaps, batch)
        if settings.alpha > 0:
            found = self.detection(said, batch, settings.radius)
            terms |= {name: settings.alpha * term for name, term in found.items()}
        idle: list[nn.Module] = []
        if settings.grouping > 0 or self.mimicking:
            matched = find_and_match(said, batch, settings.boxes_per_image, self.codec)
            if settings.grouping > 0:
                terms["grouping"] = self._grouping(said, batch, matched)
                if not len(matched.images):
                    idle.append(self.student)
            if self.mimicking:
                terms |= self._mimic(said, batch, matched)
        if not self.mimicking or not matched.found:
            idle.append(self.adapters)
            if self.features is not None:
                idle.append(self.features)
        terms["pose"] = terms["pose"] + no_gradient(idle)
        return terms

    def weights(self) -> dict[str, float]:
        """The factor of each term, of both stages."""
        s = self.settings
        own = {"pose": 1.0, **dict.fromkeys(self.detection_names, s.alpha), "grouping": s.grouping}
        mimicked = [*self.adapters, *(["features"] if self.features is not None else [])]
        return {**own, **{f"mimic_{name}": s.beta for name in mimicked}}

    @classmethod
    def why_not_partial(cls, settings: SimpleSettings) -> str | None:
        """See `Method.why_not_partial`: the heatmaps always learn from labels."""
        return None

    def _pose(self, maps: Tensor, batch: ImageBatch) -> dict[str, Tensor]:
        """Equation 8: squares summed over the pixels, their mean over keypoints and batch, outside crowds."""
        size = (maps.shape[2], maps.shape[3])
        target, _ = render_heatmaps(batch.keypoints[0], size, self.settings.sigma, self.settings.kind)
        loss, value, _ = heatmap_terms(
            maps, None, target, batch.masks[0], labels=float(size[0] * size[1]), teacher_weight=0.0
        )
        return name_terms(loss, {"pose": value})

    def _grouping(self, said: PeopleMaps | AnchoredMaps, batch: ImageBatch, matched: Matched) -> Tensor:
        """What the masks of all boxes miss, in units of `_pose`: Gaussians at the peaks that are to be reserved."""
        settings, maps = self.settings, said.heatmaps.detach()
        if not len(matched.images):
            return maps.new_zeros((), dtype=torch.float32)
        matrices = people.crop_matrices(matched.boxes)
        peaks, labelled = peaks_to_keep(
            maps.float(), batch, matched, matrices, settings.keypoint_threshold, settings.keypoint_sigma, 64
        )
        crops = roi_align(maps.float(), people.crop_table(matrices, matched.images), people.CROP, 1.0, 2)
        masks = cast(nn.Module, self.student).group(crops).float()  # type: ignore[operator]
        target, _ = render_heatmaps(peaks, people.CROP, settings.sigma, "exact")
        squares = ((masks - target) ** 2).sum((2, 3))
        return settings.grouping * torch.where(labelled, squares, 0.0).mean()

    def _mimic(self, said: PeopleMaps | AnchoredMaps, batch: ImageBatch, matched: Matched) -> dict[str, Tensor]:
        """Algorithm 1 for the boxes that the student has found."""
        N, settings = matched.found, self.settings
        names = [*self.adapters, *(["features"] if self.features is not None else [])]
        if not N:
            return {f"mimic_{name}": said.heatmaps.new_zeros((), dtype=torch.float32) for name in names}
        boxes, images = matched.boxes[:N], matched.images[:N]
        size = people.CROP if self.teacher is None else _quarter(self.teacher.spec.size)
        matrices = people.crop_matrices(boxes, size)
        table = people.crop_table(matrices, images, size)
        taught = self._ask(batch, images, matrices) if settings.mimic in _TAUGHT else None
        if self.features is not None:
            return {"mimic_features": settings.beta * self.features(table, size)}
        targets, weights = [], []
        for name, adapter in self.adapters.items():
            if name == "teacher":
                target = cast(Tensor, taught)
                assert self.teacher is not None
                weight = self.teacher.known(target.new_ones(target.shape[:2]))
            else:
                persons = batch.keypoints[0][images, matched.persons[:N]]
                inside = geometry.transform_keypoints(persons, geometry.invert_matrices(matrices))
                target, weight = render_heatmaps(inside, size, settings.sigma, settings.kind)
            targets.append(adapter(target).float())
            weights.append((weight > 0).float())
        _, terms = mimic_loss(
            said.heatmaps, table, torch.stack(targets), torch.stack(weights), 1.0, sampling_ratio=2, return_terms=True
        )
        return {f"mimic_{name}": settings.beta * term for name, term in zip(self.adapters, terms, strict=True)}

    @torch.no_grad()
    def _ask(self, batch: ImageBatch, images: Tensor, matrices: Tensor) -> Tensor:
        """The teacher's heatmaps of boxes, all at once, `[N, K, h, w]`: cut from the original pixels.

        Args:
            batch: with its pixels.
            images: int64 `[N]`, image of each box.
            matrices: `[N, 2, 3]`, pixel of the teacher's heatmaps to pixel of the student's.
        """
        assert self.teacher is not None
        if batch.pixels is None:
            raise ValueError("the batch has lost its pixels, from which people are cropped for the teacher")
        spec = self.teacher.spec
        to_input = geometry.heatmap_matrices(matrices, 1 / people.STRIDE) * people.STRIDE
        pixels = replace(batch.pixels, index=batch.pixels.index[images])
        color = None if batch.colors is None else batch.colors[images]  # the teacher sees the student's colours
        moves = geometry.compose_matrices(batch.matrices[images], to_input)
        crops = warp(pixels, moves, spec, spec.size, color=color)
        asked = heatmaps.read(self.teacher.outputs(crops, spec))[-1].float()
        if tuple(asked.shape[2:]) != _quarter(spec.size):
            raise ValueError(f"the teacher's heatmaps are {tuple(asked.shape)}, a quarter of {spec.size} was expected")
        return asked


def _quarter(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // heatmaps.STRIDE, size[1] // heatmaps.STRIDE


def identity_adapter(num_keypoints: int) -> nn.Conv2d:
    """A 3x3 convolution between heatmaps that starts as the identity."""
    adapter = nn.Conv2d(num_keypoints, num_keypoints, 3, padding=1)
    nn.init.dirac_(adapter.weight)
    nn.init.zeros_(cast(Tensor, adapter.bias))
    return adapter


def no_gradient(modules: Iterable[nn.Module]) -> Tensor | float:
    """0, of which all parameters of the modules are part, where several processes wait for their gradients."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0.0
    parameters = [p.sum() for module in modules for p in module.parameters() if p.requires_grad]
    return 0.0 * torch.stack(parameters).sum() if parameters else 0.0
