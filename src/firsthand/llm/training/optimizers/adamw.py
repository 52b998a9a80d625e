"""AdamW of one tensor after the other; `llm.kernels.adamw` has the update, and faster versions."""

from __future__ import annotations

from firsthand.llm.kernels.adamw.with_torch import Tensors, adamw_update


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
