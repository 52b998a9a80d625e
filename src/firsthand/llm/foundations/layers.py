"""A linear layer and a multilayer perceptron made of Tensors: y = x W + b."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from firsthand.llm.foundations.arrays import Array
from firsthand.llm.foundations.initialization import he_normal, xavier_normal
from firsthand.llm.foundations.tensor_autograd import Tensor, as_tensor

Initialization: TypeAlias = Callable[[int, int, np.random.Generator], Array]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": Tensor.relu,
    "gelu": Tensor.gelu,
    "silu": Tensor.silu,
    "tanh": Tensor.tanh,
    "sigmoid": Tensor.sigmoid,
    "identity": lambda tensor: tensor,
}

# These pass about half of their inputs, which He's factor of 2 makes up for.
_HALF_OPEN = ("relu", "gelu", "silu")


class Linear:
    """y = x W + b.

    Attributes:
        weight: (in_features, out_features), drawn by `initialization`.
        bias: (out_features,), zeros at first.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        generator: np.random.Generator,
        initialization: Initialization = xavier_normal,
    ) -> None:
        drawn = initialization(in_features, out_features, generator)
        if drawn.shape != (in_features, out_features):
            raise ValueError(
                f"the initialization gave {drawn.shape}, not {(in_features, out_features)}"
            )
        self.weight = Tensor(drawn, requires_grad=True)
        self.bias = Tensor(np.zeros(out_features), requires_grad=True)

    def __call__(self, x: Tensor | Array) -> Tensor:
        """(..., batch, in_features) -> (..., batch, out_features), or ValueError."""
        return as_tensor(x) @ self.weight + self.bias

    def parameters(self) -> list[Tensor]:
        """The weight and the bias."""
        return [self.weight, self.bias]


class MLP:
    """Linear layers with an activation after each but the last.

    Args:
        sizes: the number of features at the input, after each hidden layer and at the output.
        generator: draws the weights, first layer first.
        activation: one of `ACTIVATIONS`.
        initialization: how weights are drawn; None means He's normal for relu, gelu and silu
            and Xavier's normal for the rest.
    Raises:
        ValueError: fewer than two sizes, or an unknown activation.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generator: np.random.Generator,
        activation: str = "relu",
        initialization: Initialization | None = None,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs at least an input and an output size: {list(sizes)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        if initialization is None:
            initialization = he_normal if activation in _HALF_OPEN else xavier_normal
        self.activation = ACTIVATIONS[activation]
        self.layers = [
            Linear(fan_in, fan_out, generator, initialization)
            for fan_in, fan_out in pairwise(sizes)
        ]

    def layer_outputs(self, x: Tensor | Array) -> list[Tensor]:
        """The output of each layer, after its activation; the last entry is the MLP's output."""
        outputs = []
        signal = as_tensor(x)
        for layer in self.layers[:-1]:
            signal = self.activation(layer(signal))
            outputs.append(signal)
        outputs.append(self.layers[-1](signal))
        return outputs

    def __call__(self, x: Tensor | Array) -> Tensor:
        """(batch, sizes[0]) -> (batch, sizes[-1]). Raises ValueError when x does not fit."""
        return self.layer_outputs(x)[-1]

    def parameters(self) -> list[Tensor]:
        """Weight and bias of each layer, first layer first."""
        return [parameter for layer in self.layers for parameter in layer.parameters()]
