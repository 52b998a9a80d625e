"""Session 1.1: wrong versions that people write, and other right ones."""

import numpy as np

from firsthand.course.steps import Alternative, Mistake, WrongAnswer, WrongFormula
from firsthand.llm.foundations.memory import row_major_strides


def products_not_summed(weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    if weights.shape != inputs.shape:
        raise ValueError("lengths differ")
    return weights * inputs


def shorter_length(weights: np.ndarray, inputs: np.ndarray) -> float:
    total = 0.0
    for weight, value in zip(weights, inputs, strict=False):
        total += float(weight) * float(value)
    return total


def dot_by_index(weights: np.ndarray, inputs: np.ndarray) -> np.floating:
    """Right, in another style: indices, a NumPy float, its own message."""
    if len(weights) != len(inputs):
        raise ValueError(f"{len(weights)} weights for {len(inputs)} inputs")
    return np.float64(sum(weights[i] * inputs[i] for i in range(len(weights))))


def neuron_vectorised(inputs, weights, bias, activation):  # type: ignore[no-untyped-def]
    return activation(np.sum(np.multiply(weights, inputs)) + bias)


def strides_by_products(shape: tuple[int, ...], itemsize: int = 8) -> tuple[int, ...]:
    if min(shape, default=0) < 0:
        raise ValueError("negative length")
    strides: tuple[int, ...] = ()
    for axis in range(len(shape)):
        behind = 1
        for length in shape[axis + 1 :]:
            behind = behind * (length if length else 1)
        strides = (*strides, behind * itemsize)
    return strides


def layer_by_rows(inputs: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    if inputs.shape[1] != weights.shape[0]:
        raise ValueError("features differ")
    rows = [sum(x * w for x, w in zip(row, weights, strict=True)) + biases for row in inputs]
    return np.array(rows)


def transposed_strides(shape: tuple[int, ...], index: tuple[int, ...]) -> int:
    strides = row_major_strides(shape[::-1])[::-1]
    return sum(i * s for i, s in zip(index, strides, strict=True))


MISTAKES = (
    # vector-bytes
    WrongFormula(
        id="bits-for-bytes",
        step="vector-bytes",
        belief="It counts 64 for each number, which is its width in bits.",
        question="How many bits has a byte?",
        formula=lambda count, vectors: 64 * count * vectors,
    ),
    WrongFormula(
        id="float32-width",
        step="vector-bytes",
        belief="It counts 4 bytes for each number, the width of a float32.",
        question="Which dtype does NumPy give to np.array([1.0])?",
        formula=lambda count, vectors: 4 * count * vectors,
    ),
    WrongFormula(
        id="one-vector-only",
        step="vector-bytes",
        belief="It is the size of one vector of the batch.",
        question="How many numbers does the whole array hold?",
        formula=lambda count, vectors: 8 * count,
    ),
    # dot-product
    Mistake(
        id="last-product-only",
        step="dot-product",
        belief="Each product replaces the total, so only the last one is left.",
        question="What is in `total` after the second turn of the loop?",
        edits=(("total += ", "total = "),),
    ),
    Mistake(
        id="mean-of-products",
        step="dot-product",
        belief="The products are averaged.",
        question="What should the dot product of [1, 1] and [1, 1] be?",
        edits=(("return total", "return total / max(len(weights), 1)"),),
    ),
    Mistake(
        id="sum-of-sums",
        step="dot-product",
        belief="Each pair is added instead of multiplied.",
        question="What should a weight of zero do to its input?",
        edits=(("float(weight) * float(value)", "float(weight) + float(value)"),),
    ),
    Mistake(
        id="products-not-summed",
        step="dot-product",
        belief="The products come back one by one and are never summed.",
        question="How many numbers does one neuron hand to its activation?",
        code=products_not_summed,
    ),
    Mistake(
        id="lengths-unchecked",
        step="dot-product",
        belief="Vectors of different lengths are accepted and the rest of the longer one is lost.",
        question="Where does `zip` stop when one of its arguments is shorter?",
        code=shorter_length,
    ),
    # trace-neuron
    WrongAnswer(
        id="bias-left-out",
        step="trace-neuron",
        belief="The bias has no effect on z here.",
        question="What does the neuron answer when all inputs are zero?",
    ),
    WrongAnswer(
        id="bias-multiplied",
        step="trace-neuron",
        belief="The bias is multiplied in instead of added.",
        question="Which value of the bias should leave the neuron unchanged?",
    ),
    WrongAnswer(
        id="sigmoid-sign",
        step="trace-neuron",
        belief="The exponent has the sign of z instead of the opposite one.",
        question="Should a larger z give a larger or a smaller output?",
    ),
    # neuron
    Mistake(
        id="no-bias",
        step="neuron",
        belief="The bias is not used.",
        question="What should the neuron answer when every input is zero?",
        edits=(("weighted_sum(inputs, weights, bias)", "weighted_sum(inputs, weights, 0.0)"),),
    ),
    Mistake(
        id="bias-after-activation",
        step="neuron",
        belief="The bias is added after the activation.",
        question="Which of the two should the bias shift: the sum or the output?",
        edits=(
            ("weighted_sum(inputs, weights, bias)", "weighted_sum(inputs, weights, 0.0)"),
            ("float(activation(z))", "float(activation(z)) + bias"),
        ),
    ),
    Mistake(
        id="no-activation",
        step="neuron",
        belief="The weighted sum comes back without the activation.",
        question="What do two neurons in a row compute if neither bends its sum?",
        edits=(("float(activation(z))", "float(z)"),),
    ),
    Mistake(
        id="activation-of-inputs",
        step="neuron",
        belief="The activation is applied to the inputs, before they are weighed.",
        question="How many numbers should the activation see in one neuron?",
        edits=(
            (
                "weighted_sum(inputs, weights, bias)",
                "weighted_sum(activation(inputs), weights, bias)",
            ),
            ("float(activation(z))", "float(z)"),
        ),
    ),
    # row-major-strides
    Mistake(
        id="column-major",
        step="row-major-strides",
        belief="The first axis is taken as the dense one, which is column-major (Fortran) order.",
        question="In a 2 x 3 array, which element lies 8 bytes after element (0, 0)?",
        edits=(
            ("for length in reversed(shape):", "for length in shape:"),
            ("return tuple(reversed(strides))", "return tuple(strides)"),
        ),
    ),
    Mistake(
        id="elements-for-bytes",
        step="row-major-strides",
        belief="The strides count elements, not bytes.",
        question="How far apart, in bytes, are two neighbours of a float64 vector?",
        edits=(("step = itemsize", "step = 1"),),
    ),
    Mistake(
        id="own-length-included",
        step="row-major-strides",
        belief="Each stride includes the length of its own axis.",
        question="How many bytes is one step on the last axis?",
        edits=(
            (
                "strides.append(step)\n        step *= max(length, 1)",
                "step *= max(length, 1)\n        strides.append(step)",
            ),
        ),
    ),
    Mistake(
        id="sum-for-product",
        step="row-major-strides",
        belief="The lengths behind an axis are added instead of multiplied.",
        question="How many elements lie in one block of shape (3, 5)?",
        edits=(("step *= max(length, 1)", "step += max(length, 1) * itemsize"),),
    ),
    # element-offset
    WrongFormula(
        id="offset-in-elements",
        step="element-offset",
        belief="It counts elements, not bytes.",
        question="How many bytes does one step on the last axis take?",
        formula=lambda shape, index: sum(
            i * s for i, s in zip(index, row_major_strides(shape, 1), strict=True)
        ),
    ),
    WrongFormula(
        id="offset-column-major",
        step="element-offset",
        belief="The first axis is taken as the dense one (column-major order).",
        question="Which of two indices changes between neighbours of a row?",
        formula=transposed_strides,
    ),
    WrongFormula(
        id="offset-of-the-end",
        step="element-offset",
        belief="It is where the element ends.",
        question="At which byte does the element (0, 0) begin?",
        formula=lambda shape, index: (
            8 + sum(i * s for i, s in zip(index, row_major_strides(shape), strict=True))
        ),
    ),
    # layer
    Mistake(
        id="layer-without-bias",
        step="layer",
        belief="The biases are not added.",
        question="What should the layer answer for a row of zeros?",
        edits=(("inputs @ weights + biases", "inputs @ weights"),),
    ),
    Mistake(
        id="bias-summed",
        step="layer",
        belief="Every neuron gets the sum of all biases.",
        question="How many biases should the first column of the result see?",
        edits=(("+ biases", "+ biases.sum()"),),
    ),
    Mistake(
        id="batch-averaged",
        step="layer",
        belief="The rows of the batch are averaged into each other.",
        question="Should the answer for one row change when another row changes?",
        edits=(
            (
                "return inputs @ weights + biases",
                "mean = inputs.mean(axis=0, keepdims=True)\n"
                "    return (inputs * 0 + mean) @ weights + biases",
            ),
        ),
    ),
    Mistake(
        id="bias-subtracted",
        step="layer",
        belief="The biases are subtracted.",
        question="Which sign has b in z = w · x + b?",
        edits=(("+ biases", "- biases"),),
    ),
    # order-layer
    WrongAnswer(
        id="bias-per-example",
        step="order-layer",
        belief="A bias belongs to a neuron, not to an example of the batch.",
        question="How many biases has a layer of 4 neurons that gets 100 examples?",
    ),
    WrongAnswer(
        id="activation-first",
        step="order-layer",
        belief="The bias would stand outside the activation.",
        question="Which of the two should the bias shift: the sum or the output?",
    ),
    # close-layer
    WrongAnswer(
        id="biases-forgotten",
        step="close-layer",
        belief="The figures count the weights and leave out the biases.",
        question="How many parameters has one neuron with two inputs?",
    ),
    WrongAnswer(
        id="float32-bytes",
        step="close-layer",
        belief="The figures count 4 bytes for each number.",
        question="Which dtype does the scenario state?",
    ),
)

ALTERNATIVES = (
    Alternative(step="dot-product", code=dot_by_index),
    Alternative(step="neuron", code=neuron_vectorised),
    Alternative(step="row-major-strides", code=strides_by_products),
    Alternative(step="layer", code=layer_by_rows),
)
