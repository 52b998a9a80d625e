"""AdamW in Triton: one launch for all tensors of a call, each number read and written once.

A model has dozens of small tensors, and a launch for each takes longer than their arithmetic. So
the kernel gets a table of addresses and lengths, as the Numba rung does, and for each block of the
joined tensors the row of the table that it belongs to, which is made once. Arithmetic is in
float32, whatever the types of the four arrays.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.adamw.with_torch import Tensors, foreach_adamw

BLOCK = 1 << 11
# What one load of a GPU's thread moves at most, in bytes; PyTorch's own tensors begin at such.
_ALIGNED = 16


def adamw(
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
    """The updates of lists: contiguous, what `triton_support.takes`; `foreach_adamw` for the rest.

    Args:
        parameters, gradients, firsts, seconds: of one length, on one device; tensors in one place
            have one shape. All but the gradients change in place.
        step: t, counted from 1.
    """
    rest: list[tuple[Tensor, ...]] = []
    ours: dict[tuple[torch.dtype, ...], list[tuple[Tensor, ...]]] = defaultdict(list)
    for tensors in zip(parameters, gradients, firsts, seconds, strict=True):
        if _in_memory(tensors):
            ours[tuple(tensor.dtype for tensor in tensors)].append(tensors)
        else:
            rest.append(tensors)
    root = math.sqrt(1.0 - beta2**step)
    rate = learning_rate * root / (1.0 - beta1**step)
    shares = (beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    for dtypes, quadruples in ours.items():
        _update(quadruples, dtypes, (*shares, eps * root, rate, learning_rate * weight_decay))
    if rest:
        foreach_adamw(
            *(list(column) for column in zip(*rest, strict=True)),
            step=step,
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
        )


def _in_memory(tensors: Sequence[Tensor]) -> bool:
    """What the kernel takes by its address; what differs in shape, PyTorch refuses."""
    return triton_support.takes(*tensors) and all(
        tensor.shape == tensors[0].shape
        and tensor.is_contiguous()
        and tensor.data_ptr() % _ALIGNED == 0
        and not tensor.is_inference()
        for tensor in tensors
    )


def _update(
    quadruples: Sequence[tuple[Tensor, ...]],
    dtypes: Sequence[torch.dtype],
    numbers: Sequence[float],
) -> None:
    from firsthand.llm.kernels.adamw import with_triton_kernels as kernels

    place = quadruples[0][0].device
    lengths = tuple(p.numel() for p, *_ in quadruples)
    owners = _owners(lengths, place)
    table, before = [], 0
    for tensors, length in zip(quadruples, lengths, strict=True):
        table.append((*(tensor.data_ptr() for tensor in tensors), length, before))
        before += -(-length // BLOCK)
    if not before:
        return
    types: list[Any] = [triton_support.stored(dtype) for dtype in dtypes]
    with triton_support.at(quadruples[0][0]):
        rows = torch.tensor(table, dtype=torch.int64).to(place)
        kernels.update[(before,)](rows, owners, *numbers, *types, BLOCK, **triton_support.FUSED)
    # What autograd kept for a backward pass is stale now, and it knows that by the version.
    changed = [tensor for p, _, m, v in quadruples for tensor in (p, m, v)]
    torch.autograd.graph.increment_version(changed)


@lru_cache(maxsize=8)
def _owners(lengths: tuple[int, ...], place: torch.device) -> Tensor:
    """For each block of the joined tensors, the number of its tensor."""
    blocks = torch.tensor([-(-length // BLOCK) for length in lengths])
    return torch.repeat_interleave(torch.arange(len(lengths)), blocks).int().to(place)
