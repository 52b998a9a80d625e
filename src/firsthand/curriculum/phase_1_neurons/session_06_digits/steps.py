"""Session 1.6: an MLP trained on real digits with the learner's own parts."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from firsthand.course.checks.twins import twin
from firsthand.course.steps import (
    Arguments,
    Build,
    Debug,
    Generator,
    Gradient,
    Relation,
)
from firsthand.curriculum.phase_1_neurons.session_06_digits import examples
from firsthand.curriculum.phase_1_neurons.session_06_digits.questions import (
    close_mlp,
    measure_digits,
    trace_adam,
)

STACK = "firsthand.llm"
Wide = np.longdouble


def numbers(generator: Generator, *shape: int) -> np.ndarray:
    """Values of scale about 1, two decimals, so that a failing call can be read."""
    return np.round(generator.normal(size=shape), 2)


def text(array: np.ndarray) -> str:
    """An array as it is typed; a large one by its shape."""
    if array.size > 24:
        return f"<array of shape {array.shape}>"
    return f"np.array({array.tolist()})" if array.size else f"np.zeros({array.shape})"


# --------------------------------------------------------------------------- oracles

SLOPES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    # the function, and its slope as a function of its own output
    "relu": (lambda z: np.where(z > 0, z, 0), lambda a: (a > 0).astype(Wide)),
    "tanh": (np.tanh, lambda a: 1 - a * a),
    "identity": (lambda z: z, lambda a: np.ones_like(a)),
}
Layers = Sequence[np.ndarray]


def signals(weights: Layers, biases: Layers, x: np.ndarray, activation: str) -> list[np.ndarray]:
    """The output of each layer in extended precision; the activation follows all but the last."""
    found = [x.astype(Wide)]
    for weight, bias in zip(weights, biases, strict=True):
        if found[-1].shape[1] != weight.shape[0]:
            raise ValueError("features differ")
        z = found[-1] @ weight.astype(Wide) + bias.astype(Wide)
        found.append(z if len(found) == len(weights) else SLOPES[activation][0](z))
    return found[1:]


def layer_gradients(
    weights: Layers, x: np.ndarray, outputs: Layers, cotangent: np.ndarray, activation: str
) -> list[np.ndarray]:
    """Of weight and bias of each layer, first layer first."""
    upstream, found = cotangent.astype(Wide), []
    for index in reversed(range(len(weights))):
        below = outputs[index - 1] if index else x.astype(Wide)
        found += [upstream.sum(axis=0), below.T @ upstream]
        upstream = (upstream @ weights[index].astype(Wide).T) * SLOPES[activation][1](below)
    return found[::-1]


def row_losses(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy of each row, and its gradient for the row's own logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    right = np.eye(logits.shape[1], dtype=Wide)[labels]
    losses = np.log(totals[:, 0]) - (shifted * right).sum(axis=1)
    return losses, exponentials / totals - right


def adam_oracle(
    parameter: np.ndarray,
    gradient: np.ndarray,
    first_moment: np.ndarray,
    second_moment: np.ndarray,
    step: int,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By another route: the corrections are put into the learning rate and into epsilon.

    Kingma & Ba 2015, end of section 2.
    """
    if step < 1 or parameter.shape != gradient.shape:
        raise ValueError("step or shapes")
    slope = gradient.astype(Wide)
    first = slope + Wide(beta1) * (first_moment - slope)
    second = slope**2 + Wide(beta2) * (second_moment - slope**2)
    root = np.sqrt(1 - Wide(beta2) ** step)
    rate = Wide(learning_rate) * root / (1 - Wide(beta1) ** step)
    return parameter - rate * first / (np.sqrt(second) + Wide(epsilon) * root), first, second


def first_weights(sizes: Sequence[int], seed: int, scale: float) -> list[np.ndarray]:
    """Weights of scale 1 / sqrt(fan_in), drawn here: the step's own, whatever the parts draw."""
    generator = np.random.default_rng([6, seed])
    return [
        scale * generator.normal(size=(fan_in, fan_out)) / math.sqrt(fan_in)
        for fan_in, fan_out in pairwise(sizes)
    ]


# --------------------------------------------------------------------------- he-normal


def call_he(part: Any, fan_in: int, fan_out: int, seed: int, spread: bool = False) -> Any:
    """Driver: a seed travels to the learner's process, a generator does not.

    spread: of a draw that is too large to be shown, fan_in times its variance.
    """
    weights = part(fan_in, fan_out, np.random.default_rng(seed))
    return float(fan_in * np.var(weights)) if spread else weights


def show_he(fan_in: int, fan_out: int, seed: int, spread: bool = False) -> str:
    call = f"he_normal({fan_in}, {fan_out}, np.random.default_rng({seed}))"
    if spread:
        return f"{fan_in} * np.var({call})"
    count = max(fan_in * fan_out, 0)
    drawn = np.random.default_rng(seed).standard_normal(min(count, 6))
    shown = ", ".join(f"{number:.5f}" for number in drawn) + (", ..." if count > 6 else "")
    return f"{call}  # its standard normal numbers: {shown}"


def he_probes(generator: Generator) -> Sequence[Arguments]:
    seeds = [int(seed) for seed in generator.integers(1, 1000, size=5)]
    shapes = [(2, 1), (3, 2), (2, 5), (8, 3), (0, 4)]
    return [(*shape, seed) for shape, seed in zip(shapes, seeds, strict=True)]


def he_oracle(fan_in: int, fan_out: int, seed: int) -> np.ndarray:
    """Standard normal numbers one by one, scaled in extended precision."""
    if fan_in < 1 or fan_out < 1:
        raise ValueError("a fan below 1")
    generator = np.random.default_rng(seed)
    drawn = [generator.standard_normal() for _ in range(fan_in * fan_out)]
    return np.array(drawn, dtype=Wide).reshape(fan_in, fan_out) * np.sqrt(Wide(2) / fan_in)


def large_draw(generator: Generator) -> Sequence[Sequence[Arguments]]:
    """Of 60,000 draws the estimate has a deviation of 0.012; the next wrong factor is 1."""
    return [[(300, 200, int(generator.integers(1, 1000)), True)]]


build_he = Build(
    id="he-normal",
    part="foundations.initialization:he_normal",
    probes=he_probes,
    oracle=he_oracle,
    driver=call_he,
    show=show_he,
    small=lambda: (3, 1, 0),
    key_line="deviation = math.sqrt(2.0 / fan_in)",
    relations=(
        Relation(
            says="of a large draw, fan_in times the variance is 2 (to within 0.1)",
            groups=large_draw,
            holds=lambda group, out: bool(abs(out[0] - 2.0) < 0.1),
        ),
    ),
    hints=(
        "The formula gives a variance; which number does a normal distribution take as its width?",
        "How many products does one output of the layer sum? Only that count is in the formula.",
        "One draw of the whole shape takes the numbers in row-major order.",
    ),
)

# --------------------------------------------------------------------------- linear


def run_linear(
    part: Any, weight: np.ndarray, bias: np.ndarray, x: np.ndarray, cotangent: np.ndarray
) -> Any:
    """Driver: one layer forward and backward; dL/dx, dL/dW, dL/db, the output, the first bias."""
    fan_in, fan_out = weight.shape
    layer = part(fan_in, fan_out, np.random.default_rng(0), lambda *_: weight.copy())
    first_bias = layer.bias.data
    layer.bias.data = first_bias + bias
    inputs = type(layer.weight)(x, requires_grad=True)
    output = layer(inputs)
    output.backward(cotangent)
    return inputs.grad, layer.weight.grad, layer.bias.grad, output.data, first_bias


def linear_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = [
        (np.array([[2.0], [-1.0]]), np.array([0.5]), np.array([[1.0, 3.0]]), np.array([[2.0]]))
    ]
    for batch, fan_in, fan_out in ((2, 1, 3), (4, 2, 3), (5, 4, 2)):
        probes.append(
            (
                numbers(generator, fan_in, fan_out),
                numbers(generator, fan_out),
                numbers(generator, batch, fan_in),
                numbers(generator, batch, fan_out),
            )
        )
    probes.append((np.ones((2, 3)), np.zeros(3), np.ones((4, 5)), np.ones((4, 3))))
    return probes


def linear_oracle(
    weight: np.ndarray, bias: np.ndarray, x: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Sums over single products in extended precision."""
    if x.shape[1] != weight.shape[0]:
        raise ValueError("features differ")
    wide, upstream = x.astype(Wide), cotangent.astype(Wide)
    output = (wide[:, :, None] * weight[None, :, :]).sum(axis=1) + bias
    of_x = (upstream[:, None, :] * weight[None, :, :]).sum(axis=2)
    of_weight = (wide[:, :, None] * upstream[:, None, :]).sum(axis=0)
    return of_x, of_weight, upstream.sum(axis=0), output, np.zeros(weight.shape[1])


build_linear = Build(
    id="linear",
    part="foundations.layers:Linear",
    methods=("__init__", "__call__"),
    probes=linear_probes,
    oracle=linear_oracle,
    driver=run_linear,
    show=lambda weight, bias, x, cotangent: (
        f"a Linear with weight {text(weight)}, after bias.data += {text(bias)}, of the Tensor "
        f"{text(x)}, then backward({text(cotangent)}): dL/dx, dL/dW, dL/db, the output, the first "
        "bias"
    ),
    small=lambda: (
        np.array([[2.0], [-1.0]]),
        np.array([0.5]),
        np.array([[1.0, 3.0]]),
        np.array([[2.0]]),
    ),
    key_line="as_tensor(x) @ self.weight + self.bias",
    gradient=Gradient(
        forward=lambda x, weight, bias: x @ weight + bias,
        inputs=lambda arguments: (arguments[2], arguments[0], arguments[1]),
        cotangent=lambda arguments: arguments[3],
    ),
    hints=(
        "Two Tensors that ask for a gradient, and a product and a sum of Tensors: no more.",
        "Every operand must stay a Tensor; a bare array is a constant for the graph.",
        "Which shape must the bias have so that broadcasting adds it to each row?",
    ),
)

# --------------------------------------------------------------------------- mlp


def run_mlp(
    part: Any,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    activation: str,
    x: np.ndarray,
    cotangent: np.ndarray,
) -> Any:
    """Driver: output, output of each layer, gradient of each parameter in the order listed."""
    given = iter(weights)
    sizes = [weights[0].shape[0], *(weight.shape[1] for weight in weights)]
    model = part(sizes, np.random.default_rng(0), activation, lambda *_: next(given).copy())
    for layer, bias in zip(model.layers, biases, strict=True):
        layer.bias.data = bias.copy()
    outputs = model.layer_outputs(x)
    result = model(x)
    result.backward(cotangent)
    return (
        result.data,
        [output.data for output in outputs],
        [parameter.grad for parameter in model.parameters()],
    )


def mlp_case(generator: Generator, sizes: Sequence[int], activation: str, batch: int) -> Arguments:
    pairs = list(pairwise(sizes))
    return (
        tuple(numbers(generator, *pair) for pair in pairs),
        tuple(numbers(generator, fan_out) for _, fan_out in pairs),
        activation,
        numbers(generator, batch, sizes[0]),
        numbers(generator, batch, sizes[-1]),
    )


def mlp_small() -> Arguments:
    return (
        (np.array([[1.0, -1.0]]), np.array([[2.0], [1.0]])),
        (np.array([0.0, 0.5]), np.array([1.0])),
        "relu",
        np.array([[3.0]]),
        np.array([[1.0]]),
    )


def mlp_probes(generator: Generator) -> Sequence[Arguments]:
    wrong = mlp_case(generator, (3, 2), "tanh", 4)
    return [
        mlp_small(),
        mlp_case(generator, (2, 3), "tanh", 1),
        mlp_case(generator, (2, 4, 3), "relu", 5),
        mlp_case(generator, (3, 5, 4, 2), "tanh", 6),
        mlp_case(generator, (4, 2, 3), "identity", 5),
        (*wrong[:3], numbers(generator, 4, 5), wrong[4]),
    ]


def mlp_oracle(
    weights: Layers, biases: Layers, activation: str, x: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    outputs = signals(weights, biases, x, activation)
    return outputs[-1], outputs, layer_gradients(weights, x, outputs, cotangent, activation)


def mlp_show(
    weights: Layers, biases: Layers, activation: str, x: np.ndarray, cotangent: np.ndarray
) -> str:
    sizes = [weights[0].shape[0], *(weight.shape[1] for weight in weights)]
    return (
        f"MLP({sizes}, activation={activation!r}) with weights [{', '.join(map(text, weights))}] "
        f"and biases [{', '.join(map(text, biases))}], of {text(x)}, then "
        f"backward({text(cotangent)}): output, layer outputs, gradients of parameters()"
    )


build_mlp = Build(
    id="mlp",
    part="foundations.layers:MLP",
    methods=("layer_outputs", "__call__", "parameters"),
    probes=mlp_probes,
    oracle=mlp_oracle,
    driver=run_mlp,
    show=mlp_show,
    small=mlp_small,
    key_line="signal = self.activation(layer(signal))",
    hints=(
        "Carry one signal through the layers; what does each layer get, and what does it leave?",
        "Which layer hands its sums on as they are, because the loss works on them?",
        "The list of parameters is flat and holds the very Tensors that the layers use.",
    ),
)

# --------------------------------------------------------------------------- momentum


def momentum_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = [
        (np.array([1.0]), np.array([2.0]), np.array([0.0]), 0.1, 0.9),
        (np.array([1.0]), np.array([2.0]), np.array([4.0]), 0.1, 0.5),
    ]
    for shape, rate, momentum in (((3,), 0.2, 0.9), ((2, 4), 0.3, 0.6), ((3, 2), 0.5, 0.0)):
        probes.append((*(numbers(generator, *shape) for _ in range(3)), rate, momentum))
    probes.append((np.ones(3), np.ones(2), np.zeros(3), 0.1, 0.9))
    return probes


def momentum_oracle(
    parameter: np.ndarray,
    gradient: np.ndarray,
    velocity: np.ndarray,
    learning_rate: float,
    momentum: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The step is written out in terms of what is given; the velocity comes after it."""
    if parameter.shape != gradient.shape:
        raise ValueError("shapes differ")
    slope, memory = gradient.astype(Wide), velocity.astype(Wide)
    rate, kept = Wide(learning_rate), Wide(momentum)
    return parameter - rate * slope - rate * kept * memory, slope + kept * memory


def without_momentum(generator: Generator) -> Sequence[Sequence[Arguments]]:
    arrays = [numbers(generator, 3) for _ in range(3)]
    return [[(*arrays, 0.25, 0.0)]]


build_momentum = Build(
    id="momentum",
    part="foundations.optimizers:momentum_update",
    probes=momentum_probes,
    oracle=momentum_oracle,
    small=lambda: (np.array([1.0]), np.array([2.0]), np.array([4.0]), 0.1, 0.5),
    key_line="velocity = momentum * velocity + gradient",
    relations=(
        Relation(
            says="with momentum 0 it is plain gradient descent: p' = p - rate * g",
            groups=without_momentum,
            holds=lambda group, out: bool(
                np.allclose(out[0][0], group[0][0] - 0.25 * group[0][1], atol=1e-9)
            ),
        ),
    ),
    hints=(
        "Two arrays change in one step; the second one to change uses the first one's new value.",
        "The learning rate stands in one of the two formulas only.",
        "The arrays that come in belong to the caller: bind new ones.",
    ),
)

# --------------------------------------------------------------------------- adam


def adam_probes(generator: Generator) -> Sequence[Arguments]:
    zero = np.zeros(1)
    probes: list[Arguments] = [
        (np.array([1.0]), np.array([2.0]), zero, zero, 1, 0.1, 0.9, 0.99, 1e-8),
        (np.array([1.0]), np.array([2.0]), np.array([0.5]), np.array([2.0]), 2, 0.1, 0.5, 0.8, 0.1),
        (np.array([1.0]), np.array([0.0]), zero, zero, 1, 0.1, 0.9, 0.999, 1e-8),
    ]
    for shape, step, epsilon in (((3,), 1, 1e-8), ((2, 4), 3, 0.05), ((3, 2), 400, 0.2)):
        p, g, m = (numbers(generator, *shape) for _ in range(3))
        v = np.round(generator.uniform(0.2, 2.0, size=shape), 2)
        probes.append((p, g, m, v, step, 0.3, 0.8, 0.95, epsilon))
    probes.append((np.ones(2), np.ones(2), np.zeros(2), np.zeros(2), 0, 0.1, 0.9, 0.99, 1e-8))
    probes.append((np.ones(3), np.ones(2), np.zeros(3), np.zeros(3), 1, 0.1, 0.9, 0.99, 1e-8))
    return probes


def gradient_scaled(generator: Generator) -> Sequence[Sequence[Arguments]]:
    gradient = np.round(generator.uniform(0.5, 2.0, size=3), 2)
    zero, rest = np.zeros(3), (1, 0.1, 0.9, 0.99, 1e-12)
    return [[(zero, g, zero, zero, *rest) for g in (gradient, 10.0 * gradient)]]


build_adam = Build(
    id="adam",
    part="foundations.optimizers:adam_update",
    probes=adam_probes,
    oracle=adam_oracle,
    small=lambda: (
        np.array([1.0]),
        np.array([2.0]),
        np.array([0.0]),
        np.array([0.0]),
        1,
        0.5,
        0.5,
        0.75,
        2.0,
    ),
    key_line="np.sqrt(corrected_second) + epsilon",
    relations=(
        Relation(
            says="from zero moments the step does not depend on the gradient's scale: g and 10 g",
            groups=gradient_scaled,
            holds=lambda group, out: bool(np.allclose(out[0][0], out[1][0], atol=1e-6)),
        ),
    ),
    hints=(
        "Five quantities in order: two moments, two corrected moments, then the parameter.",
        "What comes back for the next step: the moments as accumulated, or as corrected?",
        "Where must epsilon stand so that a second moment of zero divides by epsilon itself?",
    ),
)

# --------------------------------------------------------------------------- minibatches


def epoch_facts(part: Any, count: int, batch_size: int, seed: int) -> Any:
    """Driver: of two epochs what any right order has in common; the order itself is free."""
    generator = np.random.default_rng(seed)
    first, second = ([np.asarray(b) for b in part(count, batch_size, generator)] for _ in range(2))
    again = list(part(count, batch_size, np.random.default_rng(seed)))
    orders = [
        np.concatenate([*batches, np.zeros(0, dtype=np.int64)]) for batches in (first, second)
    ]
    repeated = np.concatenate([*again, np.zeros(0, dtype=np.int64)])
    return (
        [len(batch) for batch in first],
        np.sort(orders[0]),
        np.sort(orders[1]),
        bool(np.any(orders[0] != np.sort(orders[0]))),
        orders[0].shape != orders[1].shape or bool(np.any(orders[0] != orders[1])),
        np.array_equal(orders[0], repeated),
        any(bool(np.any(np.diff(np.sort(batch)) > 1)) for batch in first),
    )


def minibatch_probes(generator: Generator) -> Sequence[Arguments]:
    seeds = [int(seed) for seed in generator.integers(1, 1000, size=5)]
    sizes = [(1, 4), (40, 40), (41, 6), (60, 10), (37, 1)]
    probes: list[Arguments] = [(*pair, seed) for pair, seed in zip(sizes, seeds, strict=True)]
    return [*probes, (5, 0, seeds[0]), (-1, 2, seeds[1])]


def minibatch_oracle(count: int, batch_size: int, seed: int) -> tuple[Any, ...]:
    """A single index cannot be shuffled, and a batch of one or of all has no gaps to see."""
    if batch_size < 1 or count < 0:
        raise ValueError("no such batches")
    full, rest = divmod(count, batch_size)
    every = np.array([*range(count)], dtype=np.int64)
    several = count > 1
    gaps = several and 1 < batch_size < count
    return [batch_size] * full + [rest] * (rest > 0), every, every, several, several, True, gaps


build_minibatches = Build(
    id="minibatches",
    part="foundations.digits:minibatches",
    probes=minibatch_probes,
    oracle=minibatch_oracle,
    driver=epoch_facts,
    show=lambda count, batch_size, seed: (
        f"two epochs of minibatches({count}, {batch_size}, np.random.default_rng({seed})): "
        "sizes of the batches, sorted indices of each epoch, and whether: the order is not sorted, "
        "the second epoch has another one, the same seed repeats it, batches mix distant indices"
    ),
    small=lambda: (1, 2, 0),
    key_line="order = generator.permutation(count)",
    hints=(
        "Shuffle once an epoch, then cut; what has to be true of all pieces together?",
        "The generator that is handed in moves on as it draws: two epochs, two orders.",
        "The stop of a slice may lie behind the end of an array.",
    ),
)

# --------------------------------------------------------------------------- repair-update


class Descent:
    """Driver's optimizer: plain gradient descent, so that this step needs no other part."""

    def __init__(self, parameters: Sequence[Any], learning_rate: float) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.zero_grad()

    def step(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.data = parameter.data - self.learning_rate * parameter.grad


def model_of(part: Any, sizes: Sequence[int], seed: int, scale: float) -> Any:
    """An MLP of the part's side with this step's own first weights."""
    layers = twin(part, "foundations.layers", STACK)
    model = layers.MLP(sizes, np.random.default_rng(seed))
    for layer, weight in zip(model.layers, first_weights(sizes, seed, scale), strict=True):
        layer.weight.data = weight
    return model


def run_updates(
    part: Any, sizes: Sequence[int], images: np.ndarray, labels: np.ndarray, seed: int, rate: float
) -> Any:
    """Driver: three updates on one batch; the losses before each and the last layer's bias."""
    model = model_of(part, sizes, seed, 1.0)
    optimizer = Descent(model.parameters(), rate)
    losses = [part(model, images, labels, optimizer) for _ in range(3)]
    return losses, model.layers[-1].bias.data


def update_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = []
    for sizes, batch in (((2, 3), 4), ((3, 4, 2), 5), ((4, 6, 5, 3), 7)):
        labels = generator.integers(sizes[-1], size=batch)
        seed = int(generator.integers(1, 1000))
        probes.append((sizes, numbers(generator, batch, sizes[0]), labels, seed, 0.5))
    return probes


def update_oracle(
    sizes: Sequence[int], images: np.ndarray, labels: np.ndarray, seed: int, rate: float
) -> tuple[list[float], np.ndarray]:
    weights = [weight.astype(Wide) for weight in first_weights(sizes, seed, 1.0)]
    biases = [np.zeros(size, dtype=Wide) for size in sizes[1:]]
    losses = []
    for _ in range(3):
        outputs = signals(weights, biases, images, "relu")
        rows, slopes = row_losses(outputs[-1], labels)
        losses.append(float(rows.mean()))
        found = layer_gradients(weights, images, outputs, slopes / len(images), "relu")
        weights = [w - rate * g for w, g in zip(weights, found[0::2], strict=True)]
        biases = [b - rate * g for b, g in zip(biases, found[1::2], strict=True)]
    return losses, biases[-1]


update_build = Build(
    id="repair-update",
    part="foundations.training:training_step",
    probes=update_probes,
    oracle=update_oracle,
    driver=run_updates,
    show=lambda sizes, images, labels, seed, rate: (
        f"three times training_step(MLP({list(sizes)}, ...), {text(images)}, {text(labels)}, "
        f"plain descent at rate {rate:g}): the losses, then the last bias"
    ),
    small=lambda: ((1, 2), np.array([[0.0]]), np.array([1]), 0, 0.5),
    key_line="loss.backward()",
)

repair_update = Debug(
    id="repair-update",
    build=update_build,
    mistakes=("gradients-not-cleared", "cleared-before-use", "stepped-too-early"),
    symptom=(
        "Repeated on one small batch, the first loss is right and a later one is not: the "
        "parameters are not where plain gradient descent puts them."
    ),
    hints=(
        "Write down what `grad` of one parameter holds after each line, for two calls in a row.",
        "`backward` adds to what is in `grad`; `step` reads it; who empties it, and when?",
    ),
)

# --------------------------------------------------------------------------- train


class AdamByPart:
    """Driver's optimizer: keeps the moments and leaves each update to the part's own side."""

    def __init__(self, parameters: Sequence[Any], update: Any, learning_rate: float) -> None:
        self.parameters = list(parameters)
        self.update = update
        self.learning_rate = learning_rate
        self.steps = 0
        self.moments = [(np.zeros(p.shape), np.zeros(p.shape)) for p in self.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.zero_grad()

    def step(self) -> None:
        self.steps += 1
        for index, parameter in enumerate(self.parameters):
            parameter.data, first, second = self.update(
                parameter.data,
                parameter.grad,
                *self.moments[index],
                self.steps,
                self.learning_rate,
            )
            self.moments[index] = first, second


def run_training(
    part: Any,
    sizes: Sequence[int],
    images: np.ndarray,
    labels: np.ndarray,
    settings: tuple[int, int, float],
    seed: int,
    scale: float,
    exact: bool,
) -> Any:
    """Driver: trains the MLP of the part's side with the Adam of the part's side.

    settings: epochs, batch size, learning rate. exact: nothing depends on the order of the images
    (one batch an epoch, or a rate of 0), so losses are compared; else only what they show.
    Returns the losses, the share of right answers, the size of each batch, and what on_epoch got.
    """
    epochs, batch_size, rate = settings
    model = model_of(part, sizes, seed, scale)
    seen: list[int] = []
    told: list[tuple[int, float]] = []

    def recorded(batch: Any) -> Any:
        seen.append(len(batch))
        return model(batch)

    update = twin(part, "foundations.optimizers", STACK).adam_update
    history = part(
        recorded,
        images,
        labels,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=AdamByPart(model.parameters(), update, rate),
        generator=np.random.default_rng(seed),
        on_epoch=lambda epoch, loss: told.append((epoch, loss)),
    )
    hits = np.argmax(model(images).data, axis=1) == labels
    share = float(np.sum(hits)) / max(len(images), 1)
    if exact:
        return list(history), share, seen, told
    return len(history), bool(history[-1] < 0.5 * history[0]), share > 0.8, seen


def digits_part(count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels, _, _ = examples.digits()
    return images[:count], labels[:count]


def train_small() -> Arguments:
    """All weights 0: every class is equally likely, whatever the image."""
    images = np.array([[0.5], [1.0], [-1.0]])
    return ((1, 2), images, np.array([0, 1, 1]), (2, 2, 0.0), 0, 0.0, True)


def train_probes(generator: Generator) -> Sequence[Arguments]:
    seeds = [int(seed) for seed in generator.integers(1, 1000, size=4)]
    images, labels = numbers(generator, 7, 3), generator.integers(4, size=7)
    real = digits_part(300)
    return [
        train_small(),
        ((3, 5, 4), images, labels, (2, 3, 0.0), seeds[0], 1.0, True),
        ((3, 5, 4), images, labels, (3, 7, 0.1), seeds[1], 1.0, True),
        ((64, 16, 10), *real, (12, 300, 0.02), seeds[2], 1.4, True),
        ((64, 24, 10), *real, (5, 32, 0.01), seeds[3], 1.4, False),
        ((3, 2), np.zeros((0, 3)), np.zeros(0, dtype=np.int64), (1, 2, 0.1), 0, 1.0, True),
        ((3, 2), images, np.zeros(5, dtype=np.int64), (1, 2, 0.1), 0, 1.0, True),
    ]


def train_oracle(
    sizes: Sequence[int],
    images: np.ndarray,
    labels: np.ndarray,
    settings: tuple[int, int, float],
    seed: int,
    scale: float,
    exact: bool,
) -> tuple[Any, ...]:
    """The same training by plain sums, in extended precision and in the order of the images."""
    epochs, batch_size, rate = settings
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError("no images, or counts that differ")
    kind: Any = Wide if exact else np.float64
    weights = [weight.astype(kind) for weight in first_weights(sizes, seed, scale)]
    biases = [np.zeros(size, dtype=kind) for size in sizes[1:]]
    state = [array for pair in zip(weights, biases, strict=True) for array in pair]
    moments = [(np.zeros(array.shape), np.zeros(array.shape)) for array in state]
    history, seen, steps = [], [], 0
    for _ in range(epochs):
        total = Wide(0)
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            outputs = signals(state[0::2], state[1::2], images[rows], "relu")
            losses, slopes = row_losses(outputs[-1], labels[rows])
            total += losses.sum()
            seen.append(len(losses))
            steps += 1
            found = layer_gradients(
                state[0::2], images[rows], outputs, slopes / len(losses), "relu"
            )
            for index, gradient in enumerate(found):
                state[index], *moments[index] = adam_oracle(  # type: ignore[call-overload]
                    state[index], gradient, *moments[index], steps, rate
                )
        history.append(float(total / len(images)))
    logits = signals(state[0::2], state[1::2], images, "relu")[-1]
    share = float(np.mean(np.argmax(logits, axis=1) == labels))
    if exact:
        return history, share, seen, [(n, loss) for n, loss in enumerate(history, start=1)]
    return len(history), history[-1] < 0.5 * history[0], share > 0.8, seen


def train_show(
    sizes: Sequence[int],
    images: np.ndarray,
    labels: np.ndarray,
    settings: tuple[int, int, float],
    seed: int,
    scale: float,
    exact: bool,
) -> str:
    what = "losses" if exact else "count of losses, whether they halve, whether 80 % are right"
    rest = "share that is right, batch sizes, what on_epoch got" if exact else "batch sizes"
    weights = "all weights 0" if scale == 0 else f"seed {seed}"
    return (
        f"train_classifier(MLP({list(sizes)}) with {weights}, {text(images)}, {text(labels)}, "
        f"epochs={settings[0]}, batch_size={settings[1]}, Adam at rate {settings[2]:g}): "
        f"{what}, {rest}"
    )


build_train = Build(
    id="train",
    part="foundations.training:train_classifier",
    probes=train_probes,
    oracle=train_oracle,
    driver=run_training,
    show=train_show,
    small=train_small,
    key_line="total += loss * len(batch)",
    seconds=30.0,
    hints=(
        "Two loops: epochs outside, batches inside; what must start afresh in each epoch?",
        "`training_step` gives a mean over its batch. Turn it back into a sum before adding.",
        "The same indices must pick the images and their labels.",
    ),
)

STEPS = (
    build_he,
    build_linear,
    build_mlp,
    build_momentum,
    trace_adam,
    build_adam,
    build_minibatches,
    repair_update,
    build_train,
    measure_digits,
    close_mlp,
)
