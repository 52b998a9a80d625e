"""AdamW by one compiled loop over all tensors of a call: each number is read and written once.

A model has dozens of small tensors, and handing four arrays to compiled code for each of them
takes longer than their arithmetic. So the loop gets one table of addresses and lengths, without
`Tensor.numpy`, which besides forbids a storage to be resized, as sharded training does. It is cut
into blocks of the joined tensors, the same for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from firsthand.llm.kernels.adamw.with_torch import Tensors, foreach_adamw
from firsthand.llm.kernels.compiling import compiled, inlined
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.threads import by_rows, pays, plain_float32

# Elements of a tensor that one thread works on at once, the same for any number of threads.
BLOCK = 1 << 12
_BYTES = 4


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
    """The updates of lists: contiguous float32 on a CPU; `foreach_adamw`, the same, for the rest.

    And for all of them where PyTorch has so many threads that it is faster, as `threads` decides.

    Args:
        parameters, gradients, firsts, seconds: of one length, on one device; tensors in one place
            have one shape. All but the gradients change in place.
        step: t, counted from 1.
    """
    ours: list[tuple[Tensor, ...]] = []
    rest: list[tuple[Tensor, ...]] = []
    takes = pays()
    for tensors in zip(parameters, gradients, firsts, seconds, strict=True):
        (ours if takes and _in_memory(tensors) else rest).append(tensors)
    if ours:
        root = math.sqrt(1.0 - beta2**step)
        rate = learning_rate * root / (1.0 - beta1**step)
        shares = (beta1, 1.0 - beta1, beta2, 1.0 - beta2)
        numbers = (*shares, eps * root, rate, learning_rate * weight_decay)
        _update(ours, [np.float32(number) for number in numbers])
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
    """Whether they are as many float32 numbers, each in one piece; what differs, PyTorch refuses.

    An inference tensor has no version to count up.
    """
    shape = tensors[0].shape
    for tensor in tensors:
        if (
            not plain_float32(tensor)
            or tensor.shape != shape
            or not tensor.is_contiguous()
            or tensor.is_inference()
        ):
            return False
    return True


def _update(quadruples: Sequence[tuple[Tensor, ...]], numbers: Sequence[np.float32]) -> None:
    table = []
    blocks = elements = 0
    for p, g, m, v in quadruples:
        length = p.numel()
        addresses = (p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr())
        table.append((*addresses, length, blocks))
        blocks += -(-length // BLOCK)
        elements += length
    by_rows(_loop, blocks, elements, np.array(table, np.int64), *numbers)
    # What autograd kept for a backward pass is stale now, and it knows that by the version.
    changed = [tensor for p, _, m, v in quadruples for tensor in (p, m, v)]
    torch.autograd.graph.increment_version(changed)


def _typed_pointer(_: Any, address: Any) -> Any:
    """What Numba asks of a function made for it: the signature, and the code at its call."""
    pointer = types.CPointer(types.float32)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(address), generate


# An integer address as a pointer to float32; it can be indexed in compiled code.
_floats_at: Any = intrinsic(_typed_pointer)


@inlined
def _element(
    p: np.float32,
    g: np.float32,
    m: np.float32,
    v: np.float32,
    beta1: np.float32,
    share1: np.float32,
    beta2: np.float32,
    share2: np.float32,
    floor: np.float32,
    rate: np.float32,
    decay: np.float32,
) -> tuple[np.float32, np.float32, np.float32]:
    """The corrections stand in floor and rate, as in `foreach_adamw`.

    p - d p with one rounding, not (1 - d) p, whose factor has lost d's last digits.
    """
    m = beta1 * m + share1 * g
    v = beta2 * v + share2 * (g * g)
    return p - (decay * p + rate * (m / (np.sqrt(v) + floor))), m, v


@compiled
def _loop(
    first: int,
    last: int,
    table: AnyArray,
    beta1: np.float32,
    share1: np.float32,
    beta2: np.float32,
    share2: np.float32,
    floor: np.float32,
    rate: np.float32,
    decay: np.float32,
) -> None:
    """Blocks first to last of the joined tensors.

    Args:
        table: for each tensor the addresses of p, g, m, v, the length, and the blocks before it.
    """
    for row in range(len(table)):
        length, before = table[row, 4], table[row, 5]
        behind = before + (length + BLOCK - 1) // BLOCK
        for block in range(max(first, before), min(last, behind)):
            start = (block - before) * BLOCK
            p = _floats_at(table[row, 0] + start * _BYTES)
            g = _floats_at(table[row, 1] + start * _BYTES)
            m = _floats_at(table[row, 2] + start * _BYTES)
            v = _floats_at(table[row, 3] + start * _BYTES)
            for i in range(min(BLOCK, length - start)):
                p[i], m[i], v[i] = _element(
                    p[i], g[i], m[i], v[i], beta1, share1, beta2, share2, floor, rate, decay
                )
