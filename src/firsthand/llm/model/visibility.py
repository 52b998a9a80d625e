"""Which keys a query sees, as a bias on the scores: 0 or a penalty where it does, else -inf."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def visibility_bias(
    query_positions: Int[Tensor, " queries"],
    key_positions: Int[Tensor, " keys"],
    window: int = 0,
    slopes: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "heads_or_1 queries keys"]:
    """The bias of causal attention, with a sliding window and ALiBi's penalty where they are on.

    Args:
        query_positions: the place in the text of each query.
        key_positions: of each key, in any order; -1 marks a slot without a key.
        window: a query sees its own and the window - 1 positions before it; 0 is all before it.
        slopes: each head's penalty for a distance of one.
    """
    distance = query_positions[:, None] - key_positions[None, :]
    seen = (distance >= 0) & (key_positions >= 0)
    if window:
        seen &= distance < window
    slope = torch.zeros(1) if slopes is None else slopes
    penalty = -slope.to(distance.device)[:, None, None] * distance
    return penalty.masked_fill(~seen, -math.inf)


def document_bias(documents: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch 1 seq seq"]:
    """-inf between tokens of different documents in a packed sequence, 0 within one."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return torch.zeros(same.shape, device=same.device).masked_fill_(~same, -math.inf)


def padding_bias(
    query_slots: Int[Tensor, " queries"],
    key_slots: Int[Tensor, " keys"],
    starts: Int[Tensor, " batch"],
) -> Float[Tensor, "batch 1 queries keys"]:
    """-inf before the start of each row's text, 0 elsewhere.

    A token sees itself even in the padding: a softmax over nothing would be NaN, and NaN times a
    weight of 0 is NaN in every later layer.
    """
    hidden = (key_slots < starts[:, None])[:, None] & (query_slots[:, None] != key_slots)
    bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -math.inf)
    return bias[:, None]
