"""The wheel, installed outside the source tree: everything that a user needs travels in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# An editable install's finder comes before every path, the wheel's as well: Python runs this before anything else.
WITHOUT_EDITABLE = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
"""
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # one worker builds it, once


def call(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build(pip: list[str], folder: Path) -> Path:
    """The wheel of the sources, without CUDA kernels."""
    options = ["--no-build-isolation", f"--config-settings=build-dir={folder}/b"]
    call([*pip, "wheel", "--no-deps", *options, "-w", str(folder), "."], POSEKD_CUDA="OFF")
    return next(folder.glob("posekd-*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents and nothing else; POSEKD_WHEEL names a wheel that is built already."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = Path(os.environ["POSEKD_WHEEL"]) if "POSEKD_WHEEL" in os.environ else build(pip, folder)
    call([*pip, "install", "--no-deps", "--no-index", "--target", f"{folder}/site", str(wheel)])
    (folder / "startup").mkdir()
    (folder / "startup" / "sitecustomize.py").write_text(WITHOUT_EDITABLE)
    return folder / "site"


def run(installed: Path, *words: str) -> str:
    """Runs Python on the installed wheel, from a folder that is not the source tree."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": f"{installed.parent / 'startup'}{os.pathsep}{installed}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_core_loads_from_the_wheel(installed: Path) -> None:
    out = run(installed, "-c", "import posekd.ops as o, posekd._C as c; print(o.build_info()['core'], c.__file__)")
    loaded, file = out.split()
    assert loaded == "True"
    assert Path(file).is_relative_to(installed)


def test_recipes_are_inside(installed: Path) -> None:
    shipped = {p.relative_to(installed / "posekd" / "configs") for p in (installed / "posekd").glob("configs/*/*.yaml")}
    assert shipped == {p.relative_to(ROOT / "configs") for p in ROOT.glob("configs/*/*.yaml")}
    assert shipped


def test_benchmarks_run_from_the_wheel(installed: Path) -> None:
    out = run(installed, "-m", "posekd", "bench", "render_heatmaps", "--rounds", "2", "--no-compile")
    assert "posekd" in out


def test_doctor_and_profile_run_from_the_wheel(installed: Path) -> None:
    assert "torch" in run(installed, "-m", "posekd", "doctor")
    assert "1,108,146" in run(installed, "-m", "posekd", "profile", "elpn_v1")


def test_metadata(installed: Path) -> None:
    out = run(installed, "-c", "import posekd, importlib.metadata as m; print(posekd.__version__, m.version('posekd'))")
    assert len(set(out.split())) == 1
    assert (installed / "posekd" / "py.typed").exists()
    assert (installed / "posekd" / "deploy" / "web" / "index.html").exists()
    assert not list(installed.glob("**/_posekd_emu*")), "the emulation is for tests only"
