"""ln p of each token, and the entropy of its distribution, where all logits never exist.

`with_torch.chunked_cross_entropy` makes gradients in the forward pass, because a sum of losses
enters the rest of the graph linearly. The objectives of alignment weigh each token by a number
that is known only afterwards, so here the backward pass computes the logits of a chunk again. What
makes that cheap:

- Only positions with a target take part: of a prompt and of padding no logits are made.
- The logits of the last chunk stay until the backward pass, which begins with them: it would need
  their space in any case. A batch of one chunk computes nothing twice.
- With z the logits, L = ln Σ exp z and H the entropy, the gradients of ln p_t and of H by z_j are
  (1 if j = t else 0) - p_j and -p_j (z_j - L + H): one pass over a row, given L and H.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.cross_entropy.with_torch import require_shapes
from firsthand.llm.kernels.exponential import exp32
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.threads import array, by_rows, compiles, memory

# Logits that exist at a time: enough for products of full speed, few beside a batch's activations.
CPU_BYTES, GPU_BYTES = 1 << 24, 1 << 27
_ZERO = np.float32(0.0)


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0) -> Tensor:
    """ln softmax(h Wᵀ)[t] of each token: (tokens,), 0 where the target is negative.

    Its result can be differentiated once.

    Args:
        hidden: (tokens, width).
        weight: (vocabulary, width).
        targets: (tokens,) integers; negative ones get no logits and no gradient.
        chunk: tokens whose logits exist at a time; 0 is what CPU_BYTES or GPU_BYTES hold.
    Raises:
        ValueError: shapes that do not fit, or a negative chunk.
        IndexError: a target outside the vocabulary.
    """
    return _by_token(hidden, weight, targets, chunk, False)[0]


def token_logprobs_and_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and the entropy -Σ p ln p in nats at each position: (tokens,) both."""
    return _by_token(hidden, weight, targets, chunk, True)


def chunk_of(hidden: Tensor, weight: Tensor) -> int:
    """How many tokens' logits fit the bytes above; at least one."""
    room = CPU_BYTES if hidden.is_cpu else GPU_BYTES
    return max(1, int(room // (max(1, len(weight)) * hidden.itemsize)))


def _by_token(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, entropic: bool
) -> tuple[Tensor, Tensor]:
    chunk = chunk or chunk_of(hidden, weight)
    require_shapes(hidden, weight, targets, chunk)
    # Compiled code does not look where it reads.
    if targets.is_cpu and len(targets) and int(targets.max()) >= len(weight):
        raise IndexError(f"target {int(targets.max())} of a vocabulary of {len(weight)}")
    fast = compiles(hidden, weight) and targets.dtype == torch.int64
    result: tuple[Tensor, Tensor] = _ByToken.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, chunk, entropic, fast
    )
    return result


class _ByToken(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        entropic: bool,
        fast: bool,
    ) -> tuple[Tensor, Tensor]:
        place = hidden.device.type
        autocast = torch.is_autocast_enabled(place)
        dtype = torch.get_autocast_dtype(place) if autocast else hidden.dtype
        places = (targets >= 0).nonzero().squeeze(1)
        everywhere = len(places) == len(targets)
        some = (hidden if everywhere else hidden[places]).to(dtype)
        wanted = targets if everywhere else targets[places]
        # One copy of the weights for all chunks; autocast itself would make one for each.
        factor = weight.to(dtype)
        found = some.new_zeros(3, len(wanted), dtype=torch.promote_types(dtype, torch.float32))
        read = _read_compiled if fast else _read
        space = some.new_empty(min(chunk, len(wanted)), len(weight))
        with torch.autocast(place, enabled=False):
            for rows in _chunks(len(wanted), chunk):
                logits = torch.mm(some[rows], factor.T, out=space[: rows.stop - rows.start])
                read(logits, wanted[rows], found[:, rows], entropic)
        logprobs, entropies, _ = found
        if any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(some, weight, wanted, places, found)
            ctx.numbers = (chunk, entropic, fast, hidden.shape, hidden.dtype)
            ctx.space = space
            ctx.set_materialize_grads(False)
        return _spread(logprobs, places, len(targets)), _spread(entropies, places, len(targets))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None) -> tuple[Any, ...]:
        some, weight, wanted, places, found = ctx.saved_tensors
        chunk, entropic, fast, shape, dtype = ctx.numbers
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        space, ctx.space = ctx.space, None
        there = space is not None
        if space is None:
            space = some.new_empty(min(chunk, len(wanted)), len(weight))
        factor = weight.to(some.dtype)
        cotangents = torch.zeros_like(found[:2])
        for row, cotangent in zip(cotangents, (by_logprob, by_entropy), strict=True):
            if cotangent is not None:
                row.copy_(cotangent[places])
        write = _write_compiled if fast else _write
        dsome = torch.empty_like(some) if needs_hidden else None
        wide = torch.promote_types(weight.dtype, torch.float32)
        dweight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        with torch.autocast(some.device.type, enabled=False):
            # From the last, whose logits are still there.
            for rows in reversed(_chunks(len(wanted), chunk)):
                errors = space[: rows.stop - rows.start]
                if not there:
                    torch.mm(some[rows], factor.T, out=errors)
                there = False
                write(errors, wanted[rows], found[:, rows], cotangents[:, rows], entropic)
                if dsome is not None:
                    torch.mm(errors, factor, out=dsome[rows])
                if dweight is not None and dweight.dtype == errors.dtype:
                    dweight.addmm_(errors.T, some[rows])
                elif dweight is not None:
                    dweight += errors.T @ some[rows]
        dhidden = dsome
        if dsome is not None and len(places) < shape[0]:
            dhidden = dsome.new_zeros(shape)
            dhidden[places] = dsome
        return (
            None if dhidden is None else dhidden.to(dtype),
            None if dweight is None else dweight.to(weight.dtype),
            *(None,) * 4,
        )


def _read(logits: Tensor, targets: Tensor, found: Tensor, entropic: bool) -> None:
    """Fill found with ln p of the targets, the entropies (if asked for) and ln Σ exp z."""
    wide = logits.to(found.dtype)
    logprobs, entropies, totals = found
    torch.logsumexp(wide, dim=-1, out=totals)
    torch.sub(wide.gather(1, targets[:, None]).squeeze(1), totals, out=logprobs)
    if entropic:
        shifted = wide - totals[:, None]
        torch.sum(shifted.exp().mul_(shifted), dim=-1, out=entropies).neg_()


def _write(
    logits: Tensor, targets: Tensor, found: Tensor, cotangents: Tensor, entropic: bool
) -> None:
    """The gradient of the logits in place of them."""
    _, entropies, totals = found[:, :, None]
    by_logprob, by_entropy = cotangents[:, :, None]
    shifted = logits.to(found.dtype) - totals
    p = shifted.exp()
    if entropic:
        errors = shifted.add_(entropies).mul_(by_entropy).add_(by_logprob).mul_(p).neg_()
    else:
        errors = p.mul_(-by_logprob)
    errors.scatter_add_(1, targets[:, None], by_logprob)
    logits.copy_(errors)


def _read_compiled(logits: Tensor, targets: Tensor, found: Tensor, entropic: bool) -> None:
    rows = [memory(row) for row in found]
    by_rows(
        _read_rows, len(logits), logits.numel(), array(logits), memory(targets), *rows, entropic
    )


def _write_compiled(
    logits: Tensor, targets: Tensor, found: Tensor, cotangents: Tensor, entropic: bool
) -> None:
    rows = [memory(row) for row in (*found[1:], *cotangents)]
    by_rows(
        _write_rows, len(logits), logits.numel(), array(logits), memory(targets), *rows, entropic
    )


@compiled
def _read_rows(
    first: int,
    last: int,
    logits: AnyArray,
    targets: AnyArray,
    logprobs: AnyArray,
    entropies: AnyArray,
    totals: AnyArray,
    entropic: bool,
) -> None:
    vocabulary = logits.shape[1]
    for row in range(first, last):
        highest = logits[row, 0]
        for j in range(vocabulary):
            highest = max(highest, logits[row, j])
        total, weighted = _ZERO, _ZERO
        if entropic:
            for j in range(vocabulary):
                z = logits[row, j] - highest
                power = exp32(z)
                total += power
                weighted += power * z
        else:
            for j in range(vocabulary):
                total += exp32(logits[row, j] - highest)
        log_total = np.log(total)
        totals[row] = log_total + highest
        logprobs[row] = logits[row, targets[row]] - highest - log_total
        entropies[row] = log_total - weighted / total


@compiled
def _write_rows(
    first: int,
    last: int,
    logits: AnyArray,
    targets: AnyArray,
    entropies: AnyArray,
    totals: AnyArray,
    by_logprob: AnyArray,
    by_entropy: AnyArray,
    entropic: bool,
) -> None:
    vocabulary = logits.shape[1]
    for row in range(first, last):
        total, c = totals[row], by_logprob[row]
        if entropic:
            g = by_entropy[row]
            c_all = c + g * entropies[row]
            for j in range(vocabulary):
                z = logits[row, j] - total
                logits[row, j] = -exp32(z) * (g * z + c_all)
        else:
            for j in range(vocabulary):
                logits[row, j] = -exp32(logits[row, j] - total) * c
        logits[row, targets[row]] += c


def _spread(values: Tensor, places: Tensor, tokens: int) -> Tensor:
    if len(places) == tokens:
        return values.clone()
    spread = values.new_zeros(tokens)
    spread[places] = values
    return spread


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]
