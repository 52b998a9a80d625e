"""Session 1.3: wrong versions that people write, and other right ones."""

import numpy as np

from firsthand.course.steps import Alternative, Mistake, WrongAnswer
from firsthand.llm.foundations.activations import log_sum_exp


def jacobian_built(probabilities: np.ndarray, gradient: np.ndarray, axis: int = -1) -> np.ndarray:
    if probabilities.shape != gradient.shape:
        raise ValueError("shapes differ")
    p = np.moveaxis(probabilities, axis, -1)
    g = np.moveaxis(gradient, axis, -1)
    jacobian = p[..., :, None] * (np.eye(p.shape[-1]) - p[..., None, :])
    return np.moveaxis((jacobian @ g[..., None])[..., 0], -1, axis)


# Right, in other styles.


def sigmoid_by_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(np.asarray(x) / 2)


def slope_by_decay(x: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.abs(x))
    return decay / np.square(1.0 + decay)


def log_sum_exp_axis_first(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    slices = np.moveaxis(logits, axis, 0)
    top = slices.max(axis=0)
    rest = np.zeros_like(top)
    for item in slices:
        rest = rest + np.exp(item - top)
    return np.log(rest) + top


def softmax_from_log(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.exp(logits - np.expand_dims(log_sum_exp(logits, axis), axis))


def backward_centred(probabilities: np.ndarray, gradient: np.ndarray, axis: int = -1) -> np.ndarray:
    if probabilities.shape != gradient.shape:
        raise ValueError(f"{probabilities.shape} against {gradient.shape}")
    average = (gradient * probabilities).sum(axis=axis, keepdims=True)
    return probabilities * (gradient - average)


MISTAKES = (
    # sigmoid
    Mistake(
        id="overflow-on-the-left",
        step="sigmoid",
        belief="The exponential of -x is taken for every x, so it overflows for very negative x.",
        question="What is exp(-x) for x = -10000?",
        edits=(
            ("np.exp(-np.abs(x))", "np.exp(-np.asarray(x))"),
            ("np.where(np.less(x, 0.0), decay, 1.0)", "1.0"),
        ),
    ),
    Mistake(
        id="overflow-on-the-right",
        step="sigmoid",
        belief="The exponential of x is taken for every x, so it overflows for very large x.",
        question="What is exp(x) for x = 10000?",
        edits=(
            ("np.exp(-np.abs(x))", "np.exp(x)"),
            ("np.where(np.less(x, 0.0), decay, 1.0)", "decay"),
        ),
    ),
    Mistake(
        id="both-branches-computed",
        step="sigmoid",
        belief="Both forms are computed for every x before one of them is chosen.",
        question="When are the second and third arguments of `np.where` evaluated?",
        edits=(
            ("np.exp(-np.abs(x))", "np.exp(-np.asarray(x))"),
            (
                "np.where(np.less(x, 0.0), decay, 1.0)",
                "np.where(np.less(x, 0.0), np.exp(x) / (1.0 + np.exp(x)), 1.0 / (1.0 + decay))",
            ),
            ("return numerator / (1.0 + decay)", "return numerator"),
        ),
    ),
    Mistake(
        id="sign-of-x-lost",
        step="sigmoid",
        belief="Only the size of x counts, so both halves rise from one half to 1.",
        question="Should sigmoid(-2) be above or below one half?",
        edits=(("np.where(np.less(x, 0.0), decay, 1.0)", "1.0"),),
    ),
    Mistake(
        id="sigmoid-reflected",
        step="sigmoid",
        belief="The function falls where it should rise: it is the sigmoid of -x.",
        question="Towards which value does the sigmoid go for large positive x?",
        edits=(("np.less(x, 0.0)", "np.greater(x, 0.0)"),),
    ),
    # slope
    WrongAnswer(
        id="slope-negated",
        step="slope",
        belief="The sign is turned: this function rises everywhere, so its slope is not negative.",
        question="Which sign has the derivative of exp(-x), and which that of 1/(1 + u) by u?",
    ),
    WrongAnswer(
        id="other-activation",
        step="slope",
        belief="This is the form that belongs to the other one of sigmoid and tanh.",
        question="At which two values of y must the slope be zero?",
    ),
    WrongAnswer(
        id="inner-factor-lost",
        step="slope",
        belief="The factor inside the activation has not come out of the chain rule.",
        question="How much faster does the argument of the activation grow than x?",
    ),
    WrongAnswer(
        id="outer-factor-lost",
        step="slope",
        belief="The output y is used as if the factor in front of the activation were 1.",
        question="Between which two values does y lie?",
    ),
    # sigmoid-derivative
    Mistake(
        id="argument-taken-as-output",
        step="sigmoid-derivative",
        belief="The argument is used as if it were already the output of the sigmoid.",
        question="What does a caller pass to this function, by its docstring?",
        edits=(("sigmoid(x) * sigmoid(-np.asarray(x))", "x * (1.0 - np.asarray(x))"),),
    ),
    Mistake(
        id="tail-cancelled",
        step="sigmoid-derivative",
        belief="One factor is 1 minus a number that rounds to 1, so the slope is lost for large x.",
        question="What is 1.0 - sigmoid(700.0) in float64?",
        edits=(("sigmoid(-np.asarray(x))", "(1.0 - sigmoid(x))"),),
    ),
    Mistake(
        id="complement-alone",
        step="sigmoid-derivative",
        belief="Only one of the two factors of the slope is there.",
        question="What should the slope be for a very negative x, where the sigmoid is flat?",
        edits=(("sigmoid(x) * sigmoid(-np.asarray(x))", "sigmoid(-np.asarray(x))"),),
    ),
    Mistake(
        id="tanh-slope",
        step="sigmoid-derivative",
        belief="It is 1 minus the square of the output, the form that belongs to tanh.",
        question="What should the slope be for a very negative x, where the sigmoid is flat?",
        edits=(("sigmoid(x) * sigmoid(-np.asarray(x))", "1.0 - np.square(sigmoid(x))"),),
    ),
    Mistake(
        id="quotient-overflows",
        step="sigmoid-derivative",
        belief="The quotient rule is typed as it stands, and its square overflows for negative x.",
        question="What is the square of 1 + exp(700)?",
        edits=(
            (
                "sigmoid(x) * sigmoid(-np.asarray(x))",
                "np.exp(-np.asarray(x)) / np.square(1.0 + np.exp(-np.asarray(x)))",
            ),
        ),
    ),
    # log-sum-exp
    Mistake(
        id="sum-overflows",
        step="log-sum-exp",
        belief="The exponentials are taken of the logits as they come, without a shift.",
        question="What is np.exp(1000.0), and what is its logarithm?",
        edits=(
            ("np.exp(logits - largest)", "np.exp(logits)"),
            ("np.squeeze(largest, axis=axis) + np.log(total)", "np.log(total)"),
        ),
    ),
    Mistake(
        id="shift-not-returned",
        step="log-sum-exp",
        belief="What was subtracted from the logits is not added again.",
        question="What should log_sum_exp of a single logit be?",
        edits=(("np.squeeze(largest, axis=axis) + np.log(total)", "np.log(total)"),),
    ),
    Mistake(
        id="one-shift-for-all",
        step="log-sum-exp",
        belief="All slices are shifted by the maximum of the whole array.",
        question="What becomes of the exponentials of a row whose logits lie 2000 below it?",
        edits=(("np.max(logits, axis=axis, keepdims=True)", "np.max(logits, keepdims=True)"),),
    ),
    Mistake(
        id="mean-of-exponentials",
        step="log-sum-exp",
        belief="The exponentials are averaged, not summed.",
        question="By how much should the result grow when each logit appears twice?",
        edits=(
            (
                "np.sum(np.exp(logits - largest), axis=axis)",
                "np.mean(np.exp(logits - largest), axis=axis)",
            ),
        ),
    ),
    Mistake(
        id="log-moved-inside",
        step="log-sum-exp",
        belief="The logarithm is taken of each exponential, which leaves the sum of the logits.",
        question="Is the logarithm of a sum the sum of the logarithms?",
        edits=(
            ("np.exp(logits - largest)", "logits"),
            ("np.squeeze(largest, axis=axis) + np.log(total)", "total"),
        ),
    ),
    # softmax
    Mistake(
        id="softmax-overflows",
        step="softmax",
        belief="The exponentials are taken of the logits as they come, without a shift.",
        question="What is np.exp(1000.0) divided by itself?",
        edits=(("np.exp(logits - largest)", "np.exp(logits)"),),
    ),
    Mistake(
        id="sum-over-everything",
        step="softmax",
        belief="All numbers of the array share one total, not those of each slice.",
        question="What should the shares of one row of a batch sum to?",
        edits=(
            (
                "np.sum(exponentials, axis=axis, keepdims=True)",
                "np.sum(exponentials, keepdims=True)",
            ),
        ),
    ),
    Mistake(
        id="maximum-over-everything",
        step="softmax",
        belief="All slices are shifted by the maximum of the whole array.",
        question="What becomes of the exponentials of a row whose logits lie 2000 below it?",
        edits=(("np.max(logits, axis=axis, keepdims=True)", "np.max(logits, keepdims=True)"),),
    ),
    Mistake(
        id="axis-ignored",
        step="softmax",
        belief="The shares are always taken along the last axis.",
        question="Which sums are 1 after softmax(logits, axis=0)?",
        edits=(
            ("np.max(logits, axis=axis, keepdims=True)", "np.max(logits, axis=-1, keepdims=True)"),
            (
                "np.sum(exponentials, axis=axis, keepdims=True)",
                "np.sum(exponentials, axis=-1, keepdims=True)",
            ),
        ),
    ),
    Mistake(
        id="logits-divided",
        step="softmax",
        belief="The logits themselves are divided by their sum, without an exponential.",
        question="Which share should a negative logit get?",
        edits=(("np.exp(logits - largest)", "logits"),),
    ),
    # log-softmax
    Mistake(
        id="logits-kept",
        step="log-softmax",
        belief="The total belongs to the shifted logits, and it is taken from unshifted ones.",
        question="Which shift does the result keep when 100 is added to every logit?",
        edits=(("return shifted - logarithm", "return logits - logarithm"),),
    ),
    Mistake(
        id="total-of-everything",
        step="log-softmax",
        belief="All slices share one total.",
        question="How many totals do logits of shape (2, 3) need along the last axis?",
        edits=(
            (
                "np.sum(np.exp(shifted), axis=axis, keepdims=True)",
                "np.sum(np.exp(shifted), keepdims=True)",
            ),
        ),
    ),
    Mistake(
        id="maximum-of-everything",
        step="log-softmax",
        belief="All slices are shifted by one maximum, so a slice far below it sums to 0.",
        question="How many maxima do logits of shape (2, 3) need along the last axis?",
        edits=(("np.max(logits, axis=axis, keepdims=True)", "np.max(logits, keepdims=True)"),),
    ),
    Mistake(
        id="total-not-shifted",
        step="log-softmax",
        belief="The shifted logits are measured by a total of the unshifted ones.",
        question="What is the largest exponential that the sum may hold?",
        edits=(("np.exp(shifted)", "np.exp(logits)"),),
    ),
    # trace-jacobian
    WrongAnswer(
        id="diagonal-alone",
        step="trace-jacobian",
        belief="Each share is taken to depend on its own logit only.",
        question="What must happen to the other shares when one of them grows?",
    ),
    WrongAnswer(
        id="cross-terms-positive",
        step="trace-jacobian",
        belief="All shares are taken to grow with the first logit.",
        question="What do the derivatives of all shares by one logit sum to?",
    ),
    WrongAnswer(
        id="shares-of-logits",
        step="trace-jacobian",
        belief="The shares are those of the logits, not of their exponentials.",
        question="By which factor do two exponentials differ whose logits differ by 1?",
    ),
    # softmax-backward
    Mistake(
        id="diagonal-gradient",
        step="softmax-backward",
        belief="Only the diagonal of the Jacobian is used: p (1 - p) times the gradient.",
        question="Which of the outputs change when one logit changes?",
        edits=(("probabilities * mean", "probabilities * weighted"),),
    ),
    Mistake(
        id="mean-not-weighted",
        step="softmax-backward",
        belief="The plain mean of the gradient is subtracted, not the one weighted by the shares.",
        question="How much should the gradient of a share near 0 count in the average?",
        edits=(
            (
                "np.sum(weighted, axis=axis, keepdims=True)",
                "np.mean(gradient, axis=axis, keepdims=True)",
            ),
        ),
    ),
    Mistake(
        id="average-not-shared-out",
        step="softmax-backward",
        belief="The average is subtracted from every entry alike, whatever the entry's share.",
        question="What should the entries of the result sum to?",
        edits=(("probabilities * mean", "mean"),),
    ),
    Mistake(
        id="cross-entropy-shortcut",
        step="softmax-backward",
        belief="It is p minus the second argument: right for softmax and cross-entropy joined.",
        question="What does the second argument hold, by the docstring?",
        edits=(("weighted - probabilities * mean", "probabilities - gradient"),),
    ),
    Mistake(
        id="jacobian-built",
        step="softmax-backward",
        belief="The whole Jacobian is built, n² numbers for each slice, and then multiplied.",
        question="Which part of the sum over i is the same for every j?",
        code=jacobian_built,
    ),
    # close-saturation
    WrongAnswer(
        id="slopes-added",
        step="close-saturation",
        belief="The slopes of the layers are added.",
        question="What does the chain rule do with the slopes of functions applied in turn?",
    ),
    WrongAnswer(
        id="slope-at-zero",
        step="close-saturation",
        belief="The slope is the one at zero, the steepest point, not the one at z.",
        question="At which sum do the units of this network stand?",
    ),
    WrongAnswer(
        id="value-for-slope",
        step="close-saturation",
        belief="The activation's value stands where its slope belongs.",
        question="What multiplies a gradient on its way back through a function?",
    ),
    WrongAnswer(
        id="one-layer-counted",
        step="close-saturation",
        belief="The operations are those of a single layer.",
        question="How many units does the whole network have?",
    ),
)

ALTERNATIVES = (
    Alternative(step="sigmoid", code=sigmoid_by_tanh),
    Alternative(step="sigmoid-derivative", code=slope_by_decay),
    Alternative(step="log-sum-exp", code=log_sum_exp_axis_first),
    Alternative(step="softmax", code=softmax_from_log),
    Alternative(step="softmax-backward", code=backward_centred),
)
