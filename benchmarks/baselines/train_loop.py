"""A distillation step written like published code: the baseline of `train_throughput.py`.

As in deep-high-resolution-net.pytorch (`lib/dataset/JointsDataset.py`, `lib/core/loss.py`) and the distillation code
built on it: each sample is decoded by OpenCV, flipped, warped and normalised in NumPy by a worker, which also draws its
heatmaps; batches of float32 images and maps cross to the device; networks run eagerly in float32; the losses are sums
of separate operations, for the labels one keypoint after another; Adam is torch's default.

Only the draws of the augmentation are taken from posekd, so that both see the same batches.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from posekd.data import CropDataset
from posekd.data.augment import Draw
from posekd.data.loading.sampler import BatchPlan, Key
from posekd.distill import MAPD, MAPDSettings
from posekd.structures import InputSpec

STRIDE = 4


def affine(draw: Draw, size: tuple[int, int]) -> np.ndarray:
    """Image to crop, from three pairs of points."""
    height, width = size
    scale = float(draw.scale[0]) * draw.zoom
    sin, cos = np.sin(np.deg2rad(draw.rotation)), np.cos(np.deg2rad(draw.rotation))
    center = np.array(draw.center, np.float32)
    direction = np.array([0.5 * scale * sin, -0.5 * scale * cos], np.float32)
    source = np.zeros((3, 2), np.float32)
    target = np.zeros((3, 2), np.float32)
    source[0], source[1] = center, center + direction
    target[0], target[1] = (width / 2, height / 2), (width / 2, height / 2 - width / 2)
    for points in (source, target):
        points[2] = points[1] + np.array([points[1, 1] - points[0, 1], points[0, 0] - points[1, 0]])
    return cv2.getAffineTransform(source, target)


def draw_heatmaps(joints: np.ndarray, size: tuple[int, int], sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians of peak 1 at rounded keypoints `[K, 3]` (crop pixels), cut at three sigma; maps and weights `[K]`."""
    height, width = size[0] // STRIDE, size[1] // STRIDE
    maps = np.zeros((len(joints), height, width), np.float32)
    weights = (joints[:, 2] > 0).astype(np.float32)
    reach = int(sigma * 3)
    grid = np.arange(2 * reach + 1, dtype=np.float32)
    patch = np.exp(-((grid - reach) ** 2 + (grid[:, None] - reach) ** 2) / (2 * sigma**2))
    for k, (x, y, _) in enumerate(joints):
        cx, cy = int(x / STRIDE + 0.5), int(y / STRIDE + 0.5)
        left, top, right, bottom = cx - reach, cy - reach, cx + reach + 1, cy + reach + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weights[k] = 0
        if weights[k] == 0:
            continue
        x0, x1, y0, y1 = max(0, left), min(right, width), max(0, top), min(bottom, height)
        maps[k, y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return maps, weights


class Samples(Dataset[dict[str, Any]]):
    """One sample at a time, finished in the worker: image, heatmaps, weights."""

    def __init__(self, persons: CropDataset, spec: InputSpec, sigma: float) -> None:
        self.persons, self.spec, self.sigma = persons, spec, sigma

    def __getitem__(self, key: Key) -> dict[str, Any]:
        records, row = self.persons.source.records, key[1]
        image = self.persons.source.load_image(int(records.image_rows[row]))
        joints, draw = records.keypoints[row].copy(), self.persons.draw(key)
        if draw.flip:
            image = image[:, ::-1]
            joints[:, 0] = image.shape[1] - joints[:, 0] - 1
            joints = joints[list(records.skeleton.flip)]
            center = np.array([image.shape[1] - draw.center[0] - 1, draw.center[1]])
            draw = draw._replace(center=center)
        height, width = self.spec.size
        matrix = affine(draw, self.spec.size)
        crop = cv2.warpAffine(np.ascontiguousarray(image), matrix, (width, height), flags=cv2.INTER_LINEAR)
        for k in range(len(joints)):
            if joints[k, 2] > 0:
                joints[k, :2] = matrix @ np.array([joints[k, 0], joints[k, 1], 1.0])
        if self.spec.bgr:
            crop = crop[..., ::-1]
        picture = crop.astype(np.float32) / 255.0
        picture = (picture - np.array(self.spec.mean, np.float32)) / np.array(self.spec.std, np.float32)
        maps, weights = draw_heatmaps(joints, self.spec.size, self.sigma)
        return {
            "images": torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))),
            "heatmaps": torch.from_numpy(maps),
            "weights": torch.from_numpy(weights),
            "sample_ids": int(records.sample_ids[row]),
        }


def loader(samples: Samples, plan: BatchPlan, workers: int, pin_memory: bool) -> DataLoader[dict[str, Any]]:
    """Batches by torch's default collation."""
    return DataLoader(samples, batch_sampler=plan, num_workers=workers, pin_memory=pin_memory)


class JointsLoss(nn.Module):
    """Half the mean squared error, keypoint by keypoint, weighted."""

    def forward(self, output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """Of maps `[B, K, H, W]`, weights `[B, K]`."""
        batch, joints = output.shape[:2]
        predictions = output.reshape(batch, joints, -1).split(1, 1)
        truths = target.reshape(batch, joints, -1).split(1, 1)
        loss = output.new_zeros(())
        for k in range(joints):
            prediction, truth, weight = predictions[k].squeeze(1), truths[k].squeeze(1), weights[:, k, None]
            loss = loss + 0.5 * F.mse_loss(prediction * weight, truth * weight)
        return loss / joints


class EagerMapd(nn.Module):
    """MAPD's three terms of a batch, one operation after another; `posekd.distill.mapd` has the equations."""

    def __init__(self, method: MAPD) -> None:
        super().__init__()
        self.student, self.settings = method.student, method.settings
        assert method.teacher is not None
        self.teacher = [method.teacher.model]  # in a list, so that it is not a submodule
        self.mse = JointsLoss()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of a batch, as `MAPD` names them."""
        settings: MAPDSettings = self.settings
        student = self.student(batch["images"])
        with torch.no_grad():
            teacher = self.teacher[0](batch["images"])
        weights = batch["weights"]
        T = settings.temperature
        log_p = F.log_softmax(student.flatten(2) / T, dim=-1)
        log_q = F.log_softmax(teacher.flatten(2) / T, dim=-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1) * T**2
        return {
            "labels": (1 - settings.alpha - settings.beta) * self.mse(student, batch["heatmaps"], weights),
            "teacher_mse": settings.alpha * self.mse(student, teacher, weights),
            "teacher_kl": settings.beta * (weights * divergence).mean(),
        }


def step(method: EagerMapd, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], device: torch.device) -> float:
    """One step; the loss is read each time, as a progress meter does."""
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    loss = torch.stack(list(method(batch).values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
