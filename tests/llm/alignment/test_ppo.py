"""The clipped objective, the value loss and the rewards by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.ppo import (
    explained_variance,
    penalized_rewards,
    policy_losses,
    ppo_loss,
    value_losses,
)

MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def drawn(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),
        (0.5, 2.0, -1.0, True),
        (0.5, -2.0, 1.6, False),
        (1.5, -2.0, 3.0, True),
    ],
)
def test_the_clip_by_hand(ratio: float, advantage: float, loss: float, moves: bool) -> None:
    logprob = torch.tensor(math.log(ratio) - 1.0, requires_grad=True)
    found = policy_losses(logprob, torch.tensor(-1.0), torch.tensor(advantage), clip=0.2)
    assert found.losses.item() == pytest.approx(loss)
    assert bool(found.clipped) is not moves
    found.losses.backward()
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)


def test_a_higher_upper_clip() -> None:
    logprobs = torch.tensor([1.25, 1.35, 0.75]).log()
    ones = torch.ones(3)
    found = policy_losses(logprobs, torch.zeros(3), ones, clip=0.2, clip_high=0.3)
    torch.testing.assert_close(found.losses, -torch.tensor([1.25, 1.3, 0.75]))
    assert found.clipped.tolist() == [False, True, False]


@given(log_ratio=st.floats(-3, 3), advantage=st.floats(-5, 5), clip=st.floats(0.01, 0.9))
def test_the_clip_only_ever_raises_the_loss(
    log_ratio: float, advantage: float, clip: float
) -> None:
    logprob, a = (
        torch.tensor(log_ratio, dtype=torch.float64),
        torch.tensor(advantage, dtype=torch.float64),
    )
    found = policy_losses(logprob, torch.zeros_like(logprob), a, clip=clip)
    assert found.losses.item() >= float(-logprob.exp() * a) - 1e-12
    at_once = policy_losses(logprob, logprob, a, clip=clip)
    assert at_once.losses.item() == -advantage
    assert not at_once.clipped


def test_value_losses_by_hand() -> None:
    values, old, returns = (torch.tensor(v) for v in ([2.0, 2.0, 0.1], [0.0] * 3, [3.0, 0.0, 1.0]))
    torch.testing.assert_close(value_losses(values, old, returns), torch.tensor([0.5, 2.0, 0.405]))
    # Clipped to 0.5 the first is 2.5 from its return; the second would be nearer and is not taken.
    clipped = value_losses(values, old, returns, clip=0.5)
    torch.testing.assert_close(clipped, torch.tensor([3.125, 2.0, 0.405]))


def test_the_whole_loss_is_the_sum_over_the_answers() -> None:
    logprobs, old, advantages, values, old_values, returns, entropies = drawn(7)
    found = ppo_loss(
        logprobs,
        old,
        advantages,
        MASK,
        clip=0.2,
        values=values,
        old_values=old_values,
        returns=returns,
        value_clip=0.3,
        value_coefficient=0.7,
        entropies=entropies,
        entropy_coefficient=0.01,
    )
    total, policy_sum, value_sum = 0.0, 0.0, 0.0
    for row, column in MASK.nonzero().tolist():
        ratio = math.exp(float(logprobs[row, column] - old[row, column]))
        a = float(advantages[row, column])
        policy = -min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        v, v_old, r = (float(x[row, column]) for x in (values, old_values, returns))
        near = v_old + min(max(v - v_old, -0.3), 0.3)
        error = max((v - r) ** 2, (near - r) ** 2) / 2
        policy_sum, value_sum = policy_sum + policy, value_sum + error
        total += policy + 0.7 * error - 0.01 * float(entropies[row, column])
    assert found.total.item() == pytest.approx(total)
    assert found.tokens == 4
    assert found.sums["policy"] == pytest.approx(policy_sum)
    assert found.sums["value"] == pytest.approx(value_sum)
    assert found.sums["entropy"] == pytest.approx(float(entropies[MASK].sum()))
    ratios = (logprobs - old).exp()[MASK]
    signs = advantages[MASK]
    outside = ((ratios > 1.2) & (signs > 0)) | ((ratios < 0.8) & (signs < 0))
    assert found.sums["clipped"] == int(outside.sum())
    assert found.sums["old_kl"] > 0


def test_minibatches_add_up() -> None:
    logprobs, old, advantages = drawn(3)
    whole = ppo_loss(logprobs, old, advantages, MASK, clip=0.2)
    rows = [
        ppo_loss(
            logprobs[n : n + 1], old[n : n + 1], advantages[n : n + 1], MASK[n : n + 1], clip=0.2
        )
        for n in range(2)
    ]
    assert sum(r.total.item() for r in rows) == pytest.approx(whole.total.item())
    assert sum(r.tokens for r in rows) == whole.tokens


def test_a_row_that_stands_for_many_counts_as_many() -> None:
    logprobs, old, advantages, values, old_values, returns, entropies = drawn(7)
    counts = torch.tensor([3, 2])
    rows = torch.arange(2).repeat_interleave(counts)
    once, each = (
        ppo_loss(
            logprobs[r],
            old[r],
            advantages[r],
            MASK[r],
            clip=0.2,
            values=values[r],
            old_values=old_values[r],
            returns=returns[r],
            value_clip=0.3,
            entropies=entropies[r],
            entropy_coefficient=0.1,
            counts=times,
        )
        for r, times in ((torch.arange(2), counts.to(logprobs.dtype)), (rows, None))
    )
    torch.testing.assert_close(once.total, each.total)
    assert once.tokens == each.tokens
    assert once.sums == pytest.approx(each.sums)


def test_the_padding_has_no_gradient_whatever_it_holds() -> None:
    logprobs, old, advantages = drawn(3)
    logprobs[~MASK] = -torch.inf
    logprobs.requires_grad_()
    loss = ppo_loss(logprobs, old, advantages, MASK, clip=0.2)
    assert torch.isfinite(loss.total)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)
    assert not gradient[~MASK].any()
    assert gradient[MASK].any()


def test_gradients_by_central_differences() -> None:
    logprobs, old, advantages, values, old_values, returns, entropies = drawn(7)

    def total(logprobs: Tensor, values: Tensor, entropies: Tensor) -> Tensor:
        return ppo_loss(
            logprobs,
            old,
            advantages,
            MASK,
            clip=0.2,
            values=values,
            old_values=old_values,
            returns=returns,
            value_clip=0.3,
            entropies=entropies,
            entropy_coefficient=0.1,
        ).total

    inputs = tuple(t.requires_grad_() for t in (logprobs, values, entropies))
    assert torch.autograd.gradcheck(total, inputs)


def test_rewards_by_token() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, 9.0], [-1.0, 9.0, 9.0, 9.0]])
    reference = torch.tensor([[-1.5, -2.0, -1.0, 7.0], [-2.0, 7.0, 7.0, 7.0]])
    found = penalized_rewards(torch.tensor([1.0, -1.0]), logprobs, reference, MASK, coefficient=0.1)
    expected = torch.tensor([[-0.05, 0.0, 1.2, 0.0], [-1.1, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


def test_rewards_that_cannot_be() -> None:
    x = torch.zeros(2, 4)
    empty = MASK.clone()
    empty[1] = False
    with pytest.raises(AlignmentError, match="without tokens"):
        penalized_rewards(torch.zeros(2), x, x, empty, coefficient=0.1)
    with pytest.raises(AlignmentError, match="finite"):
        penalized_rewards(torch.tensor([0.0, torch.inf]), x, x, MASK, coefficient=0.1)


@pytest.mark.parametrize(
    "options",
    [{"clip": 0.0}, {"clip": 1.0}, {"clip": float("nan")}, {"clip": 0.2, "clip_high": 0.1}],
)
def test_a_clip_out_of_range(options: dict[str, Any]) -> None:
    x = torch.zeros(1)
    with pytest.raises(AlignmentError, match="clip is above 0"):
        policy_losses(x, x, x, **options)


def test_values_need_returns() -> None:
    x = torch.zeros(2, 4)
    with pytest.raises(AlignmentError, match="towards returns"):
        ppo_loss(x, x, x, MASK, clip=0.2, values=x)


def test_explained_variance() -> None:
    (returns,) = drawn(1)
    assert explained_variance(returns, returns, MASK) == 1.0
    assert explained_variance(returns - 3, returns, MASK) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(2, 4), returns, MASK) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(2, 4), MASK) == 0.0
