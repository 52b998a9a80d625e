"""AdamW as it is written down; `firsthand.llm.kernels.adamw` has its faster versions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Tensors = Sequence[Tensor]


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of one tensor in place.

    m ← β₁ m + (1 - β₁) g and v ← β₂ v + (1 - β₂) g². Both start at 0, so m̂ and v̂ are m and v
    divided by 1 - β₁ᵗ and 1 - β₂ᵗ. Then p ← p - η (m̂ / (√v̂ + ε) + λ p). The decay stands outside
    of the moments: inside, a weight with large gradients would decay less. Source: Loshchilov &
    Hutter 2019, algorithm 2.

    Args:
        parameter, gradient, first, second: p, g, m, v of one shape; g stays as it is.
        step: t, counted from 1.
        learning_rate: η with the schedule's factor.
        weight_decay: λ.
    """
    first.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    corrected_first = first / (1.0 - beta1**step)
    corrected_second = second / (1.0 - beta2**step)
    direction = corrected_first / (corrected_second.sqrt() + eps)
    parameter.sub_(learning_rate * (direction + weight_decay * parameter))


def adamw(
    parameters: Tensors,
    gradients: Tensors,
    firsts: Tensors,
    seconds: Tensors,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """`adamw_update` of each tensor; the lists are of one length, on one device."""
    for tensors in zip(parameters, gradients, firsts, seconds, strict=True):
        adamw_update(
            *tensors,
            step=step,
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
        )
