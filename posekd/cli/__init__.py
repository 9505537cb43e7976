"""The command line. Each command is a module of this folder, imported only when it is called.

A command's module has `main(argv) -> int`, or a typed `run(...)` whose signature and docstring are its options.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from posekd.files import nearest

COMMANDS = {
    "quickstart": "train a teacher and a student with and without it on synthetic people, in minutes",
    "convert": "labels of DeepLabCut, YOLO-pose, Label Studio or CVAT in COCO's form",
    "split": "hold out a part of your labels, by image or by group",
    "inspect": "look at labelled data before anything is trained",
    "init": "write a recipe for teacher and student that fits your data",
    "sigmas": "estimate OKS sigmas from repeated labels or a teacher",
    "train": "train a student as a recipe says",
    "frontier": "students of several widths and depths: accuracy against measured latency",
    "cache-teacher": "run a recipe's teacher once and store its heatmaps for training",
    "eval": "score a checkpoint by COCO's AP, or PCK on MPII and LSP",
    "report": "a page about runs: curves, errors by keypoint and kind, the worst images, cost",
    "predict": "find people in images and videos",
    "export": "write a network as an ONNX file, from image to keypoints",
    "push": "put a checkpoint and its card on the Hugging Face Hub",
    "pull": "get a checkpoint from the Hugging Face Hub",
    "profile": "parameters, compute and latency of a network",
    "bench": "run the benchmarks of the kernels",
    "doctor": "say what runs on this machine, and why",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `posekd`; those of the process by default.

    Returns:
        The exit code: 0, 2 after an error that a sentence explains, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or bool(os.environ.get("POSEKD_DEBUG"))
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from posekd import __version__

        print(f"posekd {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r}{nearest(name, COMMANDS)}", 2)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _call(importlib.import_module(f"posekd.cli.{name.replace('-', '_')}"), name, rest)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", 130)
    except BrokenPipeError:  # the reader of the output has closed it, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug or not _is_explained(error):
            raise
        return _fail(" ".join(str(error).split()), 2)


def _call(module: ModuleType, name: str, words: Sequence[str]) -> int:
    if hasattr(module, "main"):
        return int(module.main(words) or 0)
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog=f"posekd {name}", description=COMMANDS[name])
    parser.add_function_arguments(module.run, as_positional=True)
    options = parser.parse_args(words)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return int(module.run(**vars(instantiate(options))) or 0)


def _is_explained(error: Exception) -> bool:
    """Whether the message is meant for the user. A bare RuntimeError, KeyError etc. is a defect of posekd."""
    if isinstance(error, (OverflowError, ZeroDivisionError)):
        return False
    if isinstance(error, (ValueError, OSError, ArithmeticError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and type(error) not in (RuntimeError, NotImplementedError, RecursionError)


def _fail(message: str, code: int) -> int:
    print(f"posekd: {message}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"posekd: warning: {message}", file=sys.stderr)


def _help() -> str:
    lines = [
        "usage: posekd COMMAND ...",
        "",
        "Distils big human-pose networks into small fast ones.",
        "",
        *(f"  {name:<14}{text}" for name, text in COMMANDS.items()),
        "",
        "posekd COMMAND --help   options of a command",
        "posekd --version        the version",
        "--debug                 with any command: show the traceback of an error",
    ]
    return "\n".join(lines)


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: under torchrun the first of several."""
    return os.environ.get("RANK", "0") == "0"


def command_parser(name: str, **kwargs: object) -> argparse.ArgumentParser:
    """An argument parser that calls itself `posekd NAME`."""
    return argparse.ArgumentParser(prog=f"posekd {name}", description=COMMANDS[name], **kwargs)  # type: ignore[arg-type]
