"""Everything that is to be measured where a GPU is available, most valuable first, in so many minutes.

    python benchmarks/gpu_run.py --minutes N [--out runs/gpu] [--only NAME ...] [--device cpu] [--list]

Each piece is a program of its own with a time limit of its own; what it prints goes to `<out>/<piece>.log`, what it
measures to JSON as it goes, and `<out>/gpu_run.json` says after each piece how it ended. A piece for which too little
time is left is skipped, in words, and one that runs over its limit is stopped: the ones behind it still run. Started
again, it goes on with the pieces that have not ended well. In the end stands one table.

With `--device cpu` the same program runs where there is no GPU, on the pieces that can (the way it is tested).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]
LEAST_S = 10.0  # a piece is not begun with less


@dataclass(frozen=True)
class Piece:
    """One thing to run.

    Attributes:
        name: of it, and of its files.
        command: the program after `python`, or with `program` a whole command.
        limit_s: seconds after which it is stopped.
        why: what it says.
        cuda: whether it makes sense on a GPU alone.
        program: whether the command is whole.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    why: str
    cuda: bool = False
    program: bool = False


def pieces(device: str, out: Path) -> list[Piece]:
    """All pieces, most valuable first."""
    cli, sanitizer = ("-m", "posekd"), ("compute-sanitizer", "--error-exitcode", "1", "--tool")
    pytest = ("-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider")
    tests = (*pytest, "-m", "cuda", "tests")
    selection = (sys.executable, *tests, "-k", "sizes")
    ops = ("distill_loss", "corner_pool", "roi_align", "mimic_loss", "center_pool", "tag_loss", "render_heatmaps")
    rest = ("decode_heatmaps", "crop_warp", "group_keypoints", "oks", "center_focal_loss", "decode_boxes")
    train = (*cli, "bench", "train", "mapd/elpn_v1_coco_256x192", "--synthetic", "300", "--train.precision", "bf16")
    small = (
        "--student.overrides", "{width: 8, modules: [1], blocks: 1, stem_width: 8, stage1_width: 4, stage1_blocks: 1}",
        "--teacher.overrides", "{width: 8, modules: [1], blocks: 1, stem_width: 8, stage1_width: 4, stage1_blocks: 1}",
    )  # fmt: skip
    length = ("--minutes", "3") if device == "cuda" else ("--minutes", "0.5", "--rounds", "1", "--steps", "2", *small)
    kernels = (*cli, "bench")
    options = ("--device", device, "--json")
    if device == "cpu":
        options = ("--rounds", "2", "--no-compile", *options)

    def kernel(name: str, limit_s: float, *more: str) -> Piece:
        half = "_bf16" if more else ""
        command = (*kernels, name, *options, str(out / f"kernels{half}.jsonl"), *more)
        return Piece(f"bench_{name}{half}", command, limit_s, f"device and wall time of {name}", cuda=bool(more))

    def training(batch: int, graph: bool) -> Piece:
        words = ("--loader.batch_size", str(batch), "--train.graph", str(graph).lower())
        places = ("--json", str(out / "train.jsonl"), "--data", str(out / "people"))
        command = (*train, *length, *words, "--loader.workers", str(_workers()), *places)
        return Piece(f"train_{batch}{'_graph' if graph else ''}", command, 240, "samples/s of three training loops")

    calls = (*cli, "bench", "calls", "--device", device)
    found = [
        Piece("doctor", (*cli, "doctor"), 60, "what was built, and what chose to run"),
        Piece("step", (*pytest, "tests/engine/training/test_graph.py"), 180, "the captured step against the eager one"),
        *(kernel(name, 90) for name in ops),
        Piece("calls", calls, 90, "what a small call costs beside a bare Function"),
        *(training(batch, graph) for batch, graph in ((64, True), (64, False), (256, True), (128, False))),
        Piece("cuda_tests", tests, 600, "every op's tests on the device", cuda=True),
        *(kernel(name, 60) for name in rest),
        *(kernel(name, 60, "--dtype", "bfloat16") for name in ("distill_loss", "corner_pool")),
        Piece("memcheck", (*sanitizer, "memcheck", *selection), 240, "no access outside tensors", True, True),
        Piece("racecheck", (*sanitizer, "racecheck", *selection), 240, "no two threads at one word", True, True),
    ]
    return [piece for piece in found if device == "cuda" or not piece.cuda]


def _workers() -> int:
    return max(1, len(os.sched_getaffinity(0)) - 2)


def run(piece: Piece, out: Path, seconds: float) -> dict[str, object]:
    """Runs a piece for at most so many seconds; how it ended."""
    command = list(piece.command) if piece.program else [sys.executable, *piece.command]
    limit, start = min(piece.limit_s, seconds), time.monotonic()
    log = out / f"{piece.name}.log"
    path = os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    if piece.name != "memcheck":
        environment.pop("PYTORCH_NO_CUDA_MEMORY_CACHING")
    with open(log, "w", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(
                command, cwd=SOURCES, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return {"ended": f"skipped: {command[0]} cannot be started ({error.strerror})", "seconds": 0.0}
        try:
            code = process.wait(limit)
            ended = "done" if code == 0 else f"failed with code {code}: see {log.name}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        finally:
            _end(process)
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1), "last": _last_line(log)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a program and those that it has started, if they still run."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(5)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def build(device: str) -> str | None:
    """Builds the package with its CUDA kernels if they are not there; what went wrong."""
    if device != "cuda":
        return None
    ask = "from posekd.ops import build_info as b; i = b(); raise SystemExit(not i['cuda_usable'])"
    if subprocess.run([sys.executable, "-c", ask], cwd=SOURCES, check=False).returncode == 0:
        return None
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", "."]
    done = subprocess.run(command, cwd=SOURCES, env={**os.environ, "POSEKD_CUDA": "ON"}, check=False)
    return None if done.returncode == 0 else "the CUDA kernels could not be built: see above"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pieces; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of logs and results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pieces alone")
    parser.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    options = parser.parse_args(argv)
    if not options.minutes > 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes:g}")
    out = options.out.resolve()
    found = pieces(options.device, out)
    unknown = set(options.only or ()) - {piece.name for piece in found}
    if unknown:
        parser.error(f"there is no piece {sorted(unknown)[0]!r}; there are {', '.join(piece.name for piece in found)}")
    found = [piece for piece in found if options.only is None or piece.name in options.only]
    if options.list:
        for piece in found:
            print(f"{piece.name:<24} at most {piece.limit_s:4.0f} s  {piece.why}")
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    out.mkdir(parents=True, exist_ok=True)
    problem = build(options.device)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    file = out / "gpu_run.json"
    results: dict[str, dict[str, object]] = json.loads(file.read_text()) if file.is_file() else {}
    for piece in found:
        left = deadline - time.monotonic()
        if results.get(piece.name, {}).get("ended") == "done":
            continue
        if left < LEAST_S:
            results[piece.name] = {"ended": "skipped: no time was left", "seconds": 0.0}
        else:
            print(f"{piece.name}: {piece.why} ({left / 60:.1f} minutes left)", flush=True)
            results[piece.name] = run(piece, out, left)
        file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for piece in found:
        row = results[piece.name]
        print(f"{piece.name:<24} {row['seconds']:6.1f} s  {row['ended']:<34} {row.get('last', '')}")
    return 0 if all(results[piece.name]["ended"] == "done" for piece in found) else 1


if __name__ == "__main__":
    sys.exit(main())
