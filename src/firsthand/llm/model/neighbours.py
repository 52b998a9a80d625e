"""The tokens just before a token, mixed into its embedding.

Attention finds earlier tokens by what they are and by where they stand; before it has learnt that,
a model knows little more than each token alone. One number for each feature and distance lets the
first layer see pairs and triples from the first steps on: a causal convolution of each feature by
itself. It follows So et al. 2021 (Primer, section 4.2), who put it inside attention; on the
embedding it costs one pass instead of one in each layer, and a cache needs to know no more than
the last tokens.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Neighbours(nn.Module):
    """The weights of the mixture, (neighbours, d_model), the nearest first."""

    def __init__(self, neighbours: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(neighbours, d_model))


def mix_neighbours(
    rows: Float[Tensor, "batch before_and_seq d_model"],
    weight: Float[Tensor, "neighbours d_model"],
    same_text: Bool[Tensor, "batch seq neighbours"] | None = None,
) -> Float[Tensor, "batch seq d_model"]:
    """y_t = x_t + Σₖ wₖ x_{t-k} for k from 1 to the number of neighbours.

    Args:
        rows: embeddings; the first `neighbours` of them precede the sequence, zero where there is
            no token.
        weight: w₁, w₂ ..., one number for each feature.
        same_text: whether the k-th token before a position belongs to its text; None is all.
    """
    count = weight.shape[0]
    new = rows.shape[1] - count
    mixed = rows[:, count:]
    for k in range(1, count + 1):
        earlier = rows[:, count - k : count - k + new]
        if same_text is not None:
            earlier = earlier * same_text[..., k - 1, None]
        mixed = torch.addcmul(mixed, earlier, weight[k - 1])
    return mixed


def same_text(
    count: int,
    positions: Int[Tensor, " seq"],
    documents: Int[Tensor, "batch seq"] | None,
    starts: Int[Tensor, " batch"] | None,
) -> Bool[Tensor, "rows seq count"]:
    """Whether each of the `count` tokens before a position is of its text.

    Args:
        positions: of the new tokens, in the order of the cache.
        documents: as `Transformer.hidden` takes them; with them the positions begin at 0.
        starts: likewise.
    Returns:
        One row for all of the batch, unless documents or starts tell them apart.
    """
    device = positions.device
    distances = torch.arange(1, count + 1, device=device)
    first = 0 if starts is None else starts[:, None, None]
    same: Tensor = (positions[:, None] - distances)[None] >= first
    if documents is not None:
        padded = functional.pad(documents, (count, 0))
        new = documents.shape[1]
        earlier = [padded[:, count - k : count - k + new] for k in range(1, count + 1)]
        same = same & (torch.stack(earlier, dim=-1) == documents[..., None])
    return same
