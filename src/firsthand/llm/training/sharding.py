"""What an optimizer needs to know of parameters that are shared out over ranks (FSDP2).

A shard is a DTensor, whose module takes two seconds to import and is there as soon as one exists.
So it is looked up, never imported, for the sake of the runs without one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this rank may hold a part only."""
    kind = _kind()
    return kind is not None and isinstance(tensor, kind)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's shard of each DTensor, sharing its memory; other tensors as they are."""
    kind: Any = _kind()
    if kind is None:
        return list(tensors)
    return [tensor.to_local() if isinstance(tensor, kind) else tensor for tensor in tensors]


def whole(shard: Tensor, like: Any) -> Tensor:
    """The full tensor of which `shard` is this rank's part, placed as `like` is; a collective."""
    placed: Any = _kind()
    joined: Tensor = placed.from_local(
        shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    ).full_tensor()
    return joined


def own_shard(full: Tensor, like: Any) -> Tensor:
    """This rank's part of a tensor that every rank has, placed as `like`; no communication."""
    from torch.distributed.tensor import Replicate

    placed: Any = _kind()
    everywhere = [Replicate()] * like.device_mesh.ndim
    copied = placed.from_local(full, like.device_mesh, everywhere, run_check=False)
    shard: Tensor = copied.redistribute(placements=like.placements).to_local()
    return shard


def distributed_like(full: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same on every rank, as a DTensor placed as `like`; no communication."""
    placed: Any = _kind()
    full = full.to(like.to_local().device)
    shard: Tensor = placed.from_local(
        own_shard(full, like),
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=like.stride(),
    )
    return shard


def _kind() -> type | None:
    """The class DTensor; None as long as nobody has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)
