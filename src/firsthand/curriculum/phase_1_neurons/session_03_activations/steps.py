"""Session 1.3: activations, their slopes, and softmax without overflow."""

from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np

from firsthand.course.steps import (
    Arguments,
    Build,
    Debug,
    Generator,
    Gradient,
    Layout,
    Relation,
)
from firsthand.curriculum.phase_1_neurons.session_03_activations.questions import (
    EXPONENTIALS,
    PLAIN_OPERATIONS,
    close_saturation,
    derive_slope,
    kept_through,
    trace_jacobian,
)
from firsthand.llm.foundations.activations import (
    log_sum_exp,
    sigmoid,
    sigmoid_derivative,
    softmax,
    softmax_backward,
    tanh_derivative,
)

FLOAT64_BYTES = np.dtype(np.float64).itemsize
VOCABULARY = 16384  # of the 100M-parameter model that later phases build

# The logits and the upstream gradient that the prose works through.
EXAMPLE_LOGITS = np.array([1.0, 2.0, -1.0])
EXAMPLE_SHARES = softmax(EXAMPLE_LOGITS)
EXAMPLE_GRADIENT = np.array([1.0, 0.0, 0.0])
EXAMPLE_JACOBIAN = np.array([softmax_backward(EXAMPLE_SHARES, row) for row in np.eye(3)])
EXAMPLE_TOP = log_sum_exp(EXAMPLE_LOGITS)

# What the prose says of activations in depth.
STEEPEST = {
    name: float(slope(np.array(0.0)))
    for name, slope in (("sigmoid", sigmoid_derivative), ("tanh", tanh_derivative))
}
KEPT_BY_SIGMOID = {layers: kept_through("sigmoid", 0.0, layers) for layers in (1, 5, 10, 20)}
OPERATIONS = {name: (EXPONENTIALS[name], PLAIN_OPERATIONS[name]) for name in EXPONENTIALS}


def measured_slope(x: float) -> float:
    """The slope of the sigmoid by a central difference."""
    return float(sigmoid(np.array(x + 1e-4)) - sigmoid(np.array(x - 1e-4))) / 2e-4


def numbers(generator: Generator, *shape: int) -> np.ndarray:
    """Values of scale about 1, two decimals, so that a failing call can be read."""
    return np.round(generator.normal(size=shape), 2)


# Oracles work in 40 decimal digits with an exponent of six digits: nothing overflows there, on any
# machine, and no formula of the reference is needed.


def exactly(function: Callable[[Decimal], Decimal], x: Any) -> Any:
    """`function` of every element of x, rounded to float64 once; a float for a float."""
    with localcontext(Context(prec=40)):
        if isinstance(x, float):
            return float(function(Decimal(x)))
        values = [float(function(Decimal(value))) for value in x.ravel().tolist()]
    return np.array(values).reshape(x.shape)


def exact_shares(logits: np.ndarray) -> list[Decimal]:
    """The softmax of one vector, in the current decimal context."""
    exponentials = [Decimal(value).exp() for value in logits.tolist()]
    total = sum(exponentials, Decimal(0))
    return [item / total for item in exponentials]


def along(function: Callable[[np.ndarray], Any], logits: np.ndarray, axis: int) -> np.ndarray:
    with localcontext(Context(prec=40)):
        return np.apply_along_axis(function, axis, logits)


# --------------------------------------------------------------------------- sigmoid


def call_sigmoid(part: Any, x: Any) -> Any:
    """Driver: an overflow is an exception here, for the contract excludes it."""
    with np.errstate(over="raise", invalid="raise"):
        return part(x)


def strict(call: str) -> str:
    """The call as text, under the same rule as the driver's."""
    return f'with np.errstate(over="raise", invalid="raise"): print({call})'


def values_text(x: Any) -> str:
    return f"np.array({x.tolist()})" if isinstance(x, np.ndarray) else repr(x)


def sigmoid_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        (0.0,),
        (0.75,),
        (np.array([0.0, 1.0, -1.0]),),
        (numbers(generator, 4),),
        (numbers(generator, 2, 3),),
        (np.array([40.0, 1e4]),),
        (np.array([-40.0, -1e4]),),
    ]


def mirrored(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (1, 3):
        x = numbers(generator, size)
        groups.append([(x,), (-x,)])
    return groups


build_sigmoid = Build(
    id="sigmoid",
    part="foundations.activations:sigmoid",
    probes=sigmoid_probes,
    oracle=lambda x: exactly(lambda value: 1 / (1 + (-value).exp()), x),
    driver=call_sigmoid,
    show=lambda x: strict(f"sigmoid({values_text(x)})"),
    small=lambda: (np.array([0.0, 1.0, -1.0]),),
    key_line="decay = np.exp(-np.abs(x))",
    forbids=(
        "scipy.special.expit",
        "torch.sigmoid",
        "torch.special.expit",
        "torch.nn.functional.sigmoid",
    ),
    relations=(
        Relation(
            says="the two halves mirror each other: sigmoid(x) + sigmoid(-x) = 1",
            groups=mirrored,
            holds=lambda group, out: bool(np.allclose(out[0] + out[1], 1.0, atol=1e-9)),
        ),
    ),
    hints=(
        "Each of the two forms overflows on one side only: which one on which side?",
        "Of which number is the exponential at most 1, whatever the sign of x?",
        "The two forms have the same denominator once that exponential is written as u.",
    ),
)

# --------------------------------------------------------------------------- sigmoid-derivative


def call_slope(part: Any, x: Any) -> Any:
    """Driver: the slope and its logarithm; the logarithm shows the digits of a tiny slope."""
    with np.errstate(over="raise", invalid="raise"):
        slope = part(x)
    with np.errstate(all="ignore"):
        return slope, np.log(slope) if isinstance(slope, np.ndarray | np.floating | float) else None


def slope_oracle(x: Any) -> tuple[Any, Any]:
    """1 / (e^(x/2) + e^(-x/2))², another form than the reference's product."""

    def slope(value: Decimal) -> Decimal:
        half = (value / 2).exp()
        return 1 / (half + 1 / half) ** 2

    return exactly(slope, x), exactly(lambda value: slope(value).ln(), x)


def slope_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        (0.0,),
        (-1.5,),
        (np.array([0.0, 1.0, -2.0]),),
        (numbers(generator, 4),),
        (numbers(generator, 3, 2),),
        (np.array([30.0, -30.0]),),
        (np.array([700.0]),),
        (np.array([-700.0]),),
    ]


def mirrored_far(generator: Generator) -> Sequence[Sequence[Arguments]]:
    x = numbers(generator, 3)
    return [[(x,), (-x,)], [(10.0 * x,), (-10.0 * x,)]]


build_sigmoid_derivative = Build(
    id="sigmoid-derivative",
    part="foundations.activations:sigmoid_derivative",
    probes=slope_probes,
    oracle=slope_oracle,
    driver=call_slope,
    show=lambda x: strict(f"slope := sigmoid_derivative({values_text(x)}), np.log(slope)"),
    small=lambda: (np.array([0.0, 2.0]),),
    key_line="return sigmoid(x) * sigmoid(-np.asarray(x))",
    relations=(
        Relation(
            says="the slope is the same on both sides: sigmoid'(x) = sigmoid'(-x)",
            groups=mirrored_far,
            holds=lambda group, out: bool(np.allclose(out[0][1], out[1][1], atol=1e-9)),
        ),
    ),
    gradient=Gradient(forward=sigmoid, inputs=lambda arguments: (arguments[0],)),
    hints=(
        "The argument is the input of the sigmoid, not its output.",
        "The slope at 0 is the largest one; what is it by your expression?",
        "Both factors of the slope can come from calls of sigmoid, without a subtraction.",
    ),
)

# --------------------------------------------------------------------------- log-sum-exp


def logits_probes(generator: Generator) -> list[Arguments]:
    """Small cases, each axis, and rows so far out that only a shift of their own saves them."""
    far = np.array([[1000.0, 998.5], [-1000.0, -1001.0], [0.5, -0.25]])
    return [
        (np.array([1.0, 2.0]),),
        (numbers(generator, 3), -1),
        (numbers(generator, 2, 3), 0),
        (numbers(generator, 4, 3), -1),
        (numbers(generator, 2, 3, 4), 1),
        (np.array([1000.0, 999.0, 997.0]), -1),
        (np.array([-1000.0, -1002.0]), -1),
        (far, -1),
    ]


def logits_call(name: str) -> Callable[..., str]:
    """How a call of `name` with logits and perhaps an axis is shown: plain numbers, no 1.0e+03."""

    def show(logits: np.ndarray, *axis: int) -> str:
        return f"{name}({', '.join([values_text(logits), *map(str, axis)])})"

    return show


def log_sum_exp_oracle(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    def one(row: np.ndarray) -> float:
        return float(sum((Decimal(value).exp() for value in row.tolist()), Decimal(0)).ln())

    return along(one, logits, axis)


def shifted(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size, shift in ((2, 3.0), (3, 800.0), (4, -2000.0)):
        logits = numbers(generator, size)
        groups.append([(logits, -1), (logits + shift, -1)])
    return groups


def moved_along(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    shift = float(group[1][0][0] - group[0][0][0])
    return bool(np.allclose(out[1], out[0] + shift, rtol=0.0, atol=1e-9))


build_log_sum_exp = Build(
    id="log-sum-exp",
    part="foundations.activations:log_sum_exp",
    probes=logits_probes,
    oracle=log_sum_exp_oracle,
    show=logits_call("log_sum_exp"),
    small=lambda: (np.array([0.0, 1.0, 2.0]),),
    key_line="np.sum(np.exp(logits - largest), axis=axis)",
    forbids=(
        "numpy.logaddexp",
        "numpy.logaddexp2",
        "scipy.special.logsumexp",
        "torch.logsumexp",
        "torch.logaddexp",
    ),
    relations=(
        Relation(
            says="a shift of all logits comes out as it is: lse(z + c) = lse(z) + c",
            groups=shifted,
            holds=moved_along,
        ),
    ),
    hints=(
        "Which c makes every exponent at most 0 and at least one of them exactly 0?",
        "Each slice along the axis needs a c of its own; `keepdims=True` keeps it aligned.",
        "The c that was taken out inside comes back outside, without the axis of length 1.",
    ),
)

# --------------------------------------------------------------------------- softmax


def softmax_oracle(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    return along(lambda row: np.array([float(p) for p in exact_shares(row)]), logits, axis)


def slices(generator: Generator) -> Sequence[Sequence[Arguments]]:
    return [[(numbers(generator, 3), -1)], [(numbers(generator, 2, 4), 0)]]


def sums_to_one(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    return bool(np.allclose(np.sum(out[0], axis=group[0][1]), 1.0, rtol=0.0, atol=1e-9))


build_softmax = Build(
    id="softmax",
    part="foundations.activations:softmax",
    probes=logits_probes,
    oracle=softmax_oracle,
    show=logits_call("softmax"),
    small=lambda: (np.array([0.0, 1.0, 2.0]),),
    key_line="np.exp(logits - largest)",
    forbids=(
        "scipy.special.softmax",
        "scipy.special.log_softmax",
        "torch.softmax",
        "torch.special.softmax",
        "torch.nn.functional.softmax",
    ),
    relations=(
        Relation(
            says="the shares of a slice sum to 1 along the axis",
            groups=slices,
            holds=sums_to_one,
        ),
        Relation(
            says="a shift of all logits changes nothing: softmax(z + c) = softmax(z)",
            groups=shifted,
            holds=lambda group, out: bool(np.allclose(out[0], out[1], rtol=0.0, atol=1e-9)),
        ),
    ),
    hints=(
        "Three stages: shift, exponential, division by a sum.",
        "Maximum and sum belong to one slice along `axis`, not to the whole array.",
        "With `keepdims=True` a reduced axis stays as length 1 and broadcasts back.",
    ),
)

# --------------------------------------------------------------------------- log-softmax


def log_softmax_oracle(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    return along(lambda row: np.array([float(p.ln()) for p in exact_shares(row)]), logits, axis)


def exponentials_sum_to_one(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    total = np.sum(np.exp(out[0]), axis=group[0][1])
    return bool(np.allclose(total, 1.0, rtol=0.0, atol=1e-9))


log_softmax_check = Build(
    id="log-softmax",
    part="foundations.activations:log_softmax",
    probes=logits_probes,
    oracle=log_softmax_oracle,
    show=logits_call("log_softmax"),
    small=lambda: (np.array([0.0, 1.0, 2.0]),),
    key_line="total = np.sum(np.exp(shifted), axis=axis, keepdims=True)",
    forbids=(
        "numpy.logaddexp",
        "scipy.special.log_softmax",
        "torch.log_softmax",
        "torch.special.log_softmax",
        "torch.nn.functional.log_softmax",
    ),
    relations=(
        Relation(
            says="the exponentials of a slice sum to 1 along the axis",
            groups=slices,
            holds=exponentials_sum_to_one,
        ),
    ),
)

repair_log_softmax = Debug(
    id="log-softmax",
    build=log_softmax_check,
    mistakes=(
        "logits-kept",
        "total-of-everything",
        "maximum-of-everything",
        "total-not-shifted",
    ),
    symptom="for some logits, np.exp(log_softmax(logits)) does not sum to 1 along the axis.",
    hints=(
        "Call it with one vector, with two rows, and with rows far apart; see which of them break.",
        "Write down the shape of every intermediate array for logits of shape (2, 3).",
        "Whatever was subtracted before the exponential must be the same everywhere below it.",
    ),
)

# --------------------------------------------------------------------------- softmax-backward


def drawn_shares(generator: Generator, *shape: int, axis: int = -1) -> np.ndarray:
    """Probabilities with two decimals, none 0, that sum to 1 along `axis`."""
    order = list(shape)
    length = order.pop(axis)
    counts = 1 + generator.multinomial(100 - length, [1 / length] * length, size=tuple(order))
    return np.moveaxis(counts / 100, -1, axis)


LONG = 64  # long enough for a built Jacobian to stand out from the arrays that are needed


def backward_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        (np.array([0.5, 0.5]), np.array([1.0, 0.0])),
        (np.array([0.25, 0.75]), np.array([2.0, -1.0]), -1),
        (drawn_shares(generator, 3), numbers(generator, 3), -1),
        (drawn_shares(generator, 2, 3), numbers(generator, 2, 3), -1),
        (drawn_shares(generator, 3, 4, axis=0), numbers(generator, 3, 4), 0),
        (drawn_shares(generator, 2, 3, 4, axis=1), numbers(generator, 2, 3, 4), 1),
        (np.full(LONG, 1 / LONG), np.arange(float(LONG)), -1),
        (np.array([[0.5, 0.5]]), np.array([1.0, 2.0]), -1),
        (np.array([0.25, 0.25, 0.5]), np.array([1.0]), -1),
    ]


def backward_oracle(probabilities: np.ndarray, gradient: np.ndarray, axis: int = -1) -> np.ndarray:
    """The full Jacobian of every slice, in extended precision: what the part must never build."""
    if probabilities.shape != gradient.shape:
        raise ValueError("shapes differ")
    p = np.moveaxis(probabilities, axis, -1).astype(np.longdouble)
    g = np.moveaxis(gradient, axis, -1).astype(np.longdouble)
    result = np.zeros(p.shape, dtype=np.longdouble)
    for place in np.ndindex(p.shape[:-1]):
        jacobian = np.diag(p[place]) - np.outer(p[place], p[place])
        result[place] = np.sum(jacobian * g[place][:, None], axis=0)
    return np.moveaxis(result, -1, axis)


def softmax_of_shares(logits: np.ndarray) -> np.ndarray:
    """The softmax along the axis on which exp(logits) sums to 1.

    Such an array sums to size / length of that axis; all axes of a probe differ in length, so the
    sum tells the axis.
    """
    length = round(logits.size / float(np.sum(np.exp(logits))))
    return softmax(logits, axis=logits.shape.index(length))


def upstream_pairs(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size, shift in ((2, 3.0), (4, -2.0)):
        p, gradient = drawn_shares(generator, size), numbers(generator, size)
        groups.append([(p, gradient, -1), (p, gradient + shift, -1)])
    return groups


def slopes_cancel(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    return bool(np.allclose(np.sum(out[0], axis=-1), 0.0, atol=1e-9))


build_softmax_backward = Build(
    id="softmax-backward",
    part="foundations.activations:softmax_backward",
    probes=backward_probes,
    oracle=backward_oracle,
    show=lambda probabilities, gradient, *axis: (
        f"softmax_backward(np.full({LONG}, 1 / {LONG}), np.arange({LONG}.0))"
        if probabilities.size == LONG
        else f"softmax_backward({values_text(probabilities)}, {values_text(gradient)}"
        + "".join(f", {value}" for value in axis)
        + ")"
    ),
    small=lambda: (np.array([0.5, 0.25, 0.25]), np.array([4.0, 0.0, 8.0])),
    key_line="np.sum(weighted, axis=axis, keepdims=True)",
    forbids=("torch.autograd.grad", "torch.autograd.functional.vjp", "torch.func.vjp"),
    relations=(
        Relation(
            says="a shift of all logits changes no share, so the entries of dL/dz sum to 0",
            groups=upstream_pairs,
            holds=slopes_cancel,
        ),
        Relation(
            says="the shares always sum to 1, so a constant added to dL/dp changes nothing",
            groups=upstream_pairs,
            holds=lambda group, out: bool(np.allclose(out[0], out[1], atol=1e-9)),
        ),
    ),
    gradient=Gradient(
        forward=softmax_of_shares,
        inputs=lambda arguments: (np.log(arguments[0]),),
        cotangent=lambda arguments: arguments[1],
    ),
    layout=Layout(most_bytes=lambda arguments: 8 * arguments[0].nbytes + 16384),
    hints=(
        "Write out the sum over i for one fixed j, and split off the term with i = j.",
        "What is left of the sum is one number for the whole slice: it does not depend on j.",
        "Compare the two shapes first; broadcasting would hide that they differ.",
    ),
)

# --------------------------------------------------------------------------- all steps

STEPS = (
    build_sigmoid,
    derive_slope,
    build_sigmoid_derivative,
    build_log_sum_exp,
    build_softmax,
    repair_log_softmax,
    trace_jacobian,
    build_softmax_backward,
    close_saturation,
)
