"""The command line: quick, honest about what exists, and free of tracebacks."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from posekd import cli
from posekd.cli import COMMANDS, main


def run(*words, **environment):
    """Runs Python on the posekd under test, away from the source tree."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tempfile.gettempdir(),
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **environment},
    )


def test_help_lists_every_command_without_importing_torch():
    done = run("-X", "importtime", "-m", "posekd", "--help")
    assert done.returncode == 0
    for name, text in COMMANDS.items():
        assert f"{name:<14}{text}" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "jsonargparse", "rich"}


def test_every_listed_command_exists():
    for name in COMMANDS:
        assert importlib.util.find_spec(f"posekd.cli.{name.replace('-', '_')}") is not None, name


def test_import_posekd_is_light_and_its_names_come_on_demand():
    code = "import sys, posekd; assert 'torch' not in sys.modules; posekd.list_models(); assert 'torch' in sys.modules"
    assert run("-c", code).returncode == 0


def test_version(capsys):
    import posekd

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"posekd {posekd.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "posekd: unknown command 'trian'; did you mean 'train'? Valid: bench, "),
        (["profile", "elpn_v3"], "unknown model 'elpn_v3'"),
        (["train", "mapd/nowhere"], "there is no recipe 'mapd/nowhere'"),
        (["train", "mapd/elpn_v1_coco_256x192", "--optim.lrr", "1"], "unknown key 'optim.lrr'; did you mean 'lr'?"),
        (["bench", "corner_pol"], "there is no benchmark 'corner_pol'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(capsys, words, message):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("posekd: ")
    assert message in error
    assert error.count("\n") == 1


def test_no_command_prints_the_help(capsys):
    assert main([]) == 2
    assert "usage: posekd COMMAND" in capsys.readouterr().out


class Fake:
    """A command that fails as it is told to."""

    def __init__(self, error):
        self.error = error

    def main(self, argv):
        raise self.error


class DatasetError(RuntimeError):
    """As `data.BadImageError`: a RuntimeError with a message for the user."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("two\n  lines"), 2),
        (FileNotFoundError("gone"), 2),
        (DatasetError("bad image"), 2),
        (KeyboardInterrupt("stopped after step 3"), 130),
    ],
)
def test_explained_errors_become_sentences(monkeypatch, capsys, error, code):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Fake(error))
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == f"posekd: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("a defect"), TypeError("a defect")])
def test_defects_keep_their_traceback(monkeypatch, error):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Fake(error))
    with pytest.raises(type(error)):
        main(["doctor"])


def test_warnings_are_sentences_too(monkeypatch, capsys):
    class WarningCommand:
        def main(self, argv):
            warnings.warn("one image is missing", stacklevel=1)

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: WarningCommand())
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "posekd: warning: one image is missing\n"


def test_debug_shows_the_traceback_of_any_error(monkeypatch):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Fake(ValueError("x")))
    with pytest.raises(ValueError, match="x"):
        main(["doctor", "--debug"])


def test_doctor_says_what_runs_and_why(capsys):
    import torch

    from posekd.ops import build_info

    info = build_info()
    assert main(["doctor"]) == (0 if info["core"] else 1)
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "verdict" in out
    if info["core"]:
        assert info["vector_level"] in out
        assert info["compiler"] in out
    if not info["cuda_usable"]:
        assert f"not usable: {info['cuda_problem']}" in out


def test_doctor_without_the_core_says_so():
    done = run("-W", "ignore", "-m", "posekd", "doctor", POSEKD_REFERENCE_ONLY="1")
    assert done.returncode == 1
    assert "not loaded: " in done.stdout
    assert "POSEKD_REFERENCE_ONLY is set" in done.stdout
    assert "plain PyTorch definitions" in done.stdout


def test_train_show_prints_the_resolved_recipe(capsys):
    import yaml

    assert main(["train", "mapd/elpn_v1_coco_256x192", "--show", "--optim.lr", "0.5"]) == 0
    recipe = yaml.safe_load(capsys.readouterr().out)
    assert recipe["optim"]["lr"] == 0.5
    assert recipe["method"]["alpha"] == 0.15


def test_profile_counts_by_name(capsys):
    assert main(["profile", "elpn_v1"]) == 0
    assert "1,108,146" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["quickstart", "--out"], "results.json"),
        (["train", "supervised/quickstart", "--out"], "recipe.yaml"),
        (["cache-teacher", "mapd/quickstart", "--cache"], "maps.bin"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, capsys, words, file):
    (tmp_path / "taken").touch()
    folder = tmp_path / "taken" / "new"
    assert main([*words, str(folder)]) == 2
    said = capsys.readouterr().err
    assert said == f"posekd: {folder / file} cannot be written: {tmp_path / 'taken'} is not a folder\n"
