"""DistilPose (Ye et al. 2023): a heatmap teacher for a student that says coordinates.

With keypoint fractions p, confidences c and sigmas s of the student, labels g with weights w (1 where a keypoint is
labelled and inside the crop), heatmaps T `[B, K, H, W]` and tokens of the teacher:

    L_reg  mean over B, K, 2 of smooth_l1(w p, w g)
    L_SH   mean over B, K, H, W of (w (h - T))^2,  h = exp(-1/2 ((x - W p_x)^2 / s_x^2 + (y - H p_y)^2 / s_y^2))
    L_SW   mean over B, K of |w (c - T(p))|;  only c has a gradient
    L_KT   mean squared difference of the keypoint tokens
    L_VT   mean squared difference of the visual tokens
    L      L_reg + L_SH + 0.01 L_SW + 0.0005 L_KT + 0.0005 L_VT

T(p) is the teacher's value at pixel (round((W - 1) p_x), round((H - 1) p_y)), as released: near the far edge that is a
pixel less than W p_x, the centre of h.

For keypoints that the teacher does not know (`posekd.bridging`), T is the label's Gaussian of sigma 2 heatmap pixels,
so that their sigmas and confidences learn too, from labels alone.

Released and paper differ in w of L_SH: there the code multiplies each person's map by the weights of all persons of the
batch, so that unlabelled keypoints are learnt and all are scaled by the labelled share. `joint_weights` chooses.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from posekd.codecs import coordinates, heatmaps
from posekd.codecs.coordinates import Coordinates
from posekd.codecs.heatmaps import TokenHeatmaps
from posekd.distill.base import FrozenTeacher, Method, heatmap_keypoints, input_spec
from posekd.ops import render_heatmaps, simulated_heatmap_loss
from posekd.structures import CropBatch

LABEL_SIGMA = 2.0  # heatmap pixels


@dataclass(frozen=True)
class DistilPoseSettings:
    """Settings of DistilPose: the weights of its terms. All but `labels` at 0 is plain regression, without a teacher.

    Attributes:
        labels: weight of L_reg.
        simulated_heatmaps: weight of L_SH; the student must say sigmas.
        scores: weight of L_SW; the student must say scores.
        keypoint_tokens: weight of L_KT; no effect with a teacher without tokens.
        visual_tokens: weight of L_VT; no effect with a teacher without tokens.
        joint_weights: of L_SH: `per_sample`, each person's own, or `released`, the batch's.

    Raises:
        ValueError: a negative weight, or all are 0.
    """

    labels: float = 1.0
    simulated_heatmaps: float = 1.0
    scores: float = 0.01
    keypoint_tokens: float = 5e-4
    visual_tokens: float = 5e-4
    joint_weights: Literal["per_sample", "released"] = "per_sample"

    def __post_init__(self) -> None:
        weights = {"labels": self.labels, **self.taught}
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"distilpose: {name} is a weight, 0 or more, got {weight}")
        if not any(weights.values()):
            raise ValueError("distilpose: all weights are 0, so there is nothing to learn")

    @property
    def taught(self) -> dict[str, float]:
        """The weights of the teacher's terms."""
        return {
            "simulated_heatmaps": self.simulated_heatmaps,
            "scores": self.scores,
            "keypoint_tokens": self.keypoint_tokens,
            "visual_tokens": self.visual_tokens,
        }


class DistilPose(Method):
    """The DistilPose loss between a student that says coordinates and a frozen teacher that says heatmaps.

    Args:
        student: the network that is trained; it has `spec: InputSpec`.
        teacher: the network it learns from; none is needed if the weights of all its terms are 0.
        settings: see `DistilPoseSettings`.

    Raises:
        ValueError: a term without a teacher, or one that the student has no output for; scores that no term trains.
    """

    outputs = ("coordinates",)

    def __init__(
        self, student: nn.Module, teacher: FrozenTeacher | None, settings: DistilPoseSettings | None = None
    ) -> None:
        super().__init__(student, teacher)
        self.settings = settings = settings or DistilPoseSettings()
        if teacher is None and any(settings.taught.values()):
            raise ValueError(
                "distilpose distils from a teacher, and none was given (plain regression needs none: set "
                f"{', '.join('method.' + name for name in settings.taught)} to 0)"
            )
        _check_outputs(student, settings)
        tokens, spoken = self.learns_tokens(settings), bool(getattr(student, "gives_tokens", False))
        self.tokens = tokens and spoken and teacher is not None and teacher.gives_tokens
        if tokens and not self.tokens:
            who = "teacher" if spoken else "student"
            warnings.warn(f"distilpose: the {who} gives no tokens, so nothing is learnt from tokens", stacklevel=2)

    def forward(self, batch: CropBatch) -> dict[str, Tensor]:
        """`{"labels", "simulated_heatmaps", "scores", "keypoint_tokens", "visual_tokens"}`, weighted, without those of
        weight 0.
        """
        said = coordinates.read(self.student(batch.images), batch.keypoints.shape[1])
        size = (batch.images.shape[-2], batch.images.shape[-1])
        target, w = regression_target(batch.keypoints, size)
        coords = said.coords.float()
        terms = {"labels": functional.smooth_l1_loss(coords * w[..., None], target * w[..., None])}
        if self.teacher is not None and any(self.settings.taught.values()):
            terms |= self._taught(self.teacher, batch, said, w)
        weights = self.weights()
        return {name: weights[name] * term for name, term in terms.items() if weights.get(name)}

    def weights(self) -> dict[str, float]:
        """The weights of the settings; none for tokens that student or teacher do not give."""
        weights = {"labels": self.settings.labels, **self.settings.taught}
        return {name: value for name, value in weights.items() if self.tokens or not name.endswith("tokens")}

    @classmethod
    def learns_tokens(cls, settings: DistilPoseSettings) -> bool:
        """Whether a token term has a weight."""
        return settings.keypoint_tokens > 0 or settings.visual_tokens > 0

    @classmethod
    def why_not_partial(cls, settings: DistilPoseSettings) -> str | None:
        """See `Method.why_not_partial`: labels must have a weight."""
        return None if settings.labels > 0 else "method.labels is 0, so nothing is learnt from labels: raise it"

    def _drawn(self, batch: CropBatch, maps: Tensor) -> Tensor:
        """Label heatmaps of the size of the teacher's."""
        keypoints = heatmap_keypoints(batch.keypoints, batch.images, maps)
        return render_heatmaps(keypoints, (maps.shape[-2], maps.shape[-1]), LABEL_SIGMA)[0]

    def _taught(self, teacher: FrozenTeacher, batch: CropBatch, said: Coordinates, w: Tensor) -> dict[str, Tensor]:
        """The teacher's terms, without their weights."""
        settings, terms = self.settings, {}
        answer = teacher.answer(batch, input_spec(self.student))
        maps = heatmaps.read(answer, said.coords.shape[1])[-1].float()
        if teacher.covered is not None:
            maps = torch.where(teacher.covered[:, None, None], maps, self._drawn(batch, maps))
        if settings.simulated_heatmaps > 0:
            assert said.sigmas is not None
            share = w if settings.joint_weights == "per_sample" else (w**2).mean(0, keepdim=True).sqrt().expand_as(w)
            terms["simulated_heatmaps"] = simulated_heatmap_loss(said.coords.float(), said.sigmas.float(), maps, share)
        if settings.scores > 0:
            assert said.scores is not None
            terms["scores"] = (w * (said.scores[..., 0].float() - value_at(maps, said.coords.detach()))).abs().mean()
        if self.tokens:
            assert isinstance(answer, TokenHeatmaps)
            for name in ("keypoint_tokens", "visual_tokens"):
                if getattr(settings, name) > 0:
                    terms[name] = _token_loss(name, getattr(said, name), getattr(answer, name))
        return terms


def regression_target(keypoints: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Keypoints as fractions of the crop, and their weights.

    Args:
        keypoints: float32 `[B, K, 3]` (x, y, visibility) in input pixels.
        size: `(height, width)` of the input.

    Returns:
        float32 `[B, K, 2]`, and float32 `[B, K]`: 1 where a keypoint is labelled and x in 0..W-1, y in 0..H-1; else 0.
    """
    x, y, visibility = keypoints.unbind(2)
    height, width = size
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return torch.stack((x / width, y / height), 2), ((visibility > 0) & inside).float()


def value_at(maps: Tensor, coords: Tensor) -> Tensor:
    """The value of each heatmap at its keypoint's nearest pixel, 0 for a keypoint outside the map.

    Args:
        maps: `[B, K, H, W]`.
        coords: `[B, K, 2]`, fractions; 0 is the first pixel, 1 the last.

    Returns:
        `[B, K]`, of the maps' type.
    """
    H, W = maps.shape[-2:]
    x, y = coords.clamp(0, 1).unbind(2)
    column, row = (x * (W - 1)).round().long(), (y * (H - 1)).round().long()
    values = maps.flatten(2).gather(2, (row * W + column)[..., None])[..., 0]
    return values * ((coords >= 0) & (coords <= 1)).all(2)


def _token_loss(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's {name.replace('_', ' ')} are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}: "
            f"give both the same dim, patches and input size, or set method.{name} to 0"
        )
    return functional.mse_loss(student.float(), teacher.float())


def _check_outputs(student: nn.Module, settings: DistilPoseSettings) -> None:
    """Refuses a term for which the student has no output, and confidences that would stay random."""
    config = getattr(student, "config", None)
    for output, term in (("sigmas", "simulated_heatmaps"), ("scores", "scores")):
        if getattr(settings, term) > 0 and not getattr(config, output, True):
            raise ValueError(
                f"distilpose: method.{term} needs a student that says {output}: set student.overrides.{output} to true"
            )
    if settings.scores == 0 and getattr(config, "scores", False):
        raise ValueError(
            "distilpose: method.scores is 0, so nothing would train the student's scores, and its AP would be that of "
            "random confidences (the released baseline reaches 0.02 so): set student.overrides.scores to false, which "
            "makes them all 1"
        )
