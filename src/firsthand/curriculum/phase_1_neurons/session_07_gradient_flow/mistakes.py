"""Session 1.7: wrong versions that people write, and other right ones."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from firsthand.course.steps import Alternative, Mistake, WrongAnswer, WrongFormula


def variances_in_place(
    depth: int,
    width: int,
    activation: Callable[[np.ndarray], np.ndarray],
    initialization: Callable[[int, int, np.random.Generator], np.ndarray],
    generator: np.random.Generator,
    batch: int = 256,
) -> np.ndarray:
    """Right, in another style: an array that is filled, moments in place of np.var."""
    if min(depth + 1, width, batch) < 1:
        raise ValueError("no signal")
    found = np.empty(depth + 1)
    signal = generator.standard_normal((batch, width))
    for layer in range(depth + 1):
        if layer:
            signal = activation(
                np.einsum("bi,io->bo", signal, initialization(width, width, generator))
            )
        found[layer] = ((signal - signal.mean()) ** 2).mean()
    return found


def xavier_by_scaling(fan_in: int, fan_out: int, generator: np.random.Generator) -> np.ndarray:
    """Right, in another style: numbers from [0, 1), shifted, with variance 1/12."""
    if not (fan_in > 0 and fan_out > 0):
        raise ValueError("a layer has at least one input and one output")
    centered = generator.random((fan_in, fan_out)) - 0.5
    return centered * np.sqrt(12.0 * 2.0 / (fan_in + fan_out))


def he_by_scaling(fan_in: int, fan_out: int, generator: np.random.Generator) -> np.ndarray:
    if not (fan_in > 0 and fan_out > 0):
        raise ValueError("a layer has at least one input and one output")
    return generator.uniform(-1.0, 1.0, (fan_in, fan_out)) * (6.0 / fan_in) ** 0.5


def dead_by_largest(activations: Any) -> np.ndarray:
    """Right, in another style: the largest activation of each unit."""
    values = np.array(activations)
    if values.ndim != 2 or not values.shape[0]:
        raise ValueError("a batch of units is needed")
    return np.array([i for i, unit in enumerate(values.T) if unit.max() == 0], dtype=int)


def numerical_by_columns(
    function: Callable[[np.ndarray], float], point: np.ndarray, step: float = 6e-6
) -> np.ndarray:
    """Right, in another style: flat, one shift vector for each element, no state."""
    if not step > 0:
        raise ValueError("step")
    base = np.asarray(point).astype(float)
    shifts = step * np.maximum(1.0, np.abs(base.ravel()))
    slopes = []
    for position, shift in enumerate(shifts):
        flat = np.zeros(base.size)
        flat[position] = shift
        move = flat.reshape(base.shape)
        slopes.append((function(base + move) - function(base - move)) / shift / 2)
    return np.reshape(slopes, base.shape)


def error_by_lists(left: np.ndarray, right: np.ndarray) -> float:
    """Right, in another style: Python numbers."""
    if left.shape != right.shape:
        raise ValueError("shapes")
    one, two = left.ravel().tolist(), right.ravel().tolist()
    if not all(map(math.isfinite, one + two)):
        return math.inf
    scale = max(map(abs, one + two), default=0.0)
    if scale == 0:
        return 0.0
    return max(abs(a - b) for a, b in zip(one, two, strict=True)) / scale


def loss_gradient_by_rows(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if logits.ndim != 2 or targets.shape != (len(logits),):
        raise ValueError("shapes")
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError("targets")
    if not all(0 <= target < logits.shape[1] for target in targets.tolist()):
        raise ValueError("class")
    rows = []
    for row, target in zip(logits, targets, strict=True):
        shares = np.exp(row - row.max())
        rows.append(shares / shares.sum() - np.eye(len(row))[target])
    return np.array(rows) / len(rows)


MISTAKES = (
    # layer-factor
    WrongAnswer(
        id="fans-swapped",
        step="layer-factor",
        belief="The terms of the sum are counted on the other side of the layer.",
        question="Over which units does the sum run that makes one of the wanted numbers?",
    ),
    WrongAnswer(
        id="bound-for-deviation",
        step="layer-factor",
        belief="The largest weight is taken for the root mean square of a weight.",
        question="What is the mean of w^2 over all values that a weight can take?",
    ),
    WrongAnswer(
        id="terms-not-counted",
        step="layer-factor",
        belief="One product is taken for the sum of all of them.",
        question="How many products does one unit add up?",
    ),
    WrongAnswer(
        id="deviations-added",
        step="layer-factor",
        belief="The terms of a sum are added as if they all had the same sign.",
        question="What is the average of a mixed term w1 w2 x1 x2?",
    ),
    WrongAnswer(
        id="relu-let-all-pass",
        step="layer-factor",
        belief="The ReLU is taken to leave the mean square as it is.",
        question="What becomes of the negative half of the sums?",
    ),
    # forward-variances
    Mistake(
        id="activation-left-out",
        step="forward-variances",
        belief="The activation is never applied, so the layers are one linear map.",
        question="What does the next layer receive: the sum or its activation?",
        edits=(("signal = activation(signal @ weights)", "signal = signal @ weights"),),
    ),
    Mistake(
        id="variance-of-sums",
        step="forward-variances",
        belief="The variance is taken of the weighted sums, before the activation.",
        question="Which array does the next layer receive?",
        edits=(
            (
                "signal = activation(signal @ weights)\n        variances.append(np.var(signal))",
                "sums = signal @ weights\n        variances.append(np.var(sums))\n"
                "        signal = activation(sums)",
            ),
        ),
    ),
    Mistake(
        id="mean-square-for-variance",
        step="forward-variances",
        belief="The mean square of a layer's output is recorded as its variance.",
        question="What is the variance of a signal that is 3 everywhere?",
        edits=(("variances.append(np.var(signal))", "variances.append(np.mean(signal**2))"),),
    ),
    Mistake(
        id="one-matrix-for-all",
        step="forward-variances",
        belief="One weight matrix is drawn and used in every layer.",
        question="How often should `initialization` be called for a depth of 5?",
        edits=(
            (
                "for _ in range(depth):\n        weights = initialization(width, width, generator)",
                "weights = initialization(width, width, generator)\n    for _ in range(depth):",
            ),
        ),
    ),
    Mistake(
        id="deviation-recorded",
        step="forward-variances",
        belief="The standard deviation of a layer's output is recorded.",
        question="By which factor does the variance change when all numbers double?",
        edits=(("variances.append(np.var(signal))", "variances.append(np.std(signal))"),),
    ),
    # gradient-after-layers
    WrongFormula(
        id="slopes-forgotten",
        step="gradient-after-layers",
        belief="The slopes of the ReLUs are left out.",
        question="Which share of the gradient's entries passes a ReLU?",
        formula=lambda depth, width, deviation, start: (
            start * math.sqrt(width * deviation**2) ** depth
        ),
    ),
    WrongFormula(
        id="mean-square-for-rms",
        step="gradient-after-layers",
        belief="The factor of the mean square is applied to the root mean square.",
        question="If the mean square of numbers quadruples, what happens to its root?",
        formula=lambda depth, width, deviation, start: start * (width * deviation**2 / 2) ** depth,
    ),
    WrongFormula(
        id="deviation-for-variance",
        step="gradient-after-layers",
        belief="The standard deviation of a weight stands where its variance belongs.",
        question="How does the variance follow from the standard deviation?",
        formula=lambda depth, width, deviation, start: (
            start * math.sqrt(width * deviation / 2) ** depth
        ),
    ),
    WrongFormula(
        id="single-layer",
        step="gradient-after-layers",
        belief="It is what one layer does to the gradient.",
        question="How often is the factor of a layer applied on the way back?",
        formula=lambda depth, width, deviation, start: start * math.sqrt(width * deviation**2 / 2),
    ),
    # xavier-uniform
    Mistake(
        id="variance-as-bound",
        step="xavier-uniform",
        belief="The variance itself is used as the bound of the interval.",
        question="What is the variance of numbers drawn uniformly from [-1, 1]?",
        edits=(("math.sqrt(6.0 / (fan_in + fan_out))", "2.0 / (fan_in + fan_out)"),),
    ),
    Mistake(
        id="deviation-as-bound",
        step="xavier-uniform",
        belief="The standard deviation is used as the bound of the interval.",
        question="Can the standard deviation of a uniform draw equal its largest value?",
        edits=(("math.sqrt(6.0 / (fan_in + fan_out))", "math.sqrt(2.0 / (fan_in + fan_out))"),),
    ),
    Mistake(
        id="inputs-alone",
        step="xavier-uniform",
        belief="The bound is taken from the number of inputs alone.",
        question="Which of the two wishes does this bound serve, and which is left?",
        edits=(("math.sqrt(6.0 / (fan_in + fan_out))", "math.sqrt(3.0 / fan_in)"),),
    ),
    Mistake(
        id="positive-weights",
        step="xavier-uniform",
        belief="The interval begins at 0, so no weight is negative.",
        question="What is the mean of the weights that are drawn?",
        edits=(("generator.uniform(-limit, limit,", "generator.uniform(0.0, limit,"),),
    ),
    Mistake(
        id="outputs-by-inputs",
        step="xavier-uniform",
        belief="The matrix has a row for each output.",
        question="Which shape must W have so that x @ W has fan_out columns?",
        edits=(("size=(fan_in, fan_out)", "size=(fan_out, fan_in)"),),
    ),
    # repair-initialization
    Mistake(
        id="bound-from-outputs",
        step="repair-initialization",
        belief="The bound is taken from the number of outputs.",
        question="Over how many products does one output of the layer sum?",
        edits=(("math.sqrt(6.0 / fan_in)", "math.sqrt(6.0 / fan_out)"),),
    ),
    Mistake(
        id="bound-without-three",
        step="repair-initialization",
        belief="The standard deviation is used as the bound of the interval.",
        question="What is the variance of a uniform draw from [-b, b]?",
        edits=(("math.sqrt(6.0 / fan_in)", "math.sqrt(2.0 / fan_in)"),),
    ),
    Mistake(
        id="bound-without-root",
        step="repair-initialization",
        belief="The square of the bound is used as the bound.",
        question="By which factor does the variance change when the bound doubles?",
        edits=(("math.sqrt(6.0 / fan_in)", "6.0 / fan_in"),),
    ),
    Mistake(
        id="bound-without-relu",
        step="repair-initialization",
        belief="The variance is 1 / fan_in, as if the activation let everything pass.",
        question="What does a ReLU do to the mean square of sums that are symmetric around 0?",
        edits=(("math.sqrt(6.0 / fan_in)", "math.sqrt(3.0 / fan_in)"),),
    ),
    Mistake(
        id="bound-from-both-fans",
        step="repair-initialization",
        belief="This is Xavier's bound, which has no factor for a ReLU.",
        question="For which slope around 0 was the compromise between both fans made?",
        edits=(("math.sqrt(6.0 / fan_in)", "math.sqrt(6.0 / (fan_in + fan_out))"),),
    ),
    # dead-units
    Mistake(
        id="silent-once",
        step="dead-units",
        belief="A unit that is 0 in one row counts as dead.",
        question="Does a unit get a gradient from the rows in which it is open?",
        edits=(("np.all(values == 0.0, axis=0)", "np.any(values == 0.0, axis=0)"),),
    ),
    Mistake(
        id="rows-for-units",
        step="dead-units",
        belief="Rows in which every unit is 0 are looked for.",
        question="Which axis of (batch, units) must disappear?",
        edits=(("np.all(values == 0.0, axis=0)", "np.all(values == 0.0, axis=1)"),),
    ),
    Mistake(
        id="small-counts-as-dead",
        step="dead-units",
        belief="A unit whose activations are small counts as dead.",
        question="What is the slope of a ReLU where its output is 0.01?",
        edits=(("values == 0.0", "values < 0.05"),),
    ),
    Mistake(
        id="mask-for-indices",
        step="dead-units",
        belief="A True or False for each unit comes back in place of the indices.",
        question="How long should the result be when one of five units is dead?",
        edits=(("np.flatnonzero(silent).astype(np.int64)", "silent"),),
    ),
    # numerical-gradient
    Mistake(
        id="forward-difference",
        step="numerical-gradient",
        belief="It is the forward difference: one side is the point itself.",
        question="Which term of the expansion cancels when both sides are used?",
        edits=(
            ("moved[index] = center - reach", "moved[index] = center"),
            ("(2.0 * reach)", "reach"),
        ),
    ),
    Mistake(
        id="divided-by-one-reach",
        step="numerical-gradient",
        belief="The difference of the two sides is divided by one reach.",
        question="How far apart are the two points of which the heights are subtracted?",
        edits=(("(2.0 * reach)", "reach"),),
    ),
    Mistake(
        id="element-left-moved",
        step="numerical-gradient",
        belief="An element stays moved while the next ones are treated.",
        question="Which elements differ from the point when the second entry is computed?",
        edits=(("        moved[index] = center\n        gradient", "        gradient"),),
    ),
    Mistake(
        id="one-reach-for-all",
        step="numerical-gradient",
        belief="Every element is moved by the same step, whatever its size.",
        question="What is left of a step of 1e-5 when it is added to 1e12?",
        edits=(("reach = step * max(1.0, abs(center))", "reach = step"),),
    ),
    Mistake(
        id="integers-kept",
        step="numerical-gradient",
        belief="A point of integers stays one, and a small step is cut off.",
        question="Which value has an int64 array after a[0] = 1.1?",
        edits=(("np.array(point, dtype=np.float64)", "np.array(point)"),),
    ),
    # trace-gradcheck
    WrongAnswer(
        id="trace-one-sided",
        step="trace-gradcheck",
        belief="The difference is taken from the point itself to one side.",
        question="Which two points does a central difference compare?",
    ),
    WrongAnswer(
        id="trace-single-step",
        step="trace-gradcheck",
        belief="The difference of both sides is divided by h alone.",
        question="How far apart are w + h and w - h?",
    ),
    WrongAnswer(
        id="trace-absolute",
        step="trace-gradcheck",
        belief="The error is the plain difference, without a scale.",
        question="Is a difference of 0.1 large beside a gradient of 50?",
    ),
    WrongAnswer(
        id="trace-smaller-scale",
        step="trace-gradcheck",
        belief="The difference is divided by the smaller of the two magnitudes.",
        question="What would the error be when one of the two numbers is 0?",
    ),
    # relative-error
    Mistake(
        id="absolute-error",
        step="relative-error",
        belief="The largest difference comes back without being divided by a scale.",
        question="Should the error change when both gradients are multiplied by 8?",
        edits=(("float(difference / scale)", "float(difference)"),),
    ),
    Mistake(
        id="scale-of-left",
        step="relative-error",
        belief="The scale is that of the left array alone.",
        question="What should the error be when the left array is all zeros?",
        edits=(
            (
                "scale = max(np.max(np.abs(left), initial=0.0), "
                "np.max(np.abs(right), initial=0.0))",
                "scale = np.max(np.abs(left), initial=0.0)",
            ),
        ),
    ),
    Mistake(
        id="element-by-element",
        step="relative-error",
        belief="Each difference is divided by the magnitude of its own element.",
        question="What is the error of 1e-17 against 0 beside entries of size 1?",
        edits=(
            (
                "difference = np.max(np.abs(left - right), initial=0.0)",
                "largest = np.maximum(np.maximum(np.abs(left), np.abs(right)), 1e-300)\n"
                "    difference = scale * np.max(np.abs(left - right) / largest, initial=0.0)",
            ),
        ),
    ),
    Mistake(
        id="nan-passes",
        step="relative-error",
        belief="Arrays that hold nan or infinity are compared like others.",
        question="What is the value of `nan > 0`?",
        edits=(
            (
                "if not (np.all(np.isfinite(left)) and np.all(np.isfinite(right))):\n"
                '        return float("inf")\n    ',
                "",
            ),
        ),
    ),
    Mistake(
        id="signs-kept",
        step="relative-error",
        belief="The largest signed difference is taken, so one of the two directions passes.",
        question="What is the largest element of [-5, 0.1], and what is its largest magnitude?",
        edits=(("np.max(np.abs(left - right), initial=0.0)", "np.max(left - right, initial=0.0)"),),
    ),
    # repair-gradient
    Mistake(
        id="one-hot-added",
        step="repair-gradient",
        belief="The one-hot targets are added to the probabilities.",
        question="Should the logit of the right class rise or fall under gradient descent?",
        edits=(("targets] -= 1.0", "targets] += 1.0"),),
    ),
    Mistake(
        id="targets-of-all-rows",
        step="repair-gradient",
        belief="Each row is changed at the targets of every row.",
        question="How many entries should change in a batch of 2 rows?",
        edits=(("gradient[np.arange(batch), targets]", "gradient[:, targets]"),),
    ),
    Mistake(
        id="sum-for-mean",
        step="repair-gradient",
        belief="It is the gradient of the sum over the rows, not of their mean.",
        question="What happens to the mean loss when every row comes twice?",
        edits=(("return gradient / batch", "return gradient"),),
    ),
    Mistake(
        id="mean-over-entries",
        step="repair-gradient",
        belief="The gradient is divided by the number of all logits.",
        question="Over how many terms is the mean of the loss taken?",
        edits=(("return gradient / batch", "return gradient / gradient.size"),),
    ),
    Mistake(
        id="softmax-down-the-batch",
        step="repair-gradient",
        belief="The probabilities sum to 1 over the rows of the batch.",
        question="Which numbers share one total in a softmax: a row or a column?",
        edits=(("softmax(logits)", "softmax(logits, axis=0)"),),
    ),
    # order-debugging
    WrongAnswer(
        id="rate-by-trial",
        step="order-debugging",
        belief="A setting would be tuned while it is unknown whether the code is right.",
        question="If the loss then moves, which of the possible causes is excluded?",
    ),
    WrongAnswer(
        id="accuracy-as-proof",
        step="order-debugging",
        belief="A network that learns something would prove its gradient.",
        question="Can a network learn with a gradient that is right in direction only roughly?",
    ),
    # close-depth
    WrongAnswer(
        id="spread-of-mean-squares",
        step="close-depth",
        belief="The spread compares the mean squares, not their roots.",
        question="If the mean square falls by a factor of 100, by which factor does the RMS fall?",
    ),
    WrongAnswer(
        id="slopes-left-out",
        step="close-depth",
        belief="The factor counts the weights and not the slopes of the activation.",
        question="What does a gradient meet in a layer beside the weights?",
    ),
    WrongAnswer(
        id="one-layer-only",
        step="close-depth",
        belief="The spread is that of a single layer.",
        question="How often does the factor apply between the output and the input?",
    ),
    WrongAnswer(
        id="bound-taken-as-deviation",
        step="close-depth",
        belief="The bound of the uniform weights is taken for their standard deviation.",
        question="What is the variance of a uniform draw from [-b, b]?",
    ),
)

ALTERNATIVES = (
    Alternative(step="forward-variances", code=variances_in_place),
    Alternative(step="xavier-uniform", code=xavier_by_scaling),
    Alternative(step="repair-initialization", code=he_by_scaling),
    Alternative(step="dead-units", code=dead_by_largest),
    Alternative(step="numerical-gradient", code=numerical_by_columns),
    Alternative(step="relative-error", code=error_by_lists),
    Alternative(step="repair-gradient", code=loss_gradient_by_rows),
)
