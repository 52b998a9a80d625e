"""Projection and cross-entropy, the gradients made in the forward pass, softmax in one kernel.

As `with_torch.chunked_cross_entropy`. The logits of a chunk come from a matrix product; then one
kernel reads each row twice, for its maximum and sum together and for its gradient, and writes the
gradient over the logits, which the products for dhidden and dweight read. On memory: logits and
their gradient share one array of CHUNK_BYTES, where plain PyTorch holds tokens · vocabulary
numbers several times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.cross_entropy import with_torch

# Logits that exist at a time, in tokens of such a multiple: fewer would not fill a GPU.
CHUNK_BYTES, CHUNK_STEP = 1 << 27, 256
PIECE = 1 << 12


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None
) -> Tensor:
    """The sum of the losses in nats in float32; arguments as the PyTorch rung.

    Under autocast the products run in its type. A target outside of the vocabulary makes the loss
    NaN: to look for it would hold the program up until the GPU has finished.

    Args:
        chunk: tokens whose logits exist at a time; None is as many as CHUNK_BYTES hold.
    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
    """
    integers = targets.dtype in (torch.int32, torch.int64) and targets.device == hidden.device
    if not triton_support.takes(hidden, weight) or not integers:
        chosen = with_torch.CHUNK if chunk is None else chunk
        return with_torch.chunked_cross_entropy(hidden, weight, targets, chosen)
    if chunk is None:
        chunk = default_chunk(len(weight), hidden.itemsize)
    with_torch.require_shapes(hidden, weight, targets, chunk)
    result: Tensor = _Fused.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return result


def default_chunk(vocabulary: int, itemsize: int) -> int:
    """Tokens whose logits exist at a time, as many as CHUNK_BYTES hold, in whole CHUNK_STEPs.

    Args:
        itemsize: bytes of a hidden state's number.
    """
    fitting = CHUNK_BYTES // (max(1, vocabulary) * itemsize)
    return max(1, fitting // CHUNK_STEP) * CHUNK_STEP


class _Fused(with_torch.ChunkedCrossEntropy):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        targets = targets.contiguous()
        place = hidden.device.type
        # One copy of the weights for all chunks; autocast itself would make one for each.
        autocast = torch.is_autocast_enabled(place)
        dtype = torch.get_autocast_dtype(place) if autocast else hidden.dtype
        factor = weight.to(dtype)
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        losses = hidden.new_empty(len(targets), dtype=torch.float32)
        space = hidden.new_empty(min(chunk, len(targets)), len(weight), dtype=dtype)
        with torch.autocast(place, enabled=False), triton_support.at(hidden):
            for start in range(0, len(targets), chunk):
                rows = slice(start, min(start + chunk, len(targets)))
                some = hidden[rows].to(dtype)
                errors = torch.mm(some, factor.T, out=space[: len(some)])
                _errors(errors, targets[rows], losses[rows], needs_hidden or needs_weight)
                if dhidden is not None:
                    dhidden[rows] = errors @ factor
                if dweight is not None and dtype == torch.float32:
                    dweight.addmm_(errors.T, some)
                elif dweight is not None:
                    dweight += errors.T @ some
        ctx.gradients = (dhidden, None if dweight is None else dweight.to(weight.dtype))
        return losses.sum()


def _errors(logits: Tensor, targets: Tensor, losses: Tensor, wanted: bool) -> None:
    from firsthand.llm.kernels.cross_entropy import with_triton_kernels as kernels

    piece = min(PIECE, triton_support.power_of_two(logits.shape[1]))
    constants = {"PIECE": piece, "WANTED": wanted, "num_warps": 8, **triton_support.FUSED}
    kernels.errors[(len(logits),)](logits, targets, losses, logits.shape[1], **constants)
