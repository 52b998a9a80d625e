"""Where a token stands: RoPE in both pairings, sinusoids and ALiBi's slopes.

Learned positions are a table of weights, read like the embedding.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_angles(
    positions: Int[Tensor, " seq"], width: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "seq half"], Float[Tensor, "seq half"]]:
    """cos and sin of position · base^(-2i / width) for each pair i, in float64.

    Source: Su et al. 2021, "RoFormer", equations 15 and 34 and section 3.2.2.
    """
    pairs = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angles = positions.double()[:, None] * base ** (-pairs / width)
    return angles.cos(), angles.sin()


def rotate_half(
    x: Float[Tensor, "*heads seq width"],
    cos: Float[Tensor, "seq half"],
    sin: Float[Tensor, "seq half"],
) -> Float[Tensor, "*heads seq width"]:
    """Each pair (x_i, x_{i + width/2}) turned by its angle, as Hugging Face pairs them."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_interleaved(
    x: Float[Tensor, "*heads seq width"],
    cos: Float[Tensor, "seq half"],
    sin: Float[Tensor, "seq half"],
) -> Float[Tensor, "*heads seq width"]:
    """Each pair (x_{2i}, x_{2i + 1}) turned by its angle, as the paper pairs them."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def interleaved_order(width: int) -> Int[Tensor, " width"]:
    """The permutation between the pairings: feature j of an interleaved head is feature order[j]
    of a half-split one, so that rotate_interleaved(x[order]) = rotate_half(x)[order].

    Applied to the rows of both the query and the key matrix of each head it changes no score,
    since a product of two vectors does not change when both are permuted alike.
    """
    return torch.arange(width).view(2, width // 2).T.flatten()


def half_order(width: int) -> Int[Tensor, " width"]:
    """The inverse of `interleaved_order`."""
    return torch.arange(width).view(width // 2, 2).T.flatten()


def sinusoidal_positions(
    positions: Int[Tensor, " seq"], width: int, base: float = 10_000.0
) -> Float[Tensor, "seq width"]:
    """sin at even features and cos at odd ones of position · base^(-2i / width), in float64.

    Source: Vaswani et al. 2017, section 3.5.
    """
    cos, sin = rotary_angles(positions, width, base)
    return torch.stack([sin, cos], dim=-1).flatten(-2)


def alibi_slopes(heads: int) -> Float[Tensor, " heads"]:
    """A slope for each head: the geometric series from 2^(-8/n) with that ratio, n = heads.

    When n is no power of two: the series of the next smaller power p, then every other slope of
    the series of 2p. Source: Press, Smith, Lewis 2022, section 3 and its published code.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power, 2)]
    return torch.tensor([*slopes, *between][:heads], dtype=torch.float64)
