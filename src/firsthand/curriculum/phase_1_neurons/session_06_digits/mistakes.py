"""Session 1.6: wrong versions that people write, and other right ones."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from firsthand.course.steps import Alternative, Mistake, WrongAnswer
from firsthand.llm.foundations.digits import minibatches
from firsthand.llm.foundations.initialization import xavier_normal
from firsthand.llm.foundations.layers import MLP, Linear
from firsthand.llm.foundations.tensor_autograd import Tensor, as_tensor


def he_scaled(fan_in: int, fan_out: int, generator: np.random.Generator) -> np.ndarray:
    """Right, in another style: standard normal numbers, scaled in place."""
    if min(fan_in, fan_out) <= 0:
        raise ValueError("a layer has at least one input and one output")
    weights = generator.standard_normal(fan_in * fan_out).reshape(fan_in, fan_out)
    weights *= (fan_in / 2) ** -0.5
    return weights


class LinearByHand(Linear):
    """Right, in another style: no helper, the sum from the other side."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        generator: np.random.Generator,
        initialization: Callable[..., Any] = xavier_normal,
    ) -> None:
        self.weight = Tensor(
            initialization(in_features, out_features, generator).tolist(), requires_grad=True
        )
        self.bias = Tensor([0.0] * out_features, requires_grad=True)

    def __call__(self, x: Any) -> Tensor:
        product = (self.weight.T @ as_tensor(x).T).T
        return self.bias + product


class MLPByIndex(MLP):
    """Right, in another style: indices, and a list that grows."""

    def layer_outputs(self, x: Any) -> list[Tensor]:
        results = [as_tensor(x)]
        for index, layer in enumerate(self.layers, start=1):
            z = layer(results[-1])
            results.append(z if index == len(self.layers) else self.activation(z))
        return results[1:]

    def __call__(self, x: Any) -> Tensor:
        *_, last = self.layer_outputs(x)
        return last

    def parameters(self) -> list[Tensor]:
        found: list[Tensor] = []
        for layer in self.layers:
            found.extend((layer.weight, layer.bias))
        return found


def momentum_by_parts(
    parameter: np.ndarray,
    gradient: np.ndarray,
    velocity: np.ndarray,
    learning_rate: float,
    momentum: float,
) -> tuple[np.ndarray, np.ndarray]:
    if parameter.shape != gradient.shape:
        raise ValueError("shapes differ")
    rolled = velocity * momentum
    rolled += gradient
    return np.subtract(parameter, rolled * learning_rate), rolled


def adam_with_scaled_rate(
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
    """Right, in another style: running means written as corrections, one division at the end."""
    if step <= 0:
        raise ValueError("the first step is 1")
    if parameter.shape != gradient.shape:
        raise ValueError("shapes differ")
    m = first_moment + (1 - beta1) * (gradient - first_moment)
    v = second_moment + (1 - beta2) * (np.square(gradient) - second_moment)
    width = epsilon + (v / (1 - beta2**step)) ** 0.5
    return parameter - (learning_rate / (1 - beta1**step)) * m / width, m, v


def minibatches_by_keys(
    count: int, batch_size: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Right, in another style: sorted by random keys, in a list."""
    if count < 0 or batch_size <= 0:
        raise ValueError("no such batches")
    order = np.argsort(generator.random(count))
    cuts = range(batch_size, count, batch_size)
    return iter(np.split(order, list(cuts)) if count else [])


def train_by_lists(
    model,
    images,
    labels,
    *,
    epochs,
    batch_size,
    optimizer,
    generator,
    on_epoch=None,
) -> list[float]:
    """Right, in another style: the update written out, the losses weighed at the end."""
    if not len(images) or len(images) != len(labels):
        raise ValueError("no images, or counts that differ")
    history: list[float] = []
    while len(history) < epochs:
        losses, weights = [], []
        for rows in minibatches(len(labels), batch_size, generator):
            loss = model(images[rows]).cross_entropy(labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            weights.append(len(rows))
        history.append(float(np.average(losses, weights=weights)))
        if on_epoch:
            on_epoch(len(history), history[-1])
    return history


def update_written_out(model, images, labels, optimizer) -> float:
    loss = model(images).cross_entropy(labels)
    value = loss.item()
    for parameter in optimizer.parameters:
        parameter.grad = None
    loss.backward()
    optimizer.step()
    return value


def shuffled_blocks(
    count: int, batch_size: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    if batch_size < 1 or count < 0:
        raise ValueError("no such batches")
    starts = generator.permutation(np.arange(0, count, batch_size))
    for start in sorted(starts, key=lambda item: item + batch_size > count):
        yield np.arange(start, min(start + batch_size, count))


LAYER_OF_SIGNAL = "signal = self.activation(layer(signal))"
LAST_LAYER = "outputs.append(self.layers[-1](signal))"
EPOCH = "for epoch in range(1, epochs + 1):\n        total = 0.0\n"
BATCHES = "for batch in minibatches(len(images), batch_size, generator):"

MISTAKES: Sequence[Any] = (
    # he-normal
    Mistake(
        id="variance-as-deviation",
        step="he-normal",
        belief="The variance is used as the standard deviation.",
        question="What is the standard deviation of numbers whose variance is 0.01?",
        edits=(("math.sqrt(2.0 / fan_in)", "2.0 / fan_in"),),
    ),
    Mistake(
        id="relu-half-ignored",
        step="he-normal",
        belief="The variance is 1 / fan_in, as if the activation let everything pass.",
        question="Which share of its inputs does a ReLU set to zero?",
        edits=(("math.sqrt(2.0 / fan_in)", "math.sqrt(1.0 / fan_in)"),),
    ),
    Mistake(
        id="fan-out-for-fan-in",
        step="he-normal",
        belief="The scale is taken from the number of outputs.",
        question="Over how many products does one output of the layer sum?",
        edits=(("math.sqrt(2.0 / fan_in)", "math.sqrt(2.0 / fan_out)"),),
    ),
    Mistake(
        id="mean-of-the-fans",
        step="he-normal",
        belief="This is the compromise of Glorot and Bengio between both directions.",
        question="For which slope around zero was the compromise between the two fans derived?",
        edits=(("math.sqrt(2.0 / fan_in)", "math.sqrt(2.0 / (fan_in + fan_out))"),),
    ),
    # linear
    Mistake(
        id="no-bias-added",
        step="linear",
        belief="The bias exists and is not added.",
        question="What should the layer answer for a row of zeros?",
        edits=(("as_tensor(x) @ self.weight + self.bias", "as_tensor(x) @ self.weight"),),
    ),
    Mistake(
        id="weight-as-constant",
        step="linear",
        belief="The product uses the bare array of the weight, so the graph does not know it.",
        question="How does backward find the Tensors that it must hand a gradient to?",
        edits=(
            (
                "as_tensor(x) @ self.weight + self.bias",
                "as_tensor(x) @ self.weight.data + self.bias",
            ),
        ),
    ),
    Mistake(
        id="input-cut-off",
        step="linear",
        belief="The input is wrapped anew, so the layers below it get no gradient.",
        question="Which of the operands of this layer may be the result of another layer?",
        edits=(("as_tensor(x) @ self.weight", "Tensor(as_tensor(x).data) @ self.weight"),),
    ),
    Mistake(
        id="bias-is-not-learned",
        step="linear",
        belief="The bias does not ask for a gradient, so it keeps its first value.",
        question="Which argument of Tensor decides whether backward fills `grad`?",
        edits=(
            (
                "Tensor(np.zeros(out_features), requires_grad=True)",
                "Tensor(np.zeros(out_features))",
            ),
        ),
    ),
    Mistake(
        id="one-bias-for-all",
        step="linear",
        belief="All outputs share a single bias.",
        question="How many biases has a layer of 4 neurons?",
        edits=(("np.zeros(out_features)", "np.zeros(1)"),),
    ),
    # mlp
    Mistake(
        id="activation-at-the-end",
        step="mlp",
        belief="The last layer is bent too, so the loss does not get logits.",
        question="Which range of numbers can logits have, and which has a ReLU's output?",
        edits=((LAST_LAYER, "outputs.append(self.activation(self.layers[-1](signal)))"),),
    ),
    Mistake(
        id="layers-collapse",
        step="mlp",
        belief="No activation stands between the layers.",
        question="What single matrix do two linear layers in a row amount to?",
        edits=((LAYER_OF_SIGNAL, "signal = layer(signal)"),),
    ),
    Mistake(
        id="outputs-before-activation",
        step="mlp",
        belief="The list holds each layer's sums, before they are bent.",
        question="Which of the two does the next layer read: the sums or the bent values?",
        edits=(
            (
                f"{LAYER_OF_SIGNAL}\n            outputs.append(signal)",
                "signal = layer(signal)\n            outputs.append(signal)\n"
                "            signal = self.activation(signal)",
            ),
        ),
    ),
    Mistake(
        id="inputs-bent",
        step="mlp",
        belief="The activation comes before each layer, so the input itself is bent.",
        question="What would a ReLU do to a negative feature before any weight has seen it?",
        edits=(
            (LAYER_OF_SIGNAL, "signal = layer(self.activation(signal))"),
            (LAST_LAYER, "outputs.append(self.layers[-1](self.activation(signal)))"),
        ),
    ),
    Mistake(
        id="biases-not-listed",
        step="mlp",
        belief="The list of parameters holds the weights and leaves out the biases.",
        question="Which Tensors can an optimizer change: all of the model, or those it is given?",
        edits=(("for parameter in layer.parameters()", "for parameter in layer.parameters()[:1]"),),
    ),
    # momentum
    Mistake(
        id="old-velocity-used",
        step="momentum",
        belief="The parameter moves by the velocity of the step before.",
        question="How far should the very first step go, when the velocity starts at zero?",
        edits=(
            (
                "velocity = momentum * velocity + gradient\n"
                "    parameter = parameter - learning_rate * velocity",
                "parameter = parameter - learning_rate * velocity\n"
                "    velocity = momentum * velocity + gradient",
            ),
        ),
    ),
    Mistake(
        id="gradient-weighed-down",
        step="momentum",
        belief="The velocity is a running mean: the gradient enters with 1 - momentum.",
        question="With which factor does the newest gradient enter the velocity in the formula?",
        edits=(("velocity + gradient", "velocity + (1.0 - momentum) * gradient"),),
    ),
    Mistake(
        id="rate-in-velocity",
        step="momentum",
        belief="The learning rate is inside the velocity instead of in front of it.",
        question="What happens to a velocity that is stored when the learning rate changes?",
        edits=(
            ("velocity + gradient", "velocity + learning_rate * gradient"),
            ("parameter - learning_rate * velocity", "parameter - velocity"),
        ),
    ),
    Mistake(
        id="uphill",
        step="momentum",
        belief="The parameter moves along the velocity, which points uphill.",
        question="In which direction does the gradient of a loss point?",
        edits=(("parameter - learning_rate", "parameter + learning_rate"),),
    ),
    Mistake(
        id="velocity-in-place",
        step="momentum",
        belief="The caller's velocity is changed in place.",
        question="Who else may hold the array that came in as `velocity`?",
        edits=(
            (
                "velocity = momentum * velocity + gradient",
                "velocity *= momentum\n    velocity += gradient",
            ),
        ),
    ),
    # trace-adam
    WrongAnswer(
        id="correction-left-out",
        step="trace-adam",
        belief="The moments are used as they are, although they start too small.",
        question="Which share of the first gradient is in m after one step?",
    ),
    WrongAnswer(
        id="correction-of-step-one",
        step="trace-adam",
        belief="The second step is corrected as if it were the first.",
        question="Which number does the exponent of the correction count?",
    ),
    WrongAnswer(
        id="root-left-out",
        step="trace-adam",
        belief="The update divides by the second moment itself.",
        question="If g is measured in metres, what is v measured in?",
    ),
    # adam
    Mistake(
        id="no-bias-correction",
        step="adam",
        belief="The moments are not corrected for their start at zero.",
        question="Which share of the first gradient is in the first moment after one step?",
        edits=(
            ("first_moment / (1.0 - beta1**step)", "first_moment"),
            ("second_moment / (1.0 - beta2**step)", "second_moment"),
        ),
    ),
    Mistake(
        id="epsilon-inside-root",
        step="adam",
        belief="Epsilon is added under the root.",
        question="What is left of the denominator in algorithm 1 when the second moment is zero?",
        edits=(("np.sqrt(corrected_second) + epsilon", "np.sqrt(corrected_second + epsilon)"),),
    ),
    Mistake(
        id="no-root",
        step="adam",
        belief="The update divides by the second moment itself.",
        question="What becomes of the size of the step when all gradients are ten times larger?",
        edits=(("np.sqrt(corrected_second) + epsilon", "corrected_second + epsilon"),),
    ),
    Mistake(
        id="moments-swapped",
        step="adam",
        belief="The two moments come back in the other order.",
        question="In which order does the caller hand the moments in again?",
        edits=(
            (
                "return parameter, first_moment, second_moment",
                "return parameter, second_moment, first_moment",
            ),
        ),
    ),
    Mistake(
        id="corrected-moments-kept",
        step="adam",
        belief="The corrected moments come back, so the next step corrects them once more.",
        question="Which of the two does the recurrence of the next step continue?",
        edits=(
            (
                "return parameter, first_moment, second_moment",
                "return parameter, corrected_first, corrected_second",
            ),
        ),
    ),
    # minibatches
    Mistake(
        id="never-shuffled",
        step="minibatches",
        belief="The indices come in the order of the data.",
        question="What does a batch hold when the data are sorted by label?",
        edits=(("generator.permutation(count)", "np.arange(count)"),),
    ),
    Mistake(
        id="short-batch-lost",
        step="minibatches",
        belief="The examples that do not fill a batch are dropped.",
        question="How many of 10 examples does one epoch with batches of 4 show?",
        edits=(
            (
                "range(0, count, batch_size)",
                "range(0, count - count % batch_size, batch_size)",
            ),
        ),
    ),
    Mistake(
        id="drawn-with-replacement",
        step="minibatches",
        belief="Each index is drawn anew, so some come twice and others never.",
        question="After one epoch, how often has each example been used?",
        edits=(("generator.permutation(count)", "generator.integers(0, max(count, 1), count)"),),
    ),
    Mistake(
        id="same-order-each-epoch",
        step="minibatches",
        belief="A new generator with a fixed seed is made, so every epoch has one order.",
        question="What does the second epoch look like?",
        edits=(
            (
                "order = generator.permutation(count)",
                "order = np.random.default_rng(0).permutation(count)",
            ),
        ),
    ),
    Mistake(
        id="blocks-shuffled",
        step="minibatches",
        belief="The batches change places, and each still holds neighbours.",
        question="Which examples can stand in one batch with example 0?",
        code=shuffled_blocks,
    ),
    # repair-update
    Mistake(
        id="gradients-not-cleared",
        step="repair-update",
        belief="The gradients of all earlier updates are still in `grad` and are used again.",
        question="What does `grad` hold after two calls of backward?",
        edits=(("    optimizer.zero_grad()\n", ""),),
    ),
    Mistake(
        id="cleared-before-use",
        step="repair-update",
        belief="The gradients are cleared after backward finds them and before step reads them.",
        question="What does step find in `grad`?",
        edits=(
            ("    optimizer.zero_grad()\n", ""),
            ("    optimizer.step()", "    optimizer.zero_grad()\n    optimizer.step()"),
        ),
    ),
    Mistake(
        id="stepped-too-early",
        step="repair-update",
        belief="The parameters move by the gradients of the update before.",
        question="Which gradients exist when step is called for the first time?",
        edits=(
            ("    optimizer.zero_grad()\n", ""),
            ("    loss.backward()\n", "    optimizer.step()\n    optimizer.zero_grad()\n"),
            ("    optimizer.step()\n    return", "    loss.backward()\n    return"),
        ),
    ),
    # train
    Mistake(
        id="labels-not-shuffled",
        step="train",
        belief="The images are shuffled and the labels are taken in their old order.",
        question="Which label belongs to the third image of a shuffled batch?",
        edits=(("labels[batch], optimizer", "labels[: len(batch)], optimizer"),),
    ),
    Mistake(
        id="total-carried-over",
        step="train",
        belief="The sum of the losses goes on from one epoch to the next.",
        question="What should the mean of the second epoch be if no parameter moves?",
        edits=((EPOCH, "total = 0.0\n    for epoch in range(1, epochs + 1):\n"),),
    ),
    Mistake(
        id="mean-of-means",
        step="train",
        belief="Each batch counts the same, whatever it holds.",
        question="How much should a last batch of one image count beside a batch of 32?",
        edits=(
            ("total += loss * len(batch)", "total += loss"),
            ("total / len(images)", "total / -(-len(images) // batch_size)"),
        ),
    ),
    Mistake(
        id="batches-drawn-once",
        step="train",
        belief="The batches are made before the loop, and an iterator is empty after one pass.",
        question="What does a second `for` over the same iterator find?",
        edits=(
            (EPOCH, f"batches = minibatches(len(images), batch_size, generator)\n    {EPOCH}"),
            (BATCHES, "for batch in batches:"),
        ),
    ),
    Mistake(
        id="last-loss-only",
        step="train",
        belief="Each batch replaces the sum, so the last batch alone is reported.",
        question="Which of the batches of an epoch should its mean loss describe?",
        edits=(("total += loss * len(batch)", "total = loss * len(images)"),),
    ),
    # close-mlp
    WrongAnswer(
        id="biases-forgotten",
        step="close-mlp",
        belief="The figures count the weights and leave out the biases.",
        question="How many parameters has a layer of one input and one output?",
    ),
    WrongAnswer(
        id="moments-forgotten",
        step="close-mlp",
        belief="The state counts parameters and gradients, as for plain gradient descent.",
        question="What does Adam keep from one step to the next?",
    ),
    WrongAnswer(
        id="second-moment-forgotten",
        step="close-mlp",
        belief="The state counts one array of the optimizer, as for momentum.",
        question="How many arrays does adam_update return beside the parameter?",
    ),
    WrongAnswer(
        id="signals-of-one-row",
        step="close-mlp",
        belief="The signals are counted for a single row.",
        question="What is the first axis of each layer's output?",
    ),
)

ALTERNATIVES = (
    Alternative(step="he-normal", code=he_scaled),
    Alternative(step="linear", code=LinearByHand),
    Alternative(step="mlp", code=MLPByIndex),
    Alternative(step="momentum", code=momentum_by_parts),
    Alternative(step="adam", code=adam_with_scaled_rate),
    Alternative(step="minibatches", code=minibatches_by_keys),
    Alternative(step="repair-update", code=update_written_out),
    Alternative(step="train", code=train_by_lists),
)
