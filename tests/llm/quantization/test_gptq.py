"""GPTQ, against the update it is derived from, done with a fresh inverse for each column."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.gptq import gptq
from firsthand.llm.quantization.schemes import Grid, Scheme, grid_of, quantize_matrix

Doubles = NDArray[np.float64]
SCHEMES = {
    "channel": Scheme(),
    "tensor": Scheme(weights="tensor"),
    "group": Scheme(weights="group", group_size=4),
    "asymmetric": Scheme(asymmetric=True),
    "asymmetric-group": Scheme(weights="group", group_size=4, asymmetric=True),
    "clipped": Scheme(percentile=97),
}


def _drawn(
    seed: int, rows: int = 6, columns: int = 12, count: int = 60
) -> tuple[NDArray[np.float32], Doubles]:
    """A matrix, and inputs whose channels are of unequal size and go together."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(columns, columns)) * generator.lognormal(size=columns)
    inputs = generator.normal(size=(count, columns)) @ mixed
    return generator.normal(size=(rows, columns)).astype(np.float32), inputs


def _output_error(weight: Doubles, rough: Doubles, inputs: Doubles) -> float:
    return float(np.square(inputs @ (weight - rough).T).sum())


def _one_by_one(
    weight: NDArray[np.float32], hessian: Doubles, grid: Grid, order: list[int]
) -> NDArray[np.int8]:
    """The optimal update after each column, from the inverse of what is left of the Hessian."""
    left = weight.astype(np.float64)
    values = np.zeros(weight.shape, np.int8)
    remaining = list(order)
    while remaining:
        column = remaining[0]
        group = column // grid.group_size
        values[:, column] = grid.rounded(left[:, [column]], group)[:, 0]
        zero = 0.0 if grid.zeros is None else grid.zeros[:, group].astype(np.float64)
        point = (values[:, column] - zero) * grid.scales[:, group].astype(np.float64)
        inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
        step = (left[:, column] - point) / inverse[0, 0]
        left[:, remaining] -= step[:, None] * inverse[0]
        remaining.pop(0)
    return values


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("block", [1, 5, 128])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_it_is_the_update_of_one_column_after_the_other(
    scheme: Scheme, block: int, ordered: bool
) -> None:
    weight, inputs = _drawn(block)
    hessian = inputs.T @ inputs
    found = gptq(weight, hessian, scheme, damping=0.01, activation_order=ordered, block=block)
    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(12)
    order = list(range(12))
    if ordered:
        order.sort(key=lambda column: -hessian[column, column])
    expected = _one_by_one(weight, damped, grid_of(weight, scheme), order)
    np.testing.assert_array_equal(found.values, expected)
    nearest = quantize_matrix(weight, scheme)
    assert (found.values != nearest.values).any()
    np.testing.assert_array_equal(found.scales, nearest.scales)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), scheme=st.sampled_from(list(SCHEMES)), ordered=st.booleans())
def test_outputs_are_closer_than_by_rounding_to_the_nearest(
    seed: int, scheme: str, ordered: bool
) -> None:
    weight, inputs = _drawn(seed, rows=48, columns=24, count=100)
    chosen = SCHEMES[scheme]
    found = gptq(weight, inputs.T @ inputs, chosen, activation_order=ordered)
    nearest = quantize_matrix(weight, chosen)
    exact = weight.astype(np.float64)
    ours, theirs = (
        _output_error(exact, matrix.dequantized().astype(np.float64), inputs)
        for matrix in (found, nearest)
    )
    assert ours < theirs
    # It pays with the error of the weights, which rounding to the nearest makes the least.
    assert np.abs(found.dequantized() - exact).sum() >= np.abs(nearest.dequantized() - exact).sum()


def test_on_independent_inputs_there_is_nothing_to_gain() -> None:
    weight, _ = _drawn(0)
    found = gptq(weight, np.diag(np.arange(1.0, 13.0)), Scheme())
    np.testing.assert_array_equal(found.values, quantize_matrix(weight, Scheme()).values)


def test_inputs_of_zeros() -> None:
    weight, inputs = _drawn(1)
    nearest = quantize_matrix(weight, Scheme())
    nothing = gptq(weight, np.zeros((12, 12)), Scheme())
    np.testing.assert_array_equal(nothing.values, nearest.values)
    inputs[:, [3, 7]] = 0  # two channels that the text never uses
    found = gptq(weight, inputs.T @ inputs, Scheme())
    np.testing.assert_array_equal(found.values[:, [3, 7]], nearest.values[:, [3, 7]])


def test_fewer_inputs_than_channels_are_damped() -> None:
    weight, inputs = _drawn(2, columns=24, count=5)
    found = gptq(weight, inputs.T @ inputs, Scheme(), damping=0.01)
    exact = weight.astype(np.float64)
    nearest = quantize_matrix(weight, Scheme()).dequantized().astype(np.float64)
    ours = _output_error(exact, found.dequantized().astype(np.float64), inputs)
    assert ours < _output_error(exact, nearest, inputs)


def test_what_it_refuses() -> None:
    weight, inputs = _drawn(3)
    hessian = inputs.T @ inputs
    with pytest.raises(QuantizationError, match=r"up: GPTQ needs .* 12 x 12; this one is 3 x 3"):
        gptq(weight, np.eye(3), Scheme(), name="up")
    with pytest.raises(QuantizationError, match="finite Hessian"):
        gptq(weight, np.where(np.eye(12) > 0, np.nan, hessian), Scheme())
    with pytest.raises(QuantizationError, match="cannot be inverted with a damping"):
        gptq(weight, -hessian, Scheme())
    with pytest.raises(QuantizationError, match="groups of 5"):
        gptq(weight, hessian, Scheme(weights="group", group_size=5))
    weight[2, 2] = np.inf
    with pytest.raises(QuantizationError, match=r"first at \[2, 2\]"):
        gptq(weight, hessian, Scheme())
