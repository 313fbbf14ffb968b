"""Processes that train together: who they are, and a model that each holds its share of."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one training, seen from one of them.

    `sum`, `any` and `wait` are called by all of them at the same point.
    """

    rank: int = 0
    ranks: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    def sum(self, number: float) -> float:
        """The sum of every process' number, exact for counts up to 2^53."""
        if self.ranks == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def any(self, flag: bool) -> bool:
        """Whether any process says so: a decision that all of them then take alike."""
        return self.sum(float(flag)) > 0

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.sum(0)


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Meets the processes that `torchrun` started, on "cpu" or "cuda"; without it this one is alone."""
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Processes(rank, ranks, place)
    finally:
        dist.destroy_process_group()


class Sharding:
    """FSDP2 as the family used FSDP: float32 master weights shared out, compute in `dtype`, float32 gradients.

    Modules must hold their real weights when they come here; what belongs to other processes is freed at once. So a
    model that is filled and given block by block never stands in memory whole.
    """

    def __init__(self, processes: Processes, dtype: torch.dtype) -> None:
        self.mesh = init_device_mesh(processes.device.type, (processes.ranks,))
        self.policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)

    def block(self, module: nn.Module) -> None:
        """Shares out a layer; its activations are computed again on the way back instead of being kept."""
        # Bound to the instance, so that parameters keep the names of the checkpoint.
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        fully_shard(module, mesh=self.mesh, mp_policy=self.policy)

    def root(self, module: nn.Module) -> None:
        """Shares out what the blocks have left over; `module` is the one that is called."""
        fully_shard(module, mesh=self.mesh, mp_policy=self.policy)
