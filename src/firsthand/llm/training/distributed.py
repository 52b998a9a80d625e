"""Several processes that train one model: PyTorch's process groups, DDP and FSDP2.

Each rank takes its own rows of a batch. The loss of an update is the sum over all ranks' tokens
divided by their number, so it does not depend on how the rows are dealt out. DDP and FSDP average
gradients over the ranks, which divides once too often: `World.ranks` multiplies it back.

Sources: Li et al. 2020, "PyTorch Distributed"; Zhao et al. 2023, "PyTorch FSDP".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.config import Parallel
from firsthand.llm.training.errors import TrainingError

# Other ranks wait this long while the first one prepares a large corpus.
PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class World:
    """The processes of one run, as one of them sees it.

    Attributes:
        rank: which one this is; 0 writes files and speaks.
        ranks: how many there are.
        device: where this one's model is.
    """

    rank: int
    ranks: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64; exact for integers below 2^53."""
        if self.ranks == 1:
            return list(values)
        gathered = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(gathered)
        result: list[float] = gathered.tolist()
        return result

    def wait(self) -> None:
        """Until every rank is here."""
        if self.ranks > 1:
            distributed.barrier()

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return self.sums([float(here)])[0] > 0


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that a setting names.

    Raises:
        TrainingError: a device that this machine or this PyTorch does not have.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    elif name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"the device {name!r} cannot be used here: {reason}") from error
    return device


@contextlib.contextmanager
def joined_world(device: str = "auto") -> Iterator[World]:
    """The world that torchrun describes in the environment, or one process alone.

    Raises:
        TrainingError: a device that is not there.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = pick_device(device, local_rank)
    if ranks == 1:
        yield World(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), ranks, place)
    finally:
        distributed.destroy_process_group()


class _Call(nn.Module):
    """A module whose forward is any function of the model, so that DDP sees every use of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


class Spread:
    """A model on all ranks: runs functions of it and says when gradients meet.

    Args:
        model: with equal weights on every rank, on the world's device.
        world: the ranks.
        parallel: "ddp" or "fsdp"; with one rank neither does anything.
    """

    def __init__(self, model: Transformer, world: World, parallel: Parallel) -> None:
        self.model, self.world = model, world
        self.sharded = world.ranks > 1 and parallel == "fsdp"
        self._call: nn.Module = _Call(model)
        if self.sharded:
            mesh = init_device_mesh(world.device.type, (world.ranks,))
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            for method in ("loss", "hidden"):
                register_fsdp_forward_method(model, method)
        elif world.ranks > 1:
            on_gpu = world.device.type == "cuda"
            self._call = DistributedDataParallel(
                self._call, device_ids=[world.device] if on_gpu else None
            )

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(model, *arguments), with gradients that meet in its backward pass."""
        return self._call(function, *arguments)

    def gathering(self, now: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: whether the ranks' gradients are joined in it."""
        if self.sharded:
            self.model.set_requires_gradient_sync(now)  # type: ignore[operator]
        elif self.world.ranks > 1 and not now:
            return self._call.no_sync()  # type: ignore[no-any-return, operator]
        return contextlib.nullcontext()


def gradients(model: nn.Module) -> list[Tensor]:
    """Those that the last backward pass left, in the order of the parameters."""
    return [p.grad for p in model.parameters() if p.grad is not None]
