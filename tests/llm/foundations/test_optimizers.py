import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.foundations.optimizers import (
    SGD,
    Adam,
    Optimizer,
    adam_update,
    momentum_update,
    sgd_update,
)
from firsthand.llm.foundations.tensor_autograd import Tensor

torch.set_num_threads(1)
SHAPES = [(3,), (2, 4), ()]


def run_both(
    ours: type[Optimizer], theirs: type[torch.optim.Optimizer], seed: int, **settings: object
) -> None:
    """Twelve steps with the same gradients give the same parameters as torch."""
    generator = np.random.default_rng(seed)
    starts = [generator.normal(size=shape) for shape in SHAPES]
    tensors = [Tensor(start, requires_grad=True) for start in starts]
    points = [torch.tensor(start.copy(), requires_grad=True) for start in starts]
    betas = {k: settings[k] for k in ("beta1", "beta2") if k in settings}
    renamed = {"learning_rate": "lr", "epsilon": "eps"}
    their_settings = {renamed.get(k, k): v for k, v in settings.items() if k not in betas}
    if betas:
        their_settings["betas"] = tuple(betas.values())
    optimizer, oracle = ours(tensors, **settings), theirs(points, **their_settings)
    copies = [start.copy() for start in starts]
    for _ in range(12):
        for tensor, point in zip(tensors, points, strict=True):
            gradient = generator.normal(size=tensor.shape)
            tensor.grad, point.grad = np.asarray(gradient), torch.tensor(gradient)
        optimizer.step()
        oracle.step()
    for tensor, point in zip(tensors, points, strict=True):
        np.testing.assert_allclose(tensor.data, point.detach().numpy(), rtol=1e-10, atol=1e-13)
    for start, copy in zip(starts, copies, strict=True):
        np.testing.assert_array_equal(start, copy)


@given(st.integers(0, 99), st.sampled_from([0.0, 0.5, 0.9]))
def test_sgd_against_torch(seed: int, momentum: float) -> None:
    run_both(SGD, torch.optim.SGD, seed, learning_rate=0.05, momentum=momentum)


@given(st.integers(0, 99), st.sampled_from([1e-8, 1e-2]))
def test_adam_against_torch(seed: int, epsilon: float) -> None:
    run_both(
        Adam, torch.optim.Adam, seed, learning_rate=0.05, beta1=0.8, beta2=0.95, epsilon=epsilon
    )


def test_update_rules_by_hand() -> None:
    p, g = np.array([1.0]), np.array([0.5])
    assert sgd_update(p, g, 0.2) == [0.9]
    parameter, velocity = momentum_update(p, g, np.array([2.0]), 0.1, 0.5)
    assert velocity == [1.5]
    assert parameter == [0.85]
    parameter, first, second = adam_update(p, g, np.zeros(1), np.zeros(1), 1, 0.1)
    np.testing.assert_allclose(parameter, 0.9, rtol=1e-7)
    np.testing.assert_allclose([first[0], second[0]], [0.05, 0.00025])
    assert (p, g) == ([1.0], [0.5])


@given(st.floats(1e-3, 1e3))
def test_the_first_adam_step_does_not_depend_on_the_gradients_size(size: float) -> None:
    zeros = np.zeros(1)
    parameter, _, _ = adam_update(zeros, np.array([size]), zeros, zeros, 1, 0.1, epsilon=0.0)
    np.testing.assert_allclose(parameter, [-0.1], rtol=1e-12)


def test_parameters_without_gradient_stay() -> None:
    for kind in (SGD, Adam):
        still, moved = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
        optimizer = kind([still, moved], learning_rate=0.1)
        moved.grad = np.array([1.0])
        optimizer.step()
        assert still.data == [1.0]
        assert moved.data < 1.0
        optimizer.zero_grad()
        assert moved.grad is None


def test_bad_arguments_are_named() -> None:
    good = Tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        sgd_update(np.ones(2), np.ones(1), 0.1)
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        momentum_update(np.ones(2), np.ones(1), np.ones(2), 0.1, 0.9)
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        adam_update(np.ones(2), np.ones(1), np.ones(2), np.ones(2), 1, 0.1)
    with pytest.raises(ValueError, match="from 1: 0"):
        adam_update(np.ones(1), np.ones(1), np.ones(1), np.ones(1), 0, 0.1)
    with pytest.raises(ValueError, match="at least one"):
        SGD([], 0.1)
    with pytest.raises(ValueError, match="requires_grad"):
        Adam([Tensor([1.0])])
    with pytest.raises(ValueError, match="-1"):
        SGD([good], -1.0)
    with pytest.raises(ValueError, match="nan"):
        SGD([good], float("nan"))
    with pytest.raises(NotImplementedError):
        Optimizer([good], 0.1).step()
