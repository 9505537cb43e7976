"""Several processes that train one network, started by torchrun. In a single process all of this does nothing.

torchrun gives each process its number in the variables RANK, LOCAL_RANK and WORLD_SIZE. Decisions of all processes
(to stop or to go on) are exchanged on the host through gloo; gradients and batch statistics on GPUs through NCCL. Only
rank 0 writes files.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def launched() -> int:
    """The number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world() -> int:
    """The number of processes in the group, 1 outside one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 outside a group."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this process writes the files of the run."""
    return rank() == 0


def local_device(name: str) -> str:
    """The device of this process for a recipe's device: each process uses the GPU of its LOCAL_RANK.

    Raises:
        ValueError: one particular GPU for several processes.
    """
    if launched() == 1 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise ValueError(f"device {name!r} is one device for {launched()} processes: use auto, cuda or cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" or torch.cuda.is_available() else "cpu"


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started, for the time of a `with` block."""
    if launched() == 1 or world() > 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()  # a process that leaves early would close its connections to the others
    finally:
        gc.collect()  # frees objects that still refer to the group (DDP and its method refer to each other)
        dist.destroy_process_group()


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    if world() == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return tuple(map(bool, votes.tolist()))


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank, in every process."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def share(value: Any) -> Any:
    """Rank 0's value, in every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mean(values: Tensor) -> Tensor:
    """The mean over the processes, on the device; NaN if any has NaN."""
    if world() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world()


def share_buffers(network: nn.Module) -> None:
    """Gives every process rank 0's batch statistics, which differ where they are not synchronised."""
    if world() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


Network = TypeVar("Network", bound=nn.Module)


def synchronise_norms(network: Network, device: torch.device) -> Network:
    """Batch norms over the batches of all processes, on GPUs; state-dict names stay."""
    if world() > 1 and device.type == "cuda":
        return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    return network


def replicate(method: nn.Module) -> nn.Module:
    """The method under DistributedDataParallel: backward ends with the mean of all processes' gradients."""
    if world() == 1:
        return method
    # batch statistics need not cross at every forward pass: they are synchronised (GPUs), or rank 0's are taken in the
    # end (`share_buffers`)
    return nn.parallel.DistributedDataParallel(method, broadcast_buffers=False)


def no_sync(replicated: nn.Module) -> AbstractContextManager[None]:
    """A block in which backward does not exchange gradients: for all micro-batches of a step but the last."""
    if isinstance(replicated, nn.parallel.DistributedDataParallel):
        return cast(AbstractContextManager[None], replicated.no_sync())
    return nullcontext()


def shard(network: nn.Module, device: torch.device) -> None:
    """Spreads a frozen network's parameters over the processes (FSDP2), gathered block by block when it runs.

    Blocks are moved to the device one by one; only this process's share of each stays there.

    Raises:
        ValueError: there is one process only, or a parameter is not contiguous (channels-last).
    """
    if world() == 1:
        raise ValueError("train.shard_teacher spreads the teacher over processes, and there is one: use torchrun")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world(),))
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The children that have parameters and can be called; those of a list, which cannot, one by one."""
    for child in network.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _blocks(child)
        elif next(child.parameters(), None) is not None:
            yield child
