"""The benchmarks as a product: samples, ratios, JSON, comparison with an earlier file, page and image."""

import importlib
import json

import pytest
import torch

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


def test_on_a_gpu_device_and_wall_time_stand_apart(harness, tmp_path, capsys, monkeypatch):
    """The profiler's kernels give ratios and shares; here they are what each contestant says."""
    monkeypatch.setattr(harness.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(harness, "evictor", lambda device: lambda: None)
    monkeypatch.setattr(harness, "environment", lambda options: {"device_type": options.device})
    monkeypatch.setattr(harness, "_wait", lambda device: None)

    def kernels(function):
        before = harness.time.now
        function()
        return [(harness.time.now - before) * 250.0] * 2  # a quarter of the wall time each

    monkeypatch.setattr(harness, "kernels", kernels)
    monkeypatch.setattr(harness, "_once", harness._wall)

    def fails():
        raise RuntimeError("no kernel for BFloat16")

    options = harness.options_from(["--device", "cuda", "--rounds", "3", "--json", str(tmp_path / "r.jsonl")], "a test")
    others = {"longer": wait(harness, 8.0), "cummax": fails}
    (row,) = harness.run("waits", [harness.Case("waiting", wait(harness, 2.0), others, 16 << 20)], options)
    assert row["ms"] == pytest.approx(1.0)
    assert row["wall_ms"] == pytest.approx(2.0)
    assert row["launches"] == 2
    assert row["share_of_copy"] == pytest.approx((16 << 20) / 1e-3 / 1e10)
    assert list(row["baselines"]) == ["longer"]
    assert row["baselines"]["longer"]["wall_ms"] == pytest.approx(8.0)
    assert row["baselines"]["longer"]["ratio"] == pytest.approx(4.0)
    said = capsys.readouterr().out
    assert "posekd 1.00 ms (1.00 ms to 1.00 ms) on the device in 2 launches, 2.00 ms wall" in said
    assert "waiting: cummax is left out: no kernel for BFloat16" in said


def test_a_benchmark_that_is_stopped_leaves_the_cases_that_it_has(harness, tmp_path):
    def cases():
        yield harness.Case("first", wait(harness, 1.0))
        raise KeyboardInterrupt

    options = harness.options_from(["--rounds", "2", "--json", str(tmp_path / "r.jsonl")], "a test")
    (tmp_path / "r.jsonl").write_text('{"benchmark": "other"}\n')
    with pytest.raises(KeyboardInterrupt):
        harness.run("waits", cases(), options)
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["benchmark"] for line in lines] == ["other", "waits"]
    assert [row["case"] for row in lines[1]["results"]] == ["first"]


def test_compare_names_what_became_slower(harness, tmp_path, capsys):
    run(harness, tmp_path, 1.0)
    run(harness, tmp_path, 5.0, "--compare", str(tmp_path / "results.jsonl"))
    assert "SLOWER waiting" in capsys.readouterr().out


def test_compare_says_what_cannot_be_compared(harness, tmp_path, capsys):
    run(harness, tmp_path, 1.0, "--threads", "1")
    text = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "old.jsonl").write_text(text.replace('"case": "waiting"', '"case": "sleeping"'))
    run(harness, tmp_path, 1.0, "--threads", "2", "--compare", str(tmp_path / "old.jsonl"))
    said = capsys.readouterr().out
    assert f"threads differs: 1 in {tmp_path / 'old.jsonl'}, 2 now" in said
    assert "new    waiting: not in" in said


def test_a_file_to_compare_with_is_asked_for_before_anything_is_measured(harness, tmp_path, capsys):
    with pytest.raises(SystemExit):
        harness.options_from(["--compare", str(tmp_path / "no.jsonl")], "a test")
    assert f"--compare: there is no file {tmp_path / 'no.jsonl'}" in capsys.readouterr().err


SMALL = {
    "corner_pool": ((1, 2, 9, 12),),
    "center_pool": ((1, 2, 9, 12),),
    "roi_align": (((2, 3, 16, 12), 4, (8, 6)),),
    "mimic_loss": (((2, 3, 16, 12), 4, (8, 6)),),
    "tag_loss": ((2, 3, 16, 16, 3),),
    "simulated_heatmap_loss": ((2, 3, 16, 12),),
    "center_focal_loss": ((2, 16, 12, 2),),
    "decode_boxes": ((2, 32, 32, 2),),
}


# Of a benchmark, the baseline that a test makes wrong.
WRONG = {
    "corner_pool": "by_cummax",
    "center_pool": "closed_form",
    "tag_loss": "loop",
    "simulated_heatmap_loss": "composed",
    "center_focal_loss": "composed",
    "decode_boxes": "composed",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_baselines_do_the_same_work(name, dtype, monkeypatch, tmp_path):
    """A benchmark refuses to time a baseline whose results differ."""
    module = importlib.import_module(bench.benchmarks()[name])
    timing = importlib.import_module(module.__name__.rsplit(".", 2)[0] + ".harness")
    monkeypatch.setattr(module, "SHAPES", SMALL[name])
    monkeypatch.setattr(timing, "copy_speed", lambda device, evict: 1e10)
    monkeypatch.setattr(timing, "SAMPLE_MS", 0.01)
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 1 << 20)
    out = tmp_path / "results.jsonl"
    words = ["--rounds", "1", "--no-compile", "--dtype", dtype, "--threads", str(torch.get_num_threads())]
    module.main([*words, "--json", str(out)])
    rows = json.loads(out.read_text())["results"]
    assert all(row["ms"] > 0 and row["baselines"] for row in rows)

    wrong = WRONG.get(name)
    if wrong:
        right = getattr(module, wrong)
        monkeypatch.setattr(module, wrong, lambda *args: doubled(right(*args)))
        with pytest.raises((RuntimeError, AssertionError)):
            module.main(words)


def doubled(result):
    return tuple(2 * x for x in result) if isinstance(result, tuple) else 2 * result


def test_a_file_of_results_becomes_a_page_and_a_picture(harness, report, tmp_path):
    run(harness, tmp_path, 1.0)
    report.main(
        [str(tmp_path / "results.jsonl"), "--page", str(tmp_path / "page.md"), "--plot", str(tmp_path / "plot.png")]
    )
    page = (tmp_path / "page.md").read_text()
    assert "## waits" in page
    assert "| waiting | 1.00 ms | 168% | longer 4.00 ms, 4.00x (4.00 to 4.00) |" in page
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "GPU: not yet measured" in page


def test_a_page_of_gpu_figures_does_not_call_them_missing(harness, report, tmp_path):
    run(harness, tmp_path, 1.0)
    results = (tmp_path / "results.jsonl").read_text().replace('"device_type": "cpu"', '"device_type": "cuda"')
    (tmp_path / "results.jsonl").write_text(results)
    assert "not yet measured" not in report.page(report.read(tmp_path / "results.jsonl"), "results.jsonl", "plot.png")


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


def gpu_folder(harness, tmp_path):
    """As `benchmarks/gpu_run.py` leaves it: the case of the CPU, and one of its own."""
    folder = tmp_path / "gpu"
    folder.mkdir()
    row = {"case": "waiting, warm", "ms": 0.02, "wall_ms": 0.4, "launches": 3, "bytes": 16 << 20, "share_of_copy": 0.9}
    row["baselines"] = {
        "longer": {"ms": 0.04, "wall_ms": 0.2, "launches": 1, "ratio": 2.0, "ratio_quartiles": [1.9, 2.1]}
    }
    rows = [row, {**row, "case": "bfloat16", "baselines": {}}]
    facts = {"device": "a GPU", "torch": "2", "driver": "580", "device_type": "cuda", "caches": "cold"}
    record = {"benchmark": "waits", "environment": facts, "copy_bytes_per_s": 4e12, "results": rows}
    (folder / "kernels.jsonl").write_text(json.dumps(record) + "\n")
    loops = {"real": {"samples_per_s": 900.0, "samples_per_s_extremes": [880.0, 910.0], "data_wait": 0.03}}
    recipe = {"student": {"name": "elpn_v1"}, "loader": {"batch_size": 64}, "train": {"graph": True}}
    (folder / "train.jsonl").write_text(json.dumps({"recipe": recipe, "loops": loops}) + "\n")
    (folder / "gpu_run.json").write_text(
        json.dumps({"memcheck": {"seconds": 9.5, "ended": "skipped: no time was left"}})
    )
    return folder


def test_cpu_and_gpu_stand_side_by_side(harness, report, tmp_path):
    run(harness, tmp_path, 1.0)
    words = [str(tmp_path / "results.jsonl"), "--page", str(tmp_path / "page.md"), "--plot", str(tmp_path / "plot.png")]
    report.main([*words, "--gpu", str(gpu_folder(harness, tmp_path)), "--gpu-page", str(tmp_path / "gpu.md")])
    page = (tmp_path / "page.md").read_text()
    beside = "20 us (3 launches), 400 us | 90% | longer 40 us, 2.00x (1.90 to 2.10) |"
    assert f"| waiting | 1.00 ms | 168% | longer 4.00 ms, 4.00x (4.00 to 4.00) | {beside}" in page
    assert "| bfloat16 | | | | 20 us (3 launches), 400 us | 90% |  |" in page
    assert "not yet measured" not in page
    table = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(table) == {8}, "every row has every column"
    gpu = (tmp_path / "gpu.md").read_text()
    assert f"| waits | waiting, warm | {beside}" in gpu
    assert "| elpn_v1 | 64 | True | real | 900 (880 to 910) | 3% |" in gpu
    assert "| memcheck | 9.5 | skipped: no time was left |" in gpu
    assert "## Kernels, bfloat16\n\nNot yet measured." in gpu


def test_a_gpu_page_before_any_run(report):
    assert report.gpu_page(None).endswith("## Results\n\nNot yet measured.\n")
