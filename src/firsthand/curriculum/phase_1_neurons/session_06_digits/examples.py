"""What the prose of session 1.6 computes: digits, signals, valleys and the sizes of networks."""

import math
from functools import cache

import numpy as np

from firsthand.llm.foundations.digits import load_digits, split
from firsthand.llm.foundations.layers import MLP
from firsthand.llm.foundations.optimizers import adam_update, momentum_update, sgd_update

FLOAT64_BYTES = np.dtype(np.float64).itemsize
SIGNAL_WIDTH = 256
SHADES = " .:-=+*#%@"

# The full run: the sizes and settings that the Measure step shows, and that the experiment repeats.
FULL_SIZES = (64, 128, 10)
FULL_EPOCHS = 30
FULL_BATCH = 32
FULL_RATE = 1e-3


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels."""
    return split(*load_digits())


def counts() -> tuple[int, int]:
    """Images for the training and for the test."""
    images, _, test_images, _ = digits()
    return len(images), len(test_images)


def picture(index: int) -> str:
    """A training image as text, two characters a pixel, with its label."""
    images, labels, _, _ = digits()
    levels = np.round(images[index].reshape(8, 8) * (len(SHADES) - 1)).astype(int)
    rows = ["".join(2 * SHADES[level] for level in row) for row in levels]
    rows[0] += f"    label {labels[index]}"
    return "\n".join(rows)


@cache
def signal_after(layers: int, numerator: float, width: int = SIGNAL_WIDTH) -> float:
    """The mean square of a signal after `layers` of ReLU whose weights have variance c / width."""
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(64, width))
    signal /= math.sqrt(float(np.mean(signal**2)))
    for _ in range(layers):
        weights = generator.normal(0.0, math.sqrt(numerator / width), size=(width, width))
        signal = np.maximum(signal @ weights, 0.0)
    return float(np.mean(signal**2))


def parameters_of(sizes: tuple[int, ...]) -> int:
    """The parameters of the stack's own MLP of these sizes."""
    model = MLP(sizes, np.random.default_rng(0))
    return sum(parameter.size for parameter in model.parameters())


# --------------------------------------------------------------------------- update rules

VALLEY = np.array([1.0, 40.0])  # curvatures of f(p) = (p1^2 + 40 p2^2) / 2
VALLEY_START = np.array([1.0, 1.0])
VALLEY_GOAL = 1e-6


@cache
def valley_steps(rule: str) -> int:
    """Updates until the valley's height is below VALLEY_GOAL, from VALLEY_START."""
    point, velocity, second = VALLEY_START, np.zeros(2), np.zeros(2)
    for step in range(1, 10_000):
        gradient = VALLEY * point
        if rule == "descent":
            point = sgd_update(point, gradient, 0.045)
        elif rule == "momentum":
            point, velocity = momentum_update(point, gradient, velocity, 0.045, 0.7)
        else:
            point, velocity, second = adam_update(point, gradient, velocity, second, step, 0.05)
        if 0.5 * float(np.sum(VALLEY * point**2)) < VALLEY_GOAL:
            return step
    raise ArithmeticError(f"{rule} does not reach the goal")


def first_change(gradient: float, learning_rate: float = 0.01) -> float:
    """What the first update of Adam adds to a parameter."""
    zero = np.zeros(1)
    parameter, _, _ = adam_update(zero, np.array([gradient]), zero, zero, 1, learning_rate)
    return float(parameter[0])


def rolling_factor(momentum: float) -> float:
    """How much further a constant gradient drives a parameter with momentum, in the long run."""
    velocity = np.zeros(1)
    for _ in range(1000):
        _, velocity = momentum_update(np.zeros(1), np.ones(1), velocity, 0.0, momentum)
    return float(velocity[0])


SCRIPT = f'''import numpy as np

from firsthand.llm.foundations.digits import load_digits, split
from firsthand.llm.foundations.optimizers import Optimizer
from firsthand.llm.foundations.training import accuracy
from mine.foundations.layers import MLP
from mine.foundations.optimizers import adam_update
from mine.foundations.training import train_classifier


class Adam(Optimizer):
    """Keeps the moments; the update itself is my own."""

    def __init__(self, parameters, learning_rate):
        super().__init__(parameters, learning_rate)
        self.steps = 0
        self.moments = [(np.zeros(p.shape), np.zeros(p.shape)) for p in parameters]

    def step(self):
        self.steps += 1
        for i, p in enumerate(self.parameters):
            first, second = self.moments[i]
            p.data, first, second = adam_update(
                p.data, p.grad, first, second, self.steps, self.learning_rate
            )
            self.moments[i] = first, second


images, labels, test_images, test_labels = split(*load_digits())
generator = np.random.default_rng(0)
model = MLP({list(FULL_SIZES)}, generator)
train_classifier(
    model,
    images,
    labels,
    epochs={FULL_EPOCHS},
    batch_size={FULL_BATCH},
    optimizer=Adam(model.parameters(), learning_rate={FULL_RATE}),
    generator=generator,
    on_epoch=lambda epoch, loss: print(epoch, round(loss, 4)),
)
print("test accuracy", accuracy(model, test_images, test_labels))
'''
