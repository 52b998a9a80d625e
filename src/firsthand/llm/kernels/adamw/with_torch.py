"""AdamW's update in PyTorch: of one tensor, and of lists in few calls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]

# Elements worked on at once. The lists pass through memory several times: on a CPU a group should
# stay in its cache, on a GPU it should be long enough to fill it and bounds the scratch memory.
GROUP = {"cpu": 1 << 17, "cuda": 1 << 25}


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of one tensor in place.

    m ← β₁ m + (1 - β₁) g and v ← β₂ v + (1 - β₂) g². Both start at 0, so m̂ and v̂ are m and v
    divided by 1 - β₁ᵗ and 1 - β₂ᵗ. Then p ← p - η (m̂ / (√v̂ + ε) + λ p). The decay stands outside
    of the moments: inside, a weight with large gradients would decay less. Source: Loshchilov &
    Hutter 2019, algorithm 2.

    Args:
        parameter, gradient, first, second: p, g, m, v of one shape; g stays as it is.
        step: t, counted from 1.
        learning_rate: η with the schedule's factor.
        weight_decay: λ.
    """
    first.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    corrected_first = first / (1.0 - beta1**step)
    corrected_second = second / (1.0 - beta2**step)
    direction = corrected_first / (corrected_second.sqrt() + eps)
    parameter.sub_(learning_rate * (direction + weight_decay * parameter))


def foreach_adamw(
    parameters: Tensors,
    gradients: Tensors,
    firsts: Tensors,
    seconds: Tensors,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """The updates of lists, with one call for many tensors and one scratch tensor a group.

    The corrections are scalars and move out of the tensors:
    η m̂ / (√v̂ + ε) = (η √(1 - β₂ᵗ) / (1 - β₁ᵗ)) m / (√v + ε √(1 - β₂ᵗ)).

    Args:
        parameters, gradients, firsts, seconds: of one length, on one device; tensors in one place
            have one shape. All but the gradients change in place.
    """
    root = math.sqrt(1.0 - beta2**step)
    rate = learning_rate * root / (1.0 - beta1**step)
    for p, g, m, v in _groups(parameters, gradients, firsts, seconds):
        if weight_decay:
            torch._foreach_mul_(p, 1.0 - learning_rate * weight_decay)
        torch._foreach_lerp_(m, g, 1.0 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, 1.0 - beta2)
        denominators = torch._foreach_sqrt(v)
        torch._foreach_add_(denominators, eps * root)
        torch._foreach_addcdiv_(p, m, denominators, -rate)


def _groups(*lists: Tensors) -> Iterator[list[list[Tensor]]]:
    """The lists cut alike into groups of at most GROUP elements; long tensors are cut as well."""
    if not lists[0]:
        return
    limit = GROUP.get(lists[0][0].device.type, GROUP["cuda"])
    group: list[tuple[Tensor, ...]] = []
    filled = 0
    for tensors in zip(*lists, strict=True):
        for pieces in _pieces(tensors, limit):
            if group and filled + pieces[0].numel() > limit:
                yield [list(column) for column in zip(*group, strict=True)]
                group, filled = [], 0
            group.append(pieces)
            filled += pieces[0].numel()
    yield [list(column) for column in zip(*group, strict=True)]


def _pieces(tensors: Sequence[Tensor], limit: int) -> Iterator[tuple[Tensor, ...]]:
    if tensors[0].numel() <= limit or not all(tensor.is_contiguous() for tensor in tensors):
        yield tuple(tensors)
        return
    yield from zip(*(torch.split(tensor.view(-1), limit) for tensor in tensors), strict=True)
