"""A product whose input is computed again in the backward pass instead of being kept.

Between its two matrices a feed-forward holds the hidden features twice: before the activation,
which its gradient needs, and after, which the gradient of the second matrix needs. The second
array follows from the first at the cost of one pass over it, next to nothing beside a matrix
product, so only the first is kept: for SwiGLU a third of what a feed-forward would keep.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from firsthand.llm.model.parts import Activation


def activated_product(
    x: Float[Tensor, "*rows up"], activation: Activation, linear: nn.Linear
) -> Float[Tensor, "*rows out"]:
    """linear(activation(x)), keeping x alone where a gradient will be asked for.

    Its result can be differentiated once. The module itself is called where it is more than a
    linear layer, where someone has hooked it, where there is a bias, and under autocast and
    torch.compile, which have ways of their own.
    """
    simple = (
        torch.is_grad_enabled()
        and type(linear) is nn.Linear
        and linear.bias is None
        and not (linear._forward_hooks or linear._forward_pre_hooks)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(x.device.type)
    )
    if not simple:
        result: Tensor = linear(activation(x))
        return result
    product: Tensor = _Product.apply(x, linear.weight, activation)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.activation = activation
        return activation(x) @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            hidden = ctx.activation(again)
        dweight = dx = None
        if ctx.needs_input_grad[1]:
            dweight = cotangent.flatten(end_dim=-2).T @ hidden.detach().flatten(end_dim=-2)
        if ctx.needs_input_grad[0]:
            (dx,) = torch.autograd.grad(hidden, again, cotangent @ weight)
        return dx, dweight, None
