import numpy as np
import pytest
import torch

from firsthand.llm.foundations import activations
from firsthand.llm.foundations.gradient_flow import (
    activation_rms,
    backward_variances,
    dead_units,
    forward_variances,
    gradient_rms,
    root_mean_square,
    saturation_share,
)
from firsthand.llm.foundations.initialization import he_normal, xavier_normal
from firsthand.llm.foundations.layers import MLP

torch.set_num_threads(1)


def test_rms_by_hand() -> None:
    assert root_mean_square(np.array([[3.0, 4.0], [0.0, 0.0]])) == 2.5
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        root_mean_square(np.zeros((0, 2)))


def test_activation_rms_reads_each_layer() -> None:
    model = MLP([3, 4, 2], np.random.default_rng(0), "tanh")
    x = np.random.default_rng(1).normal(size=(5, 3))
    hidden = np.tanh(x @ model.layers[0].weight.data)
    output = hidden @ model.layers[1].weight.data
    expected = [np.sqrt(np.mean(hidden**2)), np.sqrt(np.mean(output**2))]
    assert activation_rms(model, x) == pytest.approx(expected, rel=1e-12)


def test_gradient_rms_against_torch() -> None:
    generator = np.random.default_rng(2)
    model = MLP([3, 4, 2], generator, "relu")
    x, labels = generator.normal(size=(5, 3)), generator.integers(2, size=5)
    model.layers[0].weight.grad = np.ones((3, 4))
    first = torch.tensor(x) @ torch.tensor(model.layers[0].weight.data)
    hidden = first.relu().requires_grad_()
    output = hidden @ torch.tensor(model.layers[1].weight.data)
    output.retain_grad()
    loss = torch.nn.functional.cross_entropy(output, torch.tensor(labels), reduction="sum")
    loss.backward()
    expected = [float(t.grad.square().mean().sqrt()) for t in (hidden, output)]
    assert gradient_rms(model, x, labels) == pytest.approx(expected, rel=1e-10)
    np.testing.assert_array_equal(model.layers[0].weight.grad, np.ones((3, 4)))
    assert model.layers[1].weight.grad is None


def test_he_keeps_the_mean_square_of_relu_and_xavier_halves_it() -> None:
    for initialization, factor in [(he_normal, 1.0), (xavier_normal, 0.5)]:
        variances = forward_variances(
            12, 256, activations.relu, initialization, np.random.default_rng(3)
        )
        assert variances.shape == (13,)
        ratio = (variances[-1] / variances[2]) ** (1 / 10)
        assert ratio == pytest.approx(factor, rel=0.08)


@pytest.mark.parametrize(("scale", "factor"), [(0.5, 0.25), (1.0, 1.0), (2.0, 4.0)])
def test_a_linear_network_scales_by_the_weights_variance(scale: float, factor: float) -> None:
    def draw(fan_in: int, fan_out: int, generator: np.random.Generator) -> np.ndarray:
        return scale * xavier_normal(fan_in, fan_out, generator)

    forward = forward_variances(6, 256, lambda x: x, draw, np.random.default_rng(4))
    backward = backward_variances(6, 256, lambda x: x, np.ones_like, draw, np.random.default_rng(5))
    assert (forward[-1] / forward[0]) ** (1 / 6) == pytest.approx(factor, rel=0.05)
    assert (backward[0] / backward[-1]) ** (1 / 6) == pytest.approx(factor, rel=0.05)
    assert backward[-1] == pytest.approx(1.0, rel=0.05)


def test_sigmoid_layers_make_gradients_vanish() -> None:
    variances = backward_variances(
        8,
        128,
        activations.sigmoid,
        activations.sigmoid_derivative,
        xavier_normal,
        np.random.default_rng(6),
    )
    # The slope is at most 1/4, so each layer leaves at most about 1/16 of the variance.
    assert np.all(variances[:-1] / variances[1:] < 0.075)


def test_backward_variances_are_those_of_backpropagation() -> None:
    generator, again = np.random.default_rng(7), np.random.default_rng(7)
    got = backward_variances(
        3, 5, activations.tanh, activations.tanh_derivative, xavier_normal, generator, batch=4
    )
    x = torch.tensor(again.normal(size=(4, 5)), requires_grad=True)
    points = [x]
    for _ in range(3):
        points.append(torch.tanh(points[-1] @ torch.tensor(xavier_normal(5, 5, again))))
        points[-1].retain_grad()
    points[-1].backward(torch.tensor(again.normal(size=(4, 5))))
    expected = [float(point.grad.var(correction=0)) for point in points]
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_saturation_and_dead_units_by_hand() -> None:
    values = np.array([[-1.0, -0.98], [0.0, 0.995]])
    assert saturation_share(values) == 0.5
    assert saturation_share(values, margin=0.03) == 0.75
    assert saturation_share(np.array([0.004, 0.5, 0.999, 0.1]), low=0.0) == 0.5
    assert dead_units(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])).tolist() == [0]
    assert dead_units(np.ones((2, 2))).tolist() == []


def test_a_large_negative_bias_kills_its_unit() -> None:
    model = MLP([3, 4, 2], np.random.default_rng(8))
    bias = np.zeros(4)
    bias[2] = -1e6
    model.layers[0].bias.data = bias
    x = np.random.default_rng(9).normal(size=(64, 3))
    outputs = model.layer_outputs(x)
    assert dead_units(outputs[0].data).tolist() == [2]
    outputs[-1].cross_entropy(np.zeros(64, dtype=int)).backward()
    assert not model.layers[0].weight.grad[:, 2].any()


def test_bad_arguments_are_named() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="depth -1"):
        forward_variances(-1, 2, activations.relu, he_normal, generator)
    with pytest.raises(ValueError, match="width 0"):
        backward_variances(
            1, 0, activations.relu, activations.relu_derivative, he_normal, generator
        )
    with pytest.raises(ValueError, match="no saturation"):
        saturation_share(np.zeros(0))
    with pytest.raises(ValueError, match="no saturation"):
        saturation_share(np.zeros(2), low=1.0)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        dead_units(np.zeros(3))
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        dead_units(np.zeros((0, 3)))
