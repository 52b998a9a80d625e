"""From logits to a token: each way to change the distribution is a function of its own.

A token that is filtered out gets the logit -inf. Logits are (rows, vocab) in float32 or wider.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def penalize_repetition(
    logits: Float[Tensor, "rows vocab"], seen: Bool[Tensor, "rows vocab"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """The logit of each seen token over the penalty where it is positive, times it where not.

    Both lower it for a penalty above 1. Source: Keskar et al. 2019, "CTRL", section 4.1.
    """
    weaker = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, weaker, logits)


def scale_by_temperature(
    logits: Float[Tensor, "rows vocab"], temperature: float
) -> Float[Tensor, "rows vocab"]:
    """logits / temperature; at 0 its limit: all but the greatest are out, the first of equals in.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", equation 1.
    """
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter_(-1, best, 0.0)
    return logits / temperature


def keep_top_k(logits: Float[Tensor, "rows vocab"], k: int) -> Float[Tensor, "rows vocab"]:
    """The k greatest logits and those equal to the least of them; all if k is the vocabulary.

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation".
    """
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Float[Tensor, "rows vocab"], p: float) -> Float[Tensor, "rows vocab"]:
    """The nucleus: the fewest tokens, most probable first, whose probabilities sum to p or more.

    Of equal tokens at its edge the ones with lower ids are in. Source: Holtzman et al. 2020,
    section 3.1.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ordered, dim=-1, dtype=torch.float64)
    before = probabilities.cumsum(dim=-1) - probabilities
    out = torch.empty_like(logits, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(out, -math.inf)


def keep_min_p(logits: Float[Tensor, "rows vocab"], ratio: float) -> Float[Tensor, "rows vocab"]:
    """The tokens at least `ratio` times as probable as the most probable one.

    A ratio of probabilities is a difference of logits, so no softmax is needed. Source: Nguyen et
    al. 2024, "Turning Up the Heat", section 3.
    """
    least = logits.amax(dim=-1, keepdim=True) + (math.log(ratio) if ratio else -math.inf)
    return logits.masked_fill(logits < least, -math.inf)


def draw(
    probabilities: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """A token of each row by inverting its cumulative distribution.

    One number a row decides, so a row's token does not depend on the other rows.

    Args:
        probabilities: not negative; a row may sum to any positive number.
        uniforms: in [0, 1), float64.
    """
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # A product may round up to the total, behind which no token lies.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniforms[:, None] * total, below)
    return torch.searchsorted(cumulative, target, right=True)[:, 0]
