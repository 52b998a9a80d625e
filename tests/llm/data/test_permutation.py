import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.data.permutation import MAX_SIZE, Permutation


@given(st.integers(1, 3000), st.integers(), st.integers(0, 1000))
def test_it_is_a_bijection_of_every_size(size: int, seed: int, epoch: int) -> None:
    order = Permutation(size, seed, epoch)(np.arange(size))
    assert sorted(order.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 255, 256, 257, 65_535, 65_536, 65_537])
def test_it_is_a_bijection_around_powers_of_two(size: int) -> None:
    order = Permutation(size, 0)(np.arange(size))
    assert np.array_equal(np.sort(order), np.arange(size))


@given(st.integers(1, MAX_SIZE), st.data())
def test_parts_agree_with_single_values_at_any_size(size: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5, unique=True))
    permutation = Permutation(size, 7)
    order = permutation(np.array(indices, dtype=np.int64))
    assert len(set(order.tolist())) == len(indices)
    assert 0 <= order.min() <= order.max() < size
    single = [int(permutation(np.array([index], dtype=np.int64))[0]) for index in indices]
    assert single == order.tolist()


def test_seeds_and_epochs_draw_different_orders() -> None:
    orders = {
        tuple(Permutation(1000, seed, epoch)(np.arange(1000)).tolist())
        for seed in range(8)
        for epoch in range(8)
    }
    assert len(orders) == 64


def test_the_order_looks_random() -> None:
    size = 10_000
    # Serial correlation and fixed points of a random permutation: about N(0, 1/n) and Poisson(1).
    for seed in range(20):
        order = Permutation(size, seed)(np.arange(size)).astype(float)
        places = np.arange(size)
        assert abs(np.corrcoef(order, places)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
        assert np.count_nonzero(order == places) < 12


@pytest.mark.slow
def test_each_value_is_equally_likely_at_each_place() -> None:
    size, draws = 5, 6000
    counts = np.zeros((size, size))
    for seed in range(draws):
        order = Permutation(size, seed)(np.arange(size))
        counts[np.arange(size), order] += 1
    expected = draws / size
    # Chi-squared with (5 - 1)^2 degrees of freedom; the 99.99 % point is 46.
    assert ((counts - expected) ** 2 / expected).sum() * (size - 1) / size < 46


def test_what_is_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="0 things"):
        Permutation(0)
    with pytest.raises(ValueError, match="things"):
        Permutation(MAX_SIZE + 1)
    for index in (-1, 10):
        with pytest.raises(IndexError, match=r"\[0, 10\)"):
            Permutation(10)(np.array([index]))
    assert Permutation(10)(np.zeros((0,), np.int64)).shape == (0,)
