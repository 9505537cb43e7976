"""Label files with one thing wrong: whatever it is, training, evaluation and scoring succeed or say one sentence.

Fixed seeds: each number is a mutant, the same in every run. What is not a sentence (`posekd.cli._is_explained`) is a
defect, and fails here with its traceback.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers.coco_folder import HEIGHT, WIDTH, labels, person, write
from helpers.tiny_recipe import TINY_NET

from posekd.cli import _is_explained
from posekd.data import (
    CocoSettings,
    CropAugmentation,
    LoaderSettings,
    LspSettings,
    MpiiSettings,
    crop_loader,
    image_loader,
)
from posekd.engine.evaluate import score, score_file
from posekd.engine.recipes.datasets import DATASETS, open_dataset
from posekd.models import create_model, save_weights
from posekd.skeleton import CROWDPOSE
from posekd.structures import Instances
from posekd.whole_body import LISTS, PARTS

pytestmark = pytest.mark.filterwarnings("ignore")

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -7.25, 1.0, 7, 10**6, 10**9, 10**19, 10**400, 1e30, 1e39, 1e300, -1e300,
    float("nan"), float("inf"), "", "1", "0.9", "nan", "\u00e9\u4e2d", "../x", "a\0b", [], {}, [[]], [None], [1, 2],
    [0] * 51, [1e9] * 6, [float("nan")] * 4, {"size": [60, 80], "counts": [5, 10**9]}, {"counts": "~~~"},
    [[1e9, 0] * 4],
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of everything in nested groups and lists."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def mutant(good: Any, seed: int) -> Any:
    """A copy with one to three odd values, missing or doubled entries, or new keys."""
    rng = np.random.default_rng([seed, 7])
    content = copy.deepcopy(good)
    for _ in range(int(rng.integers(1, 3))):
        where = [path for path in places(content) if path]
        deepest = max(map(len, where), default=0)
        depth = int(rng.choice([*range(1, deepest + 1), *[max(1, deepest - 1), deepest] * 3])) if where else 0
        where = [path for path in where if len(path) == depth]  # short paths are few, and break everything
        if not where:
            return content
        path = where[int(rng.integers(len(where)))]
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        kind = int(rng.integers(6))
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif kind == 2 and isinstance(parent[path[-1]], (int, float)):
            parent[path[-1]] *= (-1, 1000, 0.001, 1e30)[int(rng.integers(4))]
        elif kind == 3:
            parent[path[-1]] = str(parent[path[-1]])
        else:
            parent[path[-1]] = copy.deepcopy(ODD[int(rng.integers(len(ODD)))])
    return content


def coco() -> dict:
    crowd = [10, 10, 60, 10, 60, 40, 10, 40]
    nobody = {"num_keypoints": 0, "keypoints": [0] * 51}
    return labels(
        [
            person(1, 1), person(2, 1), person(3, 2), person(4, 2, **nobody, iscrowd=1, segmentation=[crowd]),
            person(5, 3, **nobody, iscrowd=1, segmentation={"size": [60, 80], "counts": [100, 700, 4000]}),
        ]
    )  # fmt: skip


def crowdpose() -> dict:
    content = coco()
    names = list(CROWDPOSE.keypoints)
    content["categories"][0] |= {"keypoints": names, "skeleton": [[16, 14], [14, 12]]}
    for i, image in enumerate(content["images"]):
        image["crowdIndex"] = 0.1 + 0.4 * i
    for annotation in content["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][:42]
        annotation["num_keypoints"] = min(annotation["num_keypoints"], 14)
        del annotation["area"]
    return content


def whole_body() -> dict:
    """COCO's labels with the lists of COCO-WholeBody, every second list without labels."""
    content = coco()
    for annotation in content["annotations"]:
        for i, key in enumerate(sorted(PARTS)):
            count = LISTS[key].stop - LISTS[key].start
            annotation[key] = [30.0, 20.0, 2 * ((annotation["id"] + i) % 2)] * count
    return content


def explained(work: Callable[[], Any]) -> str | None:
    """One sentence, or None after success; anything else comes through."""
    try:
        work()
        return None
    except Exception as error:
        if not _is_explained(error) or not str(error).strip():
            raise
        return str(error)


def people_of(source: Any) -> Instances:
    """Whoever is in the dataset, found where the labels are."""
    records = source.records
    N, K = len(records), records.skeleton.num_keypoints
    points = torch.from_numpy(np.nan_to_num(records.keypoints, posinf=0, neginf=0)).reshape(N, K, 3)
    ones, images = torch.ones(N), torch.from_numpy(records.image_ids[records.image_rows])
    ids = torch.from_numpy(np.asarray(records.sample_ids, np.int64))
    return Instances(points, ones, torch.from_numpy(records.boxes), ones, ones, images, ids)


def train_and_evaluate(settings: Any) -> None:
    """Opens the data, packs a batch of crops (and whole images, which mask ignored regions), and scores its people.

    What opens must be scored: nothing may be refused after the work that could have been refused before.
    """
    loader = LoaderSettings(batch_size=1, workers=0)
    crops = open_dataset(settings, "labelled")
    batch = next(iter(crop_loader(crops, (32, 24), loader, training=True, augmentation=CropAugmentation())))
    assert batch.keypoints.isfinite().all()
    scored, _ = score(crops, people_of(crops), people_of(crops))
    for value in scored.values():
        assert all(isinstance(number, float) for number in value.numbers.values())
    if isinstance(settings, CocoSettings):
        whole = open_dataset(settings, "annotated")
        next(iter(image_loader(whole, (64, 64), loader, training=True)))


def survive(settings: Any, results: Path) -> tuple[str | None, str | None]:
    """What training with evaluation, and scoring of a file, say of a label file."""
    kind = next(d for d in DATASETS.values() if isinstance(settings, d.settings))
    said = explained(lambda: train_and_evaluate(settings)), explained(lambda: score_file(kind, settings, results))
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("fuzz")
    write(where, coco())
    for n in range(1, 2001):
        path = where / "lsp" / f"im{n:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if n == 1:
            cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        else:
            path.hardlink_to(where / "lsp" / "im0001.jpg")
    return where


def results_of(content: dict) -> list[dict]:
    keys = ("image_id", "category_id", "keypoints")
    return [{**{k: a[k] for k in keys}, "score": 0.5 + 0.1 * a["id"]} for a in content["annotations"]]


@pytest.mark.parametrize("make", [coco, crowdpose])
def test_good_files_are_good(folder, make):
    """Guard: the mutants' parent is read, packed and scored."""
    (folder / "good.json").write_text(json.dumps(make()))
    (folder / "r.json").write_text(json.dumps(results_of(make())))
    settings = CocoSettings(str(folder / "images"), str(folder / "good.json"))
    assert survive(settings, folder / "r.json") == (None, None)


@pytest.mark.parametrize("make", [coco, crowdpose])
def test_coco_and_crowdpose_labels_and_results(folder, make):
    """1000 label files each, and 100 result files each. Some are still good, and are taken."""
    good, taken, file, results = make(), 0, folder / "labels.json", folder / "r.json"
    results.write_text(json.dumps(results_of(good)))
    settings = CocoSettings(str(folder / "images"), str(file))
    for seed in range(1000):
        file.write_text(json.dumps(mutant(good, seed)))
        training, scoring = survive(settings, results)
        taken += training is None
        if training is None:
            assert scoring is None or "results" in scoring or "r.json" in scoring, (seed, scoring)
    assert 60 < taken < 600
    file.write_text(json.dumps(good))
    for seed in range(100):
        results.write_text(json.dumps(mutant(results_of(good), seed)))
        explained(lambda: score_file(DATASETS["coco"], settings, results))
        explained(lambda: open_dataset(replace(settings, detections=str(results))))


def test_whole_body_labels_and_results(folder):
    """100 label files and 50 result files in five lists."""
    good, taken, file, results = whole_body(), 0, folder / "labels.json", folder / "r.json"
    lists = [
        {**result, **{key: a[key] for key in PARTS}}
        for result, a in zip(results_of(good), good["annotations"], strict=True)
    ]
    results.write_text(json.dumps(lists))
    settings = CocoSettings(str(folder / "images"), str(file), whole_body=True)
    for seed in range(100):
        file.write_text(json.dumps(mutant(good, seed)))
        training, _ = survive(settings, results)
        taken += training is None
    assert 5 < taken < 90
    file.write_text(json.dumps(good))
    for seed in range(50):
        results.write_text(json.dumps(mutant(lists, seed)))
        explained(lambda: score_file(DATASETS["coco"], settings, results))


def mpii() -> list[dict]:
    joints = [[20.0 + i, 10.0 + 2 * i] for i in range(16)]
    entry = {"image": "1.png", "center": [40.0, 30.0], "scale": 0.2, "joints": joints, "joints_vis": [1] * 16}
    return [entry, {**entry, "image": "2.png"}]


def test_mpii_labels(folder):
    """300 files in HRNet's form."""
    file, results = folder / "mpii.json", folder / "preds.json"
    points = [v for x, y in mpii()[0]["joints"] for v in (x, y, 1)]
    results.write_text(json.dumps([{"sample_id": i, "keypoints": points} for i in (0, 1)]))
    taken = 0
    for seed in range(300):
        file.write_text(json.dumps(mutant(mpii(), seed)))
        training, _ = survive(MpiiSettings(str(folder / "images"), str(file)), results)
        taken += training is None
    assert 40 < taken < 200


def test_lsp_labels(folder):
    """40 `joints.mat`: odd values, shapes, types."""
    io = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(0)
    good = np.concatenate((rng.uniform(5, 55, (2, 14, 2000)), np.zeros((1, 14, 2000))))
    file, results, taken = folder / "joints.mat", folder / "lsp.json", 0
    results.write_text(json.dumps([{"sample_id": 1001, "keypoints": [1, 2, 1] * 14}]))
    settings = LspSettings(str(folder / "lsp"), str(file), "train", image_ids=[1, 2, 3, 4])
    odd = (np.nan, np.inf, -1.0, 1e39, 1e300, 0.5, 2.0, 1.0)
    for seed in range(40):
        draw, joints = np.random.default_rng([seed, 3]), good.copy()
        joints[int(draw.integers(3)), int(draw.integers(14)), int(draw.integers(4))] = odd[seed % len(odd)]
        shape = (joints, joints[:2], joints[..., :9], joints.transpose(1, 0, 2), joints.astype(str), joints)[seed % 6]
        io.savemat(file, {("joints", "points")[seed == 11]: shape})
        training, _ = survive(settings, results)
        taken += training is None
    assert 5 < taken < 35


RECIPE = {
    "student": {"name": "elpn_v1", "overrides": TINY_NET},
    "method": {"name": "supervised"},
    "loader": {"batch_size": 1, "workers": 0},
    "train": {"epochs": 1},
    "inference": {"flip_test": False},
    "acknowledged": ["shared_images"],  # one file is learnt from and validated on
}


def words_of(what: str, where: Path, folder: Path) -> list[str]:
    """The command for a folder that holds `labels.json` and, where they are needed, `r.json` and `net.safetensors`."""
    images, file = str(folder / "images"), str(where / "labels.json")
    if what == "score":
        return ["eval", "--score-only", str(where / "r.json"), "--annotations", file]
    if what == "train":
        data = {"name": "coco", "images": images, "annotations": file}
        recipe = {**RECIPE, "train_data": data, "val_data": data, "out": str(where / "run")}
        (where / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
        return ["train", str(where / "recipe.yaml")]
    data = ["--images", images, "--annotations", file, "--dataset", "mpii" if what == "mpii" else "coco"]
    return ["eval", str(folder / f"{what}.safetensors"), *data, "--workers", "0", "--no-flip"]


PROCESSES = [
    ("train", coco, 7), ("train", coco, 17), ("eval", coco, 14), ("eval", coco, 3), ("mpii", mpii, 3),
    ("mpii", mpii, 4),
    ("score", coco, 19), ("score", coco, 22), ("score", crowdpose, 7), ("score", crowdpose, 3),
]  # fmt: skip
"""What is run, on which kind of label file, and the number of its mutant."""


@pytest.mark.slow
def test_ten_through_the_command_line(folder, tmp_path):
    """`python -m posekd`, as a user calls it: exit 0 or 2, at most one line of explanation, no traceback."""
    for name, K in (("eval", 17), ("mpii", 16)):
        save_weights(create_model("elpn_v1", K, **TINY_NET), folder / f"{name}.safetensors")

    def run(n: int) -> subprocess.CompletedProcess[str]:
        (what, make, seed), where = PROCESSES[n], tmp_path / str(n)
        where.mkdir()
        (where / "labels.json").write_text(json.dumps(mutant(make(), seed)))
        if what == "score":
            (where / "r.json").write_text(json.dumps(results_of(make())))
        command = [sys.executable, "-m", "posekd", *words_of(what, where, folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=where)

    with ThreadPoolExecutor(2) as pool:  # they mostly import
        done = list(pool.map(run, range(len(PROCESSES))))
    codes: Counter[tuple[str, int]] = Counter()
    for (what, _, seed), process in zip(PROCESSES, done, strict=True):
        lines = [line for line in process.stderr.splitlines() if line.startswith("posekd: ")]
        said = [line for line in lines if not line.startswith(("posekd: warning: ", "posekd: note: "))]
        assert process.returncode in (0, 2), (what, seed, process.stderr)
        assert "Traceback" not in process.stderr, (what, seed, process.stderr)
        assert len(said) == (process.returncode == 2), (what, seed, process.stderr)
        codes[what, process.returncode] += 1
    assert codes.keys() == {(what, code) for what in ("score", "train", "eval", "mpii") for code in (0, 2)}, codes
