"""`posekd push` and `pull`, through huggingface_hub, against a stand-in server on the loopback address."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.checkpoints import checkpoint
from helpers.stand_in_hub import TOKEN, stand_in_hub

import posekd
from posekd.cli import main
from posekd.deploy.hub import describe
from posekd.models.weights import read_card
from posekd.skeleton import COCO

pytest.importorskip("huggingface_hub")

TEACHER = {"name": "huggingface", "source": "/home/me/vitpose-h", "licence": "apache-2.0"}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    with stand_in_hub() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = checkpoint(tmp_path_factory.mktemp("run"))
    card = read_card(path)
    path.with_suffix(".json").write_text(json.dumps({**card, "metrics": {"AP": 0.6543}, "teacher": TEACHER}))
    return path.parent


def test_there_and_back(hub, run, tmp_path, capsys):
    where = ["--endpoint", hub.endpoint]
    assert main(["push", str(run), "me/student", "--licence", "mit", *where]) == 0
    assert capsys.readouterr().out == f"{hub.endpoint}/me/student\n"
    assert set(hub.repositories["me/student"]) == {"best.safetensors", "best.json", "README.md"}
    assert not any(name.startswith(("POST /api/complete", "PUT")) for name in hub.asked)

    assert main(["pull", "me/student", *where]) == 0
    told = capsys.readouterr().out
    assert "elpn_v1, licence: mit; its teacher's licence: apache-2.0" in told
    first, second = posekd.load_model(run), posekd.load_model(tmp_path / "student")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    card = read_card(tmp_path / "student" / "best.safetensors")
    assert card["teacher"] == TEACHER
    assert card["licence"] == "mit"
    assert card["skeleton"]["sigmas"] == list(COCO.sigmas)


def test_the_page_says_what_the_card_says(run):
    page = describe({**read_card(run / "best.safetensors"), "licence": "mit"}, "me/student")
    head = page.split("---")[1]
    assert "library_name: posekd" in head
    assert "license: mit" in head
    assert "| input | 64 x 64 (height x width), RGB, mean [0.485, 0.456, 0.406], std" in page
    assert "| paradigm | top-down |" in page
    assert "| output | heatmaps |" in page
    assert "| metrics | AP 0.6543 |" in page
    assert "| teacher | huggingface (vitpose-h), licence: apache-2.0 |" in page
    assert "/home/me" not in page
    assert "| 16 | right_ankle | 0.089 |" in page


def test_what_the_hub_refuses_is_a_sentence(hub, run, capsys, monkeypatch, tmp_path):
    where = ["--endpoint", hub.endpoint]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(run), "me/student", *where]) == 2
    assert "posekd: me/student was not written: " in capsys.readouterr().err
    assert main(["pull", "me/nothing", *where]) == 2
    said = capsys.readouterr().err
    assert "posekd: me/nothing was not got: " in said
    assert "Traceback" not in said
    assert not (tmp_path / "nothing" / "best.safetensors").exists()


def test_a_hub_that_is_not_there(run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(run), "me/student", "--endpoint", "http://127.0.0.1:9"]) == 2
    assert "me/student was not written: " in capsys.readouterr().err


def test_other_repositories_hold_no_checkpoint(hub, capsys):
    hub.repositories["me/other"] = {"model.safetensors": b"x", "config.json": b"{}", "pytorch_model.bin": b"pickle"}
    assert main(["pull", "me/other", "--endpoint", hub.endpoint]) == 2
    assert "me/other is in other, and holds no checkpoint of posekd" in capsys.readouterr().err
    assert not any("pytorch_model.bin" in name for name in hub.asked)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push", "RUN", "student"], "a repository on the hub is OWNER/NAME, got 'student'"),
        (["push", "nowhere", "me/student"], "there is no run or .safetensors file nowhere"),
        (["push", "BARE", "me/student"], "has no card (.json) beside it"),
        (["pull", "student"], "a repository on the hub is OWNER/NAME"),
        (["pull", "me/student", "RUN"], "is there already, and would be overwritten"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(run, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    places = {"RUN": str(run), "BARE": "bare"}
    assert main([*(places.get(word, word) for word in words), "--endpoint", "http://127.0.0.1:9"]) == 2
    assert message in capsys.readouterr().err


def test_without_the_library_a_sentence(run, monkeypatch, capsys):
    from posekd import packages

    def missing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(packages, "importlib", type("Fake", (), {"import_module": staticmethod(missing)}))
    assert main(["push", str(run), "me/student"]) == 2
    assert "pip install 'posekd[huggingface]'" in capsys.readouterr().err
