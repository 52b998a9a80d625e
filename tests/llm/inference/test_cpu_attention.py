"""The engine's attention against float64, and a query alone against the same among others."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firsthand.llm.inference.cpu.attention import TOGETHER, attend, padded_head

CAPACITY = 70


def inputs(width: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    wide = padded_head(width)
    found = {
        "queries": np.zeros((9, wide), np.float32),
        "keys": np.zeros((CAPACITY, wide), np.int8),
        "values": np.zeros((CAPACITY, wide), np.int8),
    }
    found["queries"][:, :width] = rng.standard_normal((9, width))
    for name in ("keys", "values"):
        found[name][:, :width] = rng.integers(-127, 128, (CAPACITY, width))
        found[f"{name[:-1]}_scales"] = rng.uniform(1e-3, 2e-2, CAPACITY).astype(np.float32)
    return found


def attended(given: dict[str, Any], row: int, positions: list[int]) -> NDArray[np.float32]:
    wide = given["queries"].shape[1]
    scores = np.full((TOGETHER, CAPACITY), np.nan, np.float32)
    out = np.full((TOGETHER, wide), np.nan, np.float32)
    attend(
        given["queries"], row, np.array(positions, np.int32), np.float32(0.3), given["keys"],
        given["key_scales"], given["values"], given["value_scales"], scores, out,
    )  # fmt: skip
    return out[: len(positions)]


def expected(given: dict[str, Any], row: int, position: int) -> NDArray[np.float64]:
    seen = slice(0, position + 1)
    q = given["queries"][row].astype(np.float64)
    k = given["keys"][seen] * given["key_scales"][seen, None].astype(np.float64)
    v = given["values"][seen] * given["value_scales"][seen, None].astype(np.float64)
    scores = 0.3 * (k @ q)
    weights = np.exp(scores - scores.max())
    weighed: NDArray[np.float64] = weights / weights.sum() @ v
    return weighed


@pytest.mark.parametrize("width", [6, 16, 22, 32, 48, 64, 96, 128, 160])
def test_as_in_float64(width: int) -> None:
    given = inputs(width, seed=width)
    for position in (0, 1, 2, 7, 8, 9, 30, CAPACITY - 1):
        (found,) = attended(given, 3, [position])
        right = expected(given, 3, position)
        assert np.abs(found - right).max() < 2e-5 * max(1.0, np.abs(right).max())
        assert not found[width:].any()


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([16, 22, 64, 80]),
    positions=st.lists(st.integers(0, CAPACITY - 1), min_size=TOGETHER, max_size=TOGETHER),
    row=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_alone_or_with_others_to_the_last_bit(
    width: int, positions: list[int], row: int, seed: int
) -> None:
    given = inputs(width, seed)
    found = attended(given, row, positions)
    for i, position in enumerate(positions):
        (alone,) = attended(given, row + i, [position])
        assert np.array_equal(found[i], alone)


def test_keys_to_come_count_for_nothing() -> None:
    given = inputs(32, seed=1)
    before = attended(given, 0, [5, 6, 7, 8])
    given["keys"][9:], given["values"][9:] = 127, 127
    given["key_scales"][9:], given["value_scales"][9:] = np.nan, np.nan
    assert np.array_equal(attended(given, 0, [5, 6, 7, 8]), before)
    given["values"][7] = -given["values"][7]
    changed = (attended(given, 0, [5, 6, 7, 8]) != before).any(axis=1)
    assert changed.tolist() == [False, False, True, True]


def test_what_is_not_finite_shows() -> None:
    given = inputs(32, seed=2)
    given["key_scales"][3] = np.nan
    found = attended(given, 0, [2, 3, 4, 5])
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1:]).any()
