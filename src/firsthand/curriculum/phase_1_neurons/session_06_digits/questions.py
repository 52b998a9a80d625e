"""Session 1.6: the typed steps: a trace by hand, the full run, and a design under a budget."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from firsthand.course.steps import Defend, Generator, Measure, Scenario, Trace, Worked
from firsthand.curriculum.phase_1_neurons.session_06_digits import examples
from firsthand.llm.foundations.layers import MLP
from firsthand.llm.foundations.optimizers import Adam, adam_update
from firsthand.llm.foundations.training import accuracy, train_classifier

# --------------------------------------------------------------------------- trace-adam


def draw_adam_trace(generator: Generator, small: bool) -> Worked:
    beta1, beta2 = (0.5, 0.5) if small else (0.9, 0.99)
    rate = 0.1
    start = float(generator.choice([-2.0, -1.5, 1.5, 2.0]))
    g1, g2 = (float(g) for g in generator.choice(np.arange(1, 9), size=2, replace=False) / 2)
    if generator.integers(2) and not small:
        g1 = -g1

    def run(correct: Callable[[float, int], float], root: bool) -> dict[str, float]:
        p, m, v, found = start, 0.0, 0.0, {}
        for step, g in ((1, g1), (2, g2)):
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            m_hat, v_hat = m / correct(beta1, step), v / correct(beta2, step)
            p -= rate * m_hat / (math.sqrt(v_hat) if root else v_hat)
            found[f"p{step}"] = p
        p1, p2 = found["p1"], found["p2"]
        return {"p1": p1, "m": m, "v": v, "m_hat": m_hat, "v_hat": v_hat, "p2": p2}

    right = run(lambda beta, step: 1 - beta**step, True)
    array = np.array([start])
    moments = (np.zeros(1), np.zeros(1))
    for step, g in ((1, g1), (2, g2)):
        array, *moments = adam_update(  # type: ignore[assignment]
            array, np.array([g]), *moments, step, rate, beta1, beta2, epsilon=0.0
        )
    right |= {"p2": float(array[0]), "m": float(moments[0][0]), "v": float(moments[1][0])}
    one1, one2 = 1 - beta1, 1 - beta2
    shown = {name: f"{value:.6g}" for name, value in right.items()}
    return Worked(
        given=(
            f"One parameter p = {start:g} gets two updates of Adam with rate {rate:g}, "
            f"beta1 = {beta1:g}, beta2 = {beta2:g}; epsilon is so small that it can be left out. "
            f"The gradients are {g1:g} at step 1 and {g2:g} at step 2; both moments start at 0. "
            "Give p after step 1 (p1); then for step 2 the moments m and v, the corrected ones "
            "m_hat and v_hat, and p (p2). Four significant digits are enough."
        ),
        blanks=right,
        working=(
            f"step 1: m_hat = {g1:g}, v_hat = {g1 * g1:g}, "
            f"so p1 = {start:g} - {rate:g} ({g1:g}) / {abs(g1):g} = {shown['p1']}",
            f"m = {beta1:g} ({one1 * g1:.6g}) + {one1:.6g} ({g2:g}) = {shown['m']}",
            f"v = {beta2:g} ({one2 * g1 * g1:.6g}) + {one2:.6g} ({g2 * g2:g}) = {shown['v']}",
            f"m_hat = {shown['m']} / {1 - beta1**2:.6g} = {shown['m_hat']}",
            f"v_hat = {shown['v']} / {1 - beta2**2:.6g} = {shown['v_hat']}",
            f"p2 = {shown['p1']} - {rate:g} ({shown['m_hat']}) / {math.sqrt(right['v_hat']):.6g} "
            f"= {shown['p2']}",
        ),
        tolerance=2e-3,
        wrong={
            "correction-left-out": run(lambda beta, step: 1.0, True),
            "correction-of-step-one": run(lambda beta, step: 1 - beta, True),
            "root-left-out": run(lambda beta, step: 1 - beta**step, False),
        },
    )


trace_adam = Trace(
    id="trace-adam",
    draw=draw_adam_trace,
    hints=(
        "Write m and v after step 1 down first: step 2 needs both, as they were before correction.",
        "The correction divides by one minus the decay raised to the number of the step.",
        "At step 1 the correction undoes the small factor wholly: what is left of the gradient?",
    ),
)

# --------------------------------------------------------------------------- measure-digits


def full_run() -> float:
    """The script of the step, with the stack's own parts: the test accuracy."""
    images, labels, test_images, test_labels = examples.digits()
    generator = np.random.default_rng(0)
    model = MLP(examples.FULL_SIZES, generator)
    train_classifier(
        model,
        images,
        labels,
        epochs=examples.FULL_EPOCHS,
        batch_size=examples.FULL_BATCH,
        optimizer=Adam(model.parameters(), learning_rate=examples.FULL_RATE),
        generator=generator,
    )
    return accuracy(model, test_images, test_labels)


measure_digits = Measure(
    id="measure-digits",
    ask=(
        "Save this as `digits_run.py` beside your workspace folder (here it is called `mine`) and "
        "run `python digits_run.py`. It trains with your Tensor, your layers, your Adam and your "
        "loop. Report the test accuracy that it prints, as a share of 1."
        f"\n\n```python\n{examples.SCRIPT}```"
    ),
    experiment=full_run,
    within=1.015,
    working=(
        "a share of 1 is the images that are right over all images of the test",
        "example: 300 right of 400 images of a test = 300 / 400 = 0.75",
        "one image more or less changes it by 1 / 400 = 0.0025",
    ),
    hints=(
        "The number is on the last line; the lines above it are epochs with their mean loss.",
        "If the first loss is far above the logarithm of 10, look at the first weights.",
        "If the loss does not fall, run the check of the training step again.",
    ),
    seconds=120.0,
)

# --------------------------------------------------------------------------- close-mlp


def draw_mlp_budget(generator: Generator, small: bool) -> Scenario:
    features = int(generator.choice([6, 8, 9] if small else [100, 144, 196, 256]))
    classes = int(generator.choice([2, 3] if small else [10, 12, 26]))
    width = int(generator.choice([4, 5] if small else [32, 48, 80, 96]))
    batch = int(generator.choice([4, 6] if small else [24, 40, 60]))
    shapes = {
        "narrow": (features, width, classes),
        "deep": (features, width, width, classes),
        "wide": (features, 2 * width, classes),
    }

    def figures_of(sizes: tuple[int, ...], parameters: int, arrays: int, rows: int) -> Any:
        return {
            "parameters": float(parameters),
            "state": float(arrays * parameters * examples.FLOAT64_BYTES),
            "signals": float(rows * sum(sizes[1:]) * examples.FLOAT64_BYTES),
        }

    figures = {
        name: figures_of(sizes, examples.parameters_of(sizes), 4, batch)
        for name, sizes in shapes.items()
    }
    order = sorted(shapes, key=lambda name: figures[name]["state"])
    best = int(generator.integers(len(order)))
    state = [figures[name]["state"] for name in order]
    limit = int((state[best] + (state[best + 1] if best < 2 else 1.2 * state[best])) / 2)
    sizes, chosen = shapes[order[best]], figures[order[best]]
    products = " + ".join(f"{i} x {o} + {o}" for i, o in pairwise(sizes))
    return Scenario(
        text=(
            f"An MLP with biases maps {features} features to {classes} classes and is trained with "
            f"Adam on batches of {batch} rows, all in float64. Parameters, their gradients and "
            f"Adam's moments together may take at most {limit} bytes. Choose the design with the "
            "most parameters that fits. State its parameters (count), the bytes of that state "
            "(state) and the bytes of the outputs of all its layers for one batch (signals)."
        ),
        choices={
            name: " -> ".join(map(str, sizes)) + f", {len(sizes) - 2} hidden"
            for name, sizes in shapes.items()
        },
        figures=figures,
        best=(order[best],),
        units={"state": "bytes", "signals": "bytes"},
        budget={"state": float(limit)},
        working=(
            f"parameters = {products} = {chosen['parameters']:.0f}",
            f"state = (1 + 1 + 2) x {chosen['parameters']:.0f} x {examples.FLOAT64_BYTES} "
            f"= {chosen['state']:.0f}",
            f"signals = {batch} x ({' + '.join(map(str, sizes[1:]))}) x {examples.FLOAT64_BYTES} "
            f"= {chosen['signals']:.0f}",
        ),
        tolerance=0.0,
        wrong={
            "biases-forgotten": {
                name: figures_of(sizes, examples.parameters_of(sizes) - sum(sizes[1:]), 4, batch)
                for name, sizes in shapes.items()
            },
            "moments-forgotten": {
                name: figures_of(sizes, examples.parameters_of(sizes), 2, batch)
                for name, sizes in shapes.items()
            },
            "second-moment-forgotten": {
                name: figures_of(sizes, examples.parameters_of(sizes), 3, batch)
                for name, sizes in shapes.items()
            },
            "signals-of-one-row": {
                name: figures_of(sizes, examples.parameters_of(sizes), 4, 1)
                for name, sizes in shapes.items()
            },
        },
    )


close_mlp = Defend(
    id="close-mlp",
    draw=draw_mlp_budget,
    closes="mlp",
    hints=(
        "Count layer by layer: a weight for each pair of neighbours, a bias for each output.",
        "How many arrays of a parameter's shape exist while Adam runs?",
        "The outputs depend on the batch and not on the weights.",
    ),
)
