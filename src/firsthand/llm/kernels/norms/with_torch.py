"""RMSNorm and LayerNorm in PyTorch: operation by operation, and fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_FEW = 1 << 18


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x (..., d) over the root of its mean square, times weight (d,)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """The same, keeping x and one number a row for the backward pass instead of two copies of x.

    On a CPU the backward pass runs in LayerNorm's kernel: LayerNorm's gradient at μ = 0 is
    RMSNorm's less r mean(h), which costs one matrix-vector product to add again.
    """
    plain = x.device.type != "cpu" or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu")
    # A token at a time, what a custom function costs to call is more than the norm itself.
    if plain or (x.numel() < _FEW and not torch.is_grad_enabled()):
        return functional.rms_norm(x, weight.shape, weight, eps)
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        roots = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = roots.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        normed: Tensor = x * r
        return normed.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        width = x.shape[-1]
        rows, g, r = (t.contiguous().view(-1, t.shape[-1]) for t in (x, cotangent, r))
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            g, rows, [width], torch.zeros_like(r), r, weight, None, [True, True, False]
        )
        dx.add_((g @ weight).unsqueeze_(-1).mul_(r).div_(width))
        return dx.view(cotangent.shape), dweight, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """x (..., d) less its mean, over its deviation, times weight (d,), plus bias (d,) if any."""
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps) * weight
    return scaled if bias is None else scaled + bias


def fused_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """The same by PyTorch's kernel."""
    return functional.layer_norm(x, weight.shape, weight, bias, eps)
