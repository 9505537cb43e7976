"""How an op reaches torch: registration, and the compiled core behind it.

Every op is declared once with `define`, and gets

* `kernel`: its implementation on the compiled core, for CPU and (in a CUDA build) CUDA tensors;
* `reference`: its definition in plain PyTorch, for every other device, and for CUDA without CUDA kernels;
* `fake`: shapes and dtypes, for `torch.compile` and `torch.export`;
* `backward` and `setup`, where a derivative exists.
"""

from __future__ import annotations

import functools
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad, profiler
from torch.nn import Parameter


class _Library(torch.library.Library):
    """Torch's, with a guard before every derivative that it registers."""

    def impl(self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        """As `torch.library.Library.impl`."""
        if dispatch_key == "Autograd":
            fn = _guarded(op_name, fn)
        super().impl(op_name, fn, dispatch_key, **options)


def _guarded(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The autograd kernel of op `name`, refusing the derivatives that torch would answer wrongly or in riddles."""

    def guarded(keyset: Any, *args: Any, **options: Any) -> Any:
        tensors = [x for x in args if isinstance(x, Tensor)]
        _refuse_tangents(name, tensors)
        _refuse_transforms(name, tensors)
        return kernel(keyset, *args, **options)

    return guarded


def _refuse_tangents(name: str, tensors: Sequence[Tensor]) -> None:
    """Torch would drop the tangents silently, which is a derivative of 0."""
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(
            f"posekd::{name} has no forward-mode derivative (torch.func.jvp, torch.func.jacfwd, "
            "torch.autograd.forward_ad): take the derivative backward (torch.autograd.grad), detach the input, or use "
            "the plain PyTorch definition in posekd.ops.reference"
        )


def _refuse_transforms(name: str, tensors: Sequence[Tensor]) -> None:
    """Torch would speak of autograd.Function and setup_context, of which a user knows nothing."""
    transformed = torch._C._are_functorch_transforms_active() and torch.is_grad_enabled()
    if transformed and any(x.requires_grad for x in tensors):
        raise RuntimeError(
            f"posekd::{name} takes no part in torch.func's derivatives (grad, vjp, jacrev, hessian): take them with "
            "torch.autograd.grad, or use the plain PyTorch definition in posekd.ops.reference"
        )


LIBRARY = _Library("posekd", "DEF")

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _load_core() -> tuple[ModuleType | None, str]:
    if os.environ.get("POSEKD_REFERENCE_ONLY"):
        return None, "POSEKD_REFERENCE_ONLY is set"
    try:
        from posekd import _C
    except ImportError as error:
        sources = Path(__file__).parents[2]
        if (sources / "pyproject.toml").exists():
            return None, f"posekd was imported from its sources in {sources}; start Python in another folder"
        return None, str(error)
    return _C, ""


_core, _core_problem = _load_core()
_override: ModuleType | None = None

if _core is None:
    warnings.warn(
        f"posekd's compiled core did not load ({_core_problem}); ops run on their plain PyTorch definitions, which "
        "are correct but slow. Reinstall posekd (`pip install .` in a checkout) to build it.",
        stacklevel=2,
    )


@contextmanager
def use_core(module: ModuleType) -> Iterator[None]:
    """Sends CPU tensors to another build of the core: how the tests run the CUDA sources in emulation."""
    global _override
    previous, _override = _override, module
    try:
        yield
    finally:
        _override = previous


_definitions_only = False


@contextmanager
def definitions() -> Iterator[None]:
    """Runs the ops on their plain PyTorch definitions within a block, whatever their kernels could do."""
    global _definitions_only
    previous, _definitions_only = _definitions_only, True
    try:
        yield
    finally:
        _definitions_only = previous


_stand_ins: dict[str, Callable[..., Any]] = {}


@contextmanager
def stood_in(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block, ops that a tracer meets are other functions of the same arguments: for exporters."""
    _stand_ins.update(functions)
    try:
        yield
    finally:
        _stand_ins.clear()


def emulated() -> bool:
    """Whether the CUDA emulation is in place of the core (it has no float64)."""
    return _override is not None


def on_device(x: Tensor) -> bool:
    """Whether the CUDA kernels take `x`, on a GPU or in emulation: they have no float64, and limits of size."""
    return x.is_cuda or _override is not None


def core() -> Any:
    """The compiled core in use."""
    return _override if _override is not None else _core


def dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` contiguous in `dtype`, as the core reads it."""
    return (x if x.dtype == dtype else x.to(dtype)).contiguous()


def threads() -> int:
    """How many threads a CPU kernel may use: torch's setting, which is 1 in DataLoader workers."""
    return torch.get_num_threads()


@functools.cache
def cuda_kernels() -> tuple[bool, str]:
    """Whether CUDA kernels can run here, and why not."""
    if _core is None:
        return False, f"the compiled core did not load: {_core_problem}"
    if _core.build_info()["cuda"] is None:
        return False, "posekd was built without CUDA kernels (POSEKD_CUDA=OFF, or no nvcc at build time)"
    if torch.version.cuda is None:
        return False, "this torch is a CPU build"
    if not torch.cuda.is_available():
        return False, "no usable NVIDIA driver or device"
    return True, ""


def use_cuda_kernels() -> bool:
    """Whether ops on CUDA tensors run our kernels; warns once, with the reason, when they do not."""
    usable, why = cuda_kernels()
    if not usable:
        _warn_no_cuda_kernels(why)
    return usable


@functools.cache
def _warn_no_cuda_kernels(why: str) -> None:
    warnings.warn(f"posekd's CUDA kernels cannot run: {why}. CUDA tensors use plain PyTorch.", stacklevel=3)


_PLAIN_TYPES = frozenset((int, float, bool, type(None), torch.Size))
_is_compiling = torch.compiler.is_compiling


def _guard() -> Callable[..., str | None]:
    """Makes `plain_device` from what torch keeps to itself; where this torch lacks any of it, one that says None."""
    try:
        C, key = torch._C, torch._C.DispatchKey

        def bits(*keys: Any) -> int:
            return functools.reduce(operator.or_, (C.DispatchKeySet(k).raw_repr() for k in keys))

        # What a thread adds to the keys of every call, and the keys of a tensor, while nothing but autograd and
        # autocast is at work. Dispatch modes, tracing, functorch's transforms, inference mode, fake and functional
        # tensors, subclasses and views that are negated on reading all differ in one of them.
        rest = bits(key.BackendSelect, key.ADInplaceOrView)
        devices = {
            bits(key.CPU, key.AutogradCPU, key.AutocastCPU, key.ADInplaceOrView): "cpu",
            bits(key.CUDA, key.AutogradCUDA, key.AutocastCUDA, key.ADInplaceOrView): "cuda",
        }
        included, keys_of, function_modes = (
            C._dispatch_tls_local_include_set,
            C._dispatch_keys,
            C._len_torch_function_stack,
        )
        excluded, autograd = C._dispatch_tls_is_dispatch_key_excluded, key.AutogradFunctionality
        _ = forward_ad._current_level, profiler._is_profiler_enabled  # read anew at each call
    except AttributeError:
        return lambda args, profiled=False: None

    def guard(args: Sequence[Any], profiled: bool = False) -> str | None:
        if (
            _is_compiling()
            or included().raw_repr() != rest
            or excluded(autograd)
            or function_modes()
            or forward_ad._current_level >= 0
            or (profiler._is_profiler_enabled and not profiled)
        ):
            return None
        found: str | None = None
        for x in args:
            kind = type(x)
            if kind is Tensor or kind is Parameter:
                device = devices.get(keys_of(x).raw_repr())
                if device is None or (device is not found and found is not None):
                    return None
                found = device
            elif kind not in _PLAIN_TYPES:
                return None
        return found

    return guard


_plain_device = _guard()


def plain_device(args: Sequence[Any], profiled: bool = False) -> str | None:
    """Where an op's arguments live, "cpu" or "cuda", if torch's dispatcher has nothing to do for a call with them.

    The one guard before every call that leaves the dispatcher out. None while anything beyond autograd and autocast is
    at work: compiling, tracing, a profiler, a mode, a transform, inference mode, forward-mode derivatives, a tensor
    that is more than its numbers. A profiler, which wants to see the op's name, does not count where `profiled`.
    """
    return _plain_device(args, profiled)


def define(
    schema: str,
    *,
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    supports: Callable[..., bool] = lambda *args: True,
    brief: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Declares an op and its implementations; returns what calls `torch.ops.posekd.<name>`.

    Args:
        schema: as for `torch.library.Library.define`.
        kernel: allocates contiguous outputs and calls `core()`.
        reference: the same signature in plain PyTorch.
        fake: the same signature, returning empty outputs.
        supports: whether the kernel takes these arguments; otherwise the reference runs (float64 on CUDA, say).
        brief: `kernel` for calls that leave out the dispatcher, with None for outputs that nobody will read.
    """
    name = LIBRARY.define(schema).split("::")[-1].split(".")[0].split("(")[0]

    def on(kernel: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        def on_cpu(*args: Any) -> Any:
            usable = not _definitions_only and (_core is not None or _override is not None) and supports(*args)
            return kernel(*args) if usable else reference(*args)

        def on_cuda(*args: Any) -> Any:
            usable = not _definitions_only and use_cuda_kernels() and supports(*args)
            return kernel(*args) if usable else reference(*args)

        return {"cpu": on_cpu, "cuda": on_cuda}

    for device, run in on(kernel).items():
        LIBRARY.impl(name, run, device.upper())
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"posekd::{name}", fake, lib=LIBRARY)
    return _shortened(name, on(brief or kernel))


# Of each op, by device: its implementation, and the autograd.Function around it if the op has a derivative.
_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
_functions: dict[str, dict[str, Callable[..., Any]]] = {}


def _shortened(name: str, implementations: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The op `name` as a function, which leaves out torch's dispatcher where that would have nothing to do.

    On a small problem the way through the dispatcher (Python to C++ to Python, twice each way) costs several times the
    work. What is left out changes no result. Ops without a derivative always take the dispatcher.
    """
    op = getattr(torch.ops.posekd, name).default
    kinds = [str(argument.type) for argument in op._schema.arguments]
    tensors = next((i for i, kind in enumerate(kinds) if "Tensor" not in kind), len(kinds))  # numbers need no guard
    assert not any("Tensor" in kind for kind in kinds[tensors:])
    _implementations[name] = implementations
    functions = _functions.setdefault(name, {})

    def call(*args: Any) -> Any:
        device = _plain_device(args[:tensors]) if functions else None
        if device is None:
            return _stand_ins[name](*args) if name in _stand_ins else op(*args)
        return functions[device](*args) if torch.is_grad_enabled() else implementations[device](*args)

    return call


def differentiable(
    name: str, backward: Callable[..., Any], setup: Callable[..., None], results: int | None = None
) -> None:
    """Registers the derivative of op `name` with autograd.

    Args:
        name: of the op.
        backward: as for `torch.library.register_autograd`, with gradients of the first `results` outputs alone too.
        setup: as for `torch.library.register_autograd`.
        results: how many outputs a caller uses; the others are for the backward pass, and a call that leaves out the
            dispatcher does not return them. None: all.
    """
    torch.library.register_autograd(f"posekd::{name}", backward, setup_context=setup, lib=LIBRARY)
    for device, run in _implementations[name].items():
        _functions[name][device] = _function(name, run, backward, setup, results)


def _function(
    name: str, run: Callable[..., Any], backward: Callable[..., Any], setup: Callable[..., None], results: int | None
) -> Callable[..., Any]:
    """An op's implementation with the derivative that is registered for the op, as an autograd.Function."""

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        setup(ctx, args, output)
        return output if results is None else output[:results]

    made = type(f"posekd_{name}", (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})
    # Not Function.apply but the apply below it: what lies between asks about torch.func, as `plain_device` has done.
    below: Callable[..., Any] = super(Function, made).apply  # type: ignore[misc]
    return below


def no_double_backward(name: str) -> None:
    """Makes a second derivative through the backward op `name` a clear error."""

    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"posekd::{name} is itself a derivative, and has none: double backward is not supported. "
            f"Use the plain PyTorch definition in posekd.ops.reference for second derivatives."
        )

    differentiable(name, backward, lambda ctx, inputs, output: None)


_counters: dict[tuple[int, int], Tensor] = {}


def counter(like: Tensor) -> Tensor | None:
    """A zero on the device of `like`, which kernels leave zero: one per stream, so that streams do not share it.

    None for the CPU's kernels, which do not count.
    """
    if not like.is_cuda:
        return torch.zeros(1, dtype=torch.int32) if _override is not None else None
    if torch.cuda.is_current_stream_capturing():  # a graph fills its own: it may be replayed on any stream
        return torch.zeros(1, dtype=torch.int32, device=like.device)
    stream = torch.cuda.current_stream(like.device)
    key = (like.get_device(), stream.cuda_stream)
    if key not in _counters:
        # In a thread of its own, because the warm-up of torch.compile's CUDA graphs takes what this thread allocates
        # from the graphs' memory, where nothing may outlive a call.
        with ThreadPoolExecutor(1) as other:
            _counters[key] = other.submit(lambda: torch.zeros(1, dtype=torch.int32, device=like.device)).result()
        stream.wait_stream(torch.cuda.default_stream(like.device))  # on which the other thread has filled it
    return _counters[key]


def build_info() -> dict[str, Any]:
    """How the core was built and what it chose here.

    Returns:
        `core` (whether the compiled core loaded), and, when it did: `compiler`, `cuda` (toolkit version or None),
        `cuda_architectures`, `vector_levels` (compiled), `vector_level` (chosen for this processor), `parallel`
        ("openmp": torch's own threads; "threads": ours). `cuda_usable` and `cuda_problem` say whether CUDA
        tensors reach our kernels, and why not.

    Examples:
        >>> from posekd.ops import build_info
        >>> build_info()["core"]  # whether the compiled core loaded
        True
    """
    info: dict[str, Any] = {"core": _core is not None}
    if _core is None:
        info["problem"] = _core_problem
    else:
        info |= _core.build_info()
    info["cuda_usable"], info["cuda_problem"] = cuda_kernels()
    return info
