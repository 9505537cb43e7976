"""Synthetic people, part 3: what is around them. Textured backgrounds, clutter, occluders, light and noise."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from posekd.data.synthetic.paint import OCCLUDER

_BANK_SEED = 20190415  # the textures are the same for every dataset; which pieces of them are drawn differs
_BANK_SIZE = 512


def _clouds(rng: np.random.Generator, roughness: float, channels: int) -> np.ndarray:
    """Fractal noise, float32 `[512, 512, channels]` with mean 0 and deviation 1."""
    total = np.zeros((_BANK_SIZE, _BANK_SIZE, channels), np.float32)
    for octave in range(2, 9):
        cells = rng.standard_normal((2**octave, 2**octave, channels)).astype(np.float32)
        grown = cv2.resize(cells, (_BANK_SIZE, _BANK_SIZE), interpolation=cv2.INTER_CUBIC)
        total += roughness**octave * grown.reshape(total.shape)
    return (total - total.mean((0, 1))) / total.std((0, 1))


def _tiles(rng: np.random.Generator) -> np.ndarray:
    """Bricks, boards or tiles: flat cells of varying grey between dark seams, float32 `[512, 512]`."""
    cell_w, cell_h = int(rng.integers(14, 70)), int(rng.integers(10, 50))
    wall = np.zeros((_BANK_SIZE, _BANK_SIZE), np.float32)
    for row, y in enumerate(range(0, _BANK_SIZE, cell_h)):
        for x in range(-(row % 2) * cell_w // 2, _BANK_SIZE, cell_w):
            wall[y : y + cell_h - 2, max(x, 0) : max(x + cell_w - 2, 0)] = rng.uniform(0.2, 1.2)
    return wall


def _foliage(rng: np.random.Generator) -> np.ndarray:
    """Overlapping leaves, uint8 `[512, 512, 3]`."""
    leaves = np.zeros((_BANK_SIZE, _BANK_SIZE, 3), np.uint8)
    base = rng.uniform(40, 170, 3)
    for _ in range(1500):
        center, axes = rng.integers(0, _BANK_SIZE, 2).tolist(), rng.integers(3, 16, 2).tolist()
        colour = (base * rng.uniform(0.4, 1.4)).clip(0, 255).tolist()
        cv2.ellipse(leaves, center, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
    return leaves


@cache
def texture_bank() -> tuple[np.ndarray, ...]:
    """Textures, uint8 `[512, 512, 3]` each; made once per process."""
    rng = np.random.default_rng(_BANK_SEED)
    bank = []
    for i in range(18):
        base = rng.uniform(50, 205, 3)
        if i % 3 == 0:
            texture = base + 34 * _clouds(rng, rng.uniform(0.45, 0.85), 3)
        elif i % 3 == 1:
            texture = base * (0.45 + 0.5 * _tiles(rng)[..., None]) + 7 * _clouds(rng, 0.9, 1)
        else:
            texture = _foliage(rng) + 8 * _clouds(rng, 0.9, 1)
        # Backgrounds are greyer than clothes.
        texture = texture.mean(-1, keepdims=True) + 0.5 * (texture - texture.mean(-1, keepdims=True))
        bank.append(texture.clip(0, 255).astype(np.uint8))
    return tuple(bank)


@cache
def _noise_bank() -> np.ndarray:
    """Grain, int16 `[512, 512, 3]`, deviation 16."""
    rng = np.random.default_rng(_BANK_SEED + 1)
    return (16 * rng.standard_normal((_BANK_SIZE, _BANK_SIZE, 3))).clip(-60, 60).astype(np.int16)


@cache
def _light_bank(height: int, width: int) -> np.ndarray:
    """Smooth light fields, uint8 `[12, H, W, 3]`, 128 for unchanged."""
    rng = np.random.default_rng(_BANK_SEED + 2)
    fields = rng.uniform(80, 165, (12, 3, 3, 1)) + rng.normal(0, 6, (12, 3, 3, 3))
    return (
        np.stack([cv2.resize(f.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC) for f in fields])
        .clip(40, 215)
        .astype(np.uint8)
    )


def _patch(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random cut of a random texture, uint8 `[height, width, 3]`, channels and brightness changed."""
    bank = texture_bank()
    texture = bank[int(rng.integers(len(bank)))]
    if height > _BANK_SIZE or width > _BANK_SIZE:
        texture = cv2.resize(texture, (max(width, _BANK_SIZE), max(height, _BANK_SIZE)))
    y = int(rng.integers(texture.shape[0] - height + 1))
    x = int(rng.integers(texture.shape[1] - width + 1))
    cut = texture[y : y + height, x : x + width, :: rng.choice((-1, 1))]
    return cv2.convertScaleAbs(cut, alpha=rng.uniform(0.55, 1.15), beta=rng.uniform(-20, 50))


def paint_background(rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> np.ndarray:
    """Wall and floor with clutter, uint8 `[H, W, 4]`; the last channel, the label, is 0."""
    height, width = size
    canvas = np.zeros((height, width, 4), np.uint8)
    canvas[..., :3] = _patch(rng, height, width)
    if rng.random() < 0.6:
        horizon = int(height * rng.uniform(0.35, 0.85))
        canvas[horizon:, :, :3] = _patch(rng, height - horizon, width)
    for _ in range(rng.poisson(1 + 4 * difficulty)):
        h, w = int(height * rng.uniform(0.08, 0.5)), int(width * rng.uniform(0.05, 0.35))
        y, x = int(rng.integers(height - h)), int(rng.integers(width - w))
        canvas[y : y + h, x : x + w, :3] = _patch(rng, h, w)
    for _ in range(rng.poisson(10 * difficulty)):
        _distract(canvas, rng)
    return canvas


def _distract(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Something like a limb or a head that belongs to no person."""
    height, width = canvas.shape[:2]
    colour = [*(rng.uniform(20, 235) + rng.normal(0, 35, 3)).clip(0, 255).tolist(), 0]
    at = rng.uniform(0, 1, 2) * (width, height)
    if rng.random() < 0.25:
        axes = (height * rng.uniform(0.015, 0.06, 2)).astype(int).tolist()
        cv2.ellipse(canvas, at.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
        return
    thick = max(2, int(height * rng.uniform(0.012, 0.05)))
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(1, 3))):  # one segment, or two that meet as at a knee
        to = at + height * rng.uniform(0.08, 0.25) * np.array((np.cos(angle), np.sin(angle)))
        cv2.line(canvas, at.astype(int).tolist(), to.astype(int).tolist(), colour, thick)
        at, angle = to, angle + rng.normal(0, 0.8)


def paint_occluders(canvas: np.ndarray, rng: np.random.Generator, points: np.ndarray, difficulty: float) -> None:
    """Covers a piece of some people with a post, a box or a plant, labelled `OCCLUDER`.

    Args:
        canvas: uint8 `[H, W, 4]`, changed in place.
        rng: consumed in a fixed order.
        points: `[P, 17, 2]`, keypoints to hide.
        difficulty: 0..1, how often people are covered.
    """
    height, width = canvas.shape[:2]
    for person in points:
        if rng.random() > 0.05 + 0.4 * difficulty:
            continue
        extent = max(float(np.ptp(person[:, 1])), 8.0)
        x, y = person[rng.integers(len(person))] + rng.normal(0, 0.04 * extent, 2)
        half_w, half_h = extent * rng.uniform(0.05, 0.14, 2)
        if rng.random() < 0.35:  # a post stands on the floor
            half_w, top, bottom = 0.6 * half_w, y - extent * rng.uniform(0.1, 0.6), height
        else:
            top, bottom = y - half_h, y + half_h
        x0, x1 = (int(np.clip(v, 0, width)) for v in (x - half_w, x + half_w))
        y0, y1 = (int(np.clip(v, 0, height)) for v in (top, bottom))
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue
        block = canvas[y0:y1, x0:x1]
        cover = np.concatenate((_patch(rng, y1 - y0, x1 - x0), np.full((y1 - y0, x1 - x0, 1), OCCLUDER, np.uint8)), 2)
        shape = np.zeros((y1 - y0, x1 - x0), np.uint8)
        if rng.random() < 0.5:
            cv2.ellipse(shape, ((x1 - x0) // 2, (y1 - y0) // 2), ((x1 - x0) // 2, (y1 - y0) // 2), 0, 0, 360, 1, -1)
        else:
            shape[:] = 1
        cv2.copyTo(cover, shape, block)


def develop(canvas: np.ndarray, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Makes the image look like a photograph: uneven light, softened, with grain. uint8 RGB `[H, W, 3]`."""
    height, width = canvas.shape[:2]
    image = np.ascontiguousarray(canvas[..., :3])
    field = _light_bank(height, width)[int(rng.integers(12))]
    image = cv2.multiply(image, field, scale=rng.uniform(0.85, 1.15) / 128)
    softness = rng.random()
    if softness < 0.1 + 0.5 * difficulty:
        image = cv2.GaussianBlur(image, (3, 3), 0.6 + softness)
    grain = _noise_bank()
    if height > _BANK_SIZE or width > _BANK_SIZE:
        grain = np.tile(grain, (-(-height // _BANK_SIZE), -(-width // _BANK_SIZE), 1))
    y = int(rng.integers(grain.shape[0] - height + 1))
    x = int(rng.integers(grain.shape[1] - width + 1))
    strength = rng.uniform(0.1, 0.3 + 0.9 * difficulty)
    return cv2.addWeighted(image, 1.0, grain[y : y + height, x : x + width], strength, 0.0, dtype=cv2.CV_8U)
