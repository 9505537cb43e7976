"""`posekd profile NAME|FILE`: parameters and compute of a network, and its latency on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from posekd.cli import command_parser

if TYPE_CHECKING:
    from posekd.models import PoseModel
    from posekd.models.profile import Profile

DEEP = 0.25  # of what the machine can: below it something else than arithmetic takes the time

EPILOG = """examples:
  posekd profile elpn_v1                              # parameters and compute, in the papers' conventions
  posekd profile runs/v1/best.safetensors --latency   # and time and memory on this machine
  posekd profile distilpose_s --latency --beside distilpose_teacher_hrnet_w48   # teacher beside student
  posekd profile hrnet_w32 --size 384 288 --set width=16"""


def main(argv: Sequence[str]) -> int:
    """Prints parameters and compute, each number with its unit and the papers that count in this way.

    Raises:
        ValueError: unknown name or setting, or a size that the network cannot take.
        FileNotFoundError: no such checkpoint.
    """
    parser = command_parser("profile", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="a model's name (`posekd.list_models()`), a .safetensors file with its card, or a run's folder")
    add("--beside", nargs="+", default=[], metavar="MODEL", help="others to compare it with, e.g. its teacher")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="input size in pixels (default: the model's own)")
    add("--num-keypoints", type=int, metavar="K", help="keypoints of a model given by name (17)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the model to change")
    add("--latency", action="store_true", help="measure time, throughput and memory on this machine, too")
    add("--threads", type=int, metavar="N", help="CPU threads of the measurement (torch's own)")
    add("--batch", type=int, default=16, metavar="N", help="images of a pass, for the throughput (16)")
    add("--device", default="auto", help="cpu, cuda, cuda:1... (default: the GPU if there is one)")
    options = parser.parse_args(argv)
    for name in ("threads", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be 1 or more, got {value}")

    import torch

    from posekd.models.profile import profile_model

    overrides = _overrides(options.set)
    with torch.device("meta"):  # counting needs shapes, not weights
        model = _build(options.model, options.num_keypoints, overrides)
    size = None if options.size is None else (options.size[0], options.size[1])
    profile = profile_model(model, size)
    Console().print(_table(profile, model.num_keypoints))
    if options.latency:
        _measure(options, profile, _build(options.model, options.num_keypoints, overrides))
    if options.beside:
        _compare(options, overrides)
    return 0


def _measure(options: argparse.Namespace, profile: Profile, model: PoseModel) -> None:
    """Measures the network, with fresh weights: time does not depend on them."""
    import torch

    from posekd.engine.build import pick_device
    from posekd.engine.threads import oversubscribed, using_threads
    from posekd.models.latency import count_layers, measure_large_convolution, measure_latency

    device = pick_device(options.device)
    with using_threads(options.threads):
        threads = torch.get_num_threads()
        where = f"{threads} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
        model = model.to(device)
        told = oversubscribed(threads) if device.type == "cpu" else ""
        ways = (False, True) if device.type == "cuda" else (False,)
        batches = dict.fromkeys((1, options.batch))
        rows = {
            (batch, graph): measure_latency(model, profile.size, batch, graph=graph)
            for graph in ways
            for batch in batches
        }
        best = measure_large_convolution(device)
    console = Console()
    table = Table(title=f"on this machine: {where}, float32, torch {torch.__version__}", title_justify="left")
    table.add_column("images", justify="right")
    for heading in ("median", "10 % to 90 %", "images/s", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (batch, graph), row in rows.items():
        spread = f"{1e3 * row.low:.2f} to {1e3 * row.high:.2f} ms"
        memory = f"{row.peak_bytes / 2**20:.0f} MiB" if row.peak_bytes else "-"
        table.add_row(
            f"{batch}, CUDA graph" if graph else str(batch),
            f"{1e3 * row.median:.2f} ms",
            spread,
            f"{row.images_per_second:.0f}",
            memory,
        )
    console.print(table)
    reached, layers = profile.macs / rows[1, False].median, count_layers(model)
    console.print(
        f"{reached / 1e9:.2f} GMAC/s of the {best / 1e9:.1f} that one large convolution reaches here", highlight=False
    )
    if reached < DEEP * best:
        console.print(
            f"note: its {layers} layers, {1e6 * rows[1, False].median / max(layers, 1):.0f} us each, limit it and not "
            "arithmetic: fewer layers make it faster, narrower ones hardly do",
            highlight=False,
            soft_wrap=True,
        )
    if told:
        console.print(f"note: {told}", highlight=False, soft_wrap=True)


def _compare(options: argparse.Namespace, overrides: dict[str, Any]) -> None:
    """Prints the network and others side by side, and with `--latency` how many times as long the others take."""
    import torch

    from posekd.engine.build import pick_device
    from posekd.engine.threads import using_threads
    from posekd.models.latency import measure_ratios
    from posekd.models.profile import profile_model

    models = [_build(options.model, options.num_keypoints, overrides)]
    models += [_build(name, None, {}) for name in options.beside]
    size = None if options.size is None else (options.size[0], options.size[1])
    profiles = [profile_model(models[0], size), *(profile_model(model) for model in models[1:])]
    table = Table(title="side by side: how many times the first", title_justify="left")
    headings = ["network", "parameters", "compute"]
    ratios = []
    if options.latency:
        device = pick_device(options.device)
        with using_threads(options.threads):
            threads = torch.get_num_threads()
            ratios = measure_ratios([m.to(device) for m in models], [p.size for p in profiles])
        where = f"{threads} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
        headings.append("latency")
        table.title = f"{table.title}; one image, {where}, median and quartiles"
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    first = profiles[0]
    for i, profile in enumerate(profiles):
        row = [
            profile.name,
            f"{profile.params / 1e6:.2f} M, {profile.params / first.params:.2f}",
            f"{profile.macs / 1e9:.2f} GMAC, {profile.macs / max(first.macs, 1):.2f}",
        ]
        if ratios:
            median, low, high = ratios[i]
            row.append(f"{median:.2f} ({low:.2f} to {high:.2f})" if i else "1")
        table.add_row(*row)
    Console().print(table)


def _build(name: str, num_keypoints: int | None, overrides: dict[str, Any]) -> PoseModel:
    """The network of a name or of a checkpoint's card; its weights do not matter."""
    from posekd.models import create_model, create_model_from_card
    from posekd.models.weights import find_checkpoint, read_card

    path = find_checkpoint(name)
    if path is None:
        return create_model(name, num_keypoints=17 if num_keypoints is None else num_keypoints, **overrides)
    card = read_card(path)
    if card is None:
        raise FileNotFoundError(f"{path} has no card (.json) beside it: give the model's name instead")
    if overrides or num_keypoints is not None:
        raise ValueError(f"{path} is a network as it is: --set and --num-keypoints are for names")
    return create_model_from_card(card)


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    import yaml

    pairs = [word.partition("=") for word in words]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, e.g. width=16, got {key!r}")
    return {key: yaml.safe_load(text) for key, _, text in pairs}


def _table(profile: Profile, num_keypoints: int) -> Table:
    from posekd.models.profile import profile_rows, profile_title

    table = Table(title=f"{profile_title(profile)}, {num_keypoints} keypoints", title_justify="left")
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("whose convention")
    for row in profile_rows(profile):
        table.add_row(*row)
    return table
