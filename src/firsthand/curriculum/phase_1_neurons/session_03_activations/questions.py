"""Session 1.3: the steps that are answered by typing."""

import numpy as np

from firsthand.course.steps import Defend, Derive, Expression, Generator, Scenario, Trace, Worked
from firsthand.llm.foundations.activations import (
    relu,
    relu_derivative,
    sigmoid,
    sigmoid_derivative,
    softmax,
    tanh,
    tanh_derivative,
)

# --------------------------------------------------------------------------- slope

INNER = (2, 3, 4, 5)
OUTER = (2, 3, 4, 6)


def draw_slope(generator: Generator, small: bool) -> Expression:
    name = str(generator.choice(["sigmoid", "tanh"]))
    inner = 1 if small else int(generator.choice(INNER))
    outer = 1 if small else int(generator.choice(OUTER))
    a = "" if inner == 1 else f"{inner}*"
    ax = "x" if inner == 1 else f"{inner}*x"
    scaled = "" if outer == 1 else f"{outer}*"
    over = "" if outer == 1 else f"/{outer}"
    sigmoid_form, tanh_form = f"{a}y*(1 - y{over})", f"{a}({outer} - y^2{over})"
    if name == "sigmoid":
        answer, other = sigmoid_form, tanh_form
        no_inner, no_outer = f"y*(1 - y{over})", f"{a}y*(1 - y)"
        working = (
            f"with u = exp(-{ax}): y = {outer} / (1 + u)",
            f"du/dx = -{a}u, so dy/dx = {a}{scaled}u / (1 + u)^2",
            f"regrouped: dy/dx = {a}[{outer} / (1 + u)]*[u / (1 + u)]",
            f"the first bracket is y, the second 1 - y{over}, so dy/dx = {answer}",
        )
    else:
        answer, other = tanh_form, sigmoid_form
        no_inner, no_outer = f"({outer} - y^2{over})", f"{a}(1 - y^2)"
        working = (
            f"with p = exp({ax}) and m = exp(-{ax}): y = {scaled}(p - m) / (p + m)",
            f"dp/dx = {a}p and dm/dx = -{a}m, so "
            f"dy/dx = {a}{scaled}[(p + m)^2 - (p - m)^2] / (p + m)^2",
            f"divided out: dy/dx = {a}{scaled}[1 - ((p - m) / (p + m))^2]",
            f"(p - m) / (p + m) is y{over}, so dy/dx = {answer}",
        )
    wrong = {"slope-negated": f"-({answer})", "other-activation": other}
    if not small:
        wrong |= {"inner-factor-lost": no_inner, "outer-factor-lost": no_outer}
    definition = "1/(1 + exp(-v))" if name == "sigmoid" else "(exp(v) - exp(-v))/(exp(v) + exp(-v))"
    return Expression(
        ask=(
            f"y = {scaled}{name}({ax}), where {name}(v) = {definition}. "
            "Give dy/dx as an expression in y alone."
        ),
        answer=answer,
        symbols=("y",),
        working=working,
        wrong=wrong,
    )


derive_slope = Derive(
    id="slope",
    draw=draw_slope,
    hints=(
        "Differentiate in x first; only then replace the pieces that still hold x.",
        "The inner factor comes out by the chain rule. The outer factor also sits inside y.",
        "Check one point: at x = 0 you know y, and you can estimate dy/dx from two close values.",
    ),
)

# --------------------------------------------------------------------------- trace-jacobian


def draw_jacobian(generator: Generator, small: bool) -> Worked:
    while True:
        if small:
            logits = generator.permutation(3)[:2].astype(float)
        else:
            below = generator.choice([0.5, 1.0, 1.5, 2.0], size=2, replace=False)
            base = 100.0 * float(generator.integers(8, 13))
            logits = base - generator.permutation(np.array([0.0, *below]))
        size = len(logits)
        upstream = generator.choice([-2.0, -1.0, 1.0, 2.0, 3.0], size=size, replace=False)
        shares = softmax(logits)
        column = jacobian_column(shares)
        first = float(np.sum(upstream * column))
        if abs(first) > 0.1 and float(np.min(np.abs(column))) > 0.015:
            break
    names = [f"p{i + 1}" for i in range(size)] + [f"J{i + 1}1" for i in range(size)] + ["d1"]

    def blanks(p: np.ndarray, entries: np.ndarray) -> dict[str, float]:
        last = float(np.sum(upstream * entries))
        return dict(zip(names, [*p.tolist(), *entries.tolist(), last], strict=True))

    diagonal = np.where(np.arange(size) == 0, column, 0.0)
    plain = logits / np.sum(logits)
    return Worked(
        given=(
            f"A softmax gets the logits z = {logits.tolist()} and its output receives the "
            f"gradient g = dL/dp = {upstream.tolist()}. Give the probabilities p1 to p{size}, the "
            "derivatives Ji1 = dp_i/dz_1 for each i, and d1 = dL/dz_1, to four decimals."
        ),
        blanks=blanks(shares, column),
        working=jacobian_working(logits, upstream, shares, column),
        tolerance=5e-3,
        wrong={
            "diagonal-alone": blanks(shares, diagonal),
            "cross-terms-positive": blanks(shares, np.abs(column)),
            "shares-of-logits": blanks(plain, jacobian_column(plain)),
        },
    )


def jacobian_column(shares: np.ndarray) -> np.ndarray:
    """dp_i/dz_1 for every i."""
    return shares * (np.eye(len(shares))[0] - shares[0])


def jacobian_working(
    logits: np.ndarray, upstream: np.ndarray, shares: np.ndarray, column: np.ndarray
) -> tuple[str, ...]:
    top = float(np.max(logits))
    exponentials = np.exp(logits - top)
    total = float(np.sum(exponentials))
    lines = [
        f"p{i + 1} = exp({z:g} - {top:g}) / total = {e:.4f} / {total:.4f} = {p:.4f}"
        for i, (z, e, p) in enumerate(zip(logits, exponentials, shares, strict=True))
    ]
    lines.append(f"J11 = p1 (1 - p1) = {shares[0]:.4f} x {1 - shares[0]:.4f} = {column[0]:.4f}")
    lines += [
        f"J{i}1 = -p{i} p1 = -({p:.4f} x {shares[0]:.4f}) = {entry:.4f}"
        for i, (p, entry) in enumerate(zip(shares[1:], column[1:], strict=True), start=2)
    ]
    terms = " + ".join(f"({g:g})({j:.4f})" for g, j in zip(upstream, column, strict=True))
    return (*lines, f"d1 = {terms} = {float(np.sum(upstream * column)):.4f}")


trace_jacobian = Trace(
    id="trace-jacobian",
    draw=draw_jacobian,
    hints=(
        "Subtract the largest logit first; no calculator holds the exponential of the others.",
        "Raising z_1 raises p_1 and takes from all others: check the signs of J11, J21, ...",
        "The derivatives of all shares by one logit sum to 0.",
    ),
)

# --------------------------------------------------------------------------- close-saturation

# Elementary operations besides the exponential, by the formulas of the prose.
PLAIN_OPERATIONS = {"sigmoid": 3, "tanh": 4, "relu": 1}
EXPONENTIALS = {"sigmoid": 1, "tanh": 1, "relu": 0}
VALUES = {"sigmoid": sigmoid, "tanh": tanh, "relu": relu}
SLOPES = {"sigmoid": sigmoid_derivative, "tanh": tanh_derivative, "relu": relu_derivative}
FAR_SUMS = (0.4, 0.5, 0.6, 0.9, 1.1, 1.2)  # where no value of an activation equals its slope

Figures = dict[str, float]


def kept_through(name: str, z: float, layers: int) -> float:
    """The share of a gradient that `layers` activations let through, all at the sum z."""
    return float(SLOPES[name](np.array(z))) ** layers


def draw_depth(generator: Generator, small: bool) -> Scenario:
    layers = 2 if small else int(generator.integers(4, 9))
    units = 10 if small else int(generator.choice([48, 96, 160, 224]))
    sign = float(generator.choice([-1.0, 1.0], p=[0.75, 0.25]))
    z = -0.5 if small else sign * float(generator.choice(FAR_SUMS))
    cost = int(generator.choice([8, 12, 16, 20]))
    tight = bool(generator.integers(2))

    def figures_of(slope: float, name: str, counted: int) -> Figures:
        each = EXPONENTIALS[name] * cost + PLAIN_OPERATIONS[name]
        return {
            "slope": slope,
            "kept": slope**layers,
            "operations": float(counted * units * each),
        }

    slopes = {name: float(SLOPES[name](np.array(z))) for name in SLOPES}
    figures = {name: figures_of(slope, name, layers) for name, slope in slopes.items()}
    low, high = figures["sigmoid"]["operations"], figures["tanh"]["operations"]
    budget = int((low + high) / 2) if tight else int(1.25 * high)
    fitting = [name for name in figures if figures[name]["operations"] <= budget]
    best = max(fitting, key=lambda name: figures[name]["kept"])
    passing = [name for name in slopes if slopes[name] > 0.0]
    curved = ("sigmoid", "tanh")
    return Scenario(
        text=(
            f"A network has {layers} layers of {units} units. Its weights neither grow nor shrink "
            f"a gradient, and the weighted sum of each unit is z = {z:g} in every layer. An "
            f"exponential counts as {cost} operations, any other elementary operation as 1. The "
            f"activations of one forward pass may take at most {budget} operations in all. Choose "
            "the activation that keeps the largest share of the gradient within this limit. State "
            "its slope at z (slope), the share of the gradient left after all layers (kept) and "
            "the operations of all its units (operations)."
        ),
        choices={
            "sigmoid": "1/(1 + exp(-z)): 1 exponential and 3 other operations",
            "tanh": "(1 - exp(-2z))/(1 + exp(-2z)): 1 exponential and 4 other operations",
            "relu": "max(z, 0): 1 operation",
        },
        figures=figures,
        best=(best,),
        budget={"operations": float(budget)},
        working=depth_working(best, z, layers, units, cost, figures[best]),
        tolerance=0.02,
        wrong={
            "slopes-added": {
                name: figures[name] | {"kept": layers * slopes[name]} for name in passing
            },
            "slope-at-zero": {
                name: figures_of(float(SLOPES[name](np.array(0.0))), name, layers)
                for name in curved
            },
            "value-for-slope": {
                name: figures_of(float(VALUES[name](np.array(z))), name, layers)
                for name in (*curved, *(["relu"] if z > 0 else []))
            },
            "one-layer-counted": {name: figures_of(slopes[name], name, 1) for name in slopes},
        },
    )


def depth_working(
    name: str, z: float, layers: int, units: int, cost: int, figures: Figures
) -> tuple[str, ...]:
    slope = figures["slope"]
    each = EXPONENTIALS[name] * cost + PLAIN_OPERATIONS[name]
    value = float(VALUES[name](np.array(z)))
    formula = {
        "sigmoid": f"s (1 - s) with s = sigmoid({z:g}) = {value:.6g}",
        "tanh": f"1 - t^2 with t = tanh({z:g}) = {value:.6g}",
        "relu": f"that of the positive side, for {z:g} > 0",
    }[name]
    return (
        f"the slope of {name} is {formula}: slope = {slope:.6g}",
        f"kept = {slope:.6g} to the power of {layers} layers = {figures['kept']:.6g}",
        f"operations = {layers} x {units} units x {each} = {figures['operations']:.0f}",
    )


close_saturation = Defend(
    id="close-saturation",
    draw=draw_depth,
    closes="saturation",
    hints=(
        "Work out the three slopes at z first; the sign of z decides what ReLU does.",
        "Each layer multiplies the gradient by its slope once.",
        "Strike out what is over the limit, then compare what is left by `kept`.",
    ),
)
