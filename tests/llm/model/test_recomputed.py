"""The product that keeps less: the same numbers, and fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firsthand.llm.model.feed_forward import swiglu
from firsthand.llm.model.recomputed import activated_product
from firsthand.llm.training.memory import saved_bytes


def plain(x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    result: torch.Tensor = linear(swiglu(x))
    return result


@pytest.mark.parametrize("shape", [(3, 4, 10), (7, 10)])
def test_values_and_gradients_are_those_of_the_plain_product(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 6, bias=False).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(*shape[:-1], 6, dtype=torch.float64)
    inputs = (x, linear.weight)
    ours = activated_product(x, swiglu, linear)
    theirs = plain(x, linear)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, cotangent),
        torch.autograd.grad(theirs, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_hidden_features_are_not_kept() -> None:
    linear = nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 16, requires_grad=True) * 1.0
    kept = saved_bytes(lambda: activated_product(x, swiglu, linear).sum())
    assert kept == x.nbytes
    assert saved_bytes(lambda: plain(x, linear).sum()) > kept + 16 * 8 * 4


class Doubled(nn.Linear):
    """More than its matrix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once = super().forward(x)
        return torch.cat([once, once], dim=-1)


def test_hooks_biases_subclasses_and_frozen_weights_are_honoured() -> None:
    seen: list[int] = []
    linear = nn.Linear(5, 6, bias=False)
    x = torch.randn(3, 10, requires_grad=True)
    handle = linear.register_forward_hook(lambda *_: seen.append(1))
    activated_product(x, swiglu, linear)
    handle.remove()
    activated_product(x, swiglu, linear)
    assert seen == [1]
    biased = nn.Linear(5, 6)
    torch.testing.assert_close(activated_product(x, swiglu, biased), plain(x, biased))
    assert activated_product(x, swiglu, Doubled(5, 6, bias=False)).shape == (3, 12)
    linear.weight.requires_grad_(False)
    activated_product(x, swiglu, linear).sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is None
