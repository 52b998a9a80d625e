"""The drawn cases of session 1.4: layers to count, chains to derive, graphs, memory budgets."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from firsthand.course.steps import Expression, Generator, Parameters, Scenario, Worked
from firsthand.curriculum.phase_1_neurons.session_04_graph.programs import (
    LETTERS,
    Program,
    apply,
    instruction_text,
)
from firsthand.llm.foundations.scalar_autograd import Scalar, topological_order

FLOAT64_BYTES = np.dtype(np.float64).itemsize


def draw_layer(generator: Generator, small: bool) -> Parameters:
    if small:
        return {"inputs": int(generator.integers(2, 5)), "neurons": int(generator.integers(2, 4))}
    return {"inputs": int(generator.integers(12, 50)), "neurons": int(generator.integers(5, 12))}


def count_nodes(inputs: int, neurons: int) -> int:
    """Build the layer out of Scalars and count the nodes that its outputs depend on."""
    features = [Scalar(1.0) for _ in range(inputs)]
    found: set[Scalar] = set()
    for _ in range(neurons):
        total = Scalar(0.5)
        for feature in features:
            total = total + Scalar(0.25) * feature
        found.update(topological_order(total.tanh()))
    return len(found)


def nodes_working(inputs: int, neurons: int) -> Sequence[str]:
    operations = 2 * inputs + 1
    own = inputs + 1 + operations
    return (
        f"one neuron computes {inputs} products, {inputs} sums and one tanh: {operations} nodes",
        f"it owns {inputs} weights and a bias besides, in all {own} nodes",
        f"{neurons} neurons own {neurons} x {own} = {neurons * own} nodes",
        f"with the {inputs} inputs, made once: {neurons * own} + {inputs} "
        f"= {count_nodes(inputs, neurons)} nodes",
    )


INNER = ("{k}*w*x", "{k}*x + w", "w*x + {k}")
INNER_DERIVATIVES = ("{k}*w", "{k}", "w")
OUTER = {  # name -> the function of u, its derivative
    "tanh(u)": ("tanh({u})", "(1 - tanh({u})^2)"),
    "exp(u)": ("exp({u})", "exp({u})"),
    "u * u": ("({u})^2", "2*({u})"),
}


def draw_chain(generator: Generator, small: bool) -> Expression:
    which = int(generator.integers(len(INNER)))
    k = int(generator.integers(2, 8))
    u, du = INNER[which].format(k=k), INNER_DERIVATIVES[which].format(k=k)
    name = str(generator.choice(list(OUTER)))
    h, dh = (text.format(u=u) for text in OUTER[name])
    if small:
        return Expression(
            ask=f"```text\nu = {u}\nL = {name}\n```\n\nGive dL/dx in terms of w and x.",
            answer=f"{dh}*{du}",
            symbols=("w", "x"),
            working=(f"dL/du = {dh}", f"du/dx = {du}", f"dL/dx = {dh}*{du}"),
            wrong={"inner-factor-left-out": dh, "factors-added": f"{dh} + {du}"},
        )
    answer = f"{h} + x*{dh}*{du}"
    return Expression(
        ask=f"```text\nu = {u}\nh = {name}\nL = x * h\n```\n\nGive dL/dx in terms of w and x.",
        answer=answer,
        symbols=("w", "x"),
        working=(
            "two paths lead from L to x: L - x, and L - h - u - x",
            f"along the first: dL/dx = h = {h}",
            f"along the second: dL/dh = x, dh/du = {dh}, du/dx = {du}",
            f"the product along the second path, added to the first: dL/dx = {answer}",
        ),
        wrong={
            "path-left-out": f"x*{dh}*{du}",
            "inner-factor-left-out": f"{h} + x*{dh}",
            "factors-added": f"{h} + x + {dh} + {du}",
        },
    )


TRACED: tuple[Program, ...] = (
    (("*", 0, 1), ("+", 2, 0), ("*", 2, 3)),
    (("+", 0, 1), ("*", 0, 2), ("*", 3, 2)),
    (("*", 0, 1), ("*", 2, 2), ("+", 3, 0)),
)
TRACED_SMALL: Program = (("+", 0, 1), ("*", 2, 0))


def scalar_gradients(values: Sequence[float], program: Program) -> tuple[list[float], list[float]]:
    """The data and the gradients of every node, by the stack's own backward pass."""
    nodes = [Scalar(value) for value in values]
    for instruction in program:
        nodes.append(apply(nodes, instruction))
    nodes[-1].backward()
    return [node.data for node in nodes], [node.grad for node in nodes]


def shares(
    data: Sequence[float], inputs: int, program: Program
) -> Iterable[tuple[int, int, float, float]]:
    """(user, operand, local derivative, that of a swapped product), from the last node back."""
    for user in reversed(range(inputs, len(data))):
        name, one, other = program[user - inputs]
        for operand, partner in ((one, other), (other, one)):
            product = name == "*"
            yield (
                user,
                operand,
                data[partner] if product else 1.0,
                data[operand] if product else 1.0,
            )


def misread_gradients(
    data: Sequence[float],
    inputs: int,
    program: Program,
    share: Callable[[float, float, float], float],
    *,
    keep: bool = True,
) -> list[float]:
    """Gradients by a wrong rule: share(upstream, local, swapped local); keep=False overwrites."""
    grads = [0.0] * (len(data) - 1) + [1.0]
    for user, operand, local, swapped in shares(data, inputs, program):
        earlier = grads[operand] if keep else 0.0
        grads[operand] = earlier + share(grads[user], local, swapped)
    return grads


def draw_shared(generator: Generator, small: bool) -> Worked:
    program = TRACED_SMALL if small else TRACED[int(generator.integers(len(TRACED)))]
    choices = [1.0, 2.0, 3.0, -1.0, -2.0] if small else [1.5, 2.0, 3.0, -0.5, -1.5, -2.0]
    values = tuple(float(value) for value in generator.choice(choices, size=2, replace=False))
    data, grads = scalar_gradients(values, program)
    last = len(data) - 1
    order = [index for index in reversed(range(last)) if index > 1] + [0, 1]

    def blanks(numbers: Sequence[float]) -> dict[str, float]:
        return {f"grad_{LETTERS[index]}": numbers[index] for index in order}

    terms: dict[int, list[str]] = {index: [] for index in order}
    for user, operand, local, _ in shares(data, 2, program):
        terms[operand].append(f"({grads[user]:g})({local:g})")
    text = "\n".join(
        [f"{LETTERS[index]} = {value:g}" for index, value in enumerate(values)]
        + [
            f"{LETTERS[index]} = {instruction_text(item)}"
            for index, item in enumerate(program, start=2)
        ]
    )
    root = LETTERS[last]
    return Worked(
        given=(
            f"```text\n{text}\n```\n\n`grad_c` stands for the derivative of {root} with respect to "
            f"c, and so on; `grad_{root}` is 1."
        ),
        blanks=blanks(grads),
        working=tuple(
            f"grad_{LETTERS[index]} = {' + '.join(terms[index])} = {grads[index]:g}"
            for index in order
        ),
        wrong={
            "one-share-only": blanks(
                misread_gradients(data, 2, program, lambda up, local, _: up * local, keep=False)
            ),
            "own-value-as-derivative": blanks(
                misread_gradients(data, 2, program, lambda up, _, swapped: up * swapped)
            ),
            "upstream-left-out": blanks(
                misread_gradients(data, 2, program, lambda up, local, _: local)
            ),
        },
    )


def checkpointing(operations: int, every: int) -> tuple[int, int]:
    """(most arrays alive at once, operations run again) for a chain, by running it.

    Array i is the input of operation i. The forward pass keeps each `every`-th of them; the
    backward pass takes the segments from the last one, recomputes the inputs within, and frees
    each input once its operation is done.
    """
    alive = set(range(0, operations, every))
    most, again = len(alive), 0
    for first in reversed(range(0, operations, every)):
        last = min(first + every, operations)
        for operation in range(first, last - 1):
            alive.add(operation + 1)
            again += 1
        most = max(most, len(alive))
        alive -= set(range(first, last))
    return most, again


CHAINS = {64: (1, 4, 8, 32), 100: (1, 5, 10, 50), 120: (1, 4, 12, 40), 144: (1, 6, 12, 48)}
SMALL_CHAINS = {12: (1, 2, 4, 6), 16: (1, 2, 4, 8)}


def draw_chain_budget(generator: Generator, small: bool) -> Scenario:
    chains = SMALL_CHAINS if small else CHAINS
    operations = int(generator.choice(list(chains)))
    spacings = chains[operations]
    numbers = int(generator.choice([10, 20, 50] if small else [1500, 2500, 3200, 6000]))
    names = {every: "keep-all" if every == 1 else f"every-{every}" for every in spacings}

    def figures_of(arrays: int, again: int, itemsize: int = FLOAT64_BYTES) -> dict[str, float]:
        return {
            "arrays": float(arrays),
            "bytes": float(arrays * numbers * itemsize),
            "again": float(again),
        }

    runs = {every: checkpointing(operations, every) for every in spacings}
    target = int(generator.choice([1, 2]))  # the position of the best choice
    fits, too_large = runs[spacings[target]][0], runs[spacings[target - 1]][0]
    budget = (fits + too_large) * numbers * FLOAT64_BYTES // 2
    best = spacings[target]
    most, again = runs[best]
    kept = operations // best
    return Scenario(
        text=(
            f"A chain of {operations} operations, each from one float64 array of {numbers} numbers "
            "to the next. Backward needs the input of each operation. At most "
            f"{budget} bytes may hold inputs at any one moment. Choose the design that fits and "
            "runs the fewest operations again. State the most arrays alive at once (arrays), their "
            "bytes (bytes) and the operations run again (again)."
        ),
        choices={
            names[every]: "keep the input of every operation"
            if every == 1
            else f"keep one input in {every}, recompute the others segment by segment"
            for every in spacings
        },
        figures={names[every]: figures_of(*runs[every]) for every in spacings},
        best=(names[best],),
        units={"bytes": "bytes"},
        budget={"bytes": float(budget)},
        working=(
            f"{operations} / {best} = {kept} inputs are kept by the forward pass",
            f"one segment at a time adds its other {best - 1}: arrays = {kept} + {best - 1} "
            f"= {most}",
            f"bytes = {most} x {numbers} x {FLOAT64_BYTES} = {most * numbers * FLOAT64_BYTES}",
            f"each of {kept} segments runs {best - 1} operations again: again = {again}",
        ),
        tolerance=0.0,
        wrong={
            "segment-not-counted": {
                names[every]: figures_of(operations // every, run[1])
                for every, run in runs.items()
                if every > 1
            },
            "all-run-again": {
                names[every]: figures_of(run[0], operations) for every, run in runs.items()
            },
            "four-byte-numbers": {names[every]: figures_of(*run, 4) for every, run in runs.items()},
        },
    )
