"""`posekd doctor`: what runs on this machine, and why."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence

from posekd.cli import command_parser


def main(argv: Sequence[str]) -> int:
    """Prints one line per fact; the exit code is 1 if the ops have to run without the compiled core."""
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
        ("verdict", verdict(info)),
    ]
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        print(f"{name:<{width}}  {text}")
    return 0 if info["core"] else 1


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
