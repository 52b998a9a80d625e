"""Session 1.7: how signals and gradients scale with depth, and how to find what is wrong."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from firsthand.course.steps import Arguments, Build, Debug, Generator, Gradient, Relation
from firsthand.curriculum.phase_1_neurons.session_07_gradient_flow.examples import (
    DIGITS,
    FLOAT16_RANGE,
    ROWS,
    WIDTH,
    difference_error,
    flow,
    gradient_variance,
    open_share,
    signal_share,
    xavier_figures,
)
from firsthand.curriculum.phase_1_neurons.session_07_gradient_flow.questions import (
    close_depth,
    gradient_after_layers,
    layer_factor,
    measure_flow,
    order_debugging,
    trace_gradcheck,
)
from firsthand.llm.foundations.gradcheck import STEP, relative_error

__all__ = [
    "DIGITS",
    "FLOAT16_RANGE",
    "PARAMETERS",
    "ROWS",
    "STEP",
    "STEPS",
    "WIDTH",
    "difference_error",
    "flow",
    "gradient_variance",
    "open_share",
    "relative_error",
    "signal_share",
    "xavier_figures",
]

Wide = np.longdouble
PARAMETERS = 64 * 128 + 128 + 128 * 10 + 10  # of the network that session 6 trains


def numbers(generator: Generator, *shape: int) -> np.ndarray:
    """Values of scale about 1, two decimals, so that a failing call can be read."""
    return np.round(generator.normal(size=shape), 2)


def text(value: Any) -> str:
    """An argument as it is typed."""
    if isinstance(value, np.ndarray):
        inner = str(value.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
        return f"np.array({inner})" if value.size else f"np.zeros({value.shape})"
    return repr(value)


# --------------------------------------------------------------------------- forward-variances


def identity(z: Any) -> Any:
    return z


def positive_part(z: Any) -> Any:
    return np.maximum(z, 0.0)


def plain_weights(fan_in: int, fan_out: int, generator: Generator) -> np.ndarray:
    """Normal weights of variance 1 / fan_in."""
    return generator.normal(size=(fan_in, fan_out)) / math.sqrt(fan_in)


def doubled_weights(fan_in: int, fan_out: int, generator: Generator) -> np.ndarray:
    return 2.0 * plain_weights(fan_in, fan_out, generator)


def half_diagonal(fan_in: int, fan_out: int, generator: Generator) -> np.ndarray:
    """No chance in it: the case that is worked by hand."""
    return 0.5 * np.eye(fan_in, fan_out)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": identity,
    "relu": positive_part,
    "tanh": np.tanh,
}
WEIGHTS: dict[str, Callable[[int, int, Generator], np.ndarray]] = {
    "normal": plain_weights,
    "doubled": doubled_weights,
    "half-diagonal": half_diagonal,
}
WEIGHTS_TEXT = {
    "normal": "lambda i, o, g: g.normal(size=(i, o)) / np.sqrt(i)",
    "doubled": "lambda i, o, g: 2 * (g.normal(size=(i, o)) / np.sqrt(i))",
    "half-diagonal": "lambda i, o, g: 0.5 * np.eye(i, o)",
}
ACTIVATIONS_TEXT = {
    "identity": "lambda z: z",
    "relu": "lambda z: np.maximum(z, 0.0)",
    "tanh": "np.tanh",
}


def call_variances(
    part: Any,
    depth: int,
    width: int,
    activation: str,
    weights: str,
    seed: int,
    batch: int,
    relative: bool = False,
) -> Any:
    """Driver: functions do not travel to the learner's process, names and seeds do."""
    generator = np.random.default_rng(seed)
    result = part(depth, width, ACTIVATIONS[activation], WEIGHTS[weights], generator, batch)
    return result / result[0] if relative else result


def show_variances(
    depth: int,
    width: int,
    activation: str,
    weights: str,
    seed: int,
    batch: int,
    relative: bool = False,
) -> str:
    call = (
        f"forward_variances({depth}, {width}, {ACTIVATIONS_TEXT[activation]}, "
        f"{WEIGHTS_TEXT[weights]}, np.random.default_rng({seed}), {batch})"
    )
    return f"(v := {call}) / v[0]" if relative else call


def variance_probes(generator: Generator) -> Sequence[Arguments]:
    seeds = [int(seed) for seed in generator.integers(1, 1000, size=6)]
    return [
        (0, 3, "identity", "normal", seeds[0], 4),
        (1, 2, "identity", "half-diagonal", seeds[1], 3),
        (2, 3, "identity", "normal", seeds[2], 5),
        (2, 4, "relu", "doubled", seeds[3], 7),
        (3, 5, "tanh", "doubled", seeds[4], 6),
        (4, 6, "relu", "normal", seeds[5], 9),
        (-1, 3, "identity", "normal", 1, 4),
        (2, 0, "identity", "normal", 1, 4),
        (2, 3, "identity", "normal", 1, 0),
    ]


def variance_oracle(
    depth: int, width: int, activation: str, weights: str, seed: int, batch: int
) -> np.ndarray:
    """The mean square less the squared mean, in extended precision, one unit at a time."""
    if depth < 0 or width < 1 or batch < 1:
        raise ValueError("depth, width or batch")
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=(batch, width)).astype(Wide)
    found = [np.mean(signal * signal) - np.mean(signal) ** 2]
    for _ in range(depth):
        drawn = WEIGHTS[weights](width, width, generator).astype(Wide)
        sums = [np.sum(signal * drawn[:, unit], axis=1) for unit in range(width)]
        signal = ACTIVATIONS[activation](np.stack(sums, axis=1))
        found.append(np.mean(signal * signal) - np.mean(signal) ** 2)
    return np.array(found, dtype=Wide)


def twice_the_weights(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for depth, width, batch in ((1, 2, 3), (3, 4, 6)):
        seed = int(generator.integers(1, 1000))
        groups.append(
            [
                (depth, width, "relu", "normal", seed, batch),
                (depth, width, "relu", "doubled", seed, batch),
            ]
        )
    return groups


def factor_of_four(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    powers = 4.0 ** np.arange(group[0][0] + 1)
    return bool(np.allclose(out[1], powers * out[0], rtol=1e-9, atol=0.0))


build_variances = Build(
    id="forward-variances",
    part="foundations.gradient_flow:forward_variances",
    probes=variance_probes,
    oracle=variance_oracle,
    driver=call_variances,
    show=show_variances,
    small=lambda: (2, 3, "identity", "half-diagonal", 1, 4, True),
    key_line="signal = activation(signal @ weights)",
    relations=(
        Relation(
            says="with ReLU, twice the weights give 4^k times the variance after layer k",
            groups=twice_the_weights,
            holds=factor_of_four,
        ),
    ),
    hints=(
        "What is drawn once, and what is drawn again for each layer?",
        "The first entry belongs to the input, before any weight is drawn.",
        "A layer's output is what the next layer receives, and that is what is measured.",
    ),
)

# --------------------------------------------------------------------------- xavier-uniform


def call_initialization(
    part: Any, fan_in: int, fan_out: int, seed: int, first: bool = False
) -> Any:
    """Driver. first: the first weight over the number in [-1, 1) that was drawn for it."""
    weights = part(fan_in, fan_out, np.random.default_rng(seed))
    return (
        float(weights[0, 0] / np.random.default_rng(seed).uniform(-1.0, 1.0)) if first else weights
    )


def show_initialization(name: str) -> Callable[..., str]:
    def show(fan_in: int, fan_out: int, seed: int, first: bool = False) -> str:
        call = f"{name}({fan_in}, {fan_out}, np.random.default_rng({seed}))"
        return f"{call}[0, 0] / np.random.default_rng({seed}).uniform(-1, 1)" if first else call

    return show


def initialization_probes(generator: Generator) -> Sequence[Arguments]:
    seeds = [int(seed) for seed in generator.integers(1, 1000, size=5)]
    shapes = ((1, 2), (3, 2), (2, 5), (8, 3), (4, 7))
    drawn = [(*shape, seed) for shape, seed in zip(shapes, seeds, strict=True)]
    return [*drawn, (0, 4, 1), (3, 0, 1)]


def uniform_numbers(fan_in: int, fan_out: int, seed: int, variance: Fraction) -> np.ndarray:
    """Numbers in [-1, 1), drawn one by one, whose variance 1/3 is brought to the one wanted."""
    generator = np.random.default_rng(seed)
    drawn = [2 * Wide(generator.random()) - 1 for _ in range(fan_in * fan_out)]
    ratio = 3 * variance
    scale = np.sqrt(Wide(ratio.numerator) / Wide(ratio.denominator))
    return np.array(drawn, dtype=Wide).reshape(fan_in, fan_out) * scale


def xavier_oracle(fan_in: int, fan_out: int, seed: int) -> np.ndarray:
    if fan_in < 1 or fan_out < 1:
        raise ValueError("a fan below 1")
    return uniform_numbers(fan_in, fan_out, seed, Fraction(2, fan_in + fan_out))


def large_draws(generator: Generator) -> Sequence[Sequence[Arguments]]:
    return [[(200, 300, int(generator.integers(1, 1000)))]]


def xavier_variance_holds(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    """The estimate from 60,000 draws has a deviation below 1 %."""
    fan_in, fan_out = group[0][:2]
    return bool(abs((fan_in + fan_out) * np.var(out[0]) - 2.0) < 0.1)


build_xavier = Build(
    id="xavier-uniform",
    part="foundations.initialization:xavier_uniform",
    probes=initialization_probes,
    oracle=xavier_oracle,
    driver=call_initialization,
    show=show_initialization("xavier_uniform"),
    small=lambda: (1, 2, 3, True),
    key_line="limit = math.sqrt(6.0 / (fan_in + fan_out))",
    relations=(
        Relation(
            says="of a large draw, (fan_in + fan_out) times the variance is 2 (to within 0.1)",
            groups=large_draws,
            holds=xavier_variance_holds,
        ),
    ),
    hints=(
        "The formula gives a variance; the generator wants the two ends of an interval.",
        "Solve the variance of the uniform distribution on [-b, b] for b.",
        "One draw of the whole shape, symmetric around 0.",
    ),
)

# --------------------------------------------------------------------------- repair-initialization


def he_oracle(fan_in: int, fan_out: int, seed: int) -> np.ndarray:
    if fan_in < 1 or fan_out < 1:
        raise ValueError("a fan below 1")
    return uniform_numbers(fan_in, fan_out, seed, Fraction(2, fan_in))


he_uniform_check = Build(
    id="repair-initialization",
    part="foundations.initialization:he_uniform",
    probes=initialization_probes,
    oracle=he_oracle,
    driver=call_initialization,
    show=show_initialization("he_uniform"),
    small=lambda: (3, 2, 3, True),
    key_line="limit = math.sqrt(6.0 / fan_in)",
)

repair_initialization = Debug(
    id="repair-initialization",
    build=he_uniform_check,
    mistakes=(
        "bound-from-outputs",
        "bound-without-three",
        "bound-without-root",
        "bound-without-relu",
        "bound-from-both-fans",
    ),
    symptom=(
        "a network of ReLU layers of several widths gets its first weights from he_uniform, and "
        "the mean square of the signal is not the same after each layer."
    ),
    hints=(
        "Draw a large matrix and divide its variance by the one that is asked for.",
        "Do it for two shapes, one wide and one tall: does the quotient change with the shape?",
        "The quotient of the variances is the square of the quotient of the bounds.",
    ),
)

# --------------------------------------------------------------------------- dead-units


def activations_of(generator: Generator, rows: int, units: int, dead: Sequence[int]) -> np.ndarray:
    """Activations after a ReLU with these dead units, and one unit that is small and alive."""
    values = np.maximum(numbers(generator, rows, units), 0.0)
    values[0] = 0.0
    for unit in range(units):
        values[int(generator.integers(1, rows)), unit] = 0.75
    small = next(unit for unit in range(units) if unit not in dead)
    values[:, small] = 0.0
    values[1, small] = 0.01
    values[:, list(dead)] = 0.0
    return values


def dead_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        (np.array([[0.0, 2.0]]),),
        (np.array([[0.5, 0.0, 0.0], [0.0, 0.0, 1.5]]),),
        (np.array([[0.0, 1.0, 0.25], [3.0, 0.0, 0.5], [0.0, 0.0, 0.01], [0.0, 0.0, 0.0]]),),
        (activations_of(generator, 4, 3, (2,)),),
        (activations_of(generator, 3, 5, (1, 4)),),
        (activations_of(generator, 5, 7, (0, 3, 6)),),
        ([[0.0, 0.0, 1.5], [0.25, 0.0, 0.0]],),
        (np.array([0.0, 1.0, 0.0]),),
        (np.zeros((0, 3)),),
    ]


def dead_oracle(activations: Any) -> np.ndarray:
    """Unit by unit, row by row."""
    values = activations.tolist() if isinstance(activations, np.ndarray) else activations
    if np.ndim(activations) != 2 or len(values) == 0:
        raise ValueError("not (batch, units)")
    found = [unit for unit in range(len(values[0])) if not any(row[unit] != 0.0 for row in values)]
    return np.array(found, dtype=np.int64)


def rows_repeated(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for rows, units, dead in ((2, 3, (1,)), (3, 4, (0, 2))):
        values = activations_of(generator, rows, units, dead)
        groups.append([(values,), (np.vstack([values, values[::-1]]),)])
    return groups


build_dead = Build(
    id="dead-units",
    part="foundations.gradient_flow:dead_units",
    probes=dead_probes,
    oracle=dead_oracle,
    show=lambda activations: f"dead_units({text(activations)})",
    small=lambda: (np.array([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0]]),),
    key_line="silent = np.all(values == 0.0, axis=0)",
    relations=(
        Relation(
            says="rows that come twice change nothing: dead_units(A) = dead_units(A over A)",
            groups=rows_repeated,
            holds=lambda group, out: bool(np.array_equal(out[0], out[1])),
        ),
    ),
    hints=(
        "One unit is one column. What must hold for its entries in all rows?",
        "Which axis disappears when rows are combined and units are kept?",
        "From a True or False for each unit to the positions of the True ones.",
    ),
)

# --------------------------------------------------------------------------- numerical-gradient

HEIGHTS: dict[str, Callable[[Any], Any]] = {
    "squares": lambda x: np.sum(x * x),
    "cubes": lambda x: np.sum(x * x * x),
    "product": np.prod,
    "waves": lambda x: np.sum(np.sin(x)),
}
HEIGHTS_TEXT = {
    "squares": "lambda x: np.sum(x * x)",
    "cubes": "lambda x: np.sum(x * x * x)",
    "product": "np.prod",
    "waves": "lambda x: np.sum(np.sin(x))",
}


def call_numerical(part: Any, name: str, point: Any, step: float | None = None) -> Any:
    """Driver: functions do not travel to the learner's process, names do."""

    def height(x: Any) -> float:
        return float(HEIGHTS[name](x))

    return part(height, point) if step is None else part(height, point, step)


def numerical_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        ("squares", np.array([3.0]), 0.5),
        ("cubes", np.array([1.0, -2.0]), 0.1),
        ("cubes", np.array([4.0, 0.5]), 0.1),
        ("product", np.array([2.0, -1.0, 0.5]), 0.1),
        ("waves", numbers(generator, 2, 3), None),
        ("product", 0.5 + np.abs(numbers(generator, 4)), None),
        ("cubes", numbers(generator, 2, 3, 4), 0.05),
        ("squares", np.array([1, 2, 3]), 0.1),
        ("squares", np.array([1.0]), 0.0),
        ("squares", np.array([1.0, 2.0]), -0.1),
    ]


def numerical_oracle(name: str, point: np.ndarray, step: float | None = None) -> np.ndarray:
    """All moved points at once, as rows of a table, in extended precision."""
    reach = STEP if step is None else step
    if reach <= 0:
        raise ValueError("step")
    flat = point.ravel().astype(Wide)
    reaches = Wide(reach) * np.maximum(np.abs(flat), 1)
    above, below = flat + np.diag(reaches), flat - np.diag(reaches)
    slopes = [
        (HEIGHTS[name](up) - HEIGHTS[name](down)) / (2 * h)
        for up, down, h in zip(above, below, reaches, strict=True)
    ]
    return np.array(slopes, dtype=Wide).reshape(point.shape)


def two_steps(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (1, 3):
        point = numbers(generator, size)
        groups.append([("squares", point, 0.5), ("squares", point, 0.05)])
    return groups


build_numerical = Build(
    id="numerical-gradient",
    part="foundations.gradcheck:numerical_gradient",
    probes=numerical_probes,
    oracle=numerical_oracle,
    driver=call_numerical,
    show=lambda name, point, step=None: (
        f"numerical_gradient({HEIGHTS_TEXT[name]}, {text(point)}"
        f"{'' if step is None else f', {step:g}'})"
    ),
    small=lambda: ("cubes", np.array([1.0, 2.0]), 0.5),
    key_line="gradient[index] = (above - below) / (2.0 * reach)",
    forbids=(
        "numpy.gradient",
        "scipy.optimize.approx_fprime",
        "scipy.differentiate.derivative",
        "torch.autograd.grad",
        "torch.autograd.functional.jacobian",
    ),
    relations=(
        Relation(
            says="for a sum of squares, central differences do not depend on the step",
            groups=two_steps,
            holds=lambda group, out: bool(np.allclose(out[0], out[1], rtol=0.0, atol=1e-9)),
        ),
    ),
    hints=(
        "One entry of the gradient needs two evaluations, in which one element differs.",
        "How far apart are the two points of which the heights are subtracted?",
        "Before the next element is moved, the last one must be back where it was.",
    ),
)

# --------------------------------------------------------------------------- relative-error


def error_probes(generator: Generator) -> Sequence[Arguments]:
    left, drawn = numbers(generator, 2, 3), numbers(generator, 4)
    return [
        (np.array([2.0]), np.array([1.0])),
        (np.array([1.0]), np.array([4.0])),
        (np.array([3.0, 1.0]), np.array([3.0, 2.0])),
        (np.array([1.0, 0.5]), np.array([2.0, 0.0])),
        (left, np.round(0.75 * left, 4)),
        (drawn, numbers(generator, 4) + 0.5),
        (1e-3 * drawn, -2e-3 * drawn),
        (np.zeros(3), np.zeros(3)),
        (np.zeros(2), np.array([0.0, 0.25])),
        (np.zeros(0), np.zeros(0)),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        (np.array([1.0, 2.0]), np.array([np.inf, 2.0])),
        (np.ones(3), np.ones((2, 3))),
    ]


def error_oracle(left: np.ndarray, right: np.ndarray) -> float:
    """In exact fractions."""
    if left.shape != right.shape:
        raise ValueError("shapes differ")
    ours, theirs = left.ravel().tolist(), right.ravel().tolist()
    if not all(math.isfinite(value) for value in ours + theirs):
        return math.inf
    gaps = [abs(Fraction(one) - Fraction(two)) for one, two in zip(ours, theirs, strict=True)]
    largest = max((abs(Fraction(value)) for value in ours + theirs), default=Fraction(0))
    return float(max(gaps) / largest) if largest else 0.0


def swapped_and_scaled(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (1, 3):
        left, right = numbers(generator, size) + 3.0, numbers(generator, size) - 1.0
        groups.append([(left, right), (right, left), (8.0 * left, 8.0 * right)])
    return groups


build_error = Build(
    id="relative-error",
    part="foundations.gradcheck:relative_error",
    probes=error_probes,
    oracle=error_oracle,
    show=lambda left, right: f"relative_error({text(left)}, {text(right)})",
    small=lambda: (np.array([4.0, 1.0]), np.array([5.0, 1.0])),
    key_line="difference = np.max(np.abs(left - right), initial=0.0)",
    relations=(
        Relation(
            says="error(l, r) = error(r, l) = error(8 l, 8 r)",
            groups=swapped_and_scaled,
            holds=lambda group, out: bool(np.allclose(out, out[0], rtol=1e-9, atol=0.0)),
        ),
    ),
    hints=(
        "Three questions come before the quotient: shapes, finite numbers, a scale of 0.",
        "Numerator and denominator each are one number for the whole pair of arrays.",
        "Which of the two arrays may give the larger magnitude?",
    ),
)

# --------------------------------------------------------------------------- repair-gradient


def loss_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        (np.array([[0.0, 1.0, -1.0]]), np.array([1])),
        (np.array([[1.0, 0.0, 0.5], [0.0, 2.0, -1.0]]), np.array([2, 0])),
        (numbers(generator, 3, 2), np.array([0, 1, 0])),
        (numbers(generator, 4, 3), np.array([2, 0, 1, 2])),
        (numbers(generator, 2, 5), np.array([4, 1])),
        (np.ones((2, 3)), np.array([0, 1, 2])),
        (np.ones((2, 3)), np.array([0, 3])),
        (np.ones((2, 3)), np.array([0.0, 1.0])),
    ]


def loss_gradient_oracle(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Entry by entry, each row in extended precision."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError("shapes")
    if targets.dtype.kind not in "iu":
        raise TypeError("targets")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError("class")
    result = np.zeros(logits.shape, dtype=Wide)
    for row, target in enumerate(targets.tolist()):
        exponentials = np.exp(logits[row].astype(Wide) - Wide(logits[row].max()))
        for column in range(logits.shape[1]):
            share = exponentials[column] / exponentials.sum()
            result[row, column] = (share - (column == target)) / len(targets)
    return result


def mean_nats(logits: np.ndarray, targets: np.ndarray) -> Any:
    """The loss itself, from its definition."""
    wide = logits.astype(Wide)
    chosen = wide[np.arange(len(wide)), np.rint(targets).astype(np.int64)]
    return np.mean(np.log(np.sum(np.exp(wide), axis=1)) - chosen)


def loss_batches(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for targets in (np.array([1]), np.array([0, 2])):
        logits = numbers(generator, len(targets), 3 + len(targets))
        groups.append([(logits, targets), (np.vstack([logits] * 2), np.tile(targets, 2))])
    return groups


def rows_sum_to_zero(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    return all(np.allclose(np.sum(one, axis=1), 0.0, rtol=0.0, atol=1e-9) for one in out)


def half_in_each_copy(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    once, twice = out
    return bool(np.allclose(2.0 * twice[: len(once)], once, rtol=0.0, atol=1e-9))


loss_gradient_check = Build(
    id="repair-gradient",
    part="foundations.losses:cross_entropy_gradient",
    probes=loss_probes,
    oracle=loss_gradient_oracle,
    show=lambda logits, targets: f"cross_entropy_gradient({text(logits)}, {text(targets)})",
    small=lambda: (np.zeros((2, 4)), np.array([1, 3])),
    key_line="gradient[np.arange(batch), targets] -= 1.0",
    relations=(
        Relation(
            says="each row of the gradient sums to 0",
            groups=lambda generator: [group[:1] for group in loss_batches(generator)],
            holds=rows_sum_to_zero,
        ),
        Relation(
            says="a batch that holds every row twice has half of the gradient in each copy",
            groups=loss_batches,
            holds=half_in_each_copy,
        ),
    ),
    gradient=Gradient(
        forward=mean_nats,
        inputs=lambda arguments: (arguments[0], arguments[1]),
        cotangent=lambda arguments: np.array(1.0),
    ),
)

repair_gradient = Debug(
    id="repair-gradient",
    build=loss_gradient_check,
    mistakes=(
        "one-hot-added",
        "targets-of-all-rows",
        "sum-for-mean",
        "mean-over-entries",
        "softmax-down-the-batch",
    ),
    symptom=(
        "a classifier is trained with this gradient. Its loss does not fall as it does with "
        "central differences of the same loss."
    ),
    hints=(
        "Take 2 rows and 3 classes and print the quotient of code and central differences.",
        "Sum each row of the gradient. What must come out, and what does?",
        "Repeat the batch: which entries change, and by which factor?",
    ),
)

STEPS = (
    layer_factor,
    build_variances,
    gradient_after_layers,
    build_xavier,
    repair_initialization,
    build_dead,
    measure_flow,
    build_numerical,
    trace_gradcheck,
    build_error,
    repair_gradient,
    order_debugging,
    close_depth,
)
