import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.foundations import losses
from firsthand.llm.foundations.gradcheck import relative_error

torch.set_num_threads(1)
Functional = torch.nn.functional
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@given(SHAPES, st.integers(0, 99))
def test_mean_squared_error_against_torch(shape: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    predictions, targets = generator.normal(size=(2, *shape))
    _against_torch(
        losses.mean_squared_error,
        losses.mean_squared_error_gradient,
        Functional.mse_loss,
        predictions,
        targets,
    )


@given(SHAPES, st.integers(0, 99), st.sampled_from([1.0, 30.0, 1e4]))
def test_binary_cross_entropy_against_torch(
    shape: tuple[int, ...], seed: int, scale: float
) -> None:
    generator = np.random.default_rng(seed)
    logits = scale * generator.normal(size=shape)
    targets = generator.uniform(size=shape)
    _against_torch(
        losses.binary_cross_entropy,
        losses.binary_cross_entropy_gradient,
        Functional.binary_cross_entropy_with_logits,
        logits,
        targets,
    )


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99), st.sampled_from([1.0, 1e4]))
def test_cross_entropy_against_torch(batch: int, classes: int, seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    _against_torch(
        losses.cross_entropy,
        losses.cross_entropy_gradient,
        Functional.cross_entropy,
        scale * generator.normal(size=(batch, classes)),
        generator.integers(classes, size=batch),
    )


def _against_torch(
    loss: Callable[..., float],
    gradient: Callable[..., np.ndarray],
    oracle: Callable[..., torch.Tensor],
    predictions: np.ndarray,
    targets: np.ndarray,
) -> None:
    before = predictions.copy()
    point = torch.tensor(predictions, requires_grad=True)
    expected = oracle(point, torch.tensor(targets))
    expected.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, slope = loss(predictions, targets), gradient(predictions, targets)
    assert type(value) is float
    assert value == pytest.approx(expected.item(), rel=1e-12, abs=1e-14)
    assert relative_error(slope, point.grad.numpy()) < 1e-11
    np.testing.assert_array_equal(predictions, before)


def test_a_confident_wrong_answer_costs_its_logit() -> None:
    assert losses.binary_cross_entropy(np.array([1e4]), np.array([0.0])) == 1e4
    assert losses.cross_entropy(np.array([[1e4, -1e4]]), np.array([1])) == 2e4
    assert losses.cross_entropy(np.zeros((3, 7)), np.array([0, 3, 6])) == pytest.approx(np.log(7))


@pytest.mark.parametrize(
    "function",
    [
        losses.mean_squared_error,
        losses.mean_squared_error_gradient,
        losses.binary_cross_entropy,
        losses.binary_cross_entropy_gradient,
    ],
)
def test_shapes_that_would_broadcast_are_refused(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\) and \(3,\)"):
        function(np.ones((3, 1)), np.ones(3))


@pytest.mark.parametrize("function", [losses.cross_entropy, losses.cross_entropy_gradient])
def test_bad_targets_are_refused(function: Callable[..., object]) -> None:
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3,\)"):
        function(logits, np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        function(logits, np.array([0, 3]))
    with pytest.raises(ValueError, match="-1"):
        function(logits, np.array([0, -1]))
    with pytest.raises(TypeError, match="float64"):
        function(logits, np.zeros(2))
    with pytest.raises(ValueError, match="empty"):
        function(np.zeros((0, 3)), np.zeros(0, dtype=int))
