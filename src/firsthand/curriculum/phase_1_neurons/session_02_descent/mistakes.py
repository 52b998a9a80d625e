"""Session 1.2: wrong versions that people write, and other right ones."""

import math

import numpy as np

from firsthand.course.steps import Alternative, Mistake, WrongAnswer, WrongFormula


def loss_by_total(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Right, in another style: a running total over pairs."""
    if predictions.shape != targets.shape:
        raise ValueError(f"{predictions.shape} and {targets.shape}")
    pairs = zip(predictions.flat, targets.flat, strict=True)
    return math.fsum((float(p) - float(t)) ** 2 for p, t in pairs) / predictions.size


def line_by_examples(
    inputs: np.ndarray, targets: np.ndarray, weight: float, bias: float
) -> tuple[float, float]:
    if inputs.shape != targets.shape:
        raise ValueError("one target for each input")
    by_weight = by_bias = 0.0
    for x, y in zip(inputs, targets, strict=True):
        slope = 2 * (weight * x + bias - y) / len(inputs)
        by_weight, by_bias = by_weight + slope * x, by_bias + slope
    return by_weight, by_bias


def descent_into_one_block(gradient, start, learning_rate, steps):  # type: ignore[no-untyped-def]
    """Right, in another style: the whole path is allocated first, each row written once."""
    if steps < 0:
        raise ValueError("a run has no negative length")
    path = np.empty((steps + 1, *np.shape(start)))
    path[0] = start
    for row in range(steps):
        path[row + 1] = path[row] - learning_rate * gradient(path[row].copy())
    return path


def linear_by_columns(
    inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, bias: float
) -> tuple[np.ndarray, float]:
    if inputs.ndim != 2 or targets.ndim != 1 or inputs.shape != (len(targets), len(weights)):
        raise ValueError("shapes do not fit")
    slopes = (np.sum(inputs * weights, axis=1) + bias - targets) * (2 / inputs.shape[0])
    gradient = np.array([float(np.sum(slopes * column)) for column in inputs.transpose()])
    return gradient, slopes.sum()


MISTAKES = (
    # mean-squared-error
    Mistake(
        id="squares-summed",
        step="mean-squared-error",
        belief="The squares are added up and never divided by their number.",
        question="What happens to the number when the same data are written down twice?",
        edits=(("np.mean(errors * errors)", "np.sum(errors * errors)"),),
    ),
    Mistake(
        id="absolute-errors",
        step="mean-squared-error",
        belief="The sizes of the errors are averaged, not their squares.",
        question="By how much should the loss grow when every error doubles?",
        edits=(("np.mean(errors * errors)", "np.mean(np.abs(errors))"),),
    ),
    Mistake(
        id="square-of-the-mean",
        step="mean-squared-error",
        belief="The errors are averaged first and the mean is squared.",
        question="What is the loss of the two errors 1 and -1?",
        edits=(("np.mean(errors * errors)", "np.mean(errors) ** 2"),),
    ),
    Mistake(
        id="root-of-the-mean",
        step="mean-squared-error",
        belief="A square root is taken at the end, which gives the root mean squared error.",
        question="Which unit has the loss when the targets are in metres?",
        edits=(("np.mean(errors * errors)", "np.sqrt(np.mean(errors * errors))"),),
    ),
    Mistake(
        id="shapes-broadcast",
        step="mean-squared-error",
        belief="Shapes that differ are accepted, and broadcasting pairs values at will.",
        question="Which shape has the difference of a (3, 1) and a (3,) array?",
        edits=(('require_same_shape("predictions", predictions, "targets", targets)', "pass"),),
    ),
    # slope-of-the-loss
    WrongAnswer(
        id="inner-factor-lost",
        step="slope-of-the-loss",
        belief="The derivative of the error with respect to w is taken as one.",
        question="When w grows by a little, how does the error of one example change?",
    ),
    WrongAnswer(
        id="outer-factor",
        step="slope-of-the-loss",
        belief="The constant in front is not what the power and the loss give together.",
        question="Which constant does the power bring, and which one does the loss bring?",
    ),
    WrongAnswer(
        id="error-reversed",
        step="slope-of-the-loss",
        belief="The error is taken as target minus prediction without the sign that this costs.",
        question="If the prediction is too large and x is positive, which sign has the slope?",
    ),
    # line-gradients
    Mistake(
        id="power-factor-missing",
        step="line-gradients",
        belief="The factor that the square brings down is left out.",
        question="What is the derivative of e² with respect to e?",
        edits=(
            ("2.0 * np.mean(errors * inputs)", "np.mean(errors * inputs)"),
            ("2.0 * np.mean(errors)", "np.mean(errors)"),
        ),
    ),
    Mistake(
        id="sum-for-mean",
        step="line-gradients",
        belief="The contributions are summed over the examples and not averaged.",
        question="What should happen to the gradients when the data are written down twice?",
        edits=(
            ("2.0 * np.mean(errors * inputs)", "2.0 * np.sum(errors * inputs)"),
            ("2.0 * np.mean(errors)", "2.0 * np.sum(errors)"),
        ),
    ),
    Mistake(
        id="target-minus-prediction",
        step="line-gradients",
        belief="The errors are target minus prediction, so both gradients have the other sign.",
        question="If every prediction is too high, which sign should dL/db have?",
        edits=(("weight * inputs + bias - targets", "targets - (weight * inputs + bias)"),),
    ),
    Mistake(
        id="inputs-left-out",
        step="line-gradients",
        belief="Both parameters get the same gradient, as if w moved every error equally.",
        question="How fast does the error of an example with x = 0 change with w?",
        edits=(("np.mean(errors * inputs)", "np.mean(errors)"),),
    ),
    Mistake(
        id="bias-not-predicted",
        step="line-gradients",
        belief="The errors are those of a line through the origin: the bias is not in them.",
        question="What does the line predict at x = 0?",
        edits=(("weight * inputs + bias - targets", "weight * inputs - targets"),),
    ),
    # two-updates
    WrongAnswer(
        id="updated-uphill",
        step="two-updates",
        belief="The step goes along the gradient, where the loss grows.",
        question="If the slope at w is positive, on which side of w is the loss smaller?",
    ),
    WrongAnswer(
        id="gradient-reused",
        step="two-updates",
        belief="The second update uses the gradient of the start again.",
        question="Which errors does the line make after the first update?",
    ),
    WrongAnswer(
        id="power-factor-lost",
        step="two-updates",
        belief="The gradient lacks the factor that the square brings down.",
        question="What is the derivative of e² with respect to e?",
    ),
    WrongAnswer(
        id="summed-gradient",
        step="two-updates",
        belief="The gradient is a sum over the examples, while the loss is a mean.",
        question="By what does the loss divide, and does its slope do the same?",
    ),
    # gradient-descent
    Mistake(
        id="uphill",
        step="gradient-descent",
        belief="The step is added, so the path climbs.",
        question="Where does the gradient point: to a larger or to a smaller loss?",
        edits=(("point - learning_rate * gradient", "point + learning_rate * gradient"),),
    ),
    Mistake(
        id="gradient-at-start",
        step="gradient-descent",
        belief="Every step uses the gradient of the start, so all steps are equal.",
        question="What should the gradient be once the path has reached the minimum?",
        edits=(("gradient(point)", "gradient(start)"),),
    ),
    Mistake(
        id="one-array",
        step="gradient-descent",
        belief="Each step writes into the one array that all rows of the path refer to.",
        question="How many arrays does your list hold after three steps, and how many names?",
        edits=(("point = point - learning_rate", "point -= learning_rate"),),
    ),
    Mistake(
        id="start-left-out",
        step="gradient-descent",
        belief="The path begins after the first step.",
        question="How many points has a path of zero steps?",
        edits=(("path = [point]", "path = []"),),
    ),
    Mistake(
        id="start-overwritten",
        step="gradient-descent",
        belief="The path is right, and the caller's own start has moved along it.",
        question="Whose memory does an in-place operator write into?",
        edits=(
            ("point = np.array(start, dtype=np.float64)", "point = start"),
            ("path = [point]", "path = [point.copy()]"),
            ("point = point - learning_rate", "point -= learning_rate"),
            ("path.append(point)", "path.append(point.copy())"),
        ),
    ),
    # loss-after-updates
    WrongFormula(
        id="factor-not-squared",
        step="loss-after-updates",
        belief="The loss shrinks by the factor of w, though it grows with the square of w.",
        question="If w is halved, what becomes of w²?",
        formula=lambda curvature, rate, start, updates: (
            0.5 * curvature * start**2 * abs(1.0 - rate * curvature) ** updates
        ),
    ),
    WrongFormula(
        id="curvature-left-out",
        step="loss-after-updates",
        belief="Each update multiplies w by one minus the learning rate, whatever the curvature.",
        question="What is the derivative of this loss with respect to w?",
        formula=lambda curvature, rate, start, updates: (
            0.5 * curvature * (start * (1.0 - rate) ** updates) ** 2
        ),
    ),
    WrongFormula(
        id="gradient-doubled",
        step="loss-after-updates",
        belief="The gradient is taken as twice the curvature times w: the half is overlooked.",
        question="Which constant is left when one half of w² is differentiated?",
        formula=lambda curvature, rate, start, updates: (
            0.5 * curvature * (start * (1.0 - 2.0 * rate * curvature) ** updates) ** 2
        ),
    ),
    WrongFormula(
        id="equal-steps",
        step="loss-after-updates",
        belief="All updates are as long as the first one.",
        question="How does the gradient change while w comes nearer to the minimum?",
        formula=lambda curvature, rate, start, updates: (
            0.5 * curvature * (start * (1.0 - updates * rate * curvature)) ** 2
        ),
    ),
    # linear-gradients
    Mistake(
        id="averaged-over-weights",
        step="linear-gradients",
        belief="The gradient of the weights is divided by the number of weights.",
        question="Over what is the loss a mean: examples or weights?",
        edits=(("len(targets)", "len(weights)"),),
    ),
    Mistake(
        id="never-averaged",
        step="linear-gradients",
        belief="The gradients are sums over the examples, while the loss is a mean.",
        question="Does a second copy of the data change the loss?",
        edits=(
            ("2.0 * (inputs.T @ errors) / len(targets)", "2.0 * (inputs.T @ errors)"),
            ("np.mean(errors)", "np.sum(errors)"),
        ),
    ),
    Mistake(
        id="product-of-means",
        step="linear-gradients",
        belief="Inputs and errors are averaged apart and the means are multiplied.",
        question="What is the mean of the products of (1, -1) with (1, -1)?",
        edits=(("(inputs.T @ errors)", "(inputs.sum(axis=0) * np.mean(errors))"),),
    ),
    Mistake(
        id="every-pair",
        step="linear-gradients",
        belief="Each prediction is compared with every target, not with its own.",
        question="Which shape has the difference of an (n, 1) and an (n,) array?",
        edits=(
            (
                "errors = inputs @ weights + bias - targets",
                "pairs = (inputs @ weights + bias)[:, None] - targets\n"
                "    errors = np.mean(pairs, axis=1)",
            ),
        ),
    ),
    Mistake(
        id="bias-forgotten",
        step="linear-gradients",
        belief="The errors are those of a model without its bias.",
        question="What does the model predict for a row of zeros?",
        edits=(("inputs @ weights + bias - targets", "inputs @ weights - targets"),),
    ),
    # repair-update
    Mistake(
        id="update-uphill",
        step="repair-update",
        belief="The step is added, so every parameter climbs.",
        question="At w = 1 with the gradient 2, on which side of w is the loss smaller?",
        edits=(("parameter - learning_rate * gradient", "parameter + learning_rate * gradient"),),
    ),
    Mistake(
        id="direction-only",
        step="repair-update",
        belief="Only the sign of the gradient is used, so all steps are equally long.",
        question="Should a gradient twice as large move its parameter twice as far?",
        edits=(("learning_rate * gradient", "learning_rate * np.sign(gradient)"),),
    ),
    Mistake(
        id="rate-shared",
        step="repair-update",
        belief="The learning rate is divided among the parameters.",
        question="Should w move less because the model also has a b?",
        edits=(("learning_rate * gradient", "learning_rate / len(parameters) * gradient"),),
    ),
    Mistake(
        id="relative-step",
        step="repair-update",
        belief="The step is a share of the parameter: it is multiplied in, not subtracted.",
        question="How far would a parameter that is exactly zero ever move?",
        edits=(
            ("parameter - learning_rate * gradient", "parameter * (1 - learning_rate * gradient)"),
        ),
    ),
    # close-descent
    WrongAnswer(
        id="steep-direction-only",
        step="close-descent",
        belief="The factor is that of the larger curvature alone.",
        question="Which direction moves least at a small learning rate?",
    ),
    WrongAnswer(
        id="flat-direction-only",
        step="close-descent",
        belief="The factor is that of the smaller curvature alone.",
        question="Which direction overshoots first when the learning rate grows?",
    ),
    WrongAnswer(
        id="left-as-loss",
        step="close-descent",
        belief="The factor is squared for each update, as it is for the loss.",
        question="Is a distance or its square asked for?",
    ),
)

ALTERNATIVES = (
    Alternative(step="mean-squared-error", code=loss_by_total),
    Alternative(step="line-gradients", code=line_by_examples),
    Alternative(step="gradient-descent", code=descent_into_one_block),
    Alternative(step="linear-gradients", code=linear_by_columns),
)
