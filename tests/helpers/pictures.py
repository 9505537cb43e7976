"""Small image files and videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth noise, uint8 RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_pictures(folder: Path, count: int, start: int = 0) -> list[Path]:
    """PNGs `000.png`, `001.png`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(start, start + count)]
    for seed, path in enumerate(paths):
        cv2.imwrite(str(path), cv2.cvtColor(picture(seed), cv2.COLOR_RGB2BGR))
    return paths


def write_video(path: Path, count: int, rate: float = 12.5) -> Path:
    """Frames of 64 x 48; Motion JPEG in an .avi, so that a shorter file is still a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (64, 48))
    assert writer.isOpened()
    for seed in range(count):
        writer.write(cv2.cvtColor(picture(seed), cv2.COLOR_RGB2BGR))
    writer.release()
    return path
