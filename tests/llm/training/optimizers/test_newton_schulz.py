"""The iteration against singular values, PyTorch's Muon and a brute-force minimax."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from firsthand.llm.training.optimizers.newton_schulz import (
    JORDAN,
    gram_orthogonalize,
    orthogonalize,
    polar_coefficients,
)

torch.set_num_threads(1)

FORMS = [orthogonalize, gram_orthogonalize]
FIVE = [JORDAN] * 5


def _stack(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _polar(stack: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(stack, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 31), (1, 12, 5), (2, 1, 9)])
def test_singular_vectors_stay_and_values_come_near_one(form, shape: tuple[int, ...]) -> None:
    stack = _stack(*shape)
    before = stack.clone()
    result = form(stack, FIVE)
    assert torch.equal(stack, before)
    assert result.shape == stack.shape
    values = torch.linalg.svdvals(result)
    u, s, v = torch.linalg.svd(stack, full_matrices=False)
    s = s / s.square().sum(1, keepdim=True).sqrt()
    for a, b, c in FIVE:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(result, (u * s[:, None]) @ v, rtol=1e-9, atol=1e-9)
    assert 0.6 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize("form", FORMS)
def test_against_pytorch(form) -> None:
    for rows, cols in ((16, 16), (16, 48)):
        matrix = _stack(rows, cols, seed=rows, dtype=torch.float32)
        theirs = _zeropower_via_newtonschulz(matrix, JORDAN, 5, 1e-7).float()
        ours = form(matrix[None], FIVE)[0]
        # Theirs iterates in bfloat16, of 8 bits.
        assert (ours - theirs).norm() / theirs.norm() < 0.02


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 7), st.integers(0, 9))
def test_the_gram_form_gives_the_same(rows: int, cols: int, count: int, seed: int) -> None:
    stack = _stack(2, rows, cols, seed=seed)
    for coefficients in ([JORDAN] * count, polar_coefficients(count, 0.01)):
        one, other = (form(stack, coefficients) for form in FORMS)
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_the_gram_form_in_float32_with_tiny_singular_values() -> None:
    u, v = _polar(_stack(24, 24)), _polar(_stack(24, 96, seed=1))
    matrix = ((u * torch.logspace(0, -6, 24, dtype=torch.float64)) @ v)[None]
    exact = orthogonalize(matrix, FIVE)
    found = gram_orthogonalize(matrix.float(), FIVE).double()
    assert (found - exact).norm() / exact.norm() < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_each_matrix_by_itself_at_any_size(form) -> None:
    stack = _stack(3, 4, 11) * torch.tensor([1e-3, 1.0, 1e3]).double()[:, None, None]
    together = form(stack, FIVE)
    for one, other in zip(together, _stack(3, 4, 11), strict=True):
        torch.testing.assert_close(one, form(other[None], FIVE)[0])
    zeros = form(torch.zeros(1, 3, 9), FIVE)
    assert torch.equal(zeros, torch.zeros(1, 3, 9))
    half = _stack(2, 4, 16, dtype=torch.bfloat16)
    assert form(half, FIVE).dtype == torch.bfloat16
    reference = form(half.double(), FIVE)
    assert (form(half, FIVE).double() - reference).norm() / reference.norm() < 0.05


@pytest.mark.parametrize("floor", [0.3, 0.02, 1e-3])
def test_the_first_polynomial_is_the_best(floor: float) -> None:
    ((a, b, c),) = polar_coefficients(1, floor)
    x = np.linspace(floor, 1.01, 20_001)
    error = np.abs(a * x + b * x**3 + c * x**5 - 1).max()
    # Nothing near it is better: a minimax fit is a local, hence by convexity a global minimum.
    generator = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3):
        for change in generator.normal(size=(200, 3)) * size:
            p, q, r = np.array([a, b, c]) + change
            assert np.abs(p * x + q * x**3 + r * x**5 - 1).max() > error


def test_enough_iterations_reach_the_polar_factor() -> None:
    stack = _stack(2, 6, 20)
    result = orthogonalize(stack, polar_coefficients(8, 1e-3))
    torch.testing.assert_close(result, _polar(stack), rtol=0, atol=0.02)
    errors = []
    for count in range(1, 9):
        x = np.linspace(1e-3, 1.0, 5001)
        for a, b, c in polar_coefficients(count, 1e-3):
            x = a * x + b * x**3 + c * x**5
        errors.append(np.abs(x - 1).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
