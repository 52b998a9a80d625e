"""Session 1.2: the fresh cases of the steps that are answered by typing."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from firsthand.course.steps import Expression, Generator, Parameters, Scenario, Worked
from firsthand.llm.foundations.descent import gradient_descent, line_gradients

# --------------------------------------------------------------------------- slope-of-the-loss


def draw_slope(generator: Generator, small: bool) -> Expression:
    if small:
        return slope_with_numbers(int(generator.integers(2, 7)), int(generator.integers(1, 10)))
    variant = int(generator.integers(4))
    if variant == 0:
        return slope_weighed(int(generator.choice([1, 3, 5, 7])))
    if variant == 1:
        return slope_divided(int(generator.choice([2, 6, 8, 10])))
    if variant == 2:
        return slope_of_some(int(generator.integers(2, 4)))
    return slope_of_many(int(generator.choice([1, 3, 4])))


def slope_with_numbers(a: int, c: int) -> Expression:
    error = f"({a}*w - {c})"
    return Expression(
        ask=f"L = {error}^2. Give dL/dw.",
        answer=f"{2 * a}*{error}",
        symbols=("w",),
        working=(
            f"u = {a}*w - {c} is the error, and L = u^2",
            f"dL/du = 2*u, and du/dw = {a}",
            f"dL/dw = {2 * a}*{error}",
        ),
        wrong={
            "inner-factor-lost": f"2*{error}",
            "outer-factor": f"{a}*{error}",
            "error-reversed": f"{2 * a}*({c} - {a}*w)",
        },
    )


def slope_weighed(weight: int) -> Expression:
    """One example whose squared error is multiplied by a number."""
    before = f"{weight}*" if weight > 1 else ""
    return Expression(
        ask=(
            "One example (x, y), a line with weight w and bias b: "
            f"L = {before}(w*x + b - y)^2. Give dL/dw."
        ),
        answer=f"{2 * weight}*x*(w*x + b - y)",
        symbols=("w", "x", "b", "y"),
        working=(
            f"u = w*x + b - y is the error, and L = {before}u^2",
            f"dL/du = {2 * weight}*u, and du/dw = x",
            f"dL/dw = {2 * weight}*x*(w*x + b - y)",
        ),
        wrong={
            "inner-factor-lost": f"{2 * weight}*(w*x + b - y)",
            "outer-factor": f"{before}x*(w*x + b - y)",
            "error-reversed": f"{2 * weight}*x*(y - w*x - b)",
        },
    )


def slope_divided(divisor: int) -> Expression:
    """One example whose squared error is divided by an even number."""
    after = f"/{divisor // 2}" if divisor > 2 else ""
    return Expression(
        ask=(
            "One example (x, y), a line with weight w and bias b, and a part of the squared "
            f"error: L = (w*x + b - y)^2 / {divisor}. Give dL/dw."
        ),
        answer=f"x*(w*x + b - y){after}",
        symbols=("w", "x", "b", "y"),
        working=(
            f"u = w*x + b - y is the error, and L = u^2 / {divisor}",
            f"dL/du = 2*u / {divisor}, and du/dw = x",
            f"dL/dw = x*(w*x + b - y){after}",
        ),
        wrong={
            "inner-factor-lost": f"(w*x + b - y){after}",
            "outer-factor": "2*x*(w*x + b - y)",
            "error-reversed": f"x*(y - w*x - b){after}",
        },
    )


def slope_of_some(count: int) -> Expression:
    """The mean over two or three examples, written out."""
    numbered = range(1, count + 1)
    after = "" if count == 2 else f"*2/{count}"

    def joined(*pieces: str) -> str:
        return " + ".join(pieces)

    def error(i: int) -> str:
        return f"(w*x{i} - y{i})"

    answer = f"({joined(*(f'x{i}*{error(i)}' for i in numbered))}){after}"
    return Expression(
        ask=(
            f"{count} examples {', '.join(f'(x{i}, y{i})' for i in numbered)}, one weight w and "
            f"no bias: L = ({joined(*(f'{error(i)}^2' for i in numbered))}) / {count}. Give dL/dw."
        ),
        answer=answer,
        symbols=("w", *(f"{name}{i}" for i in numbered for name in "xy")),
        working=(
            f"u_i = w*x_i - y_i are the errors, and L is the sum of all u_i^2, divided by {count}",
            f"dL/du_i = 2*u_i/{count}, and du_i/dw = x_i",
            f"dL/dw = {answer}",
        ),
        wrong={
            "inner-factor-lost": f"({joined(*map(error, numbered))}){after}",
            "outer-factor": joined(*(f"2*x{i}*{error(i)}" for i in numbered)),
            "error-reversed": f"-({joined(*(f'x{i}*{error(i)}' for i in numbered))}){after}",
        },
    )


def slope_of_many(scale: int) -> Expression:
    """The mean over n examples, or a multiple of it, in sums of the data."""
    loss = "the mean" if scale == 1 else f"{scale} times the mean"
    before = "" if scale == 1 else f"{scale}*"
    return Expression(
        ask=(
            f"n examples, one weight w and no bias: L is {loss} of (w*x_i - y_i)^2. Of the data "
            "four sums are known: Sx = sum of x_i, Sy = sum of y_i, Sxx = sum of x_i^2, "
            "Sxy = sum of x_i*y_i. Give dL/dw with those that it needs."
        ),
        answer=f"{2 * scale}*(w*Sxx - Sxy)/n",
        symbols=("w", "n", "Sx", "Sy", "Sxx", "Sxy"),
        positive=("n", "Sxx"),
        working=(
            f"u_i = w*x_i - y_i is an error, and L is the sum of all {before}u_i^2, divided by n",
            f"dL/du_i = {2 * scale}*u_i/n, and du_i/dw = x_i",
            "the sum over i of x_i*(w*x_i - y_i) is w*Sxx - Sxy",
            f"dL/dw = {2 * scale}*(w*Sxx - Sxy)/n",
        ),
        wrong={
            "inner-factor-lost": f"{2 * scale}*(w*Sx - Sy)/n",
            "outer-factor": f"{before}(w*Sxx - Sxy)/n",
            "error-reversed": f"{2 * scale}*(Sxy - w*Sxx)/n",
        },
    )


# --------------------------------------------------------------------------- two-updates


def draw_updates(generator: Generator, small: bool) -> Worked:
    size = 1 if small else 2
    while True:
        inputs = generator.choice([1.0, 2.0, 3.0], size=size, replace=False)
        targets = generator.integers(-4, 7, size=size).astype(float)
        start = float(generator.choice([-1.0, 0.5, 1.0, 1.5, 2.0]))
        rate = float(generator.choice([0.1, 0.2] if small else [0.04, 0.05, 0.1]))
        product = 2.0 * rate * float(np.mean(inputs**2))
        worked = updates_by_hand(inputs, targets, start, rate)
        readable = all(0.01 < abs(value) < 60 for value in worked.values())
        if readable and 0.15 < product < 1.9 and abs(product - 1) > 0.1:
            break
    wrong = {
        "updated-uphill": updates_by_hand(inputs, targets, start, rate, sign=1.0),
        "gradient-reused": updates_by_hand(inputs, targets, start, rate, reuse=True),
        "power-factor-lost": updates_by_hand(inputs, targets, start, rate, factor=0.5),
    }
    if size > 1:
        wrong["summed-gradient"] = updates_by_hand(inputs, targets, start, rate, factor=size)
    points = ", ".join(f"(x = {x:g}, y = {y:g})" for x, y in zip(inputs, targets, strict=True))
    mean = "mean of the squared errors" if size > 1 else "squared error"
    return Worked(
        given=(
            f"One weight, no bias: the prediction is w x. Data: {points}. The loss is the {mean}. "
            f"Descent starts at w0 = {start:g} with the learning rate {rate:g}. Give the gradient "
            "g0 at w0, the weight w1 after one update, the gradient g1 there, and the weight w2 "
            "after the second update."
        ),
        blanks=worked,
        working=updates_working(inputs, targets, start, rate, worked),
        tolerance=1e-3,
        wrong=wrong,
    )


def updates_by_hand(
    inputs: np.ndarray,
    targets: np.ndarray,
    start: float,
    rate: float,
    *,
    sign: float = -1.0,
    factor: float = 1.0,
    reuse: bool = False,
) -> dict[str, float]:
    """Two updates; the keywords are the ways to go wrong."""
    values: dict[str, float] = {}
    weight, gradient = start, 0.0
    for index in (0, 1):
        if index == 0 or not reuse:
            gradient = factor * line_gradients(inputs, targets, weight, 0.0)[0]
        weight += sign * rate * gradient
        values |= {f"g{index}": round(gradient, 9), f"w{index + 1}": round(weight, 9)}
    return values


def updates_working(
    inputs: np.ndarray, targets: np.ndarray, start: float, rate: float, worked: Mapping[str, float]
) -> tuple[str, ...]:
    lines = []
    weight = start
    for index in (0, 1):
        terms = " + ".join(
            f"({weight:g} * {x:g} - ({y:g})) * {x:g}" for x, y in zip(inputs, targets, strict=True)
        )
        gradient, after = worked[f"g{index}"], worked[f"w{index + 1}"]
        lines.append(f"g{index} = 2/{len(inputs)} * ({terms}) = {gradient:g}")
        lines.append(f"w{index + 1} = {weight:g} - {rate:g} * ({gradient:g}) = {after:g}")
        weight = after
    return tuple(lines)


# --------------------------------------------------------------------------- loss-after-updates


def draw_quadratic(generator: Generator, small: bool) -> Parameters:
    while True:
        curvature = float(generator.choice([2.0, 4.0] if small else [0.5, 0.8, 1.5, 2.5, 4.0]))
        rates = [0.1, 0.2, 0.25] if small else [0.15, 0.2, 0.3, 0.4, 0.6, 0.9]
        rate = float(generator.choice(rates))
        factor = 1.0 - rate * curvature
        if 0.15 < abs(factor) < 1.5:
            break
    updates = 2 if small else int(generator.integers(3, 6))
    start = float(generator.integers(2, 5) if small else generator.integers(2, 9))
    return {"curvature": curvature, "rate": rate, "start": start, "updates": updates}


def loss_after(curvature: float, rate: float, start: float, updates: int) -> float:
    path = gradient_descent(lambda w: curvature * w, np.array(start), rate, updates)
    return float(0.5 * curvature * path[-1] ** 2)


def loss_after_working(curvature: float, rate: float, start: float, updates: int) -> Sequence[str]:
    factor = 1.0 - rate * curvature
    weight = start * factor**updates
    return (
        f"the gradient of L = (1/2) * {curvature:g} * w^2 is {curvature:g} * w",
        f"factor per update = 1 - {rate:g} * {curvature:g} = {factor:.6g}",
        f"w after {updates} updates = {start:g} * ({factor:.6g})^{updates} = {weight:.6g}",
        f"loss = (1/2) * {curvature:g} * ({weight:.6g})^2 "
        f"= {loss_after(curvature, rate, start, updates):.6g}",
    )


# --------------------------------------------------------------------------- close-descent

TARGET_LEFT = 0.01


def slowest_factor(curvatures: Sequence[float], rate: float) -> float:
    """By what one update multiplies the distance in the direction that shrinks least."""
    path = gradient_descent(lambda p: np.array(curvatures) * p, np.ones(len(curvatures)), rate, 1)
    return float(np.max(np.abs(path[-1])))


def distance_left(curvatures: Sequence[float], rate: float, updates: int) -> float:
    start = np.ones(len(curvatures))
    path = gradient_descent(lambda p: np.array(curvatures) * p, start, rate, updates)
    return float(np.max(np.abs(path[-1])))


def draw_budget(generator: Generator, small: bool) -> Scenario:
    """One plan is best; beside it the same rate with another count, and rates that do not suit."""
    while True:
        steep = float(generator.choice([2.0, 4.0, 5.0, 8.0, 10.0]))
        ratio = 1.0 if small else float(generator.choice([4.0, 5.0, 6.0]))
        curvatures = [steep] if small else [round(steep / ratio, 2), steep]
        most = 10 if small else int(generator.integers(18, 25))
        share = float(generator.choice([0.5, 0.6, 0.7])) if small else 1.9 / (1 + 1 / ratio)
        good, timid, edge, beyond = (
            float(f"{part / steep:.2g}") for part in (share, 0.2 if small else 0.6, 1.92, 2.2)
        )
        factor = slowest_factor(curvatures, good)
        needed = math.ceil(math.log(TARGET_LEFT) / math.log(factor))
        other = needed + int(generator.choice([-2, 2]))
        plans = [(good, needed), (good, other), (timid, most), (beyond, most)]
        if not small:
            plans.append((edge, most))
        order = [int(i) for i in generator.permutation(len(plans))]
        runs = {f"run{place}": plans[i] for place, i in enumerate(order, start=1)}
        best = f"run{order.index(0) + 1}"
        figures = {name: plan_figures(curvatures, *plan) for name, plan in runs.items()}
        fits = [name for name in runs if figures[name]["left"] <= TARGET_LEFT]
        clear = all(abs(f["left"] / TARGET_LEFT - 1) > 0.04 for f in figures.values())
        fewest = all(runs[name][1] > needed for name in fits if name != best)
        if clear and best in fits and fewest and max(needed, other) < most:
            return budget_scenario(curvatures, most, runs, figures, best)


def plan_figures(curvatures: Sequence[float], rate: float, updates: int) -> dict[str, float]:
    return {
        "factor": slowest_factor(curvatures, rate),
        "left": distance_left(curvatures, rate, updates),
    }


def budget_scenario(
    curvatures: Sequence[float],
    most: int,
    runs: Mapping[str, tuple[float, int]],
    figures: Mapping[str, Mapping[str, float]],
    best: str,
) -> Scenario:
    several = len(curvatures) > 1
    rate, updates = runs[best]
    factors = [1.0 - rate * curvature for curvature in curvatures]
    worked = [
        f"direction with curvature {curvature:g}: 1 - {rate:g} * {curvature:g} = {factor:.6g}"
        for curvature, factor in zip(curvatures, factors, strict=True)
    ]
    bowl = (
        f"a bowl with the curvatures {curvatures[0]:g} and {curvatures[1]:g} in its two directions"
        if several
        else f"a parabola with the curvature {curvatures[0]:g}"
    )
    each = "in each direction" if several else "from the minimum"
    rule = "`factor` is by what one update multiplies the distance to the minimum, as a size"
    rule += " without sign, in the direction where it shrinks least" if several else " without sign"
    return Scenario(
        text=(
            f"The loss is {bowl}. Descent starts at distance 1 {each} and may take at most {most} "
            f"updates. No distance left at the end may be above {TARGET_LEFT:g}. Of the runs that "
            f"keep this, choose the one with the fewest updates. {rule}; `left` is the largest "
            "distance at the end of the run. Carry five digits of the factor."
        ),
        choices={
            name: f"learning rate {plan[0]:g}, {plan[1]} updates" for name, plan in runs.items()
        },
        figures=figures,
        best=(best,),
        budget={"left": TARGET_LEFT},
        working=(
            *worked,
            f"factor = the largest of these without sign = {figures[best]['factor']:.6g}",
            f"left = {figures[best]['factor']:.6g}^{updates} = {figures[best]['left']:.4g}",
        ),
        tolerance=0.02,
        wrong=wrong_figures(curvatures, runs, figures),
    )


def wrong_figures(
    curvatures: Sequence[float],
    runs: Mapping[str, tuple[float, int]],
    figures: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, dict[str, float]]]:
    """What each mistake states, for the runs in which it differs from the right figures."""
    steep, flat = max(curvatures), min(curvatures)
    wrong: dict[str, dict[str, dict[str, float]]] = {
        "steep-direction-only": {},
        "flat-direction-only": {},
        "left-as-loss": {},
    }
    for name, (rate, updates) in runs.items():
        right = figures[name]["factor"]
        for mistake, curvature in (
            ("steep-direction-only", steep),
            ("flat-direction-only", flat),
        ):
            factor = abs(1.0 - rate * curvature)
            if abs(factor - right) > 0.1 * right:
                wrong[mistake][name] = {"factor": factor, "left": factor**updates}
        wrong["left-as-loss"][name] = {"factor": right, "left": right ** (2 * updates)}
    return {mistake: stated for mistake, stated in wrong.items() if stated}
