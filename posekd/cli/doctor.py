"""`posekd doctor`: what runs on this machine, and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posekd.cli import command_parser

if TYPE_CHECKING:
    from posekd.ops.self_check import Outcome

OPTIONAL = {
    "onnx": ("posekd[deploy]", "posekd export"),
    "onnxscript": ("posekd[deploy]", "posekd export"),
    "onnxruntime": ("posekd[deploy]", "exported networks, detectors and ONNX teachers"),
    "transformers": ("posekd[huggingface]", "ViTPose teachers"),
    "huggingface_hub": ("posekd[huggingface]", "teachers of the hub, posekd push and pull"),
    "scipy": ("posekd[mat]", "PCK files of MPII (.mat)"),
    "supervision": ("supervision", "results as supervision.KeyPoints"),
}
"""Module that may be missing -> (what installs it, what it is for)."""


def main(argv: Sequence[str]) -> int:
    """Prints one line per fact, and runs every op against its definition on each device.

    The exit code is 1 if the ops have to run without the compiled core, or if one differs from its definition.
    """
    command_parser("doctor").parse_args(argv)
    import posekd
    from posekd.ops import build_info

    info = build_info()
    facts = [
        ("posekd", f"{posekd.__version__} ({os.path.dirname(posekd.__file__)})"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("torch", torch_facts()),
        *core_facts(info),
        ("cuda kernels", cuda_facts(info)),
        *missing_packages(),
    ]
    _print(facts)
    outcomes = check_devices()
    _print([(f"ops on {outcome.device}", op_facts(outcome)) for outcome in outcomes])
    failed = sum(len(outcome.failed) for outcome in outcomes)
    _print([("verdict", f"{failed} ops are wrong here: do not use them" if failed else verdict(info))])
    _print([("to do", advice) for advice in (*cures(outcomes), *advices(info))])
    return 0 if info["core"] and not failed else 1


def _print(facts: Sequence[tuple[str, str]]) -> None:
    for name, text in facts:
        print(f"{name:<12}  {text}", flush=True)


def check_devices() -> list[Outcome]:
    """Runs every op on the CPU and on each GPU that torch sees."""
    import torch

    from posekd.ops.self_check import check_ops

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))]
    return [check_ops(torch.device(device)) for device in devices]


def op_facts(outcome: Outcome) -> str:
    """How the ops did on a device."""
    good = len(outcome.checked) - len(outcome.failed)
    told = f"{good} of {len(outcome.checked)} agree with their definitions in plain PyTorch ({outcome.seconds:.1f} s)"
    if not outcome.kernels and not outcome.failed:
        return f"{len(outcome.checked)} ran on their definitions: no compiled kernels here ({outcome.seconds:.1f} s)"
    return "; ".join((told, *(f"{name}: {problem}" for name, problem in outcome.failed.items())))


def cures(outcomes: Sequence[Outcome]) -> list[str]:
    """What to do about ops that fail."""
    from posekd.ops.self_check import OLDER

    problems = {problem for outcome in outcomes for problem in outcome.failed.values()}
    found = ["install posekd again (in a checkout: pip install ., see CONTRIBUTING.md)"] if OLDER in problems else []
    return found + (["report what is wrong, with all lines above"] if problems - {OLDER} else [])


def missing_packages() -> list[tuple[str, str]]:
    """What is not installed of what is optional, and what it would be for."""
    missing = {name: facts for name, facts in OPTIONAL.items() if importlib.util.find_spec(name) is None}
    if not missing:
        return [("optional", "all optional packages are installed")]
    return [
        ("optional", f"no {name}: pip install '{what}', for {purpose}") for name, (what, purpose) in missing.items()
    ]


def advices(info: dict[str, object]) -> list[str]:
    """What to install so that what cannot run here does."""
    import torch

    found = []
    if not info["core"]:
        found.append(
            "the compiled core: pip install --force-reinstall --no-deps posekd (in a checkout: pip install ., see "
            "CONTRIBUTING.md)"
        )
    if os.path.exists("/dev/nvidiactl") or torch.cuda.is_available():
        if torch.version.cuda is None:
            found.append("a torch that sees this machine's GPU: https://pytorch.org/get-started/locally")
        elif not torch.cuda.is_available():
            found.append("a newer NVIDIA driver: this torch was built for CUDA " + torch.version.cuda)
        elif info["core"] and not info.get("cuda"):
            found.append("posekd with CUDA kernels: POSEKD_CUDA=ON pip install . in a checkout, with nvcc on the PATH")
    return found


def torch_facts() -> str:
    """The version of torch, its CUDA build, and the GPUs that it sees."""
    import torch

    if torch.version.cuda is None:
        build = "a CPU build, which sees no GPU"
    elif not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}; it finds no usable GPU or driver"
    else:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        build = f"built for CUDA {torch.version.cuda}; GPUs: {', '.join(names)}"
    return f"{torch.__version__}, {build}; {torch.get_num_threads()} CPU threads"


def core_facts(info: dict[str, object]) -> list[tuple[str, str]]:
    """Whether the compiled core loaded, and what its CPU kernels use."""
    if not info["core"]:
        return [("core", f"not loaded: {info['problem']}")]
    return [
        ("core", f"loaded; compiled by {info['compiler']}, threads by {info['parallel']}"),
        ("vector units", f"{info['vector_level']} (built for {info['vector_levels']}; the best of this CPU is used)"),
    ]


def cuda_facts(info: dict[str, object]) -> str:
    """Whether CUDA kernels can run, and why not."""
    built = f"built with CUDA {info['cuda']} for {info['cuda_architectures']}" if info.get("cuda") else "not built"
    return f"{built}; usable" if info["cuda_usable"] else f"{built}; not usable: {info['cuda_problem']}"


def verdict(info: dict[str, object]) -> str:
    """Where the ops will run."""
    if not info["core"]:
        return "ops run on their plain PyTorch definitions, correct but slow, on every device"
    if info["cuda_usable"]:
        return "ops run on compiled kernels, on CPU and GPU"
    return "ops run on compiled kernels on the CPU; CUDA tensors would run on plain PyTorch definitions"
