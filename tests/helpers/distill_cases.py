"""Inputs of distill_loss, and its definition in any precision, for its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posekd.ops.reference import distill_loss as definition
from posekd.ops.reference.distill_loss import Inputs, Numbers

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EPS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def make_case(B: int = 2, K: int = 3, H: int = 8, W: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs with a keypoint of weight 0 and a quarter of the pixels masked."""
    rng = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.rand(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    weight = random(B, K)
    weight[0, 0] = 0
    return {
        "student": random(B, K, H, W) * 2 - 1,
        "teacher": random(B, K, H, W) * 2 - 1,
        "target": random(B, K, H, W),
        "keypoints": torch.cat([random(B, K, 2) * torch.tensor([W, H]), torch.full((B, K, 1), 2.0)], -1),
        "weight": weight,
        "teacher_weight": random(B, K),
        "mask": random(B, H, W) > 0.25,
    }


def plain(case: dict[str, Tensor], names: tuple[str, ...], dtype: torch.dtype, **numbers: Any) -> tuple[Tensor, ...]:
    """Loss, terms and gradient of the definition, everything in `dtype`."""
    arguments = {n: case[n].to(dtype) if case[n].dtype != torch.bool else case[n] for n in names}
    student = case["student"].to(dtype).clone().requires_grad_()
    loss, terms = definition.distill_loss(Inputs(student, **arguments), Numbers(**numbers))
    (gradient,) = torch.autograd.grad(loss, student)
    return loss, terms, gradient


COMBINATIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "teacher and heatmaps": (("teacher", "target"), {}),
    "teacher and keypoints": (("teacher", "keypoints"), {}),
    "weights": (("teacher", "target", "weight"), {}),
    "two weights and a mask": (
        ("teacher", "target", "weight", "teacher_weight", "mask"),
        {"temperature": 0.5},
    ),
    "keypoints, weights, mask": (("teacher", "keypoints", "weight", "mask"), {"kind": "exact", "sigma": 1.5}),
    "teacher alone": (("teacher",), {"alpha": 0.5, "beta": 0.5}),
    "labels alone": (("target", "weight"), {"alpha": 0.0, "beta": 0.0}),
    "higherhrnet keypoints alone": (("keypoints",), {"kind": "higherhrnet", "alpha": 0.0, "beta": 0.0}),
}
