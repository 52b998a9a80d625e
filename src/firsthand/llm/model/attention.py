"""Attention: heads, scores, softmax, weighted sum of values."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def split_heads(
    x: Float[Tensor, "batch seq features"], heads: int
) -> Float[Tensor, "batch heads seq width"]:
    """Neighbouring features to one head each: a view, no copy."""
    batch, seq, features = x.shape
    return x.view(batch, seq, heads, features // heads).transpose(1, 2)


def merge_heads(
    x: Float[Tensor, "batch heads seq width"],
) -> Float[Tensor, "batch seq features"]:
    """The inverse of `split_heads`; copies unless the heads already lie side by side."""
    return x.transpose(1, 2).flatten(start_dim=2)


def causal_bias(queries: int, keys: int, like: Tensor) -> Float[Tensor, "queries keys"]:
    """0 where a query sees a key, -inf elsewhere, the last query aligned with the last key."""
    ones = torch.ones(queries, keys, dtype=torch.bool, device=like.device)
    hidden = ones.triu(diagonal=1 + keys - queries)
    return like.new_zeros(queries, keys).masked_fill(hidden, -math.inf)


def attention(
    q: Float[Tensor, "batch heads queries width"],
    k: Float[Tensor, "batch kv_heads keys width"],
    v: Float[Tensor, "batch kv_heads keys width"],
    bias: Float[Tensor, "*heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries width"]:
    """softmax(q kᵀ / √width + bias) v; key head g serves the query heads of its group.

    Args:
        q, k, v: heads is a multiple of kv_heads: equal is multi-head, kv_heads 1 is MQA.
        bias: broadcast to (batch, heads, queries, keys); None is causal, the last query aligned
            with the last key.
    Sources: Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, "GQA", section 2.2.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if bias is None:
        bias = causal_bias(q.shape[-2], k.shape[-2], like=q)
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    return torch.softmax(scores, dim=-1) @ v
