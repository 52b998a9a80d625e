"""The gradient's length, and a bound on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.training.sharding import is_sharded, local


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place by one factor, so that their global L2 norm is max_norm at most.

    One factor for all keeps the direction; a bound per tensor would turn it. A norm that is not
    finite scales nothing: what made it so stays visible. Source: Pascanu et al. 2013, algorithm 1.

    Args:
        gradients: of all parameters. Shards (DTensor) count with those of the other ranks, and
            every rank has to call.
        max_norm: above 0; 0 only measures.
    Returns:
        The norm before, a float32 (or wider) scalar on the gradients' device; 0 without gradients.
    """
    if not gradients:
        return torch.zeros(())
    norm = global_norm(gradients)
    if max_norm <= 0:
        return norm
    scale = (max_norm / norm).clamp(max=1.0)
    scale = torch.where(norm.isfinite(), scale, 1.0)
    # On a GPU a look at the factor would wait for the backward pass; there it is always applied.
    if norm.device.type != "cpu" or scale < 1.0:
        torch._foreach_mul_(local(gradients), scale)
    return norm


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all tensors as one vector, over all ranks; a scalar of float32 or wider."""
    shards = [tensor for tensor in tensors if is_sharded(tensor)]
    own = [tensor for tensor in tensors if not is_sharded(tensor)]
    norms = [_norm(own)] if own else []
    if shards:
        joined: Any = _norm(shards)
        norms.append(joined.full_tensor() if is_sharded(joined) else joined)
    return norms[0] if len(norms) == 1 else _length(norms)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    # Sums of squares of half precision overflow at 65504 and lose all digits in bfloat16.
    narrow = tensors[0].dtype in (torch.float16, torch.bfloat16)
    wide = torch.float32 if narrow else None
    return _length(torch._foreach_norm(list(tensors), 2, dtype=wide))


def _length(norms: Sequence[Tensor]) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return total
