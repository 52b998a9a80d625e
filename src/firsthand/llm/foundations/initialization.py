"""Random first weights whose scale keeps signals and gradients from growing or vanishing.

Take y = x W with W of shape (fan_in, fan_out), zero-mean weights of variance v, independent of
zero-mean inputs. Each output is a sum of fan_in independent products, so

    Var(y) = fan_in · v · E(x²).

The signal keeps its size forward when v = 1 / fan_in. Backward, dL/dx = dL/dy Wᵀ sums fan_out
products, so the gradient keeps its size when v = 1 / fan_out. Glorot & Bengio 2010 (section
4.2.1) take the compromise v = 2 / (fan_in + fan_out); it supposes an activation with slope 1
around 0, such as tanh. A ReLU sets half of its inputs to 0, so E(x²) halves and v = 2 / fan_in
makes up for it (He et al. 2015, section 2.2). A uniform variable on [-a, a] has the variance
a² / 3, hence a = √(3 v).
"""

import math

import numpy as np

from firsthand.llm.foundations.arrays import Array


def _require_fans(fan_in: int, fan_out: int) -> None:
    if fan_in < 1 or fan_out < 1:
        raise ValueError(f"fan_in and fan_out must be at least 1: {fan_in} and {fan_out}")


def xavier_normal(fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """Normal weights (fan_in, fan_out) with mean 0 and variance 2 / (fan_in + fan_out).

    Source: Glorot & Bengio 2010, section 4.2.1.

    Raises:
        ValueError: a fan below 1.
    """
    _require_fans(fan_in, fan_out)
    deviation = math.sqrt(2.0 / (fan_in + fan_out))
    return generator.normal(0.0, deviation, size=(fan_in, fan_out))


def xavier_uniform(fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """Uniform weights (fan_in, fan_out) with mean 0 and variance 2 / (fan_in + fan_out).

    Source: Glorot & Bengio 2010, section 4.2.1, equation 16.

    Raises:
        ValueError: a fan below 1.
    """
    _require_fans(fan_in, fan_out)
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return generator.uniform(-limit, limit, size=(fan_in, fan_out))


def he_normal(fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """Normal weights (fan_in, fan_out) with mean 0 and variance 2 / fan_in.

    Source: He et al. 2015, section 2.2, equation 10.

    Raises:
        ValueError: a fan below 1.
    """
    _require_fans(fan_in, fan_out)
    deviation = math.sqrt(2.0 / fan_in)
    return generator.normal(0.0, deviation, size=(fan_in, fan_out))


def he_uniform(fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """Uniform weights (fan_in, fan_out) with mean 0 and variance 2 / fan_in.

    Source: He et al. 2015, section 2.2, with a uniform variable of the same variance.

    Raises:
        ValueError: a fan below 1.
    """
    _require_fans(fan_in, fan_out)
    limit = math.sqrt(6.0 / fan_in)
    return generator.uniform(-limit, limit, size=(fan_in, fan_out))
