"""Update rules as pure functions, and optimizers that apply them to lists of Tensors."""

import math
from collections.abc import Sequence

import numpy as np

from firsthand.llm.foundations.arrays import Array, require_same_shape
from firsthand.llm.foundations.tensor_autograd import Tensor


def sgd_update(parameter: Array, gradient: Array, learning_rate: float) -> Array:
    """The parameter after one step of gradient descent: p - η g.

    Raises:
        ValueError: parameter and gradient differ in shape.
    """
    require_same_shape("parameter", parameter, "gradient", gradient)
    return parameter - learning_rate * gradient


def momentum_update(
    parameter: Array, gradient: Array, velocity: Array, learning_rate: float, momentum: float
) -> tuple[Array, Array]:
    """Parameter and velocity after one step with momentum μ: v ← μ v + g, then p ← p - η v.

    Source: Sutskever et al. 2013, section 2, with the learning rate outside of the velocity.

    Args:
        velocity: v, zeros before the first step.
    Returns:
        The new parameter and the new velocity.
    Raises:
        ValueError: parameter and gradient differ in shape.
    """
    require_same_shape("parameter", parameter, "gradient", gradient)
    velocity = momentum * velocity + gradient
    parameter = parameter - learning_rate * velocity
    return parameter, velocity


def adam_update(
    parameter: Array,
    gradient: Array,
    first_moment: Array,
    second_moment: Array,
    step: int,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> tuple[Array, Array, Array]:
    """Parameter and moments after step t of Adam.

    m ← β₁ m + (1 - β₁) g and v ← β₂ v + (1 - β₂) g². Both start at 0, so their expectations are
    too small by 1 - β₁ᵗ and 1 - β₂ᵗ; they are divided by these before p ← p - η m̂ / (√v̂ + ε).
    Source: Kingma & Ba 2015, algorithm 1 and section 3.

    Args:
        first_moment: m, zeros before the first step.
        second_moment: v, zeros before the first step.
        step: t, counted from 1.
    Returns:
        The new parameter, first moment (not corrected) and second moment (not corrected).
    Raises:
        ValueError: step is below 1, or parameter and gradient differ in shape.
    """
    if step < 1:
        raise ValueError(f"steps are counted from 1: {step}")
    require_same_shape("parameter", parameter, "gradient", gradient)
    first_moment = beta1 * first_moment + (1.0 - beta1) * gradient
    second_moment = beta2 * second_moment + (1.0 - beta2) * gradient * gradient
    corrected_first = first_moment / (1.0 - beta1**step)
    corrected_second = second_moment / (1.0 - beta2**step)
    denominator: Array = np.sqrt(corrected_second) + epsilon
    parameter = parameter - learning_rate * corrected_first / denominator
    return parameter, first_moment, second_moment


class Optimizer:
    """What optimizers share: the list of parameters and `zero_grad`.

    Args:
        parameters: tensors with requires_grad.
        learning_rate: η, finite and not negative.
    Raises:
        ValueError: no parameters, one without requires_grad, or a bad learning rate.
    """

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float) -> None:
        if not parameters:
            raise ValueError("an optimizer needs at least one parameter")
        if not all(parameter.requires_grad for parameter in parameters):
            raise ValueError("every parameter of an optimizer must have requires_grad")
        if not math.isfinite(learning_rate) or learning_rate < 0:
            raise ValueError(f"the learning rate must be finite and not negative: {learning_rate}")
        self.parameters = list(parameters)
        self.learning_rate = learning_rate

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def step(self) -> None:
        """Bind new data to every parameter that has a gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not define step")


class SGD(Optimizer):
    """Gradient descent; with `momentum` above 0 by `momentum_update`."""

    def __init__(
        self, parameters: Sequence[Tensor], learning_rate: float, momentum: float = 0.0
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.momentum = momentum
        self.velocities = [np.zeros(parameter.shape) for parameter in parameters]

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            if self.momentum == 0.0:
                parameter.data = sgd_update(parameter.data, parameter.grad, self.learning_rate)
                continue
            parameter.data, self.velocities[number] = momentum_update(
                parameter.data,
                parameter.grad,
                self.velocities[number],
                self.learning_rate,
                self.momentum,
            )


class Adam(Optimizer):
    """Adam by `adam_update`. `steps` counts the calls of `step`."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.steps = 0
        self.first_moments = [np.zeros(parameter.shape) for parameter in parameters]
        self.second_moments = [np.zeros(parameter.shape) for parameter in parameters]

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        self.steps += 1
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            parameter.data, self.first_moments[number], self.second_moments[number] = adam_update(
                parameter.data,
                parameter.grad,
                self.first_moments[number],
                self.second_moments[number],
                self.steps,
                self.learning_rate,
                self.beta1,
                self.beta2,
                self.epsilon,
            )
