"""The ladder of AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.adamw import with_numba, with_numpy, with_torch, with_triton
from firsthand.llm.kernels.ladder import AnyArray, Inputs, Ladder, Outputs, Rung, Shape, by_elements

STEP = 3
NUMBERS = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.2}

Updated = tuple[Any, Any, Any]


def inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """parameter, gradient, first, second: (elements,), the second moment not negative."""
    names = ("parameter", "gradient", "first", "second")
    drawn = {name: generator.standard_normal(shape["elements"]) for name in names}
    return {**drawn, "second": drawn["second"] ** 2}


def oracle(parameter: AnyArray, gradient: AnyArray, first: AnyArray, second: AnyArray) -> Outputs:
    """With the corrections as what the weights of t gradients sum to, (1 - β)(1 + β + ... βᵗ⁻¹)."""
    moments, corrected = [], []
    for moment, new, beta in (
        (first, gradient, NUMBERS["beta1"]),
        (second, gradient**2, NUMBERS["beta2"]),
    ):
        moments.append(new + beta * (moment - new))
        corrected.append(moments[-1] / sum((1 - beta) * beta**age for age in range(STEP)))
    update = corrected[0] / (corrected[1] ** 0.5 + NUMBERS["eps"])
    shrunk = parameter * (1 - NUMBERS["learning_rate"] * NUMBERS["weight_decay"])
    return [shrunk - NUMBERS["learning_rate"] * update, *moments]


def _one(update: Callable[..., None]) -> Callable[..., Updated]:
    def forward(parameter: Any, gradient: Any, first: Any, second: Any) -> Updated:
        update(parameter, gradient, first, second, step=STEP, **NUMBERS)
        return parameter, first, second

    return forward


def _list(update: Callable[..., None]) -> Callable[..., Updated]:
    def forward(parameter: Any, gradient: Any, first: Any, second: Any) -> Updated:
        update([parameter], [gradient], [first], [second], step=STEP, **NUMBERS)
        return parameter, first, second

    return forward


LADDER = Ladder(
    name="adamw",
    inputs=inputs,
    oracle=oracle,
    differentiable=(),
    flops=by_elements(14, 14, "elements", itemsize=1),
    bytes_moved=by_elements(7, 7, "elements"),
    shape={"elements": 10_000_000},
    rungs=(
        Rung("numpy", "numpy", _one(with_numpy.adamw_update), by_elements(38, 38, "elements")),
        Rung("torch", "torch", _one(with_torch.adamw_update), by_elements(31, 31, "elements")),
        Rung(
            "torch-foreach",
            "torch",
            _list(with_torch.foreach_adamw),
            by_elements(18, 18, "elements"),
        ),
        Rung("numba", "torch", _list(with_numba.adamw), by_elements(7, 7, "elements")),
        Rung(
            "triton",
            "torch",
            _list(with_triton.adamw),
            by_elements(7, 7, "elements"),
            device=triton_support.device,
            needs=triton_support.NEEDS,
        ),
    ),
)
