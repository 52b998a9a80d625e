"""Session 1.2: how wrong a line is, which way is down, and how far to go at once.

The probes and oracles are in `probes.py`, the drawn cases of the typed steps in `cases.py`.
"""

import math
from typing import Any

import numpy as np

from firsthand.course.steps import (
    Build,
    Debug,
    Defend,
    Derive,
    Gradient,
    Measure,
    Predict,
    Relation,
    Trace,
)
from firsthand.curriculum.phase_1_neurons.session_02_descent import probes
from firsthand.curriculum.phase_1_neurons.session_02_descent.cases import (
    draw_budget,
    draw_quadratic,
    draw_slope,
    draw_updates,
    loss_after,
    loss_after_working,
    slowest_factor,
)
from firsthand.llm.foundations.descent import (
    descent_step,
    gradient_descent,
    line_gradients,
    linear_gradients,
    quadratic_divergence_threshold,
)
from firsthand.llm.foundations.losses import mean_squared_error

FLOAT64_BYTES = np.dtype(np.float64).itemsize

# The line that the prose works through.
EXAMPLE_INPUTS = np.array([1.0, 2.0, 3.0, 4.0])
EXAMPLE_TARGETS = np.array([2.0, 3.0, 5.0, 6.0])
EXAMPLE_WEIGHT, EXAMPLE_BIAS = 1.0, 0.5
EXAMPLE_PREDICTIONS = EXAMPLE_WEIGHT * EXAMPLE_INPUTS + EXAMPLE_BIAS
EXAMPLE_ERRORS = EXAMPLE_PREDICTIONS - EXAMPLE_TARGETS
EXAMPLE_LOSS = mean_squared_error(EXAMPLE_PREDICTIONS, EXAMPLE_TARGETS)


# --------------------------------------------------------------------------- mean-squared-error

build_loss = Build(
    id="mean-squared-error",
    part="foundations.losses:mean_squared_error",
    probes=probes.loss_probes,
    oracle=probes.loss_oracle,
    small=lambda: (np.array([1.0, 5.0, 2.0]), np.array([2.0, 3.0, 4.0])),
    key_line="return float(np.mean(errors * errors))",
    forbids=("sklearn.metrics.mean_squared_error", "torch.nn.functional.mse_loss"),
    relations=(
        Relation(
            says="twice the errors give four times the loss: L(y + 2e, y) = 4 L(y + e, y)",
            groups=probes.errors_doubled,
            holds=lambda group, out: bool(np.isclose(out[1], 4.0 * out[0], rtol=1e-9)),
        ),
        Relation(
            says="an error counts the same in both directions: L(p, y) = L(y, p)",
            groups=probes.predictions_and_targets_swapped,
            holds=lambda group, out: bool(np.isclose(out[0], out[1], rtol=1e-9)),
        ),
    ),
    hints=(
        "Three stages: the errors, their squares, one number for all of them.",
        "The loss of the same data written down twice should be the same.",
        "Look at the shapes before the subtraction, for NumPy may find a way to subtract anyway.",
    ),
)


# --------------------------------------------------------------------------- slope-of-the-loss

slope_of_the_loss = Derive(
    id="slope-of-the-loss",
    draw=draw_slope,
    hints=(
        "Name the error u. First the loss as a function of u, then u as a function of w.",
        "Which constant is left of the power, and does the loss bring a constant of its own?",
        "If w grows by one, by how much does one error grow?",
    ),
)

# For the prose: the chain rule on another function, beside its central difference.
CHAIN_AT = 2.0
CHAIN_SLOPE = 2.0 * (CHAIN_AT**2 - 3.0) * 2.0 * CHAIN_AT


def chain_example(w: float) -> float:
    return (w * w - 3.0) ** 2


def central_difference(step: float) -> float:
    return (chain_example(CHAIN_AT + step) - chain_example(CHAIN_AT - step)) / (2.0 * step)


# --------------------------------------------------------------------------- line-gradients

LIBRARY_GRADIENTS = (
    "firsthand.llm.foundations.gradcheck.numerical_gradient",
    "firsthand.llm.foundations.losses.mean_squared_error_gradient",
    "torch.autograd.grad",
    "torch.func.grad",
)

build_line = Build(
    id="line-gradients",
    part="foundations.descent:line_gradients",
    probes=probes.line_probes,
    oracle=probes.line_oracle,
    small=lambda: (np.array([1.0, 2.0]), np.array([3.0, 1.0]), 2.0, 1.0),
    key_line="weight_gradient = 2.0 * np.mean(errors * inputs)",
    forbids=LIBRARY_GRADIENTS,
    gradient=Gradient(
        forward=probes.line_loss,
        inputs=lambda arguments: (arguments[2], arguments[3], arguments[0], arguments[1]),
    ),
    relations=(
        Relation(
            says="where every point lies on the line, both gradients are zero",
            groups=probes.perfect_lines,
            holds=lambda group, out: probes.close_pairs(out[0], (0.0, 0.0)),
        ),
        Relation(
            says="the same data written down twice has the same gradients: L is a mean",
            groups=probes.lines_written_twice,
            holds=lambda group, out: probes.close_pairs(out[0], out[1]),
        ),
    ),
    hints=(
        "Both gradients need the errors; compute them once.",
        "For each example: how fast does its error change with w, how fast with b?",
        "With one example the mean is the example itself: compare with your own derivation.",
    ),
)


# --------------------------------------------------------------------------- two-updates

two_updates = Trace(
    id="two-updates",
    draw=draw_updates,
    hints=(
        "Each update has two stages: the gradient where you stand, then the step.",
        "The gradient is the mean over the examples of 2 times error times input.",
        "After the first update every error is another one.",
    ),
)

# For the prose: the update that is worked out there; no drawn case starts at 0.
TRACE_INPUTS, TRACE_TARGETS = np.array([1.0, 2.0]), np.array([3.0, 4.0])
TRACE_START, TRACE_RATE = 0.0, 0.1
TRACE_ERRORS = TRACE_START * TRACE_INPUTS - TRACE_TARGETS
TRACE_GRADIENT = line_gradients(TRACE_INPUTS, TRACE_TARGETS, TRACE_START, 0.0)[0]
TRACE_WEIGHT = TRACE_START - TRACE_RATE * TRACE_GRADIENT
TRACE_LOSSES = [
    mean_squared_error(weight * TRACE_INPUTS, TRACE_TARGETS)
    for weight in (TRACE_START, TRACE_WEIGHT)
]


# --------------------------------------------------------------------------- gradient-descent


def call_descent(
    part: Any,
    start: np.ndarray,
    learning_rate: float,
    steps: int,
    curvature: np.ndarray,
    minimum: np.ndarray,
) -> Any:
    """Driver: a bowl is sent as its curvatures and its minimum; its gradient is made here."""
    return part(lambda point: curvature * (point - minimum), start, learning_rate, steps)


def show_descent(
    start: np.ndarray,
    learning_rate: float,
    steps: int,
    curvature: np.ndarray,
    minimum: np.ndarray,
) -> str:
    texts = [f"np.array({np.asarray(item).tolist()})" for item in (curvature, minimum, start)]
    bowl = f"lambda p: {texts[0]} * (p - {texts[1]})"
    return f"gradient_descent({bowl}, {texts[2]}, {learning_rate:g}, {steps})"


build_descent = Build(
    id="gradient-descent",
    part="foundations.descent:gradient_descent",
    probes=probes.descent_probes,
    oracle=probes.descent_oracle,
    driver=call_descent,
    show=show_descent,
    small=lambda: (np.array([8.0]), 0.5, 2, np.array([1.0]), np.array([0.0])),
    key_line="point = point - learning_rate * gradient(point)",
    relations=(
        Relation(
            says="a longer run begins like a shorter one: its first rows are the same",
            groups=probes.longer_runs,
            holds=lambda group, out: (
                len(out[0]) < len(out[1])
                and bool(np.allclose(out[1][: len(out[0])], out[0], rtol=0, atol=1e-9))
            ),
        ),
        Relation(
            says="with gradient λ (p - m) and learning rate 1/λ one step ends at m",
            groups=probes.one_step_bowls,
            holds=lambda group, out: bool(np.allclose(out[0][-1], group[0][4], atol=1e-9)),
        ),
    ),
    hints=(
        "How many rows has the path of zero steps?",
        "The slope belongs to the place where you stand; ask for it again after each move.",
        "Rows that turn out equal are one array: which operator writes into an existing one?",
    ),
)


# --------------------------------------------------------------------------- largest-rate

BOWL_CURVATURES = np.array([0.8, 5.0])
BOWL_START = np.array([1.0, 1.0])
BOWL_STEPS = 200
BISECTIONS = 18


def bowl_loss(point: np.ndarray) -> float:
    return float(0.5 * np.sum(BOWL_CURVATURES * point**2))


def falls(learning_rate: float) -> bool:
    path = gradient_descent(
        lambda point: BOWL_CURVATURES * point, BOWL_START, learning_rate, BOWL_STEPS
    )
    return bowl_loss(path[-1]) < bowl_loss(path[0])


def largest_rate_times_curvature() -> float:
    low, high = 0.01, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) else (low, middle)
    return low * float(np.max(BOWL_CURVATURES))


EXPERIMENT = f"""```python
import numpy as np
from firsthand.llm.foundations.descent import gradient_descent

curvatures = np.array({BOWL_CURVATURES.tolist()})
start = np.array({BOWL_START.tolist()})

def loss(point):
    return 0.5 * np.sum(curvatures * point**2)

def falls(rate):
    path = gradient_descent(lambda p: curvatures * p, start, rate, {BOWL_STEPS})
    return loss(path[-1]) < loss(path[0])

low, high = 0.01, 1.0
for _ in range({BISECTIONS}):
    middle = (low + high) / 2
    if falls(middle):
        low = middle
    else:
        high = middle
print(low, high)
```"""

largest_rate = Measure(
    id="largest-rate",
    ask=(
        "Run this. It halves the interval between a learning rate at which the loss falls and one "
        "at which it does not.\n\n" + EXPERIMENT + "\n\n"
        "Report the border, multiplied by the larger of the two curvatures: border * "
        f"{float(np.max(BOWL_CURVATURES)):g}. Your own `gradient_descent` serves as well."
    ),
    experiment=largest_rate_times_curvature,
    within=1.02,
    working=(
        f"falls(0.01) is {falls(0.01)}, falls(1.0) is {falls(1.0)}: the border lies between",
        f"each turn halves the interval: {BISECTIONS} turns leave 1/{2**BISECTIONS} of it",
        f"the product is the border times the larger curvature, {float(np.max(BOWL_CURVATURES)):g}",
    ),
    seconds=30.0,
    hints=(
        "Save it as a file and run it with the Python that has firsthand.",
        "low and high agree in the first five digits at the end; either is the border.",
    ),
)


# --------------------------------------------------------------------------- loss-after-updates

loss_after_updates = Predict(
    id="loss-after-updates",
    draw=draw_quadratic,
    ask=(
        "L = (1/2) * {curvature:g} * w^2. Gradient descent starts at w = {start:g} with the "
        "learning rate {rate:g}. What is the loss after {updates} updates?"
    ),
    answer=loss_after,
    tolerance=0.01,
    working=loss_after_working,
    hints=(
        "One update multiplies w by a fixed factor; work it out first.",
        "The question is about the loss, not about w.",
    ),
)

# For the prose: one parabola, five learning rates, as the weight after each update.
REGIME_CURVATURE = 2.0
REGIME_RATES = (0.1, 0.5, 0.8, 1.0, 1.1)
REGIME_PATHS = [
    gradient_descent(lambda w: REGIME_CURVATURE * w, np.array(1.0), rate, 4)
    for rate in REGIME_RATES
]
REGIME_BOUND = quadratic_divergence_threshold(REGIME_CURVATURE)
OVERFLOW_UPDATES = math.ceil(
    math.log(np.finfo(np.float64).max) / math.log(abs(1.0 - REGIME_RATES[-1] * REGIME_CURVATURE))
)


# --------------------------------------------------------------------------- linear-gradients

build_linear = Build(
    id="linear-gradients",
    part="foundations.descent:linear_gradients",
    probes=probes.linear_probes,
    oracle=probes.linear_oracle,
    small=lambda: (
        np.array([[1.0, 2.0], [3.0, 0.0]]),
        np.array([1.0, 2.0]),
        np.array([1.0, 1.0]),
        0.0,
    ),
    key_line="weight_gradient = 2.0 * (inputs.T @ errors) / len(targets)",
    forbids=LIBRARY_GRADIENTS,
    gradient=Gradient(
        forward=probes.linear_loss,
        inputs=lambda arguments: (arguments[2], arguments[3], arguments[0], arguments[1]),
    ),
    relations=(
        Relation(
            says="where X w + b equals y, all gradients are zero",
            groups=probes.perfect_models,
            holds=lambda group, out: probes.close_pairs(out[0], (np.zeros(group[0][2].shape), 0.0)),
        ),
        Relation(
            says="the order of the examples does not matter",
            groups=probes.rows_reordered,
            holds=lambda group, out: probes.close_pairs(out[0], out[1]),
        ),
    ),
    hints=(
        "One error for each row; of which shape is the vector of errors?",
        "Column j of X holds what weight j was multiplied by, example after example.",
        "Which product of X and the errors has one entry a weight?",
    ),
)

# For the prose: the cost of one gradient, and a small example.
COST_ROWS, COST_FEATURES = 1000, 64
COST_FLOPS = 2 * COST_ROWS * COST_FEATURES
EXAMPLE_MATRIX = np.array([[1.0, 2.0], [0.0, 1.0], [2.0, -1.0]])
EXAMPLE_MODEL_TARGETS = np.array([1.0, 2.0, 0.0])
EXAMPLE_GRADIENTS = linear_gradients(
    EXAMPLE_MATRIX, EXAMPLE_MODEL_TARGETS, np.array([1.0, 1.0]), 0.0
)
EXAMPLE_MODEL_ERRORS = EXAMPLE_MATRIX @ np.array([1.0, 1.0]) - EXAMPLE_MODEL_TARGETS


# --------------------------------------------------------------------------- repair-update

BROKEN_START = (1.0, -2.0)
BROKEN_RATE = 0.1


def loss_after_one_update() -> float:
    """L = w² + b² after one right update from BROKEN_START; its gradient is (2w, 2b)."""
    point = [np.array(value) for value in BROKEN_START]
    updated = descent_step(point, [2.0 * value for value in point], BROKEN_RATE)
    return float(sum(value**2 for value in updated))


repair_update = Debug(
    id="repair-update",
    build=Build(
        id="repair-update",
        part="foundations.descent:descent_step",
        probes=probes.update_probes,
        oracle=probes.update_oracle,
        small=lambda: (
            [np.array([1.0, 2.0]), np.array([3.0])],
            [np.array([10.0, -10.0]), np.array([4.0])],
            0.5,
        ),
        key_line="updated.append(parameter - learning_rate * gradient)",
    ),
    mistakes=("update-uphill", "direction-only", "rate-shared", "relative-step"),
    symptom=(
        f"For L = w^2 + b^2, from w = {BROKEN_START[0]:g} and b = {BROKEN_START[1]:g} with the "
        f"gradients 2w and 2b and the learning rate {BROKEN_RATE:g}, the loss after one update "
        f"should be {loss_after_one_update():g}. This code arrives at another loss."
    ),
    hints=(
        "Compute by hand where w and b should be after the one update, each by itself.",
        "Compare with what the code gives: which of the two is off, in which direction, how far?",
        "Then read the line that makes a new parameter out of the old one.",
    ),
)


# --------------------------------------------------------------------------- close-descent

close_descent = Defend(
    id="close-descent",
    draw=draw_budget,
    closes="learning-rate",
    hints=(
        "Every curvature gives a factor of its own at one learning rate.",
        "What is left after all updates is a power; the slowest direction decides it.",
        "Work out all runs before you choose: fewest updates is the last criterion.",
    ),
)


def updates_to_a_thousandth(condition: int) -> int:
    """Updates at the best learning rate for curvatures 1 and `condition`."""
    rate = 2.0 / (1.0 + condition)
    return math.ceil(math.log(1e-3) / math.log(slowest_factor([1.0, condition], rate)))


STEPS = (
    build_loss,
    slope_of_the_loss,
    build_line,
    two_updates,
    build_descent,
    largest_rate,
    loss_after_updates,
    build_linear,
    repair_update,
    close_descent,
)
