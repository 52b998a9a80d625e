"""What the feed-forward does between its two matrices."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def swiglu(both: Float[Tensor, "*rows two_d_ff"]) -> Float[Tensor, "*rows d_ff"]:
    """silu(gate) · up, where the first half of the features is the gate; silu(z) = z σ(z).

    Source: Shazeer 2020, "GLU Variants Improve Transformer", section 2.
    """
    gate, up = both.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def gelu(x: Float[Tensor, "*rows d_ff"]) -> Float[Tensor, "*rows d_ff"]:
    """x Φ(x) by its approximation with tanh, the one of GPT-2.

    Source: Hendrycks & Gimpel 2016, section 2.
    """
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + torch.tanh(inner))


def relu_squared(x: Float[Tensor, "*rows d_ff"]) -> Float[Tensor, "*rows d_ff"]:
    """max(x, 0)². Source: So et al. 2021, "Primer", section 4."""
    return torch.relu(x).square()
