"""Copying saved tensors into live ones, with everything checked before the first copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.sharding import distributed_like, is_sharded

_SHOWN = 3


@torch.no_grad()
def load_state(live: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copy saved tensors into the live ones of the same names.

    Args:
        live: changed in place, all or none. A sharded one takes its part of a whole saved one.
        saved: on any device.
        what: the message begins with, such as "the state of the optimizer is".
    Raises:
        TrainingError: a name is missing or unknown, or a shape or a dtype differs.
    """
    problems = [f"no {name}" for name in live if name not in saved]
    problems += [f"an unknown {name}" for name in saved if name not in live]
    for name in live.keys() & saved.keys():
        for kind in ("shape", "dtype"):
            old, new = getattr(saved[name], kind), getattr(live[name], kind)
            if old != new:
                old, new = (tuple(old), tuple(new)) if kind == "shape" else (old, new)
                problems.append(f"{name} has {kind} {old}, the model's is {new}")
    if problems:
        shown = "; ".join(sorted(problems)[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise TrainingError(f"{what} of another model: {shown}{more}")
    for name, tensor in live.items():
        source = saved[name]
        if is_sharded(tensor) and not is_sharded(source):
            source = distributed_like(source, tensor)
        tensor.copy_(source)
