"""RMSNorm and LayerNorm: vectors of a fixed size, whatever their scale."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*rows d_model"], weight: Float[Tensor, " d_model"], eps: float = 1e-5
) -> Float[Tensor, "*rows d_model"]:
    """x over the root of its mean square, times a weight for each feature.

    Source: Zhang & Sennrich 2019, section 3.
    """
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(mean_square + eps) * weight


def layer_norm(
    x: Float[Tensor, "*rows d_model"],
    weight: Float[Tensor, " d_model"],
    bias: Float[Tensor, " d_model"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*rows d_model"]:
    """x less its mean, over its deviation (biased variance), times the weight, plus the bias.

    Source: Ba, Kiros, Hinton 2016, section 3.
    """
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    scaled = centred * torch.rsqrt(variance + eps) * weight
    return scaled if bias is None else scaled + bias
