"""Session 1.1: one neuron, a layer of them, and the bytes they read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from firsthand.course.steps import (
    Arguments,
    Build,
    Defend,
    Generator,
    Line,
    Order,
    Parameters,
    Predict,
    Relation,
    Scenario,
    Trace,
    Worked,
)
from firsthand.llm.foundations.activations import sigmoid
from firsthand.llm.foundations.memory import byte_offset, row_major_strides
from firsthand.llm.foundations.neuron import dot_product, layer, neuron, weighted_sum

FLOAT64_BYTES = np.dtype(np.float64).itemsize
CACHE_LINE_BYTES = 64  # of x86-64 and most Arm cores; used in the prose with its source

# The neuron that the prose works through.
EXAMPLE_INPUTS = np.array([1.0, 2.0, -1.0])
EXAMPLE_WEIGHTS = np.array([0.5, -0.25, 2.0])
EXAMPLE_BIAS = 0.75
EXAMPLE_SUM = weighted_sum(EXAMPLE_INPUTS, EXAMPLE_WEIGHTS, EXAMPLE_BIAS)
EXAMPLE_OUTPUT = neuron(EXAMPLE_INPUTS, EXAMPLE_WEIGHTS, EXAMPLE_BIAS, sigmoid)
EXAMPLE_DOT = dot_product(EXAMPLE_WEIGHTS, EXAMPLE_INPUTS)


def numbers(generator: Generator, *shape: int) -> np.ndarray:
    """Values of scale about 1, two decimals, so that a failing call can be read."""
    return np.round(generator.normal(size=shape), 2)


# --------------------------------------------------------------------------- vector-bytes


def draw_vector_bytes(generator: Generator, small: bool) -> Parameters:
    if small:
        return {"count": int(generator.integers(2, 9)), "vectors": int(generator.integers(2, 5))}
    return {"count": int(generator.integers(300, 3000)), "vectors": int(generator.integers(5, 40))}


vector_bytes = Predict(
    id="vector-bytes",
    draw=draw_vector_bytes,
    ask=(
        "A batch holds {vectors} vectors of {count} float64 numbers each, in one NumPy array. "
        "How many bytes do its elements occupy?"
    ),
    unit="bytes",
    answer=lambda count, vectors: int(np.empty((vectors, count)).nbytes),
    working=lambda count, vectors: (
        f"one float64 = 64 bits = {FLOAT64_BYTES} bytes",
        f"one vector = {count} numbers x {FLOAT64_BYTES} bytes = {count * FLOAT64_BYTES} bytes",
        f"the batch = {vectors} vectors x {count * FLOAT64_BYTES} bytes "
        f"= {vectors * count * FLOAT64_BYTES} bytes",
    ),
    hints=(
        "The name float64 tells the width of one element, in bits.",
        "Count the elements of the whole batch first, then multiply by the bytes of one.",
    ),
)

# --------------------------------------------------------------------------- dot-product


def dot_product_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        (np.array([2.0]), np.array([3.0])),
        (np.array([1.0, -2.0]), np.array([0.5, 4.0])),
        *((numbers(generator, size), numbers(generator, size)) for size in (3, 5, 8)),
        (np.zeros(0), np.zeros(0)),
        (np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])),
        (np.array([1.0, 2.0, 3.0]), np.array([2.0])),
    ]


def dot_product_oracle(weights: np.ndarray, inputs: np.ndarray) -> float:
    """In extended precision, by another route than the reference's loop."""
    if weights.shape != inputs.shape:
        raise ValueError("lengths differ")
    return float(np.sum(weights.astype(np.longdouble) * inputs.astype(np.longdouble)))


def doubled(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (1, 2, 4):
        weights, inputs = numbers(generator, size), numbers(generator, size)
        groups.append([(weights, inputs), (2.0 * weights, inputs)])
    return groups


def swapped(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (2, 3):
        weights, inputs = numbers(generator, size), numbers(generator, size)
        groups.append([(weights, inputs), (inputs, weights)])
    return groups


build_dot_product = Build(
    id="dot-product",
    part="foundations.neuron:dot_product",
    probes=dot_product_probes,
    oracle=dot_product_oracle,
    small=lambda: (np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.0, -1.0])),
    key_line="total += float(weight) * float(value)",
    forbids=(
        "numpy.dot",
        "numpy.inner",
        "numpy.vdot",
        "numpy.einsum",
        "numpy.matmul",
        "numpy.tensordot",
        "numpy.correlate",
        "numpy.convolve",
        "method:dot",
        "@",
    ),
    relations=(
        Relation(
            says="twice the weights give twice the product: (2w) · x = 2 (w · x)",
            groups=doubled,
            holds=lambda group, out: bool(np.allclose(out[1], 2.0 * out[0], atol=1e-9)),
        ),
        Relation(
            says="the order of the two vectors does not matter: w · x = x · w",
            groups=swapped,
            holds=lambda group, out: bool(np.allclose(out[0], out[1], atol=1e-9)),
        ),
    ),
    hints=(
        "One number comes back, whatever the length: what has to happen to the n products?",
        "Keep a running total that starts at zero; what should the empty vectors give?",
        "Compare the two shapes before the loop, for `zip` stops silently at the shorter one.",
    ),
)

# --------------------------------------------------------------------------- trace-neuron


def draw_neuron_trace(generator: Generator, small: bool) -> Worked:
    size = 2 if small else 3
    while True:
        inputs = generator.integers(-3, 4, size=size).astype(float)
        weights = generator.integers(-4, 5, size=size) / 2
        bias = float(generator.integers(-4, 5)) / 4
        z = weighted_sum(inputs, weights, bias)
        product = dot_product(weights, inputs)
        if bias != 0 and 0.2 < abs(z) < 3 and abs(product * bias - z) > 0.1 and product != 0:
            break
    a = float(sigmoid(np.array(z)))
    terms = " + ".join(f"({w:g})({x:g})" for w, x in zip(weights, inputs, strict=True))
    return Worked(
        given=(
            f"A neuron with inputs x = {inputs.tolist()}, weights w = {weights.tolist()}, "
            f"bias b = {bias:g} and the sigmoid as activation. Give the dot product, the weighted "
            "sum z and the output a, to four decimals."
        ),
        blanks={"dot": product, "z": z, "a": round(a, 6)},
        working=(
            f"dot = {terms} = {product:g}",
            f"z = dot + b = {product:g} + ({bias:g}) = {z:g}",
            f"a = 1 / (1 + exp(-z)) = 1 / (1 + exp({-z:g})) = {a:.4f}",
        ),
        tolerance=1e-3,
        wrong={
            "bias-left-out": {"dot": product, "z": product, "a": _sigmoid(product)},
            "bias-multiplied": {"dot": product, "z": product * bias, "a": _sigmoid(product * bias)},
            "sigmoid-sign": {"dot": product, "z": z, "a": _sigmoid(-z)},
        },
    )


def _sigmoid(z: float) -> float:
    return float(sigmoid(np.array(z)))


trace_neuron = Trace(
    id="trace-neuron",
    draw=draw_neuron_trace,
    hints=(
        "Three values, in the order in which they are computed; each needs the one before.",
        "The bias joins after the products are summed, and once.",
    ),
)

# --------------------------------------------------------------------------- neuron


def identity(z: Any) -> Any:
    return z


def square_minus_one(z: Any) -> Any:
    """No usual activation: a version that ignores its argument cannot pass by luck."""
    return z * z - 1.0


def doubling(z: Any) -> Any:
    return 2.0 * z


ACTIVATIONS = {"identity": identity, "square_minus_one": square_minus_one, "doubling": doubling}


def call_neuron(part: Any, inputs: Any, weights: Any, bias: float, name: str) -> Any:
    """Driver: functions do not travel to the learner's process, names do."""
    return part(inputs, weights, bias, ACTIVATIONS[name])


def neuron_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = [
        (np.array([1.0]), np.array([2.0]), 3.0, "identity"),
        (np.array([1.0, -1.0]), np.array([2.0, 0.5]), 0.25, "square_minus_one"),
        (np.array([0.0, 0.0]), np.array([2.0, 0.5]), -1.5, "doubling"),
    ]
    for size, name in ((3, "identity"), (4, "square_minus_one"), (6, "doubling")):
        bias = float(np.round(generator.normal(), 2)) + 0.5
        probes.append((numbers(generator, size), numbers(generator, size), bias, name))
    return probes


def neuron_oracle(inputs: np.ndarray, weights: np.ndarray, bias: float, name: str) -> float:
    z = np.sum(weights.astype(np.longdouble) * inputs.astype(np.longdouble)) + np.longdouble(bias)
    return float(ACTIVATIONS[name](z))


build_neuron = Build(
    id="neuron",
    part="foundations.neuron:neuron",
    probes=neuron_probes,
    oracle=neuron_oracle,
    driver=call_neuron,
    show=lambda inputs, weights, bias, name: (
        f"neuron(np.array({inputs.tolist()}), np.array({weights.tolist()}), {bias:g}, {name})"
        f"  # {name}(z) = "
        + {"identity": "z", "square_minus_one": "z * z - 1", "doubling": "2 * z"}[name]
    ),
    small=lambda: (np.array([1.0, 2.0]), np.array([3.0, -1.0]), 0.5, "doubling"),
    key_line="z = weighted_sum(inputs, weights, bias)",
    hints=(
        "Two stages: the weighted sum z, then the activation of z.",
        "With all inputs at zero a neuron still answers: which of its numbers is left?",
    ),
)

# --------------------------------------------------------------------------- row-major-strides

SHAPES: tuple[tuple[int, ...], ...] = ((5,), (2, 3), (4, 1), (2, 3, 5), (), (3, 0, 2), (7, 4, 2, 3))


def stride_probes(generator: Generator) -> Sequence[Arguments]:
    drawn = tuple(int(size) for size in generator.choice(np.arange(2, 9), size=3, replace=False))
    return [*((shape, 8) for shape in SHAPES), (drawn, 4), ((3, 2), 2), ((2, -1), 8)]


def strides_oracle(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Each stride is the product of the lengths behind its axis, times the size of an element."""
    if any(length < 0 for length in shape):
        raise ValueError("negative length")
    return tuple(
        itemsize * int(np.prod([max(length, 1) for length in shape[axis + 1 :]], dtype=np.int64))
        for axis in range(len(shape))
    )


build_strides = Build(
    id="row-major-strides",
    part="foundations.memory:row_major_strides",
    probes=stride_probes,
    oracle=strides_oracle,
    small=lambda: ((2, 3, 4), 8),
    key_line="step *= max(length, 1)",
    hints=(
        "Which axis is dense, so that its neighbours lie side by side in memory?",
        "Walk the axes from the innermost outwards and keep the bytes of one step.",
        "One step on an axis passes over everything that lies on the axes inside it.",
    ),
)

# --------------------------------------------------------------------------- element-offset


def draw_offset(generator: Generator, small: bool) -> Parameters:
    high = 5 if small else 60
    shape = generator.choice(np.arange(3, 3 + high), size=3, replace=False)
    shape = shape[:2] if small else shape
    index = [int(generator.integers(1, length)) for length in shape]
    return {"shape": tuple(int(length) for length in shape), "index": tuple(index)}


def offset_working(shape: tuple[int, ...], index: tuple[int, ...]) -> Sequence[str]:
    strides = row_major_strides(shape)
    terms = " + ".join(f"{i} x {s}" for i, s in zip(index, strides, strict=True))
    return (
        f"the last axis is dense: its stride is {FLOAT64_BYTES} bytes",
        f"the strides of shape {shape} are {strides}",
        f"offset = {terms} = {byte_offset(index, strides)}",
    )


element_offset = Predict(
    id="element-offset",
    draw=draw_offset,
    ask=(
        "A row-major float64 array has the shape {shape}. How many bytes after its first element "
        "does the element at index {index} begin?"
    ),
    unit="bytes",
    answer=lambda shape, index: byte_offset(index, row_major_strides(shape)),
    working=offset_working,
    hints=(
        "Find the stride of each axis before you look at the index.",
        "Each position of the index is multiplied by its own axis's stride.",
    ),
)

# --------------------------------------------------------------------------- layer


def layer_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = [
        (np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 2.0], [0.5, 1.0, -1.0]]), np.ones(3)),
    ]
    for batch, inputs, outputs in ((2, 3, 4), (5, 2, 3), (4, 4, 4), (3, 5, 1)):
        probes.append(
            (
                numbers(generator, batch, inputs),
                numbers(generator, inputs, outputs),
                numbers(generator, outputs),
            )
        )
    probes.append((np.ones((2, 3)), np.ones((2, 4)), np.ones(4)))
    return probes


def layer_oracle(inputs: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """One neuron at a time, in extended precision."""
    if inputs.shape[1] != weights.shape[0]:
        raise ValueError("inner axes differ")
    result = np.zeros((inputs.shape[0], weights.shape[1]), dtype=np.longdouble)
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            products = inputs[row].astype(np.longdouble) * weights[:, column]
            result[row, column] = np.sum(products) + biases[column]
    return result


def rows_alone(generator: Generator) -> Sequence[Sequence[Arguments]]:
    weights, biases = numbers(generator, 2, 3), numbers(generator, 3)
    batch = numbers(generator, 4, 2)
    return [[(batch, weights, biases), (batch[:1], weights, biases)]]


build_layer = Build(
    id="layer",
    part="foundations.neuron:layer",
    probes=layer_probes,
    oracle=layer_oracle,
    small=lambda: (
        np.array([[1.0, 2.0]]),
        np.array([[1.0, 0.0], [3.0, -1.0]]),
        np.array([0.5, 0.0]),
    ),
    key_line="return inputs @ weights + biases",
    relations=(
        Relation(
            says="the rows of a batch do not see each other: layer(X)[0] = layer(X[:1])[0]",
            groups=rows_alone,
            holds=lambda group, out: bool(np.allclose(out[0][:1], out[1], atol=1e-9)),
        ),
    ),
    hints=(
        "Column j of the weights belongs to neuron j: what must its bias be added to?",
        "The inner axes of the product are the features; the outer ones are batch and neurons.",
    ),
)

# --------------------------------------------------------------------------- order-layer

order_layer = Order(
    id="order-layer",
    ask=(
        "A layer of n neurons gets a batch. Put the lines in an order in which each uses only what "
        "stands above it, and leave out the lines that are wrong."
    ),
    lines=(
        Line(id="inputs", text="X: the batch, shape (batch, d)"),
        Line(id="weights", text="W: one column of d weights a neuron, shape (d, n)"),
        Line(id="biases", text="b: one bias a neuron, shape (n,)"),
        Line(id="product", text="P = X W, shape (batch, n)", needs=("inputs", "weights")),
        Line(
            id="sums",
            text="Z = P + b, the row b added to each row of P",
            needs=("product", "biases"),
        ),
        Line(id="outputs", text="A = f(Z), entry by entry", needs=("sums",)),
    ),
    wrong={
        "bias-per-example": "b: one bias an example, shape (batch,)",
        "activation-first": "A = f(P) + b, entry by entry",
    },
    hints=(
        "Data and parameters need nothing before them.",
        "Check the shapes of each line against the lines it uses.",
    ),
)

# --------------------------------------------------------------------------- close-layer


def draw_budget(generator: Generator, small: bool) -> Scenario:
    features = int(generator.choice([16, 24, 32] if small else [200, 320, 448, 640]))
    batch = int(generator.choice([4, 6] if small else [12, 20, 28]))
    widths = {"narrow": features // 2, "even": features, "wide": 2 * features}

    def figures_of(width: int, itemsize: int, with_bias: bool = True) -> dict[str, float]:
        parameters = features * width + (width if with_bias else 0)
        return {
            "parameters": float(parameters),
            "bytes": float(parameters * itemsize),
            "output": float(batch * width * itemsize),
        }

    figures = {name: figures_of(width, FLOAT64_BYTES) for name, width in widths.items()}
    budget = int((figures["even"]["bytes"] + figures["wide"]["bytes"]) / 2)
    width = widths["even"]
    chosen = figures["even"]
    return Scenario(
        text=(
            f"A layer gets a batch of {batch} rows of {features} features, all float64. Its "
            f"weights and biases together may take at most {budget} bytes. Choose the widest layer "
            "that fits. State its parameters (count), the bytes of these parameters (bytes) and "
            "the bytes of its output for the batch (output)."
        ),
        choices={name: f"{width} neurons" for name, width in widths.items()},
        figures=figures,
        best=("even",),
        units={"bytes": "bytes", "output": "bytes"},
        working=(
            f"parameters = {features} x {width} weights + {width} biases "
            f"= {chosen['parameters']:.0f}",
            f"bytes = {chosen['parameters']:.0f} x {FLOAT64_BYTES} = {chosen['bytes']:.0f}",
            f"output = {batch} x {width} x {FLOAT64_BYTES} = {chosen['output']:.0f}",
        ),
        tolerance=0.0,
        wrong={
            "biases-forgotten": {
                name: figures_of(width, FLOAT64_BYTES, with_bias=False)
                for name, width in widths.items()
            },
            "float32-bytes": {name: figures_of(width, 4) for name, width in widths.items()},
        },
    )


close_layer = Defend(
    id="close-layer",
    draw=draw_budget,
    closes="layer",
    hints=(
        "Parameters are the weights and the biases; the batch size is not among them.",
        "Work out all three widths, then see which is the widest under the budget.",
    ),
)

STEPS = (
    vector_bytes,
    build_dot_product,
    trace_neuron,
    build_neuron,
    build_strides,
    element_offset,
    build_layer,
    order_layer,
    close_layer,
)

# For the prose: the example layer.
EXAMPLE_LAYER = layer(
    np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]]),
    np.array([[1.0, 0.0], [0.5, -1.0]]),
    np.array([0.0, 10.0]),
)
