import numpy as np
import pytest
import torch

from firsthand.llm.foundations import layers, neuron
from firsthand.llm.foundations.gradcheck import relative_error
from firsthand.llm.foundations.initialization import he_normal, xavier_normal
from firsthand.llm.foundations.layers import ACTIVATIONS, MLP, Linear

torch.set_num_threads(1)


def test_linear_is_a_layer_of_neurons() -> None:
    generator = np.random.default_rng(0)
    linear = Linear(3, 5, generator)
    linear.bias.data = generator.normal(size=5)
    x = generator.normal(size=(4, 3))
    expected = neuron.layer(x, linear.weight.data, linear.bias.data)
    np.testing.assert_allclose(linear(x).data, expected, rtol=1e-14)
    assert linear(x[None]).shape == (1, 4, 5)
    assert linear.parameters() == [linear.weight, linear.bias]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_against_torch(name: str) -> None:
    generator = np.random.default_rng(1)
    model = MLP([3, 6, 5, 2], generator, name)
    for layer in model.layers:
        layer.bias.data = generator.normal(size=layer.bias.shape)
    x, targets = generator.normal(size=(7, 3)), generator.integers(2, size=7)
    theirs = [torch.tensor(p.data, requires_grad=True) for p in model.parameters()]
    functions = {"identity": lambda t: t, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    function = functions.get(name) or getattr(torch.nn.functional, name)
    signal = torch.tensor(x)
    for number in range(3):
        signal = signal @ theirs[2 * number] + theirs[2 * number + 1]
        signal = function(signal) if number < 2 else signal
    torch.nn.functional.cross_entropy(signal, torch.tensor(targets)).backward()
    output = model(x)
    output.cross_entropy(targets).backward()
    assert relative_error(output.data, signal.detach().numpy()) < 1e-12
    for ours, oracle in zip(model.parameters(), theirs, strict=True):
        assert relative_error(ours.grad, oracle.grad.numpy()) < 1e-9


def test_layer_outputs_end_with_the_output() -> None:
    model = MLP([3, 6, 5, 2], np.random.default_rng(2))
    x = np.ones((4, 3))
    outputs = model.layer_outputs(x)
    assert [output.shape for output in outputs] == [(4, 6), (4, 5), (4, 2)]
    np.testing.assert_array_equal(outputs[-1].data, model(x).data)
    assert all((output.data >= 0).all() for output in outputs[:-1])


@pytest.mark.parametrize(
    ("activation", "expected"), [("relu", he_normal), ("gelu", he_normal), ("tanh", xavier_normal)]
)
def test_default_initialization_follows_the_activation(
    activation: str, expected: layers.Initialization
) -> None:
    model = MLP([3, 4], np.random.default_rng(5), activation)
    drawn = expected(3, 4, np.random.default_rng(5))
    np.testing.assert_array_equal(model.layers[0].weight.data, drawn)
    assert not model.layers[0].bias.data.any()


def test_bad_arguments_are_named() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"\[3\]"):
        MLP([3], generator)
    with pytest.raises(ValueError, match=r"'swoosh'.*relu"):
        MLP([3, 2], generator, "swoosh")
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(3, 2\)"):
        Linear(3, 2, generator, lambda fan_in, fan_out, g: g.normal(size=(fan_out, fan_in)))
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 2\)"):
        MLP([3, 2], generator)(np.ones((4, 2)))
