"""Causal attention in PyTorch: whole, in tiles with a hand-written backward pass, and SDPA."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK = 128


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(batch, heads, queries, width), from the whole (queries, keys) scores of each head."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    seen = _seen(q.shape[-2], k.shape[-2], q.device)
    return torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1) @ v


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, block: int = BLOCK) -> Tensor:
    """The same in tiles of `block` queries and keys, forward and backward.

    Keeps q, k, v, the output and one number a row. The mathematics are in `with_numpy`.
    """
    result: Tensor = _TiledAttention.apply(q, k, v, block)  # type: ignore[no-untyped-call]
    return result


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by PyTorch's kernel for this device.

    Args:
        q, k, v: as in the package's docstring.
        bias: added to the scaled scores, broadcast to (batch, heads, queries, keys), -inf where
            a query does not see a key; None is causal.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    causal = bias is None and queries == keys
    if bias is None and 1 < queries < keys:
        seen = _seen(queries, keys, q.device)
        bias = torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -math.inf)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
        grouped = q.unflatten(1, (k.shape[1], -1))  # type: ignore[no-untyped-call]
        output = torch.empty_like(grouped)
        log_sums = q.new_empty((*grouped.shape[:-1], 1))
        for rows in _blocks(q.shape[-2], block):
            output[..., rows, :], log_sums[..., rows, :] = _block_row(grouped, k, v, rows, block)
        ctx.save_for_backward(q, k, v, output, log_sums)
        ctx.block = block
        return output.reshape(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, output, log_sums = ctx.saved_tensors
        grouped, dout = (x.unflatten(1, (k.shape[1], -1)) for x in (q, cotangent))
        delta = (dout * output).sum(dim=-1, keepdim=True)
        dq, dk, dv = (torch.zeros_like(x) for x in (grouped, k, v))
        for rows in _blocks(q.shape[-2], ctx.block):
            for columns in _seen_blocks(rows, q.shape[-2], k.shape[-2], ctx.block):
                keys, values = k[:, :, None, columns], v[:, :, None, columns]
                p = _scores(grouped, k, rows, columns).sub_(log_sums[..., rows, :]).exp_()
                dv[:, :, columns] += (p.mT @ dout[..., rows, :]).sum(dim=2)
                ds = (dout[..., rows, :] @ values.mT).sub_(delta[..., rows, :]).mul_(p)
                ds.mul_(1.0 / math.sqrt(q.shape[-1]))
                dq[..., rows, :] += ds @ keys
                dk[:, :, columns] += (ds.mT @ grouped[..., rows, :]).sum(dim=2)
        return dq.reshape(q.shape), dk, dv, None


def _block_row(q: Tensor, k: Tensor, v: Tensor, rows: slice, block: int) -> tuple[Tensor, Tensor]:
    """The output of one block of queries, and the logarithm of each row's sum."""
    output = torch.zeros_like(q[..., rows, :])
    maximum = q.new_full((*output.shape[:-1], 1), -math.inf)
    total = torch.zeros_like(maximum)
    for columns in _seen_blocks(rows, q.shape[-2], k.shape[-2], block):
        scores = _scores(q, k, rows, columns)
        raised = torch.maximum(maximum, scores.amax(dim=-1, keepdim=True))
        shrink = torch.exp(maximum - raised)
        p = scores.sub_(raised).exp_()
        total = total * shrink + p.sum(dim=-1, keepdim=True)
        output = output * shrink + p @ v[:, :, None, columns]
        maximum = raised
    return output / total, maximum + torch.log(total)


def _scores(q: Tensor, k: Tensor, rows: slice, columns: slice) -> Tensor:
    scores = (q[..., rows, :] @ k[:, :, None, columns].mT).mul_(1.0 / math.sqrt(q.shape[-1]))
    offset = k.shape[-2] - q.shape[-2]
    # Only a tile on the diagonal has hidden keys; the mask is built for those alone.
    if columns.stop - 1 > rows.start + offset:
        last_seen = torch.arange(rows.start, rows.stop, device=q.device)[:, None] + offset
        position = torch.arange(columns.start, columns.stop, device=q.device)
        scores.masked_fill_(position > last_seen, -math.inf)
    return scores


def _blocks(length: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, length)) for start in range(0, length, block)]


def _seen_blocks(rows: slice, queries: int, keys: int, block: int) -> list[slice]:
    return _blocks(rows.stop + keys - queries, block)


def _seen(queries: int, keys: int, device: torch.device) -> Tensor:
    ones = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=keys - queries)
