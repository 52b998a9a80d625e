"""One realistic declaration for each kind of typed step, with its mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from firsthand.course.steps import (
    AnyMistake,
    Defend,
    Derive,
    Expression,
    Line,
    Measure,
    Order,
    Predict,
    Scenario,
    Step,
    Trace,
    Worked,
    WrongAnswer,
    WrongFormula,
)


@dataclass(frozen=True)
class Sample:
    step: Step
    mistakes: tuple[AnyMistake, ...]


def draw_cache(generator: np.random.Generator, small: bool) -> Mapping[str, Any]:
    top = 4 if small else 40
    return {
        "layers": generator.integers(2, top),
        "heads": 2 * generator.integers(2, top),
        "kv_heads": generator.integers(2, top),
        "width": generator.integers(2, top),
        "tokens": generator.integers(2, top * 10),
    }


def cache_bytes(layers: int, heads: int, kv_heads: int, width: int, tokens: int) -> int:
    return int(2 * layers * kv_heads * width * tokens * 2)


def cache_working(layers: int, heads: int, kv_heads: int, width: int, tokens: int) -> list[str]:
    values = layers * kv_heads * width * tokens
    return [
        f"values of K: {layers} * {kv_heads} * {width} * {tokens} = {values}",
        f"K and V: 2 * {values} = {2 * values}",
        f"float16: 2 * {2 * values} = {4 * values} bytes",
    ]


CACHE = Predict(
    id="cache-bytes",
    draw=draw_cache,
    ask="A cache with {layers} layers, {heads} query and {kv_heads} key heads, width {width}, "
    "{tokens} tokens, float16. How many bytes?",
    answer=cache_bytes,
    working=cache_working,
    unit="bytes",
)
CACHE_MISTAKES = (
    WrongFormula(
        id="one-of-two",
        step="cache-bytes",
        belief="K and V are one buffer.",
        question="What is kept for each token?",
        formula=lambda **p: cache_bytes(**p) // 2,
    ),
    WrongFormula(
        id="query-heads",
        step="cache-bytes",
        belief="Every query head has a key head.",
        question="Which heads are cached?",
        formula=lambda **p: cache_bytes(**{**p, "kv_heads": p["heads"]}),
    ),
    WrongFormula(
        id="bits",
        step="cache-bytes",
        belief="The answer is counted in bits.",
        question="Which unit is asked for?",
        formula=lambda **p: cache_bytes(**p) * 8,
    ),
)

MATMUL = Predict(
    id="matmul-shape",
    draw=lambda generator, small: {
        name: int(generator.integers(2, 9)) for name in ("batch", "rows", "inner", "columns")
    },
    ask="({batch}, {rows}, {inner}) @ ({inner}, {columns}): which shape?",
    answer=lambda batch, rows, inner, columns: (batch, rows, columns),
    working=lambda batch, rows, inner, columns: [
        f"the axis of {inner} is summed",
        f"what is left: ({batch}, {rows}, {columns})",
    ],
)
MATMUL_MISTAKES = (
    WrongFormula(
        id="transposed",
        step="matmul-shape",
        belief="The result has the columns first.",
        question="Which operand gives the rows?",
        formula=lambda batch, rows, inner, columns: (batch, columns, rows),
    ),
    WrongFormula(
        id="kept",
        step="matmul-shape",
        belief="The summed axis stays.",
        question="Which axis is summed?",
        formula=lambda batch, rows, inner, columns: (batch, rows, inner, columns),
    ),
)

SHARE = Predict(
    id="share",
    draw=lambda generator, small: {"part": int(generator.integers(1, 50)), "whole": 700},
    ask="{part} of {whole}: how many percent?",
    answer=lambda part, whole: 100 * part / whole,
    working=lambda part, whole: [f"100 * {part} / {whole} = {100 * part / whole:.4g}"],
    unit="%",
    tolerance=0.01,
)
SHARE_MISTAKES = (
    WrongFormula(
        id="fraction",
        step="share",
        belief="A percentage is a fraction of one.",
        question="Of how many parts is a percent one?",
        formula=lambda part, whole: part / whole,
    ),
)


def draw_square(generator: np.random.Generator, small: bool) -> Expression:
    k = int(generator.integers(2, 5 if small else 60))
    return Expression(
        ask=f"L = {k} (w x - y)^2. What is dL/dw?",
        answer=f"{2 * k}*x*(w*x - y)",
        symbols=("w", "x", "y"),
        working=(
            f"let e = w x - y, so L = {k} e^2",
            f"dL/de = {2 * k} e and de/dw = x",
            f"dL/dw = {2 * k}*x*(w*x - y)",
        ),
        wrong={
            "no-chain": f"{2 * k}*(w*x - y)",
            "no-two": f"{k}*x*(w*x - y)",
            "sign": f"{2 * k}*x*(y - w*x)",
        },
    )


SQUARE = Derive(id="square-gradient", draw=draw_square)
SQUARE_MISTAKES = tuple(
    WrongAnswer(id=name, step="square-gradient", belief=belief, question=question)
    for name, belief, question in (
        ("no-chain", "The inner function has no derivative.", "What is de/dw?"),
        ("no-two", "The exponent only goes down.", "What does the power rule put in front?"),
        ("sign", "The error is target minus output.", "What is the sign of de/dw?"),
    )
)


def draw_neuron(generator: np.random.Generator, small: bool) -> Worked:
    low, high = (1, 5) if small else (3, 30)
    w, x, b = (int(value) for value in generator.integers(low, high, size=3))
    z = w * x + b
    a = math.tanh(z / 100)
    return Worked(
        given=f"w = {w}, x = {x}, b = {b}; z = w x + b; a = tanh(z / 100)",
        blanks={"product": w * x, "z": z, "a": np.float64(a), "size": (1, 1)},
        working=(
            f"product = {w} * {x} = {w * x}",
            f"z = {w * x} + {b} = {z}",
            f"a = tanh({z} / 100) = {a:.5f}",
            "one example and one unit give (1, 1)",
        ),
        wrong={
            "no-bias": {"z": w * x, "a": math.tanh(w * x / 100)},
            "sum": {"product": w + x, "z": w + x + b, "a": math.tanh((w + x + b) / 100)},
        },
    )


NEURON = Trace(id="neuron", draw=draw_neuron)
NEURON_MISTAKES = (
    WrongAnswer(
        id="no-bias", step="neuron", belief="The bias belongs elsewhere.", question="What is z?"
    ),
    WrongAnswer(
        id="sum", step="neuron", belief="Weight and input are added.", question="What is w x?"
    ),
)

BACKWARD = Order(
    id="backward",
    ask="Order the backward pass of L = (a - y)^2, a = tanh(z), z = w x + b.",
    lines=(
        Line(id="out", text="dL/da = 2 (a - y)"),
        Line(id="act", text="da/dz = 1 - a^2"),
        Line(id="z", text="dL/dz = dL/da * da/dz", needs=("out", "act")),
        Line(id="w", text="dL/dw = dL/dz * x", needs=("z",)),
        Line(id="b", text="dL/db = dL/dz", needs=("z",)),
    ),
    wrong={
        "weight-for-input": "dL/dw = dL/dz * w",
        "forward-derivative": "da/dz = 1 - z^2",
    },
)
BACKWARD_MISTAKES = (
    WrongAnswer(
        id="weight-for-input",
        step="backward",
        belief="The derivative for w holds w.",
        question="What multiplies w in z?",
    ),
    WrongAnswer(
        id="forward-derivative",
        step="backward",
        belief="The derivative of tanh takes its input.",
        question="In which variable is 1 - t^2 written?",
    ),
)

MEASURE = Measure(
    id="bandwidth",
    ask="Run the loop and report its ratio.",
    experiment=lambda: 640.0,
    within=2.0,
    working=("bytes: 8 * 1000 = 8000", "ratio: 8000 / 12.5 = 640"),
    unit="MB/s",
    seconds=20.0,
)


def draw_budget(generator: np.random.Generator, small: bool) -> Scenario:
    unit = int(generator.integers(2, 9 if small else 90))
    figures = {
        "float32": {"memory": 4.0 * unit, "error": 1.0},
        "float16": {"memory": 2.0 * unit, "error": 3.0},
        "int8": {"memory": 1.0 * unit, "error": 9.0},
    }
    return Scenario(
        text=f"{unit} million values, at most {2.5 * unit} MB; the error must be the least.",
        choices={"float32": "4 bytes", "float16": "2 bytes", "int8": "1 byte"},
        figures=figures,
        budget={"memory": 2.5 * unit},
        best=("float16",),
        working=("int8 takes 1 byte", f"int8: 1 * {unit} = {unit} MB"),
        units={"memory": "MB"},
        wrong={
            "bits": {name: {"memory": 8 * values["memory"]} for name, values in figures.items()},
            "halved": {name: {"memory": values["memory"] / 2} for name, values in figures.items()},
        },
    )


BUDGET = Defend(id="budget", draw=draw_budget)
BUDGET_MISTAKES = (
    WrongAnswer(id="bits", step="budget", belief="Sizes are in bits.", question="What is a byte?"),
    WrongAnswer(
        id="halved", step="budget", belief="Half is kept.", question="How many values are there?"
    ),
)

SAMPLES: dict[str, Sample] = {
    "predict": Sample(CACHE, CACHE_MISTAKES),
    "shape": Sample(MATMUL, MATMUL_MISTAKES),
    "share": Sample(SHARE, SHARE_MISTAKES),
    "derive": Sample(SQUARE, SQUARE_MISTAKES),
    "trace": Sample(NEURON, NEURON_MISTAKES),
    "order": Sample(BACKWARD, BACKWARD_MISTAKES),
    "measure": Sample(MEASURE, ()),
    "defend": Sample(BUDGET, BUDGET_MISTAKES),
}


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    return SAMPLES


@pytest.fixture(params=sorted(SAMPLES))
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]
