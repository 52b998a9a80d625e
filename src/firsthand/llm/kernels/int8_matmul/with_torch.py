"""The INT8 product in PyTorch."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int8, Int16
from torch import Tensor

from firsthand.llm.kernels.int8_matmul.with_numpy import activation_levels

__all__ = ["activation_levels", "dequantized_matmul", "int8_matmul", "quantize_rows"]


def quantize_rows(
    x: Float[Tensor, "m k"], levels: int
) -> tuple[Int16[Tensor, "m k"], Float32[Tensor, " m"]]:
    """As the NumPy rung, to the last bit; x is taken in float32."""
    x = x.float()
    peaks = x.abs().amax(dim=1) if x.shape[1] else x.new_zeros(len(x))
    used = peaks >= 1e-30
    # A tensor, for PyTorch divides a number by a tensor as number · (1 / tensor), rounded twice.
    most = torch.full_like(peaks, levels)
    inverses = torch.where(used, most / peaks, 0.0)
    scales = torch.where(used, peaks / most, 0.0)
    return (x * inverses[:, None]).round().to(torch.int16), scales


def int8_matmul(
    x: Int16[Tensor, "m k"],
    x_scales: Float32[Tensor, " m"],
    w: Int8[Tensor, "n k"],
    w_scales: Float32[Tensor, " n"],
) -> Float32[Tensor, "m n"]:
    """As the NumPy rung, to the last bit.

    PyTorch has no fast product of 16-bit integers. A double holds each of these sums exactly, and
    products of doubles are fast everywhere.
    """
    sums = x.double() @ w.double().T
    return sums.to(w_scales.dtype) * w_scales * x_scales[:, None]


def dequantized_matmul(
    x: Int16[Tensor, "m k"],
    x_scales: Float32[Tensor, " m"],
    w: Int8[Tensor, "n k"],
    w_scales: Float32[Tensor, " n"],
) -> Float32[Tensor, "m n"]:
    """The same product in float32, of the numbers that the integers stand for.

    It needs no integer arithmetic, but a float32 copy of the weights, four times as large.
    """
    return (x * x_scales[:, None]) @ (w * w_scales[:, None]).T
