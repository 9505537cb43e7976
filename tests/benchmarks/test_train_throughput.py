"""The throughput benchmark: its baseline computes the same losses, and its figures add up."""

import dataclasses
import importlib
import json

import pytest
import torch
from helpers.threads import threads
from helpers.tiny_pose import SPEC, TinyPose, random_batch

from posekd.cli import bench, main
from posekd.data import CocoKeypoints, CropAugmentation, LoaderSettings, crop_loader
from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.distill import MAPD, FrozenTeacher
from posekd.geometry import to_heatmap
from posekd.inputs import prepare_crops
from posekd.ops import render_heatmaps
from posekd.structures import InputSpec

BENCHMARKS = next(iter(bench.benchmarks().values())).rsplit(".", 2)[
    0
]  # of the installed package, or of the source tree
train_loop = importlib.import_module(f"{BENCHMARKS}.baselines.train_loop")

SIZE = (128, 96)
TINY = "{size: [64, 64], width: 8, modules: [1], blocks: 1, stem_width: 8, stage1_width: 4, stage1_blocks: 1}"


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


def test_the_baselines_losses_are_the_fused_ones_on_the_same_tensors():
    method = MAPD(TinyPose(), FrozenTeacher(TinyPose(seed=1)))
    batch = random_batch(5, seed=3)
    joints = to_heatmap(batch.keypoints)
    maps, weights = render_heatmaps(joints, (SPEC.size[0] // 4, SPEC.size[1] // 4), method.settings.sigma, "msra")
    plain = {"images": batch.images, "heatmaps": maps, "weights": weights}
    eager, fused = train_loop.EagerMapd(method)(plain), method(batch)
    for term, value in fused.items():
        torch.testing.assert_close(eager[term], value, rtol=1e-5, atol=1e-9)


@pytest.fixture
def loader(tmp_path):
    people = write_coco(tmp_path, 6, settings=SyntheticSettings(size=(240, 320)))
    settings = LoaderSettings(batch_size=8, workers=0)
    augmentation = CropAugmentation(rotation=30.0, scale=0.25, half_body=0.3)
    return crop_loader(CocoKeypoints(people), SIZE, settings, training=True, augmentation=augmentation)


@pytest.mark.parametrize("bgr", [False, True])
def test_the_baselines_batches_and_losses_are_ours_on_the_same_persons(loader, bgr):
    """From the JPEG on, with rotation, zoom and mirrors. OpenCV interpolates in steps of 1/32 pixel, hence 1 %."""
    spec = InputSpec(size=SIZE, bgr=bgr, mean=(0.4, 0.45, 0.5))
    packed = next(loader.epoch(2))
    assert packed.flips.any()
    assert not packed.flips.all()
    ours = prepare_crops(packed, spec, loader.dataset.source.records.skeleton.flip)
    samples = train_loop.Samples(loader.dataset, spec, sigma=1.0)
    theirs = torch.utils.data.default_collate([samples[key] for key in loader.plan.batch(2, 0)])
    assert theirs["sample_ids"].tolist() == ours.sample_ids.tolist()
    assert (theirs["images"] - ours.images).abs().mean() < 0.01
    maps, weights = render_heatmaps(to_heatmap(ours.keypoints), (32, 24), 1.0, "msra")
    assert torch.equal(theirs["weights"], weights)
    differing = (theirs["heatmaps"] - maps).abs().amax((-2, -1)) > 1e-5
    assert differing.float().mean() < 0.02, "a keypoint exactly between two pixels may be rounded to either"
    method = MAPD(TinyPose(spec, keypoints=17), FrozenTeacher(TinyPose(spec, seed=1, keypoints=17)))
    method.settings = dataclasses.replace(method.settings, sigma=1.0)
    eager, fused = train_loop.EagerMapd(method)(theirs), method(ours)
    for term, value in fused.items():
        assert eager[term].item() == pytest.approx(value.item(), rel=1e-2), term


def test_the_command_measures_every_loop_and_part(tmp_path, capsys):
    overrides = ["--student.overrides", TINY, "--teacher.overrides", TINY, "--loader.batch_size", "8"]
    words = [
        "--synthetic",
        "12",
        "--steps",
        "2",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "out.jsonl"),
    ]
    assert main(["bench", "train", "mapd/quickstart", *words, *overrides, "--train.accumulate", "2"]) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "out.jsonl").read_text())
    assert set(result["loops"]) == {"real", "preloaded", "baseline"}
    for row in result["loops"].values():
        low, high = row["samples_per_s_extremes"]
        assert 0 < low <= row["samples_per_s"] <= high
        assert 0 <= row["data_wait"] < 1
    assert set(result["step_ms"]) == {"transfer", "crop", "teacher", "student", "loss", "backward", "optimizer"}
    assert all(ms > 0 for ms in result["step_ms"].values())
    assert 0 < result["worker"]["decode_ms"] < result["worker"]["all_ms"] * 1.5
    assert result["memory_mib"]["host_peak"] > 100
    assert "x the baseline" in out
    assert "the device idle between them" in out


def test_a_recipe_without_a_teacher_has_no_baseline(tmp_path, capsys):
    words = ["--synthetic", "6", "--steps", "1", "--rounds", "1", "--student.overrides", TINY]
    words += ["--loader.batch_size", "4", "--data", str(tmp_path)]
    assert main(["bench", "train", "supervised/quickstart", *words]) == 0
    out, err = capsys.readouterr()
    assert "no teacher" in out
    assert "baseline" not in out
    assert "drawing 6 images" in err
    assert "round 1 of 1: real" in err
    drawn = (tmp_path / "annotations" / "person_keypoints_train.json").stat().st_mtime_ns
    words[words.index("--rounds") + 1] = "1000"
    words += ["--minutes", "0.02", "--train.graph", "true"]  # a hundred thousandth of what that takes
    assert main(["bench", "train", "supervised/quickstart", *words]) == 0
    out, err = capsys.readouterr()
    assert "drawing" not in err
    assert "no time for round" in err
    assert (tmp_path / "annotations" / "person_keypoints_train.json").stat().st_mtime_ns == drawn
    words[words.index("--synthetic") + 1] = "7"
    assert main(["bench", "train", "supervised/quickstart", *words]) != 0
    assert "has 6 images, not 7" in capsys.readouterr().err


@pytest.mark.slow
def test_the_teacher_cache_program_runs_resumes_and_compares(tmp_path, capsys, monkeypatch):
    """Tiny, one seed: the numbers mean nothing, the program is whole; started again it trains nothing anew."""
    teacher_cache = importlib.import_module(f"{BENCHMARKS}.experiments.teacher_cache")
    from posekd.engine.training import loop

    tiny = ["--student.overrides", TINY, "--train_data.images", "12", "--val_data.images", "4"]
    tiny += ["--train.epochs", "1", "--train.validate_every", "1", "--loader.batch_size", "8"]
    original = teacher_cache.read_recipe
    shrink = ["--teacher.overrides", TINY]
    monkeypatch.setattr(
        teacher_cache,
        "read_recipe",
        lambda name, words: original(name, [*words, *(shrink if name == teacher_cache.STUDENT else [])]),
    )
    words = ["--out", str(tmp_path), "--seeds", "0", "--threads", "1", "--rounds", "1", "--steps", "1", *tiny]
    assert teacher_cache.main(words) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    row = results["seeds"][0]
    assert set(row["AP"]) == {"teacher", "live", "cache"}
    assert row["cache"]["bytes_per_person"] > 0
    assert "a step from the cache is" in capsys.readouterr().out
    steps = []
    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *args: steps.append(1) or real(*args))
    assert teacher_cache.main(words) == 0
    assert not steps
    assert json.loads((tmp_path / "results.json").read_text())["seeds"][0]["AP"] == row["AP"]
