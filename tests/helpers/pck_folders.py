"""Small MPII and LSP folders in the formats of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.io import savemat

from posekd.data import LspSettings, MpiiSettings
from posekd.data.sources.matlab import struct_array
from posekd.skeleton import LSP, MPII

WIDTH, HEIGHT = 320, 240


def picture(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), channels: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (*size, channels), dtype=np.uint8)
    assert cv2.imwrite(str(path), noise[..., 0] if channels == 1 else noise)


def figure(K: int, seed: int, center: tuple[float, float] = (160.0, 120.0), spread: float = 60.0) -> np.ndarray:
    """K keypoints about a centre, whole pixels, counting from 0."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(-spread, spread, (K, 2)) + center).round()


def hrnet_person(image: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    joints = figure(MPII.num_keypoints, seed) + 1  # the files count from 1
    person = {"image": image, "center": [161.0, 121.0], "scale": 0.8, "joints": joints.tolist(), "joints_vis": [1] * 16}
    return {**person, **changes}


def mpii_folder(folder: Path, people: list[dict[str, Any]], **settings: Any) -> MpiiSettings:
    """HRNet's format, with an image for each name."""
    for person in people:
        picture(folder / "images" / str(person.get("image", "none.jpg")))
    (folder / "labels.json").write_text(json.dumps(people))
    return MpiiSettings(**{"images": str(folder / "images"), "annotations": str(folder / "labels.json"), **settings})


def head_boxes(path: Path, people: list[dict[str, Any]], boxes: list[list[float]]) -> str:
    """HRNet's `gt_valid.mat` for these people; boxes are (x1, y1, x2, y2)."""
    joints, vis = np.array([p["joints"] for p in people]), np.array([p["joints_vis"] for p in people])
    savemat(
        path,
        {
            "pos_gt_src": joints.transpose(1, 2, 0),
            "jnt_missing": 1 - vis.T,
            "headboxes_src": np.array(boxes, float).reshape(-1, 2, 2).transpose(1, 2, 0),
        },
    )
    return str(path)


def rect(seed: int = 0, *, labelled: bool = True, head: bool = True, **changes: Any) -> dict[str, Any]:
    """One `annorect` of the official struct. As there, fields may hold nothing, and neck and head top no flag."""
    nothing = np.zeros((0, 0))
    box = {"x1": 10, "y1": 20, "x2": 40, "y2": 60}
    points = [
        {"x": x, "y": y, "id": k, "is_visible": nothing if k in (8, 9) else ("0" if k == 3 else 1)}
        for k, (x, y) in enumerate((figure(16, seed) + 1).tolist())
        if k != 5
    ]
    return {
        **(box if head else dict.fromkeys(box, nothing)),
        "annopoints": {"point": struct_array(points)} if labelled else nothing,
        "scale": 0.8,
        "objpos": {"x": 161, "y": 121},
        **changes,
    }  # fmt: skip


def release(path: Path, images: list[tuple[str, bool, list[dict[str, Any]], list[int]]], without: str = "") -> str:
    """The official file: (name, training, people, 1-based single people) for each image."""
    annolist = [
        {"image": {"name": name}, "annorect": struct_array(rects) if rects else np.zeros((0, 0))}
        for name, _, rects, _ in images
    ]
    single = np.empty((len(images), 1), object)
    for i, (_, _, _, alone) in enumerate(images):
        single[i, 0] = np.array(alone, np.uint8).reshape(-1, 1)
    struct = {
        "annolist": struct_array(annolist),
        "img_train": np.array([[train for _, train, _, _ in images]], np.uint8),
        "single_person": single,
    }
    savemat(path, {"RELEASE": {name: value for name, value in struct.items() if name != without}})
    return str(path)


def lsp_folder(folder: Path, numbers: range = range(1, 2001), **settings: Any) -> tuple[LspSettings, np.ndarray]:
    """LSP's `joints.mat` of 2000 people, and images for some; keypoints `[2000, 14, 2]`."""
    joints = np.stack([figure(LSP.num_keypoints, n, (50.0, 60.0), 30.0) for n in range(1, 2001)]) + 0.25
    occluded = np.zeros((2000, 14))
    occluded[:, 3] = 1
    savemat(folder / "joints.mat", {"joints": np.dstack((joints, occluded)).transpose(2, 1, 0)})
    for n in numbers:
        picture(folder / "images" / f"im{n:04d}.jpg", (120, 100))
    common = {"images": str(folder / "images"), "annotations": str(folder / "joints.mat"), "split": "train"}
    return LspSettings(**{**common, **settings}), joints


def lspet_folder(folder: Path, count: int) -> tuple[str, str]:
    """LSP Extended's layout: image folder and `joints.mat` of `count` people whose left ankle has no label."""
    folder.mkdir(parents=True, exist_ok=True)
    joints = np.stack([figure(LSP.num_keypoints, 5000 + n, (150.0, 100.0), 40.0) for n in range(count)])
    visible = np.ones((count, 14))
    visible[:, 5] = 0
    joints[:, 5] = 0, -26.1
    savemat(folder / "joints.mat", {"joints": np.dstack((joints, visible)).transpose(1, 2, 0)})
    for n in range(1, count + 1):
        picture(folder / "images" / f"im{n:05d}.jpg")
    return str(folder / "images"), str(folder / "joints.mat")
