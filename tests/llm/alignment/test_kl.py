"""Estimates of the KL divergence, and the controller that holds it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError, DivergenceError
from firsthand.llm.alignment.kl import (
    AdaptiveController,
    FixedController,
    kl_estimates,
    require_near,
)


def two_distributions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    log_p, log_q = torch.log_softmax(logits, -1)
    return log_p, log_q.detach()


def test_by_hand() -> None:
    log_p, log_q = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    found = {kind: kl_estimates(log_p, log_q, kind).item() for kind in ("k1", "k2", "k3")}
    assert found["k1"] == pytest.approx(math.log(2))
    assert found["k2"] == pytest.approx(math.log(2) ** 2 / 2)
    assert found["k3"] == pytest.approx(0.5 - 1 + math.log(2))


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    log_p, log_q = two_distributions()
    p = log_p.exp()
    exact = (p * (log_p - log_q)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p * kl_estimates(log_p, log_q, kind)).sum(), exact)
    assert abs((p * kl_estimates(log_p, log_q, "k2")).sum() - exact) > 1e-3


def test_whose_gradient_is_that_of_the_divergence() -> None:
    log_p, log_q = two_distributions()
    p = log_p.exp()
    forward = torch.autograd.grad((p * (log_p - log_q)).sum(), log_p, retain_graph=True)[0]
    reverse = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), log_p, retain_graph=True)
    expected = {"k1": torch.zeros_like(forward), "k2": forward, "k3": reverse[0]}
    for kind, right in expected.items():
        sampled = (p.detach() * kl_estimates(log_p, log_q, kind)).sum()  # type: ignore[arg-type]
        (got,) = torch.autograd.grad(sampled, log_p, retain_graph=True)
        # Only the part along the simplex counts: log-probabilities cannot all rise.
        torch.testing.assert_close(got - p * got.sum(), right - p * right.sum())


@given(st.floats(-20, 20))
def test_k2_and_k3_are_never_negative(difference: float) -> None:
    d = torch.tensor(difference)
    for kind in ("k2", "k3"):
        assert kl_estimates(d, torch.tensor(0.0), kind).item() >= 0  # type: ignore[arg-type]


def test_k3_near_zero_keeps_its_digits() -> None:
    found = kl_estimates(torch.tensor(1e-3), torch.tensor(0.0), "k3").item()
    assert found == pytest.approx(0.5e-6, rel=0.1)


def test_an_unknown_estimator() -> None:
    with pytest.raises(AlignmentError, match="k1, k2 or k3; not 'k4'"):
        kl_estimates(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_the_adaptive_weight_by_hand() -> None:
    controller = AdaptiveController(0.1, target=6.0, horizon=100)
    controller.update(6.6, 10)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    controller = AdaptiveController(0.1, target=6.0, horizon=100)
    controller.update(600.0, 10)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    controller.update(6.0, 10)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    controller.update(0.0, 10**9)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.2 * 0.1) * 0.8)


def test_a_policy_that_answers_to_its_weight_is_held_at_the_target() -> None:
    controller = AdaptiveController(1.0, target=2.0, horizon=100)
    for _ in range(500):
        controller.update(1 / controller.coefficient, 20)
    assert 1 / controller.coefficient == pytest.approx(2.0, rel=0.01)


def test_a_fixed_weight_stays_and_states_come_back() -> None:
    fixed = FixedController(0.05)
    fixed.update(100.0, 10)
    assert fixed.coefficient == 0.05
    adaptive = AdaptiveController(0.1, 6.0, 100)
    adaptive.update(9.0, 10)
    for one, other in ((fixed, FixedController(1.0)), (adaptive, AdaptiveController(1.0, 6, 100))):
        other.restore(one.state())
        assert other.coefficient == one.coefficient


def test_numbers_out_of_range() -> None:
    for coefficient in (-0.1, math.nan, math.inf):
        with pytest.raises(AlignmentError, match="at least 0"):
            FixedController(coefficient)
    for numbers in ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, -1.0), (1.0, math.nan, 1.0)):
        with pytest.raises(AlignmentError, match="above 0"):
            AdaptiveController(*numbers)
    with pytest.raises(AlignmentError, match="nan"):
        AdaptiveController(0.1, 6.0, 100).update(math.nan, 1)


def test_a_policy_too_far_away_stops_the_run_and_names_the_step() -> None:
    require_near(3.0, 4.0, 17)
    require_near(3e9, 0.0, 17)
    with pytest.raises(DivergenceError, match=r"step 17.*5 nats.*limit of 4") as caught:
        require_near(5.0, 4.0, 17)
    assert (caught.value.step, caught.value.kl, caught.value.limit) == (17, 5.0, 4.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(DivergenceError, match=r"step 3.*not a finite number"):
            require_near(bad, 0.0, 3)
