"""AdamW as written down, and as training runs it, against torch's in float64 and float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from firsthand.llm.kernels.adamw.with_torch import adamw_update
from firsthand.llm.parts import FAST
from firsthand.llm.training.optimizers.adamw import adamw

torch.set_num_threads(1)

FORMS = [adamw, FAST.adamw]
SHAPES = [(7, 13), (5,), (), (3, 2, 4), (0,), (1, 17)]
NUMBERS = {
    "learning_rate": 0.03,
    "beta1": 0.8,
    "beta2": 0.97,
    "eps": 1e-6,
    "weight_decay": 0.2,
}


def _tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def _run(form: Callable[..., None], steps: int, dtype: torch.dtype, **numbers: Any) -> list[Tensor]:
    parameters = _tensors(0, dtype)
    firsts = [torch.zeros_like(p) for p in parameters]
    seconds = [torch.zeros_like(p) for p in parameters]
    for step in range(1, steps + 1):
        gradients = _tensors(step, dtype)
        form(parameters, gradients, firsts, seconds, step=step, **{**NUMBERS, **numbers})
        assert all(torch.equal(g, h) for g, h in zip(gradients, _tensors(step, dtype), strict=True))
    return [*parameters, *firsts, *seconds]


def _torch(steps: int, dtype: torch.dtype) -> list[Tensor]:
    parameters = [torch.nn.Parameter(p) for p in _tensors(0, dtype)]
    theirs = torch.optim.AdamW(
        parameters,
        lr=NUMBERS["learning_rate"],
        betas=(NUMBERS["beta1"], NUMBERS["beta2"]),
        eps=NUMBERS["eps"],
        weight_decay=NUMBERS["weight_decay"],
        foreach=False,
    )
    for step in range(1, steps + 1):
        for parameter, gradient in zip(parameters, _tensors(step, dtype), strict=True):
            parameter.grad = gradient
        theirs.step()
    state = [theirs.state[p] for p in parameters]
    moments = [s["exp_avg"] for s in state] + [s["exp_avg_sq"] for s in state]
    return [p.detach() for p in parameters] + moments


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_against_torch(form: Callable[..., None], dtype: torch.dtype, tolerance: float) -> None:
    for one, other in zip(_run(form, 9, dtype), _torch(9, dtype), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_first_step_by_hand() -> None:
    # m̂ = g and v̂ = g² after one step, whatever the betas: the step is η sign(g), and decay η λ p.
    parameter, gradient = torch.tensor([2.0, -1.0]), torch.tensor([4.0, -0.5])
    moments = torch.zeros(2), torch.zeros(2)
    adamw_update(
        parameter,
        gradient,
        *moments,
        step=1,
        learning_rate=0.1,
        beta1=0.9,
        beta2=0.99,
        eps=0.0,
        weight_decay=0.5,
    )
    torch.testing.assert_close(parameter, torch.tensor([2 - 0.1 - 0.1, -1 + 0.1 + 0.05]))
    torch.testing.assert_close(moments[0], 0.1 * gradient)
    torch.testing.assert_close(moments[1], 0.01 * gradient**2)


@pytest.mark.parametrize("form", FORMS)
def test_turned_tensors_and_empty_lists(form: Callable[..., None]) -> None:
    form([], [], [], [], step=1, **NUMBERS)
    base = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    turned = [base.clone().mT, base.clone().mT, torch.zeros(3, 4).double().mT]
    turned.append(torch.zeros(3, 4).double().mT)
    plain = [tensor.clone(memory_format=torch.contiguous_format) for tensor in turned]
    form(*([tensor] for tensor in turned), step=1, **NUMBERS)
    adamw_update(*plain, step=1, **NUMBERS)
    torch.testing.assert_close(turned[0], plain[0])
