"""One artificial neuron, and a layer of them.

A neuron weighs its inputs, adds a bias and bends the sum: a = f(w · x + b).
Source: Goodfellow, Bengio, Courville 2016, "Deep Learning", section 6.3.
"""

from collections.abc import Callable

from firsthand.llm.foundations.arrays import Array, require_matmul_shapes


def dot_product(weights: Array, inputs: Array) -> float:
    """The sum over i of weights[i] * inputs[i].

    Args:
        weights: (n,).
        inputs: (n,).
    Returns:
        A Python float; 0.0 for n = 0.
    Raises:
        ValueError: the two are not 1-D arrays of the same length.
    """
    if weights.ndim != 1 or weights.shape != inputs.shape:
        raise ValueError(
            f"a dot product needs two equal lengths; the shapes are {weights.shape} and "
            f"{inputs.shape}"
        )
    total = 0.0
    for weight, value in zip(weights, inputs, strict=True):
        total += float(weight) * float(value)
    return total


def weighted_sum(inputs: Array, weights: Array, bias: float) -> float:
    """What a neuron computes before its activation: z = w · x + b.

    Args:
        inputs: (n,).
        weights: (n,).
        bias: b.
    Raises:
        ValueError: inputs and weights are not 1-D arrays of the same length.
    """
    product = dot_product(weights, inputs)
    return product + bias


def neuron(
    inputs: Array, weights: Array, bias: float, activation: Callable[[float], float | Array]
) -> float:
    """The output of one neuron: activation(w · x + b).

    Args:
        inputs: (n,).
        weights: (n,).
        bias: b.
        activation: a function of one number, for example `activations.sigmoid`.
    Raises:
        ValueError: inputs and weights are not 1-D arrays of the same length.
    """
    z = weighted_sum(inputs, weights, bias)
    return float(activation(z))


def layer(inputs: Array, weights: Array, biases: Array) -> Array:
    """The weighted sums of a layer of neurons for a batch: Z = X W + b, no activation.

    Args:
        inputs: (batch, in_features).
        weights: (in_features, out_features), one column a neuron.
        biases: (out_features,).
    Returns:
        (batch, out_features).
    Raises:
        ValueError: the shapes do not fit; the message names them.
    """
    require_matmul_shapes(inputs, weights)
    if biases.shape != weights.shape[1:]:
        raise ValueError(f"weights {weights.shape} need biases {weights.shape[1:]}: {biases.shape}")
    return inputs @ weights + biases
