"""What the prose of session 1.7 computes: scales through layers and errors of differences."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from firsthand.llm.foundations.activations import relu, relu_derivative
from firsthand.llm.foundations.digits import load_digits
from firsthand.llm.foundations.gradcheck import numerical_gradient, relative_error
from firsthand.llm.foundations.gradient_flow import (
    backward_variances,
    forward_variances,
    gradient_rms,
)
from firsthand.llm.foundations.initialization import xavier_uniform
from firsthand.llm.foundations.layers import MLP

WIDTH = 128
BATCH = 64
ROWS = 200  # on which units are counted as dead
DIGITS = 100  # images on which gradients are measured
FLOAT16_RANGE = float(np.finfo(np.float16).max) / float(np.finfo(np.float16).tiny)


def normal_with(numerator: float) -> Callable[[int, int, np.random.Generator], np.ndarray]:
    """An initialisation with the variance numerator / fan_in."""

    def drawn(fan_in: int, fan_out: int, generator: np.random.Generator) -> np.ndarray:
        return generator.normal(0.0, math.sqrt(numerator / fan_in), size=(fan_in, fan_out))

    return drawn


@cache
def signal_share(numerator: float, layers: int) -> float:
    """Variance after `layers` of ReLU over that of the first one; weights' variance c / fan_in."""
    generator = np.random.default_rng(0)
    variances = forward_variances(layers, WIDTH, relu, normal_with(numerator), generator, BATCH)
    return float(variances[-1] / variances[1])


@cache
def gradient_variance(numerator: float, layers: int) -> float:
    """Variance of the gradient at the input over that at the output, through ReLU layers."""
    generator = np.random.default_rng(0)
    initialization = normal_with(numerator)
    found = backward_variances(
        layers, WIDTH, relu, relu_derivative, initialization, generator, BATCH
    )
    return float(found[0] / found[-1])


@cache
def xavier_figures(fan_in: int, fan_out: int) -> tuple[float, float]:
    """Measured variance of one draw, and the one that is asked for."""
    drawn = xavier_uniform(fan_in, fan_out, np.random.default_rng(0))
    return float(np.var(drawn)), 2.0 / (fan_in + fan_out)


@cache
def open_share(bias: float) -> tuple[float, float]:
    """Of 64 ReLU units with this bias: the shares of open entries and of dead units."""
    generator = np.random.default_rng(0)
    sums = generator.normal(size=(ROWS, 16)) @ generator.normal(0.0, 0.25, size=(16, 64)) + bias
    return float(np.mean(sums > 0)), float(np.mean(np.all(sums <= 0, axis=0)))


@cache
def flow(activation: str, hidden: int) -> float:
    """Gradient RMS at the first hidden layer over that at the last, on DIGITS digits."""
    images, labels = load_digits()
    model = MLP([64, *[64] * hidden, 10], np.random.default_rng(0), activation)
    scales = gradient_rms(model, images[:DIGITS], labels[:DIGITS])
    return scales[0] / scales[-2]


def difference_error(step: float, central: bool) -> float:
    """Relative error of a difference quotient of exp at 1."""
    point = np.array([1.0])

    def height(x: np.ndarray) -> float:
        return float(np.exp(x[0]))

    if central:
        slope = numerical_gradient(height, point, step)
    else:
        slope = np.array([(height(point + step) - height(point)) / step])
    return relative_error(slope, np.exp(point))
