"""The benchmarks as a product: samples, ratios, JSON, comparison with an earlier file, page and picture."""

import importlib
import json

import pytest

from posekd.cli import bench


class Clock:
    """A clock that only the contestants move."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def harness(monkeypatch):
    module = importlib.import_module(bench.benchmarks()["distill_loss"].rsplit(".", 2)[0] + ".harness")
    monkeypatch.setattr(module, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(module, "cache_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(module, "copy_speed", lambda device, evict: 1e10)
    monkeypatch.setattr(module, "time", Clock())
    return module


@pytest.fixture
def report(harness):
    return importlib.import_module(harness.__name__.replace("harness", "report"))


def wait(harness, ms):
    def contestant():
        harness.time.now += ms / 1e3

    return contestant


def run(harness, tmp_path, ms, *words):
    options = harness.options_from(["--rounds", "3", "--json", str(tmp_path / "results.jsonl"), *words], "a test")
    case = harness.Case("waiting", wait(harness, ms), {"longer": wait(harness, 4 * ms)}, 16 << 20)
    return harness.run("waits", [case], options)


def test_ratio_and_bandwidth_come_from_the_samples(harness, tmp_path):
    (row,) = run(harness, tmp_path, 2.0)
    assert row["ms"] == pytest.approx(2.0)
    assert row["baselines"]["longer"]["ratio"] == pytest.approx(4.0)
    assert row["share_of_copy"] == pytest.approx((16 << 20) / 2e-3 / 1e10)
    record = json.loads((tmp_path / "results.jsonl").read_text())
    assert record["results"] == [row]
    assert record["environment"]["caches"] == "cold"


def test_compare_names_what_became_slower(harness, tmp_path, capsys):
    run(harness, tmp_path, 1.0)
    run(harness, tmp_path, 5.0, "--compare", str(tmp_path / "results.jsonl"))
    assert "SLOWER waiting" in capsys.readouterr().out


def test_a_file_of_results_becomes_a_page_and_a_picture(harness, report, tmp_path):
    run(harness, tmp_path, 1.0)
    report.main(
        [str(tmp_path / "results.jsonl"), "--page", str(tmp_path / "page.md"), "--plot", str(tmp_path / "plot.png")]
    )
    page = (tmp_path / "page.md").read_text()
    assert "## waits" in page
    assert "| waiting | 1.00 ms | 168% | longer 4.00 ms, 4.00x (4.00 to 4.00) |" in page
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_something_else_is_refused(report, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="line 1: not a record"):
        report.read(path)


def test_several_benchmarks_in_one_call(monkeypatch):
    called = []
    modules = {module: name for name, module in bench.benchmarks().items()}

    class Module:
        def __init__(self, name):
            self.name = name

        def main(self, rest):
            called.append((modules[self.name], rest))

    monkeypatch.setattr(bench.importlib, "import_module", Module)
    assert bench.main(["oks", "tag_loss", "--rounds", "2"]) == 0
    assert called == [("oks", ["--rounds", "2"]), ("tag_loss", ["--rounds", "2"])]
