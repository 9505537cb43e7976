"""Two processes under torchrun (gloo, CPU) against one process that sees the same micro-batches."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import killing, ranks
from helpers.threads import threads
from helpers.tiny_pose import TinyPose
from helpers.tiny_recipe import TINY_BOTTOM_UP, TINY_NET

import posekd
from posekd.cli import main
from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.engine import distributed
from posekd.engine.build import pick_device
from posekd.engine.progress import read_log
from posekd.engine.training import checkpoint
from posekd.engine.training.loop import fit
from posekd.models import create_model, save_weights

TESTS = Path(ranks.__file__).parents[1]
PATHS = os.pathsep.join(map(str, (Path(posekd.__file__).parents[1], TESTS)))


@pytest.fixture(autouse=True)
def one_thread():
    """As each rank has: another number of threads adds up in another order."""
    with threads(1):
        yield


def torchrun(*words, processes=2):
    """`torchrun` on this machine, at a free port."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
    )


def in_two_processes(kind, folder):
    """What each rank of `ranks.py KIND` has found."""
    done = torchrun(ranks.__file__, kind, str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def distance(weights, others):
    return max(float((torch.tensor(weights[k]) - torch.tensor(others[k])).abs().max()) for k in weights)


@pytest.mark.parametrize("kind", ["train", "nobody"])
def test_two_processes_equal_one_with_two_accumulated_micro_batches(tmp_path, quick, kind):
    """ "nobody": rank 1's batches never show a labelled keypoint; it neither hangs nor fails, and counts as such."""
    first, second = in_two_processes(kind, tmp_path)
    job = ranks.job_for(tmp_path / "one", kind, accumulate=2)
    fit(job)
    one = {k: v.tolist() for k, v in job.learner.method.state_dict().items()}
    assert first["step"] == job.learner.step == 8
    assert distance(first["weights"], second["weights"]) == 0
    assert distance(first["weights"], one) < 1e-6
    start = {k: v.tolist() for k, v in ranks.job_for(tmp_path, kind).learner.method.state_dict().items()}
    moved = distance(first["weights"], start)
    assert moved > 1e-2, "guard: there was something to learn"
    losses = [
        [r["loss"] for r in read_log(folder / "log.jsonl") if r["kind"] == "train"]
        for folder in (tmp_path / "run", tmp_path / "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6), "the log shows the mean over the processes"
    assert first["written"] == ["best.safetensors", "last.safetensors"]
    assert second["written"] == []
    assert not (tmp_path / "other").exists(), "only rank 0 writes"
    assert first["scores"] == second["scores"]
    assert len(checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")) == 2


def test_a_nan_on_one_rank_stops_both_at_the_same_step_and_names_its_sample(tmp_path):
    first, second = in_two_processes("poison", tmp_path)
    assert first["step"] == second["step"] == 1
    assert first["message"] == second["message"].replace(str(tmp_path / "other"), str(tmp_path / "run"))
    assert "step 1: the loss term" in first["message"]
    assert "because of the annotations 131" in first["message"], "row 1 of the fourth micro-batch, of rank 1"
    assert (tmp_path / "run" / "checkpoints" / "nonfinite_000000001.safetensors").is_file()


def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_both_go_on(tmp_path, quick):
    first, second = in_two_processes("stop", tmp_path)
    assert first["message"] == second["message"]
    assert "stopped after step 3" in first["message"]
    assert first["weights"] == second["weights"]
    job = ranks.job_for(tmp_path / "one", "train", accumulate=2)
    fit(job)
    assert first["step"] == job.learner.step
    one = {k: v.tolist() for k, v in job.learner.method.state_dict().items()}
    assert distance(first["weights"], one) < 1e-6, "of the uninterrupted run"


def test_evaluation_is_sharded_and_gathered_without_duplicates(tmp_path):
    """Seven persons in batches of two: the second rank has fewer. The annotation ids are in no order."""
    first, second = in_two_processes("evaluate", tmp_path)
    assert first == second
    assert first["persons"] == 7
    assert first == json.loads(json.dumps(ranks.evaluate_people()))


def eval_commands(folder, out):
    """Words of `posekd eval` for a top-down network by AP, a bottom-up one, and one by PCK, that write into `out`."""
    pytest.importorskip("scipy")
    from helpers.pck_folders import head_boxes, hrnet_person, mpii_folder

    top, bottom = create_model("elpn_v1", **TINY_NET), create_model("higherhrnet_w32", **TINY_BOTTOM_UP)
    torch.nn.init.normal_(top.final_layer.weight)  # untrained maps are all but flat
    save_weights(top, folder / "top.safetensors")
    save_weights(bottom, folder / "bottom.safetensors")
    save_weights(create_model("elpn_v1", 16, **TINY_NET), folder / "mpii.safetensors")
    coco = write_coco(folder, 5, settings=SyntheticSettings(split="val", size=(96, 128), people=(1, 2)))
    people = [hrnet_person(f"{i}.png", i) for i in range(5)]
    mpii = mpii_folder(folder / "mpii", people)
    heads = head_boxes(folder / "mpii" / "gt.mat", people, [[0, 0, 30, 40]] * 5)
    both = ["--images", coco.images, "--annotations", coco.annotations]
    pck = ["--dataset", "mpii", "--images", mpii.images, "--annotations", mpii.annotations, "--head-boxes", heads]
    data = {
        "top": [*both, "--batch-size", "2"],
        "bottom": [*both, "--batch-size", "2", "--max-people", "5"],
        "mpii": [*pck, "--batch-size", "8"],  # all of them in one batch: the other process has none
    }
    out.mkdir()
    files = ("--results", "results.json"), ("--report", "report.json")
    return [
        ["eval", str(folder / f"{name}.safetensors"), *words, "--workers", "0", "--device", "cpu", "--no-flip",
         *[word for flag, file in files for word in (flag, str(out / f"{name}_{file}"))]]
        for name, words in data.items()
    ]  # fmt: skip


def test_the_eval_command_is_sharded_and_only_one_process_speaks(tmp_path):
    one = eval_commands(tmp_path, tmp_path / "one")
    two = [[word.replace(str(tmp_path / "one"), str(tmp_path / "two")) for word in words] for words in one]
    (tmp_path / "two").mkdir()
    (tmp_path / "commands.json").write_text(json.dumps(two))
    first, second = in_two_processes("commands", tmp_path)
    assert [found["printed"] for found in second] == [""] * 3
    counts = [re.search(r"(\d+) (?:crops|images) in", found["printed"])[1] for found in first]
    assert counts == ["8", "5", "5"]
    assert [[found["rows"] for found in rank] for rank in (first, second)] == [[4, 3, 5], [4, 2, 0]]
    with contextlib.redirect_stdout(io.StringIO()):
        for words in one:
            assert main(words) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 6
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir()), "no file of a second process"
    for name in names:
        assert json.loads((tmp_path / "one" / name).read_text()) == json.loads((tmp_path / "two" / name).read_text())


@pytest.mark.slow
def test_simple_in_two_processes_one_of_which_sees_nobody(tmp_path):
    """Idle adapters in the first stage, and a rank that finds no box in the second, neither hang nor fail."""
    first, second = in_two_processes("simple", tmp_path)
    assert first["mimicked"][0] == second["mimicked"][0] == -1.0
    assert first["mimicked"][1] > 0 == second["mimicked"][1]
    assert first["moved"] > 0
    assert distance(first["weights"], second["weights"]) == 0


def test_a_teacher_spread_over_processes_says_the_same(tmp_path):
    """FSDP2: each process keeps half of the parameters between two questions, and a loss has its gradient."""
    for found in in_two_processes("shard", tmp_path):
        assert found["local"] <= 0.6 * found["all"]
        assert found["error"] == 0
        assert found["loss"] > 0


def test_one_process_alone_needs_none_of_it():
    assert distributed.world() == 1
    assert distributed.any_of(True, False) == (True, False)
    assert distributed.gather(3) == [3]
    assert distributed.share("x") == "x"
    with pytest.raises(ValueError, match=r"shard_teacher .*there is one: use torchrun"):
        distributed.shard(torch.nn.Linear(1, 1), torch.device("cpu"))


def test_batch_norms_are_synchronised_on_gpus_and_keep_their_names(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    plain, gpu = TinyPose(), torch.device("cuda")
    names = list(plain.state_dict())
    assert distributed.synchronise_norms(plain, torch.device("cpu")) is plain
    assert type(plain.bn) is torch.nn.BatchNorm2d
    synchronised = distributed.synchronise_norms(plain, gpu)
    assert type(synchronised.bn) is torch.nn.SyncBatchNorm
    assert list(synchronised.state_dict()) == names


def test_each_process_takes_the_gpu_of_its_place(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda:2")
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"'cuda:1' is one device for 4 processes"):
        pick_device("cuda:1")


@pytest.mark.slow
def test_the_same_yaml_trains_in_one_process_and_under_torchrun(tmp_path):
    """`torchrun -m posekd train`: a synthetic run of two processes reports the one-process run's losses,
    its teacher spread over the two.

    Batch norm sees half of a batch in each process, as it does in accumulated micro-batches, hence those.
    """
    import yaml

    from posekd.engine.recipes.recipe import recipe_to_dict

    save_weights(create_model("hrnet_w32", **TINY_NET), tmp_path / "teacher.safetensors")
    values = recipe_to_dict(killing.recipe(tmp_path / "two", 0))
    teacher = {"name": "hrnet_w32", "overrides": TINY_NET, "weights": str(tmp_path / "teacher.safetensors")}
    values |= {"method": {"name": "mapd"}, "teacher": teacher}
    values["train"]["checkpoint_steps"] = None
    values["optim"] |= {"name": "sgd", "lr": 0.01}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    done = torchrun("-m", "posekd", "train", str(tmp_path / "recipe.yaml"), "--train.shard_teacher", "true")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("done: ") == 1
    one = [sys.executable, "-m", "posekd", "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "one")]
    environment = {**os.environ, "PYTHONPATH": str(Path(posekd.__file__).parents[1])}
    subprocess.run([*one, "--train.accumulate", "2"], check=True, capture_output=True, env=environment)
    losses = [
        [r["loss"] for r in read_log(tmp_path / name / "log.jsonl") if r["kind"] == "train"] for name in ("two", "one")
    ]
    assert len(losses[0]) > 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
