from collections.abc import Callable

import numpy as np
import pytest

from firsthand.llm.foundations import initialization

Draw = Callable[[int, int, np.random.Generator], np.ndarray]

CASES = [
    (initialization.xavier_normal, 2 / (300 + 500), False),
    (initialization.xavier_uniform, 2 / (300 + 500), True),
    (initialization.he_normal, 2 / 300, False),
    (initialization.he_uniform, 2 / 300, True),
]


@pytest.mark.parametrize(("draw", "variance", "uniform"), CASES)
def test_shape_mean_variance_and_kind(draw: Draw, variance: float, uniform: bool) -> None:
    weights = draw(300, 500, np.random.default_rng(0))
    assert weights.shape == (300, 500)
    # The deviation of a mean over n = 150,000 is 0.0026 of the weights' own.
    assert abs(weights.mean()) < 0.013 * np.sqrt(variance)
    assert weights.var() == pytest.approx(variance, rel=0.02)
    kurtosis = np.mean((weights - weights.mean()) ** 4) / weights.var() ** 2
    assert kurtosis == pytest.approx(1.8 if uniform else 3.0, rel=0.03)
    if uniform:
        assert np.abs(weights).max() <= np.sqrt(3 * variance)


@pytest.mark.parametrize(("draw", "variance", "uniform"), CASES)
def test_the_generator_decides(draw: Draw, variance: float, uniform: bool) -> None:
    first, second = (draw(3, 4, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, draw(3, 4, np.random.default_rng(8)))


@pytest.mark.parametrize(("draw", "variance", "uniform"), CASES)
def test_empty_layers_are_refused(draw: Draw, variance: float, uniform: bool) -> None:
    with pytest.raises(ValueError, match="0 and 4"):
        draw(0, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="3 and 0"):
        draw(3, 0, np.random.default_rng(0))
