"""Orders: each thing once in an epoch, the same for a seed, resumable at any place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.orders import SeededOrder


@given(st.integers(1, 40), st.integers(0, 9), st.lists(st.integers(1, 12), max_size=4))
def test_an_epoch_has_each_index_once_and_its_own_order(
    count: int, seed: int, sizes: list[int]
) -> None:
    order, again = SeededOrder(count, seed), SeededOrder(count, seed)
    taken: list[int] = []
    for size in sizes:
        expected = order.peek(size)
        taken += order.take(size)
        assert taken[-size:] == expected
        fresh = SeededOrder(count, seed)
        fresh.restore(order.state())
        assert fresh.peek(7) == order.peek(7)
    assert taken == again.take(len(taken))
    for start in range(0, len(taken) - count + 1, count):
        assert sorted(taken[start : start + count]) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    order = SeededOrder(50, 1)
    first, second = order.take(50), order.take(50)
    assert order.epoch == 2
    assert first != second
    assert first != SeededOrder(50, 2).take(50)


def test_another_order_does_not_go_on() -> None:
    with pytest.raises(AlignmentError, match="nothing to learn from"):
        SeededOrder(0, 1)
    with pytest.raises(AlignmentError, match="count 5; now it is 6"):
        SeededOrder(6, 1).restore(SeededOrder(5, 1).state())
