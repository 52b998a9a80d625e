"""Projection and cross-entropy in PyTorch: whole, and in chunks with gradients made on the way.

The loss enters the rest of the graph linearly, so its gradients are known in the forward pass up
to one factor. `chunked_cross_entropy` makes them there, while the logits of a chunk still exist,
and the backward pass only scales them: the products of the plain version, less memory.
`token_losses` must wait for a cotangent for each token and so computes the logits twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

IGNORED = -100
CHUNK = 256


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The sum of the losses in nats from the whole (tokens, vocabulary) logits: a scalar.

    Args:
        hidden: (tokens, width).
        weight: (vocabulary, width).
        targets: (tokens,) integers; negative ones do not count.
    """
    wanted = targets.masked_fill(targets < 0, IGNORED)
    logits = (hidden @ weight.T).float() if hidden.dtype.itemsize < 4 else hidden @ weight.T
    return functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK
) -> Tensor:
    """The same with the logits of `chunk` tokens at a time, forward and backward.

    Its result can be differentiated once, and its gradient not again.

    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
    """
    require_shapes(hidden, weight, targets, chunk)
    result: Tensor = ChunkedCrossEntropy.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return result


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """The loss of each token in nats: (tokens,), 0 where the target is negative.

    For objectives that are not linear in the losses, such as DPO's. Backward computes the
    logits of each chunk again from the hidden states.

    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
    """
    require_shapes(hidden, weight, targets, chunk)
    result: Tensor = _TokenLosses.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return result


class ChunkedCrossEntropy(torch.autograd.Function):
    """The loss whose gradients are made in the forward pass; another rung replaces that alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = hidden.new_zeros((), dtype=_precision(hidden))
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = torch.zeros_like(weight, dtype=_precision(weight)) if needs_weight else None
        for rows in _chunks(len(targets), chunk):
            log_p = _log_probabilities(hidden[rows], weight)
            total -= _picked(log_p, targets[rows]).sum()
            if needs_hidden or needs_weight:
                errors = _errors(log_p, targets[rows], 1.0)
                _add_gradients(errors, hidden, weight, rows, dhidden, dweight)
                del errors
            # Else these live on beside the next chunk's logits.
            del log_p
        ctx.gradients = (dhidden, None if dweight is None else dweight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError(
                "chunked_cross_entropy was differentiated before; its gradients went"
            )
        dhidden, dweight = ctx.gradients
        # Scaled in place: a copy would be as large as the output matrix.
        ctx.gradients = None
        for gradient in (dhidden, dweight):
            if gradient is not None:
                gradient.mul_(cotangent)
        return dhidden, dweight, None, None


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.chunk = chunk
        losses = hidden.new_empty(len(targets), dtype=_precision(hidden))
        for rows in _chunks(len(targets), chunk):
            losses[rows] = -_picked(_log_probabilities(hidden[rows], weight), targets[rows])
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = torch.zeros_like(weight, dtype=_precision(weight)) if needs_weight else None
        for rows in _chunks(len(targets), ctx.chunk):
            log_p = _log_probabilities(hidden[rows], weight)
            errors = _errors(log_p, targets[rows], cotangent[rows, None])
            _add_gradients(errors, hidden, weight, rows, dhidden, dweight)
            del log_p, errors
        return dhidden, None if dweight is None else dweight.to(weight.dtype), None, None


def _log_probabilities(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden @ weight.T
    return torch.log_softmax(logits, dim=-1, dtype=_precision(logits))


def _picked(log_p: Tensor, targets: Tensor) -> Tensor:
    """log p of each target, 0 where it is negative."""
    real = targets >= 0
    safe = torch.where(real, targets, 0)
    return log_p.gather(1, safe[:, None]).squeeze(1).mul_(real)


def _errors(log_p: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
    """(p - e) scale, 0 where the target is negative; `log_p` is overwritten."""
    real = (targets >= 0)[:, None].to(log_p.dtype)
    safe = torch.where(targets >= 0, targets, 0)[:, None]
    errors = log_p.exp_()
    errors.scatter_add_(1, safe, torch.full_like(real, -1.0))
    return errors.mul_(real * scale)


def _add_gradients(
    errors: Tensor,
    hidden: Tensor,
    weight: Tensor,
    rows: slice,
    dhidden: Tensor | None,
    dweight: Tensor | None,
) -> None:
    errors = errors.to(weight.dtype)
    if dhidden is not None:
        dhidden[rows] = errors @ weight
    if dweight is not None and dweight.dtype == errors.dtype == hidden.dtype:
        dweight.addmm_(errors.T, hidden[rows])
    elif dweight is not None:
        dweight += errors.T @ hidden[rows].to(errors.dtype)


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]


def require_shapes(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> None:
    """Raise ValueError for shapes that do not fit, or a chunk below 1."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden is (tokens, width) and weight (vocabulary, width); "
            f"the shapes are {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {tuple(targets.shape)} is not ({hidden.shape[0]},)")
    if chunk < 1:
        raise ValueError(f"a chunk has at least one token; not {chunk}")
