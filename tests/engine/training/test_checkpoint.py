"""Checkpoints: exact, whole or not at all, and never a pickle."""

import math

import pytest
import torch
from safetensors.torch import save_file

from posekd.engine.training import checkpoint


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (math.isnan(a) and math.isnan(b)))


def stepped_optimizer(layer, kind=torch.optim.Adam):
    optimizer = kind(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    return optimizer


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {
        "step": 3,
        "none": None,
        "flag": True,
        "nothing": {},
        "nan": float("nan"),
        "list": [1, (2.5, "x")],
        "tensors": {0: torch.arange(3), "half": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(1.5)},
        "optimizer": stepped_optimizer(torch.nn.Conv2d(3, 2, 1)).state_dict(),
    }
    path = checkpoint.save_state(tmp_path / "a" / "state.safetensors", state)
    assert same(checkpoint.load_state(path), state)


def test_tied_tensors_are_saved_each_on_its_own(tmp_path):
    weight = torch.rand(3)
    path = checkpoint.save_state(tmp_path / "s.safetensors", {"a": weight, "b": weight[1:]})
    assert same(checkpoint.load_state(path), {"a": weight, "b": weight[1:].clone()})


def test_a_leaf_that_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"state\.a\.1: a set cannot"):
        checkpoint.pack({"a": [1, {2}]})


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = checkpoint.save_state(tmp_path / "s.safetensors", {"step": 1})

    def half_written(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_state(path, {"step": 2})
    assert checkpoint.load_state(path) == {"step": 1}


def test_the_newest_readable_checkpoint_wins(tmp_path):
    for step in (5, 10, 200):
        checkpoint.save_state(checkpoint.checkpoint_path(tmp_path, step), {"step": step})
    newest = checkpoint.checkpoint_path(tmp_path, 200)
    assert checkpoint.load_latest(tmp_path)[1] == {"step": 200}
    newest.write_bytes(newest.read_bytes()[:20])
    with pytest.warns(UserWarning, match="step_000000200.*damaged"):
        assert checkpoint.load_latest(tmp_path)[1] == {"step": 10}


def test_only_the_last_few_are_kept_and_other_files_stay(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoint.save_state(checkpoint.checkpoint_path(tmp_path, step), {"step": step})
    (tmp_path / "nonfinite_000000002.safetensors").touch()
    checkpoint.keep_last(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "nonfinite_000000002.safetensors",
        "step_000000003.safetensors",
        "step_000000010.safetensors",
    ]


def test_weights_are_no_checkpoint(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="weights only"):
        checkpoint.load_state(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load_state(tmp_path / "nowhere.safetensors")


def test_a_restored_optimiser_lies_in_memory_like_its_parameters(tmp_path):
    layer = torch.nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
    optimizer = stepped_optimizer(layer)
    path = checkpoint.save_state(tmp_path / "o.safetensors", optimizer.state_dict())
    fresh = torch.optim.Adam(layer.parameters(), lr=0.1)
    checkpoint.restore_optimizer(fresh, checkpoint.load_state(path))
    moment = fresh.state[layer.weight]["exp_avg"]
    assert torch.equal(moment, optimizer.state[layer.weight]["exp_avg"])
    assert moment.stride() == layer.weight.stride()


def test_a_restored_optimiser_keeps_its_own_settings(tmp_path):
    layer = torch.nn.Conv2d(3, 2, 3, bias=False)
    path = checkpoint.save_state(tmp_path / "o.safetensors", stepped_optimizer(layer).state_dict())
    fresh = torch.optim.Adam(layer.parameters(), lr=0.5, betas=(0.8, 0.9), weight_decay=0.25)
    checkpoint.restore_optimizer(fresh, checkpoint.load_state(path))
    (group,) = fresh.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.8, 0.9), 0.25)
    assert group["params"] == [layer.weight]
    assert "exp_avg" in fresh.state[layer.weight]
