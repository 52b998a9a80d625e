import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.foundations.activations import sigmoid
from firsthand.llm.foundations.neuron import dot_product, layer, neuron, weighted_sum


@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), max_size=8))
def test_dot_product_is_exact_on_integers(pairs: list[tuple[int, int]]) -> None:
    weights = np.array([left for left, _ in pairs], dtype=float)
    inputs = np.array([right for _, right in pairs], dtype=float)
    assert dot_product(weights, inputs) == sum(left * right for left, right in pairs)


def test_one_neuron_by_hand() -> None:
    inputs, weights = np.array([1.0, 2.0, -3.0]), np.array([0.5, -1.0, 0.25])
    assert weighted_sum(inputs, weights, 4.0) == 1.75
    assert neuron(inputs, weights, 4.0, lambda z: z * z) == 1.75**2
    assert neuron(inputs, weights, 4.0, sigmoid) == pytest.approx(1 / (1 + np.exp(-1.75)))
    assert type(neuron(inputs, weights, 4.0, sigmoid)) is float


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_a_layer_is_its_neurons_side_by_side(batch: int, inner: int, outer: int) -> None:
    generator = np.random.default_rng(batch * 100 + inner * 10 + outer)
    inputs, weights = generator.normal(size=(batch, inner)), generator.normal(size=(inner, outer))
    biases = generator.normal(size=outer)
    result = layer(inputs, weights, biases)
    assert result.shape == (batch, outer)
    for row in range(batch):
        for unit in range(outer):
            single = weighted_sum(inputs[row], weights[:, unit], float(biases[unit]))
            assert result[row, unit] == pytest.approx(single, rel=1e-12, abs=1e-12)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        dot_product(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        dot_product(np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(4, 5\)"):
        layer(np.ones((2, 3)), np.ones((4, 5)), np.ones(5))
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(3,\)"):
        layer(np.ones((2, 3)), np.ones((3, 5)), np.ones(3))
