"""Grids and rounding, against float64 and against rounding done number by number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from firsthand.llm.model.settings import SettingsError, build
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.schemes import Scheme, grid_of, quantize_matrix
from firsthand.llm.quantization.settings import QuantizationSettings

SCHEMES = {
    "channel": Scheme(),
    "tensor": Scheme(weights="tensor"),
    "group": Scheme(weights="group", group_size=3),
    "asymmetric": Scheme(asymmetric=True),
    "asymmetric-tensor": Scheme(weights="tensor", asymmetric=True),
    "asymmetric-group": Scheme(weights="group", group_size=3, asymmetric=True),
}
# What float32 adds to half a step: a quotient near 127 and a product, each rounded once.
SLACK = 1 + 1e-4

matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.sampled_from([3, 6, 9])),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4, width=32) | st.just(0.0),
)


@pytest.mark.parametrize("name", SCHEMES)
@given(weight=matrices)
def test_no_weight_is_further_off_than_half_a_step(name: str, weight: NDArray[np.float32]) -> None:
    found = quantize_matrix(weight, SCHEMES[name])
    assert found.values.dtype == np.int8
    assert found.scales.dtype == np.float32
    assert found.scales.shape == (len(weight), weight.shape[1] // found.group_size)
    steps = np.repeat(found.scales.astype(np.float64), found.group_size, axis=1)
    difference = np.abs(weight.astype(np.float64) - found.dequantized())
    # Below 1e-30 a weight is 0.
    assert (difference <= steps / 2 * SLACK + 1e-30).all()


@pytest.mark.parametrize("name", SCHEMES)
@given(weight=matrices)
def test_zero_stays_zero(name: str, weight: NDArray[np.float32]) -> None:
    found = quantize_matrix(weight, SCHEMES[name])
    assert (found.dequantized()[weight == 0] == 0).all()
    empty = quantize_matrix(np.zeros_like(weight), SCHEMES[name])
    assert not empty.dequantized().any()
    assert not empty.scales.any()


@given(weight=matrices)
def test_symmetric_is_the_formula(weight: NDArray[np.float32]) -> None:
    found = quantize_matrix(weight, Scheme())
    for row, values, scale in zip(weight, found.values, found.scales[:, 0], strict=True):
        peak = np.abs(row).max()
        if peak < 1e-30:
            assert scale == 0
            continue
        assert scale == np.float32(peak / np.float32(127))
        assert values.tolist() == [round(float(w / scale)) for w in row]  # half to even, too
        assert max(abs(int(v)) for v in values) == 127


@given(weight=matrices, percentile=st.floats(60, 99.9), asymmetric=st.booleans())
def test_clipped_weights_stand_at_the_end_and_the_rest_within_half_a_step(
    weight: NDArray[np.float32], percentile: float, asymmetric: bool
) -> None:
    scheme = Scheme(percentile=percentile, asymmetric=asymmetric)
    found = quantize_matrix(weight, scheme)
    zeros = 0.0 if found.zeros is None else found.zeros.astype(np.float64)
    lowest = -127 if found.zeros is None else -128
    scales = found.scales.astype(np.float64)
    low, high = (lowest - zeros) * scales, (127 - zeros) * scales
    nearest = np.clip(weight.astype(np.float64), low, high)
    assert (np.abs(nearest - found.dequantized()) <= scales / 2 * SLACK + 1e-30).all()
    whole = grid_of(weight, Scheme(asymmetric=asymmetric))
    assert (found.scales <= whole.scales).all()


def test_a_percentile_by_hand() -> None:
    row = np.array([[*range(-5, 100), 1000]], np.float32)
    found = grid_of(row, Scheme(percentile=99))
    assert found.scales[0, 0] == pytest.approx(np.percentile(np.abs(row), 99) / 127, rel=1e-6)
    both = grid_of(row, Scheme(percentile=99, asymmetric=True))
    low, high = np.percentile(row, 1), np.percentile(row, 99)
    assert low < 0
    assert both.scales[0, 0] == pytest.approx((high - low) / 255, rel=1e-6)
    assert both.zeros is not None
    assert both.zeros[0, 0] == round(-128 - low / ((high - low) / 255))


def test_a_row_of_mostly_zeros_keeps_its_weights() -> None:
    row = np.zeros((1, 100), np.float32)
    row[0, 7] = 3
    assert quantize_matrix(row, Scheme(percentile=90)).dequantized()[0, 7] == 3
    assert quantize_matrix(-row, Scheme(percentile=90, asymmetric=True)).dequantized()[0, 7] == -3


def test_asymmetric_spends_its_steps_where_the_weights_are() -> None:
    lopsided = np.random.default_rng(0).uniform(0, 1, (8, 64)).astype(np.float32)
    symmetric, asymmetric = (
        np.abs(quantize_matrix(lopsided, scheme).dequantized() - lopsided).max()
        for scheme in (Scheme(), Scheme(asymmetric=True))
    )
    assert asymmetric < 0.6 * symmetric


def test_more_scales_lose_less() -> None:
    generator = np.random.default_rng(1)
    weight = (generator.normal(size=(32, 64)) * generator.lognormal(size=(32, 64))).astype("f4")
    errors = [
        float(np.linalg.norm(quantize_matrix(weight, scheme).dequantized() - weight))
        for scheme in (
            Scheme(weights="tensor"),
            Scheme(),
            Scheme(weights="group", group_size=16),
            Scheme(weights="group", group_size=4),
        )
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_one_scale_is_repeated_in_each_row() -> None:
    weight = np.array([[1, 2], [-4, 3]], np.float32)
    found = quantize_matrix(weight, Scheme(weights="tensor", asymmetric=True))
    assert found.scales.tolist() == [[np.float32(7 / 255)]] * 2
    assert found.zeros is not None
    assert found.zeros.tolist() == [[round(-128 + 4 / (7 / 255))]] * 2
    assert found.nbytes == 4 + 2 * 4 + 2


def test_the_largest_and_smallest_floats() -> None:
    big = 3e38  # their difference is beyond float32
    weight = np.array([[big, -big], [1e-38, -1e-38], [1e-29, 0]], np.float32)
    for scheme in (Scheme(), Scheme(asymmetric=True)):
        found = quantize_matrix(weight, scheme).dequantized()
        assert np.isfinite(found).all()
        assert found[0] == pytest.approx([big, -big], rel=0.01)
        assert found[2, 0] == pytest.approx(1e-29, rel=0.01)
        assert not found[1].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_named(bad: float) -> None:
    weight = np.ones((3, 4), np.float32)
    weight[1, 2] = bad
    with pytest.raises(QuantizationError, match=r"blocks.0: 1 of 12 .* first at \[1, 2\]"):
        quantize_matrix(weight, Scheme(), "blocks.0")


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 2, 2)])
def test_what_is_no_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match="no matrix"):
        quantize_matrix(np.ones(shape, np.float32), Scheme())


def test_a_group_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(QuantizationError, match=r"up: groups of 32 .* width of 48; 24 would"):
        quantize_matrix(np.ones((2, 48), np.float32), Scheme(weights="group", group_size=32), "up")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"scheme": {"weights": "chanel"}}, "nearest is 'channel'"),
        ({"scheme": {"weights": "group"}}, "group_size of at least 1"),
        ({"scheme": {"group_size": 8}}, "goes with"),
        ({"scheme": {"percentile": 50.0}}, "above 50"),
        ({"scheme": {"percentile": math.nan}}, "above 50"),
        ({"scheme": {"percentile": 100.5}}, "at most 100"),
        ({"smoothing": -0.1}, "from 0 to 1"),
        ({"smoothing": math.nan}, "from 0 to 1"),
        ({"damping": 0.0}, "damping"),
        ({"method": "awq"}, "nearest, gptq"),
        ({"cache": "int4"}, "int8"),
        ({"calibration_tokens": 0}, "at least 1"),
        ({"smoothnig": 0.5}, "nearest is 'smoothing'"),
    ],
)
def test_settings_that_cannot_be(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(QuantizationSettings, record)


def test_an_unknown_granularity_is_refused_without_build_too() -> None:
    with pytest.raises(SettingsError, match="channel, tensor, group"):
        Scheme(weights="row")  # type: ignore[arg-type]


@given(
    smoothing=st.floats(0, 1),
    scheme=st.sampled_from(list(SCHEMES.values())),
    method=st.sampled_from(["nearest", "gptq"]),
)
@settings(max_examples=20)
def test_settings_survive_their_record(smoothing: float, scheme: Scheme, method: Any) -> None:
    chosen = QuantizationSettings(scheme=scheme, smoothing=smoothing, method=method)
    assert build(QuantizationSettings, chosen.to_record()) == chosen
