"""How signals and gradients grow or vanish from layer to layer.

Source: Glorot & Bengio 2010, sections 3 and 4; He et al. 2015, section 2.2.
"""

from collections.abc import Callable, Sequence

import numpy as np

from firsthand.llm.foundations.arrays import Array, IntArray
from firsthand.llm.foundations.layers import MLP, Initialization
from firsthand.llm.foundations.tensor_autograd import Tensor, no_grad


def root_mean_square(values: Array) -> float:
    """√(mean of the squares) over all elements. Raises ValueError without elements."""
    if values.size == 0:
        raise ValueError(f"no root mean square of an array of shape {values.shape}")
    return float(np.sqrt(np.mean(np.square(values))))


def activation_rms(model: MLP, inputs: Array) -> list[float]:
    """The root mean square of each layer's output, first layer first.

    Args:
        inputs: (batch, features).
    """
    with no_grad():
        outputs = model.layer_outputs(inputs)
    return [root_mean_square(output.data) for output in outputs]


def gradient_rms(model: MLP, inputs: Array, labels: IntArray) -> list[float]:
    """The root mean square of dL/d(output of a layer), first layer first.

    L is the sum (not the mean) of the cross-entropies, so that the figures do not depend on
    the batch's size. The gradients of the model's parameters stay as they were.

    Args:
        inputs: (batch, features).
        labels: (batch,) integers.
    """
    parameters = model.parameters()
    earlier = [parameter.grad for parameter in parameters]
    outputs = model.layer_outputs(inputs)
    loss = outputs[-1].cross_entropy(labels) * len(labels)
    loss.backward()
    for parameter, gradient in zip(parameters, earlier, strict=True):
        parameter.grad = gradient
    return [root_mean_square(_gradient(output)) for output in outputs]


def _gradient(tensor: Tensor) -> Array:
    if tensor.grad is None:
        raise RuntimeError("a layer's output got no gradient")
    return tensor.grad


def forward_variances(
    depth: int,
    width: int,
    activation: Callable[[Array], Array],
    initialization: Initialization,
    generator: np.random.Generator,
    batch: int = 256,
) -> Array:
    """The variance of the signal at the input and after each of `depth` layers without biases.

    Args:
        depth: the number of layers.
        width: features of every layer.
        activation: elementwise, for example `activations.tanh`.
        initialization: draws each (width, width) weight.
        generator: draws the standard normal inputs, then the weights.
        batch: the number of inputs.
    Returns:
        (depth + 1,): the mean square minus the squared mean over batch and features.
    Raises:
        ValueError: a depth below 0, or a width or batch below 1.
    """
    if depth < 0 or width < 1 or batch < 1:
        raise ValueError(f"no signal for depth {depth}, width {width}, batch {batch}")
    signal: Array = generator.normal(size=(batch, width))
    variances = [np.var(signal)]
    for _ in range(depth):
        weights = initialization(width, width, generator)
        signal = activation(signal @ weights)
        variances.append(np.var(signal))
    return np.array(variances)


def backward_variances(
    depth: int,
    width: int,
    activation: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    initialization: Initialization,
    generator: np.random.Generator,
    batch: int = 256,
) -> Array:
    """The variance of the gradient at the input and after each layer; the last is about 1.

    A standard normal gradient enters at the output of the network of `forward_variances` and
    runs back through it.

    Args:
        derivative: of the activation, as a function of the activation's input.
    Returns:
        (depth + 1,): entry 0 belongs to the network's input, the last to its output.
    Raises:
        ValueError: a depth below 0, or a width or batch below 1.
    """
    if depth < 0 or width < 1 or batch < 1:
        raise ValueError(f"no gradient for depth {depth}, width {width}, batch {batch}")
    signal: Array = generator.normal(size=(batch, width))
    passed: list[tuple[Array, Array]] = []
    for _ in range(depth):
        weights = initialization(width, width, generator)
        sums = signal @ weights
        passed.append((weights, derivative(sums)))
        signal = activation(sums)
    gradient: Array = generator.normal(size=(batch, width))
    variances = [np.var(gradient)]
    for weights, slope in reversed(passed):
        gradient = (gradient * slope) @ weights.T
        variances.append(np.var(gradient))
    return np.array(variances[::-1])


def saturation_share(
    activations: Array, low: float = -1.0, high: float = 1.0, margin: float = 0.01
) -> float:
    """The share of activations within `margin` · (high - low) / 2 of either end of their range.

    The range of tanh is the default; for a sigmoid pass low=0.0.

    Raises:
        ValueError: no activations, or an empty range.
    """
    if activations.size == 0 or not low < high:
        raise ValueError(f"no saturation of {activations.size} values in [{low}, {high}]")
    reach = margin * (high - low) / 2.0
    near_an_end = (activations <= low + reach) | (activations >= high - reach)
    return float(np.mean(near_an_end))


def dead_units(activations: Array | Sequence[Sequence[float]]) -> IntArray:
    """The indices of units whose activation is 0 for every row of the batch.

    A ReLU unit that is dead for all data gets no gradient, so it stays dead.

    Args:
        activations: (batch, units), after the ReLU.
    Raises:
        ValueError: not two axes, or an empty batch.
    """
    values = np.asarray(activations, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"activations must be (batch, units): the shape is {values.shape}")
    silent = np.all(values == 0.0, axis=0)
    return np.flatnonzero(silent).astype(np.int64)
