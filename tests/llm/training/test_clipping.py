"""Clipping against torch's, and what it must not touch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from firsthand.llm.training.clipping import clip_gradients, global_norm

torch.set_num_threads(1)


def _gradients(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5), (7,), (2, 4))
    return [(scale * torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]


@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_against_torch(scale: float, bound: float) -> None:
    ours, theirs = _gradients(scale), [nn.Parameter(g) for g in _gradients(scale)]
    for parameter in theirs:
        parameter.grad = parameter.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, bound)
    torch.testing.assert_close(clip_gradients(ours, bound), expected)
    for gradient, parameter in zip(ours, theirs, strict=True):
        # Theirs divides by the norm plus 1e-6.
        torch.testing.assert_close(gradient, parameter.grad, rtol=2e-4, atol=0)


@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_length_and_direction(scale: float, bound: float) -> None:
    before, after = _gradients(scale), _gradients(scale)
    norm = clip_gradients(after, bound).item()
    assert norm == pytest.approx(math.sqrt(sum((g * g).sum().item() for g in before)))
    assert global_norm(after).item() == pytest.approx(min(norm, bound))
    factor = min(1.0, bound / norm)
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, factor * other)


@pytest.mark.parametrize("bound", [0.0, 1e6])
def test_nothing_is_scaled_without_need(bound: float) -> None:
    gradients = _gradients()
    clip_gradients(gradients, bound)
    assert all(torch.equal(g, b) for g, b in zip(gradients, _gradients(), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    gradients = _gradients()
    gradients[1][2] = value
    expected = [gradient.clone() for gradient in gradients]
    assert not clip_gradients(gradients, 0.1).isfinite()
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_half_precision_does_not_overflow_and_zeros_stay() -> None:
    gradients = [torch.full((4,), 300.0, dtype=torch.float16)]
    assert clip_gradients(gradients, 6.0).item() == 600.0
    assert gradients[0].tolist() == [3.0] * 4
    zeros = [torch.zeros(3)]
    assert clip_gradients(zeros, 1.0).item() == 0.0
    assert zeros[0].tolist() == [0.0] * 3
    assert clip_gradients([], 1.0).item() == 0.0
