"""The INT8 product beyond its ladder: equal to the last bit, exact at the limits, by `vpmaddwd`."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from firsthand.llm.kernels.int8_matmul import panels, tiles, with_numba, with_numpy, with_torch

torch.set_num_threads(1)

_SHAPES = st.tuples(st.integers(1, 19), st.integers(1, 70), st.integers(1, 300))


def _drawn(seed: int, m: int, n: int, k: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((m, k)) * rng.uniform(1e-3, 1e3, (m, 1))).astype(np.float32)
    w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    return x, w, rng.uniform(1e-4, 1e-1, n).astype(np.float32)


@settings(max_examples=60)
@given(shape=_SHAPES, seed=st.integers(0, 9999))
def test_all_rungs_agree_to_the_last_bit(shape: tuple[int, int, int], seed: int) -> None:
    x, w, w_scales = _drawn(seed, *shape)
    levels = with_numpy.activation_levels(shape[2])
    integers, scales = with_numpy.quantize_rows(x, levels)
    tensors = with_torch.quantize_rows(torch.from_numpy(x), levels)
    assert np.array_equal(tensors[0].numpy(), integers)
    assert np.array_equal(tensors[1].numpy(), scales)
    expected = with_numpy.int8_matmul(integers, scales, w, w_scales)
    assert expected.dtype == np.float32
    for rung in (with_torch.int8_matmul, with_numba.int8_matmul):
        found = rung(*tensors, torch.from_numpy(w), torch.from_numpy(w_scales))
        assert np.array_equal(found.numpy(), expected), rung.__module__


@settings(max_examples=60)
@given(shape=_SHAPES, seed=st.integers(0, 9999))
def test_the_compiled_quantization_is_the_plain_one(shape: tuple[int, int, int], seed: int) -> None:
    x, _, _ = _drawn(seed, *shape)
    levels = with_numpy.activation_levels(shape[2])
    integers, scales = with_numpy.quantize_rows(x, levels)
    for row, expected, scale in zip(x, integers, scales, strict=True):
        found = np.full(len(row), 99, np.int16)
        assert panels.quantize_row(row, np.float32(levels), found) == scale
        assert np.array_equal(found, expected)


@settings(max_examples=60)
@given(shape=_SHAPES, seed=st.integers(0, 9999))
def test_half_a_step_is_the_error(shape: tuple[int, int, int], seed: int) -> None:
    x, _, _ = _drawn(seed, *shape)
    integers, scales = with_numpy.quantize_rows(x, with_numpy.activation_levels(shape[2]))
    error = np.abs(integers * scales.astype(np.float64)[:, None] - x)
    # The inverse of the step is rounded to float32, which at 32,767 levels is worth 2^-9 steps.
    assert (error <= scales[:, None] * (0.5 + 2**-8)).all()


@pytest.mark.parametrize("k", [1, 64, 516, 517, 768, 2048, 8192])
def test_the_largest_sum_fits_and_one_level_more_would_not(k: int) -> None:
    levels = with_numpy.activation_levels(k)
    x = np.full((5, k), levels, np.int16)
    w = np.full((3, k), -127, np.int8)
    ones = np.ones(5, np.float32)
    exact = np.float32(-127 * levels * k)
    for rung in (with_torch.int8_matmul, with_numba.int8_matmul):
        out = rung(*map(torch.from_numpy, (x, ones, w, ones[:3])))
        assert (out.numpy() == exact).all()
    assert (with_numpy.int8_matmul(x, ones, w, ones[:3]) == exact).all()
    assert levels == 2**15 - 1 or 127 * (levels + 1) * k > 2**31 - 1


def test_rows_of_zeros_and_of_nothing_but_tiny_numbers() -> None:
    x = np.zeros((3, 64), np.float32)
    x[1] = 1e-38
    integers, scales = with_numpy.quantize_rows(x, 100)
    assert not integers.any()
    assert not scales.any()
    found = np.ones(64, np.int16)
    assert panels.quantize_row(x[1], np.float32(100), found) == 0
    assert not found.any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_scale(wrong: float) -> None:
    x = np.ones(64, np.float32)
    x[7] = wrong
    assert not np.isfinite(panels.quantize_row(x, np.float32(100), np.zeros(64, np.int16)))


@pytest.mark.skipif(not tiles.has_pair_products(), reason="this processor has no AVX2")
def test_the_loops_hold_pair_products() -> None:
    """Without `vpmaddwd` the loop would still be right, at a fraction of the speed."""
    # Compiled anew: Numba cannot show the code of a function that it loaded from its cache.
    options = dict(panels.panel_products.targetoptions)  # type: ignore[attr-defined]
    options.pop("nopython")
    anew = njit(**options)(panels.panel_products.py_func)  # type: ignore[attr-defined]
    arguments = (
        np.ones((11, 64), np.int16),
        np.ones(11, np.float32),
        np.ones((35, 64), np.int8),
        np.ones(35, np.float32),
        np.zeros((35, panels.SUMS), np.int32),
        np.zeros((11, 35), np.float32),
    )
    x, x_scales, w, w_scales, sums, out = arguments
    anew(x, x_scales, 0, 11, w, w_scales, 0, 35, sums, out, 0)
    (code,) = anew.inspect_asm().values()
    found = len(re.findall(r"\bvpmaddwd\b|\bvpdpwssd\b", code))
    # Twice tiles of 1 to 8 rows, and eight rows of weights by one of activations.
    assert found >= 2 * sum(range(1, 9)) + 8
    assert not re.search(r"\bvpmulld\b", code)


def test_without_pair_products_the_sums_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "has_pair_products", lambda: False)
    tile, row = tiles.dot_tiles(from_memory=True), tiles.dot_rows(ahead=64)

    @njit
    def call_tile(x: Any, rows: int, w: Any, first: int, last: int, sums: Any) -> None:
        tile(x, 1, rows, w, 2, first, last, sums, 1)

    @njit
    def call_row(x: Any, w: Any, sums: Any) -> None:
        row(x, 3, w, 1, sums)

    rng = np.random.default_rng(0)
    x = rng.integers(-300, 300, (9, 192)).astype(np.int16)
    w = rng.integers(-127, 128, (9, 192)).astype(np.int8)
    sums = np.zeros((2, 8), np.int32)
    for rows in range(1, 9):
        sums[:] = 7
        call_tile(x, rows, w, 0, 128, sums)
        call_tile(x, rows, w, 128, 192, sums)
        expected = x[1 : 1 + rows].astype(np.int64) @ w[2].astype(np.int64)
        assert np.array_equal(sums[1, :rows], expected + 7)
        assert (sums[0] == 7).all()
        assert (sums[1, rows:] == 7).all()
    call_row(x, w, sums)
    assert np.array_equal(sums[0], w[1:].astype(np.int64) @ x[3].astype(np.int64))
