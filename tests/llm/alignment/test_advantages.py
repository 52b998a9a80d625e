"""Advantages against their definitions, written as sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.alignment.advantages import gae, group_advantages, whiten
from firsthand.llm.alignment.errors import AlignmentError


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.4, 0.8, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    last = 1.0 - 0.8
    middle = 0.9 * 0.8 - 0.4 + 0.45 * last
    first = 0.9 * 0.4 - 0.5 + 0.45 * middle
    expected = torch.tensor([[first, middle, last, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, (expected + values) * mask)


def by_definition(
    rewards: Tensor, values: Tensor, start: int, end: int, gamma: float, lam: float
) -> list[float]:
    """Σ_l (γλ)^l δ_{t+l}, for one answer."""
    found = []
    for t in range(start, end):
        total = 0.0
        for later in range(t, end):
            after = float(values[later + 1]) if later + 1 < end else 0.0
            delta = float(rewards[later]) + gamma * after - float(values[later])
            total += (gamma * lam) ** (later - t) * delta
        found.append(total)
    return found


@given(
    spans=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 6)).map(lambda s: (s[0], s[0] + s[1])),
        min_size=1,
        max_size=4,
    ),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_gae_is_its_definition_wherever_an_answer_stands(
    spans: list[tuple[int, int]], gamma: float, lam: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(spans), 12)
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.zeros(shape, dtype=torch.bool)
    expected = torch.zeros(shape, dtype=torch.float64)
    for row, (start, end) in enumerate(spans):
        mask[row, start:end] = True
        found = by_definition(rewards[row], values[row], start, end, gamma, lam)
        expected[row, start:end] = torch.tensor(found, dtype=torch.float64)
    # What stands outside of an answer does not count, whatever it is.
    rewards[~mask] = torch.nan
    values[~mask] = torch.nan
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values.nan_to_num(0.0))


def test_the_ends_of_lambda() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    mask = torch.ones(3, 6, dtype=torch.bool)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=0.0)
    after = torch.nn.functional.pad(values, (0, 1))[:, 1:]
    torch.testing.assert_close(advantages, rewards + after - values)


def test_gae_refuses() -> None:
    x, mask = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    for gamma, lam in ((1.1, 0.5), (0.5, -0.1), (float("nan"), 0.5)):
        with pytest.raises(AlignmentError, match="between 0 and 1"):
            gae(x, x, mask, gamma=gamma, lam=lam)
    with pytest.raises(AlignmentError, match="batch, seq"):
        gae(x, x[:, :3], mask)
    with pytest.raises(AlignmentError, match="without gaps"):
        gae(x, x, torch.tensor([[True, False, True, False]]))


def test_whitening() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 + 5 * torch.randn(4, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=generator) < 0.6
    found = whiten(x.masked_fill(~mask, torch.inf), mask)
    assert not found[~mask].any()
    assert float(found[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert float(found[mask].std()) == pytest.approx(1)
    torch.testing.assert_close(found, whiten(7 * x - 2, mask))


def test_whitening_equal_values_or_one_gives_zero() -> None:
    one = torch.tensor([[False, True]])
    assert not whiten(torch.tensor([[5.0, 3.0]]), one).any()
    assert not whiten(torch.full((2, 3), 4.0), torch.ones(2, 3, dtype=torch.bool)).any()
    assert not whiten(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).any()


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.7, 0.7, 0.7, 0.7]])
    found = group_advantages(rewards, eps=0.0)
    assert found.flat.tolist() == [False, True]
    # mean 1/4, variance (9 + 3) / 16 / 3
    torch.testing.assert_close(found.values[0], torch.tensor([1.5, -0.5, -0.5, -0.5]))
    assert torch.equal(found.values[1], torch.zeros(4))
    plain = group_advantages(rewards, scaled=False)
    torch.testing.assert_close(plain.values[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))


@given(
    reward=st.floats(-1e3, 1e3, width=32),
    group=st.integers(2, 9),
    scaled=st.booleans(),
)
def test_equal_rewards_teach_exactly_nothing(reward: float, group: int, scaled: bool) -> None:
    found = group_advantages(torch.full((2, group), reward), scaled=scaled)
    assert found.flat.all()
    assert torch.equal(found.values, torch.zeros(2, group))


@given(seed=st.integers(0, 99), shift=st.floats(-5, 5), factor=st.floats(0.5, 4))
def test_group_advantages_ignore_the_scale_of_rewards(
    seed: int, shift: float, factor: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = group_advantages(rewards, eps=0.0).values
    torch.testing.assert_close(found.sum(1), torch.zeros(3, dtype=torch.float64))
    moved = group_advantages(factor * rewards + shift, eps=0.0).values
    torch.testing.assert_close(found, moved)


def test_groups_that_cannot_be() -> None:
    with pytest.raises(AlignmentError, match="at least two answers"):
        group_advantages(torch.zeros(3, 1))
    with pytest.raises(AlignmentError, match="finite"):
        group_advantages(torch.tensor([[0.0, torch.nan]]))


def test_against_trl() -> None:
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    rewards = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    expected = (rewards - rewards.mean(1, keepdim=True)) / (
        nanstd(rewards, dim=1, keepdim=True) + 1e-4
    )
    torch.testing.assert_close(group_advantages(rewards).values, expected)
