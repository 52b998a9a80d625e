"""Each filter against an oracle that is written without it: plain Python over a list."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.generation.filters import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    scale_by_temperature,
)

# Quarters, so that ties are common; some tokens are out already.
LOGITS = st.lists(
    st.one_of(st.integers(-12, 12).map(lambda n: n / 4), st.just(-math.inf)),
    min_size=1,
    max_size=9,
).filter(lambda row: max(row) > -math.inf)


def _softmax(row: Sequence[float]) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [w / math.fsum(weights) for w in weights]


def _kept(out: torch.Tensor, row: Sequence[float]) -> list[int]:
    """The places that are in; they must have kept their logits."""
    values = out[0].tolist()
    assert all(value in (x, -math.inf) for value, x in zip(values, row, strict=True))
    return [place for place, value in enumerate(values) if value > -math.inf]


@given(LOGITS, st.integers(1, 10))
def test_top_k(row: list[float], k: int) -> None:
    rank = {place: sum(other > x for other in row) for place, x in enumerate(row)}
    expected = [place for place, x in enumerate(row) if rank[place] < k and x > -math.inf]
    assert _kept(keep_top_k(torch.tensor([row]), k), row) == expected


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p(row: list[float], p: float) -> None:
    probabilities = _softmax(row)
    order = sorted(range(len(row)), key=lambda place: (-row[place], place))
    nucleus: list[int] = []
    for place in order:
        mass = math.fsum(probabilities[i] for i in nucleus)
        if abs(mass - p) < 1e-9:
            return  # the edge itself, where the last bit of a sum decides
        if mass > p or row[place] == -math.inf:
            break
        nucleus.append(place)
    assert _kept(keep_top_p(torch.tensor([row]), p), row) == sorted(nucleus)


def test_top_p_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.4, 0.3]], dtype=torch.float64).log()
    kept = [_kept(keep_top_p(logits, p), logits[0].tolist()) for p in (0.3, 0.5, 0.75, 0.95)]
    assert kept == [[2], [2, 3], [1, 2, 3], [0, 1, 2, 3]]


@given(LOGITS, st.floats(0.0, 1.0))
def test_min_p(row: list[float], ratio: float) -> None:
    probabilities = _softmax(row)
    edge = ratio * max(probabilities)
    if any(0 < abs(p - edge) < 1e-6 for p in probabilities):
        return
    expected = [i for i, p in enumerate(probabilities) if p >= edge and row[i] > -math.inf]
    assert _kept(keep_min_p(torch.tensor([row]), ratio), row) == expected


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=9), st.floats(0.1, 10), st.data())
def test_repetition(row: list[float], penalty: float, data: st.DataObject) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
    logits = torch.tensor([row], dtype=torch.float64)
    after = penalize_repetition(logits, torch.tensor([seen]), penalty)[0].tolist()
    for x, y, repeated in zip(row, after, seen, strict=True):
        if not repeated:
            assert y == x
        else:
            assert y == pytest.approx(x / penalty if x > 0 else x * penalty)
            assert (y <= x) or penalty < 1


@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=9), st.floats(0.1, 9))
def test_temperature(row: list[float], temperature: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    scaled = torch.softmax(scale_by_temperature(logits, temperature), dim=-1)[0]
    weights = [p ** (1 / temperature) for p in _softmax(row)]
    expected = torch.tensor([w / math.fsum(weights) for w in weights], dtype=torch.float64)
    torch.testing.assert_close(scaled, expected)
    greedy = torch.softmax(scale_by_temperature(logits, 0.0), dim=-1)[0]
    assert greedy.tolist() == [float(i == row.index(max(row))) for i in range(len(row))]


def test_rows_do_not_mix() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    seen = torch.rand(4, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    filters: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [
        lambda x, s: penalize_repetition(x, s, 1.7),
        lambda x, s: scale_by_temperature(x, 0.6),
        lambda x, s: scale_by_temperature(x, 0.0),
        lambda x, s: keep_top_k(x, 3),
        lambda x, s: keep_top_p(x, 0.7),
        lambda x, s: keep_min_p(x, 0.3),
    ]
    for apply in filters:
        before = logits.clone()
        together = apply(logits, seen)
        assert torch.equal(logits, before)
        for row in range(4):
            alone = apply(logits[row : row + 1], seen[row : row + 1])
            assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.2500001, 0.5, 0.75, 1 - 2**-53])
def test_draw_by_hand(uniform: float) -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 2.0, 1.0, 0.0]])
    token = draw(weights, torch.tensor([uniform], dtype=torch.float64)).item()
    assert token == (1 if uniform < 0.25 else 3 if uniform < 0.75 else 4)


@given(
    st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3e30]), min_size=1, max_size=9),
    st.floats(0, 1, exclude_max=True),
)
def test_what_is_impossible_is_never_drawn(weights: list[float], uniform: float) -> None:
    if sum(weights) == 0:
        return
    token = draw(torch.tensor([weights]), torch.tensor([uniform], dtype=torch.float64)).item()
    assert weights[int(token)] > 0
