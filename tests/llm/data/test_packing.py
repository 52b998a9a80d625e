from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.data.loading import IGNORED, document_mask
from firsthand.llm.data.packing import Example, best_fit, pack


@given(st.lists(st.integers(1, 20), max_size=60))
def test_best_fit_places_each_once_and_wastes_little(lengths: list[int]) -> None:
    rows = best_fit(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    used = [sum(lengths[index] for index in row) for row in rows]
    assert all(total <= 20 for total in used)
    # No two rows could be joined, and so at most twice the fewest rows are used.
    assert all(a + b > 20 for i, a in enumerate(used) for b in used[i + 1 :])


def test_best_fit_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="a length of 21 in a row of 20"):
        best_fit([21], 20)
    with pytest.raises(ValueError, match="a length of 0"):
        best_fit([0], 20)


def examples_of(lengths: list[int]) -> list[Example]:
    """Example n has the ids 1000 n, 1000 n + 1, ...; the first third is the prompt."""
    return [
        Example(
            list(range(1000 * n, 1000 * n + length)),
            [i >= length // 3 for i in range(length)],
            f"example {n}",
        )
        for n, length in enumerate(lengths, 1)
    ]


@given(
    st.lists(st.integers(2, 33), max_size=40),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_every_trained_token_is_a_target_once(lengths: list[int], rows: int, window: int) -> None:
    examples = examples_of(lengths)
    expected: Counter[int] = Counter()
    for example in examples:
        pairs = zip(example.ids, example.trained, strict=True)
        expected.update(int(i) for place, (i, trained) in enumerate(pairs) if trained and place)
    seen: Counter[int] = Counter()
    count = 0
    for batch in pack(examples, length=32, rows=rows, padding=7, window=window):
        real = batch.targets != IGNORED
        seen.update(batch.targets[real].tolist())
        count += batch.examples
        assert batch.inputs.shape[0] <= rows
        assert np.array_equal(batch.inputs[real] + 1, batch.targets[real])
        assert batch.trained_tokens == np.count_nonzero(real)
        used = batch.documents >= 0
        assert batch.real_token_fraction == pytest.approx(used.mean())
        assert (batch.inputs[~used] == 7).all()
        assert (batch.targets[~used] == IGNORED).all()
        # A position says how far its example has come, so input = 1000 n + position.
        assert np.array_equal(batch.inputs[used] % 1000, batch.positions[used])
        for row in range(len(batch.inputs)):
            numbers = batch.documents[row][used[row]]
            assert len(set(zip(numbers, batch.inputs[row][used[row]] // 1000, strict=True))) == len(
                set(numbers.tolist())
            )
        assert document_mask(batch.documents).any(axis=2).all()
    assert seen == expected
    assert count == len(examples)


def test_an_example_too_long_is_cut_dropped_or_refused() -> None:
    examples = examples_of([10, 40])
    settings = {"length": 16, "rows": 4, "padding": 0}
    cut = next(pack(examples, **settings))
    assert cut.examples == 2
    assert cut.targets.max() == 2016
    assert next(pack(examples, **settings, too_long="drop")).examples == 1
    with pytest.raises(ValueError, match="example 2: 40 tokens; 17 fit"):
        next(pack(examples, **settings, too_long="error"))


def test_an_example_without_an_answer_is_left_out() -> None:
    untrained = Example([1, 2, 3], [False, False, False])
    # The first token is never a target.
    only_first = Example([1, 2, 3], [True, False, False])
    cut_off = Example(list(range(9)), [False] * 8 + [True])
    examples = [untrained, only_first, cut_off, *examples_of([5])]
    batches = list(pack(examples, length=4, rows=4, padding=0))
    assert [batch.examples for batch in batches] == [1]
    assert list(pack([untrained], length=4, rows=4, padding=0)) == []


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(pack([], length=4, rows=0, padding=0))
    with pytest.raises(ValueError, match="here: 2 ids but 1 marks"):
        next(pack([Example([1, 2], [True], "here")], length=4, rows=1, padding=0))
