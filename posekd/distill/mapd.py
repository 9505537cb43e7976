"""MAPD: multi-aspect pose distillation, of the ELPN paper (Efficient Lightweight Pose Network).

With student, teacher and label heatmaps s, t, g, and keypoint weights w_k (0 where a keypoint is unlabelled):

    L_mpd = 1/2 mean over B, K, H, W of (w_k (s - t))^2                                         (Eq. 1)
    L_kpd = mean over B, K of w_k sum_p q_t(p) (log q_t(p) - log q_s(p)),  q = softmax over pixels  (Eq. 2)
    L_mse = 1/2 mean over B, K, H, W of (w_k (s - g))^2                                         (Eq. 3)
    L     = alpha L_mpd + beta L_kpd + (1 - alpha - beta) L_mse,  alpha = 0.15, beta = 0.075      (Eq. 4)

Heatmaps are not distributions, so Eq. 2 cannot be computed as printed: a softmax over the pixels makes it a
divergence (`kl="spatial_softmax"`). `kl="clamped"` follows the paper literally: t log(t / s) on the raw
heatmaps, clamped from below so that the logarithm exists. Eq. 1 and 3 print a mean over keypoints only; the
mean over pixels, HRNet's, scales all terms alike and leaves their ratio.

Keypoints that the teacher does not know (`posekd.bridging`) have weight 0 in Eq. 1 and 2, and learn from labels alone.

The paper has labels for everybody. With `unlabelled_weight` u above 0, a person without a single label learns from the
teacher alone: w_k = sqrt(u / alpha) for all keypoints in Eq. 1 and 2, so that L_mpd weighs u for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from posekd.codecs import heatmaps
from posekd.distill.base import (
    FrozenTeacher,
    Method,
    check_same_maps,
    heatmap_keypoints,
    input_spec,
    name_terms,
)
from posekd.distill.convert import resample
from posekd.ops import distill_loss, render_heatmaps
from posekd.structures import CropBatch

CLAMP = 1e-6


@dataclass(frozen=True)
class MAPDSettings:
    """Settings of MAPD. The paper's ablations: MSE-only is `beta: 0`, KL-only is `alpha: 0`.

    Attributes:
        alpha: weight of the teacher's MSE. The labels weigh 1 - alpha - beta.
        beta: weight of the teacher's KL divergence.
        temperature: temperature of the softmax in the divergence; the divergence is multiplied by its square.
        kl: `spatial_softmax`, or `clamped` for Eq. 2 as printed.
        sigma: standard deviation of the label Gaussians in heatmap pixels.
        kind: how the labels are drawn, see `posekd.ops.render_heatmaps`.
        unlabelled_weight: weight of the teacher's MSE, in place of alpha, for persons without any label (the recipe's
            `labels` and `unlabelled_data` make such persons); 0, the paper's case, learns nothing from them.

    Raises:
        ValueError: a negative weight, alpha + beta above 1, or `unlabelled_weight` without alpha.
    """

    alpha: float = 0.15
    beta: float = 0.075
    temperature: float = 1.0
    kl: Literal["spatial_softmax", "clamped"] = "spatial_softmax"
    sigma: float = 2.0
    kind: Literal["msra", "higherhrnet", "exact"] = "msra"
    unlabelled_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or self.alpha + self.beta > 1:
            raise ValueError(
                f"mapd: alpha {self.alpha} and beta {self.beta} must be >= 0 and sum to at most 1, "
                "because the labels weigh 1 - alpha - beta"
            )
        if self.temperature <= 0:
            raise ValueError(f"mapd: temperature must be positive, got {self.temperature}")
        if self.unlabelled_weight < 0 or (self.unlabelled_weight > 0 and self.alpha == 0):
            raise ValueError(
                "mapd: unlabelled_weight must be 0 or more, and above 0 only with an alpha above 0; got "
                f"{self.unlabelled_weight} and alpha {self.alpha}"
            )


class MAPD(Method):
    """The MAPD loss between a student and a frozen teacher.

    Args:
        student: the network that is trained; it has `spec: InputSpec`.
        teacher: the network it learns from.
        settings: see `MAPDSettings`.

    Raises:
        ValueError: no teacher.
    """

    def __init__(self, student: nn.Module, teacher: FrozenTeacher | None, settings: MAPDSettings | None = None) -> None:
        if teacher is None:
            raise ValueError("mapd distils from a teacher, and none was given")
        super().__init__(student, teacher)
        self.settings = settings or MAPDSettings()

    def forward(self, batch: CropBatch) -> dict[str, Tensor]:
        """`{"labels", "teacher_mse", "teacher_kl"}`, each weighted."""
        s, *more = heatmaps.read(self.student(batch.images))
        if more:
            raise ValueError(f"mapd is for networks of one stage, this student has {1 + len(more)}; fpd distils such")
        assert self.teacher is not None
        t = resample(self.teacher.heatmaps(batch, input_spec(self.student))[-1], (s.shape[-2], s.shape[-1]))
        check_same_maps(t, s)
        keypoints = heatmap_keypoints(batch.keypoints, batch.images, s)
        if self.settings.kl == "clamped":
            return self._clamped(s, t, keypoints)
        settings = self.settings
        loss, (mpd, kpd, mse) = distill_loss(
            s,
            t,
            **self._labels(keypoints, s),
            alpha=settings.alpha,
            beta=settings.beta,
            temperature=settings.temperature,
            return_terms=True,
        )
        return name_terms(loss, self._weigh({"labels": mse, "teacher_mse": mpd, "teacher_kl": kpd}))

    def weights(self) -> dict[str, float]:
        """Eq. 4: labels 1 - alpha - beta, teacher_mse alpha, teacher_kl beta."""
        alpha, beta = self.settings.alpha, self.settings.beta
        return {"labels": 1.0 - (alpha + beta), "teacher_mse": alpha, "teacher_kl": beta}

    @classmethod
    def why_not_partial(cls, settings: MAPDSettings) -> str | None:
        """See `Method.why_not_partial`: labels must have a weight."""
        if settings.alpha + settings.beta < 1:
            return None
        return "method.alpha and beta are 1 together, so nothing is learnt from labels: lower them"

    def _labels(self, keypoints: Tensor, s: Tensor) -> dict[str, Any]:
        """The labels as `distill_loss` takes them: drawn in the kernel, or here where the weights are needed too."""
        settings = self.settings
        assert self.teacher is not None
        if settings.unlabelled_weight == 0 and settings.kl != "clamped" and self.teacher.covered is None:
            return {"keypoints": keypoints, "sigma": settings.sigma, "kind": settings.kind}
        g, w = render_heatmaps(keypoints, (s.shape[-2], s.shape[-1]), settings.sigma, settings.kind)
        taught = w
        if settings.unlabelled_weight > 0:
            labelled = (keypoints[..., 2] > 0).any(-1, keepdim=True)
            taught = torch.where(labelled, w, math.sqrt(settings.unlabelled_weight / settings.alpha))
        return {"target": g, "weight": w, "teacher_weight": self.teacher.known(taught)}

    def _weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms; one of weight 0 does not enter the loss, whatever its value."""
        weights = self.weights()
        return {name: weights[name] * term for name, term in terms.items() if weights[name] != 0}

    def _clamped(self, s: Tensor, t: Tensor, keypoints: Tensor) -> dict[str, Tensor]:
        """Eq. 2 as printed: `sum_p t log(t / s)` of the raw heatmaps, both at least `CLAMP`."""
        labels = self._labels(keypoints, s)
        # the kernel weighs (a, 0, 1 - a): with a = alpha / (1 - beta), 1 - beta times its loss is the rest of Eq. 4
        share = 1.0 - self.settings.beta
        alpha = self.settings.alpha / share if share > 0 else 0.0
        loss, (mpd, _, mse) = distill_loss(s, t, **labels, alpha=alpha, beta=0.0, return_terms=True)
        w = labels["teacher_weight"]
        wide = torch.promote_types(s.dtype, torch.float32)
        teacher, student = t.to(wide).clamp_min(CLAMP), s.to(wide).clamp_min(CLAMP)
        divergence = (teacher * torch.log(teacher / student)).sum((-2, -1))
        kpd = torch.where(w > 0, w * divergence, 0).mean()
        from_kernel = self._weigh({"labels": mse, "teacher_mse": mpd})
        terms = name_terms(share * loss, from_kernel) if from_kernel else {}
        return {**terms, **self._weigh({"teacher_kl": kpd})}
