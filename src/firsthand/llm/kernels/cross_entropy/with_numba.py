"""Projection and cross-entropy, the gradients made in the forward pass, softmax in a compiled loop.

As `with_torch.chunked_cross_entropy`, whose passes over a chunk's logits (log-softmax, picking,
exponential, subtraction, scaling) become one: a row of logits stays in the nearest cache from its
maximum to its gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.cross_entropy import with_torch
from firsthand.llm.kernels.exponential import exp32
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.threads import array, by_rows, compiles, memory

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = with_torch.CHUNK
) -> Tensor:
    """The sum of the losses in nats; arguments as the PyTorch rung, which does all but float32.

    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
        IndexError: a target outside the vocabulary.
    """
    if not compiles(hidden, weight):
        return with_torch.chunked_cross_entropy(hidden, weight, targets, chunk)
    with_torch.require_shapes(hidden, weight, targets, chunk)
    # Compiled code does not look where it reads.
    if len(targets) and int(targets.max()) >= len(weight):
        raise IndexError(f"target {int(targets.max())} of a vocabulary of {len(weight)}")
    result: Tensor = _Compiled.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return result


class _Compiled(with_torch.ChunkedCrossEntropy):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = torch.zeros_like(weight) if needs_weight else None
        losses = hidden.new_empty(len(targets))
        space = hidden.new_empty(min(chunk, len(targets)), len(weight))
        for start in range(0, len(targets), chunk):
            rows = slice(start, min(start + chunk, len(targets)))
            errors = torch.mm(hidden[rows], weight.T, out=space[: rows.stop - start])
            arguments = (array(errors), memory(targets[rows]), memory(losses[rows]))
            by_rows(_errors, len(errors), errors.numel(), *arguments, needs_hidden or needs_weight)
            if dhidden is not None:
                torch.mm(errors, weight, out=dhidden[rows])
            if dweight is not None:
                dweight.addmm_(errors.T, hidden[rows])
        ctx.gradients = (dhidden, dweight)
        return losses.sum()


@compiled
def _errors(
    first: int, last: int, logits: AnyArray, targets: AnyArray, losses: AnyArray, wanted: bool
) -> None:
    """The loss of each row, and, if wanted, p - e in place of its logits; 0 where it counts not."""
    vocabulary = logits.shape[1]
    for row in range(first, last):
        target = targets[row]
        if target < 0:
            losses[row] = _ZERO
            for j in range(vocabulary):
                logits[row, j] = _ZERO
            continue
        highest = logits[row, 0]
        for j in range(vocabulary):
            highest = max(highest, logits[row, j])
        own, total = logits[row, target], _ZERO
        for j in range(vocabulary):
            logits[row, j] = exp32(logits[row, j] - highest)
            total += logits[row, j]
        losses[row] = np.log(total) + highest - own
        if wanted:
            share = _ONE / total
            for j in range(vocabulary):
                logits[row, j] *= share
            logits[row, target] -= _ONE
