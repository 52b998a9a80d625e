"""Causal attention in blocks of queries: products by PyTorch, all that lies between them in Numba.

A block of queries sees the keys up to its last query, so its scores are (block, seen) and the
hidden half of the square is never computed, which PyTorch's CPU kernel does below 512 keys. What
follows on a product is one pass over scores that are still in the cache:

forward: p = exp(s/√d - l), l = log Σ exp(s/√d);  o = p v
backward: p again from s and l;  ds = p ∘ (dp - Δ)/√d with dp = do vᵀ and Δ = Σ do ∘ o by rows;
    dq = ds k,  dk += dsᵀ q,  dv += pᵀ do

Kept for the backward pass: q, k, v, o and l. Source: Dao et al. 2022, "FlashAttention", section
3.1, without the blocks of keys: on a CPU a block's rows fit the cache, so no online softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels.attention.with_torch import sdpa
from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.exponential import exp32
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.threads import array, by_rows, compiles, memory

BLOCK = 128
TILE_BYTES = 1 << 22
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `with_torch.sdpa`, which also does the rest: a bias, few queries, no float32 on a CPU."""
    if bias is not None or q.shape[-2] < 2 or not compiles(q, k, v):
        return sdpa(q, k, v, bias)
    result: Tensor = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Kept for the backward pass; as views they would keep the values of all three alive.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, heads, queries, width = q.shape
        # Laid out so that merging the heads is a view.
        output = q.new_empty(batch, queries, heads, width).transpose(1, 2)
        log_sums = q.new_empty(batch, heads, queries)
        for some in _groups(q, k):
            keys, values = k[some].flatten(end_dim=1), v[some].flatten(end_dim=1)
            for rows, seen in _blocks(q, k):
                scores = torch.bmm(_stacked(q[some], rows, k), keys[:, :seen].mT)
                sums = log_sums[some, :, rows].contiguous()
                _each(_softmax, scores, sums, seen - sums.shape[-1], 1.0 / math.sqrt(width))
                log_sums[some, :, rows] = sums
                out = output[some, :, rows]
                out.copy_(torch.bmm(scores, values[:, :seen]).view(out.shape))
        ctx.save_for_backward(q, k, v, output, log_sums)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, output, log_sums = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for some in _groups(q, k):
            keys, values = k[some].flatten(end_dim=1), v[some].flatten(end_dim=1)
            dkeys, dvalues = dk[some].flatten(end_dim=1), dv[some].flatten(end_dim=1)
            for rows, seen in _blocks(q, k):
                queries, dout = (_stacked(x[some], rows, k) for x in (q, cotangent))
                delta = (cotangent[some, :, rows] * output[some, :, rows]).sum(dim=-1)
                p = torch.bmm(queries, keys[:, :seen].mT)
                ds = torch.bmm(dout, values[:, :seen].mT)
                sums = log_sums[some, :, rows].contiguous()
                hidden, scale = seen - sums.shape[-1], 1.0 / math.sqrt(q.shape[-1])
                _each(_softmax_gradient, p, sums, hidden, scale, array(ds), memory(delta).ravel())
                rows_of_dq = dq[some, :, rows]
                rows_of_dq.copy_(torch.bmm(ds, keys[:, :seen]).view(rows_of_dq.shape))
                # The first block sees all keys: it writes, and the others add.
                beta = 0.0 if seen == k.shape[-2] else 1.0
                dkeys[:, :seen].baddbmm_(ds.mT, queries, beta=beta)
                dvalues[:, :seen].baddbmm_(p.mT, dout, beta=beta)
        return dq, dk, dv


def _groups(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Rows of the batch whose blocks of scores take about TILE_BYTES together."""
    each = 4 * q.shape[1] * min(BLOCK, q.shape[-2]) * k.shape[-2]
    step = max(1, TILE_BYTES // each)
    return (slice(start, start + step) for start in range(0, len(q), step))


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, int]]:
    """Each block of queries, the last first, and how many keys its last query sees."""
    queries, before = q.shape[-2], k.shape[-2] - q.shape[-2]
    for stop in range(queries, 0, -BLOCK):
        yield slice(max(0, stop - BLOCK), stop), stop + before


def _stacked(x: Tensor, rows: slice, k: Tensor) -> Tensor:
    """Rows of x (batch, heads, queries, width), those that share a key head one below the other.

    Returns:
        (batch · kv_heads, heads / kv_heads · rows, width).
    """
    return x[:, :, rows].reshape(x.shape[0] * k.shape[1], -1, x.shape[-1])


def _each(
    kernel: Any, scores: Tensor, sums: Tensor, hidden: int, scale: float, *others: AnyArray
) -> None:
    """Run over all rows of scores; row i of each head's block sees hidden + i + 1 keys."""
    flat = array(scores)
    block, each = sums.shape[-1], np.float32(scale)
    log_sums = memory(sums.view(-1))
    by_rows(kernel, len(flat), flat.size, flat, log_sums, block, hidden, each, *others)


@compiled
def _softmax(
    first: int,
    last: int,
    scores: AnyArray,
    log_sums: AnyArray,
    block: int,
    before: int,
    scale: np.float32,
) -> None:
    """In place; the logarithms of the sums come out beside."""
    for row in range(first, last):
        seen = before + row % block + 1
        highest = scores[row, 0]
        for j in range(seen):
            highest = max(highest, scores[row, j])
        total = _ZERO
        for j in range(seen):
            scores[row, j] = exp32((scores[row, j] - highest) * scale)
            total += scores[row, j]
        share = _ONE / total
        for j in range(seen):
            scores[row, j] *= share
        for j in range(seen, scores.shape[1]):
            scores[row, j] = _ZERO
        log_sums[row] = highest * scale + np.log(total)


@compiled
def _softmax_gradient(
    first: int,
    last: int,
    scores: AnyArray,
    log_sums: AnyArray,
    block: int,
    before: int,
    scale: np.float32,
    ds: AnyArray,
    delta: AnyArray,
) -> None:
    """Scores become p, and dp becomes ds, in place."""
    for row in range(first, last):
        seen = before + row % block + 1
        for j in range(seen):
            p = exp32(scores[row, j] * scale - log_sums[row])
            scores[row, j] = p
            ds[row, j] = p * (ds[row, j] - delta[row]) * scale
        for j in range(seen, scores.shape[1]):
            scores[row, j] = _ZERO
            ds[row, j] = _ZERO
