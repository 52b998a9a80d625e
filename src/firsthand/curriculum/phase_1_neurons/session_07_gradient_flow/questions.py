"""Session 1.7: the steps that are answered with numbers, expressions, orders and designs."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from firsthand.course.steps import (
    Defend,
    Derive,
    Expression,
    Generator,
    Line,
    Measure,
    Order,
    Parameters,
    Predict,
    Scenario,
    Trace,
    Worked,
)
from firsthand.llm.foundations.digits import load_digits
from firsthand.llm.foundations.gradcheck import numerical_gradient, relative_error
from firsthand.llm.foundations.gradient_flow import gradient_rms
from firsthand.llm.foundations.layers import MLP

# --------------------------------------------------------------------------- layer-factor


def product_text(coefficient: Fraction, *factors: str) -> str:
    """'3*n*a^2*q/8' from 3/8 and the factors."""
    top = "" if coefficient.numerator == 1 else f"{coefficient.numerator}*"
    bottom = "" if coefficient.denominator == 1 else f"/{coefficient.denominator}"
    return f"{top}{'*'.join(factors)}{bottom}"


def draw_layer_factor(generator: Generator, small: bool) -> Expression:
    backward = not small and bool(generator.integers(2))
    relu = not small and bool(generator.integers(2))
    layers = 1 if small else 2
    stretch = int(generator.integers(1, 3 if small else 4))
    bound = "a" if stretch == 1 else f"{stretch}a"
    if small or generator.integers(2):
        weights = f"uniform on [-{bound}, {bound}]"
        second = Fraction(stretch**2, 3)
    else:
        weights = f"0 with probability 1/4, and otherwise {bound} or -{bound}, equally likely"
        second = Fraction(3 * stretch**2, 4)
    names = ("n", "m", "p")[: layers + 1]
    right, other = (names[1:], names[:-1]) if backward else (names[:-1], names[1:])
    power = f"a^{2 * layers}"
    half = Fraction(1, 2) if relu else Fraction(1)
    answer = product_text((second * half) ** layers, *right, power, "q")
    wrong = {
        "fans-swapped": product_text((second * half) ** layers, *other, power, "q"),
        "bound-for-deviation": product_text((stretch**2 * half) ** layers, *right, power, "q"),
        "terms-not-counted": product_text((second * half) ** layers, power, "q"),
        "deviations-added": product_text(
            (second * half) ** layers, *(f"{name}^2" for name in right), power, "q"
        ),
    }
    if relu:
        wrong["relu-let-all-pass"] = product_text(second**layers, *right, power, "q")
    network = (
        "A layer maps n inputs to m outputs"
        if small
        else "Two layers map n inputs to m units and these to p outputs"
    )
    after = ", each followed by a ReLU" if relu else ", with no activation"
    start, wanted = (
        ("The gradient at the outputs", "the gradient at the inputs")
        if backward
        else ("Each input", "the outputs")
    )
    pass_half = ", and the ReLU halves it" if relu else ""
    per_layer = [product_text(second * half, name, "a^2") for name in right]
    if backward:
        per_layer.reverse()
    return Expression(
        ask=(
            f"{network}, without biases{after}. All weights are independent, with mean 0: "
            f"{weights}. {start} has mean 0 and mean square q. Give the mean square of {wanted}."
        ),
        answer=answer,
        symbols=(*names, "a", "q"),
        positive=(*names, "a", "q"),
        working=(
            f"one weight: E(w^2) = {product_text(second, 'a^2')}",
            f"a sum of k independent products has k E(w^2) times the mean square{pass_half}",
            f"factor of each layer, in the order passed: {' then '.join(per_layer)}",
            f"all factors times q = {answer}",
        ),
        wrong=wrong,
    )


layer_factor = Derive(
    id="layer-factor",
    draw=draw_layer_factor,
    hints=(
        "Work out the mean square of a single weight first.",
        "Which letter counts the terms of one sum: what goes into a unit, or what it feeds?",
        "The layers follow each other: their factors multiply.",
    ),
)

# --------------------------------------------------------------------------- gradient-after-layers


def draw_depth(generator: Generator, small: bool) -> Parameters:
    if small:
        return {
            "depth": 2,
            "width": int(generator.choice([10, 25, 75, 150])),
            "deviation": 0.2,
            "start": float(generator.integers(3, 9)),
        }
    width = int(generator.choice([80, 120, 160, 200, 240]))
    numerator = float(generator.choice([1.0, 1.2, 1.4, 1.6, 2.4, 2.6, 2.8]))
    return {
        "depth": int(generator.choice([6, 8, 10, 12, 16])),
        "width": width,
        "deviation": round(math.sqrt(numerator / width), 3),
        "start": float(generator.integers(2, 10)) / 10,
    }


def gradient_scale(depth: int, width: int, deviation: float, start: float) -> float:
    """RMS of the gradient at the input of ReLU layers; He et al. 2015, section 2.2, backward."""
    return start * math.sqrt(width * deviation**2 / 2.0) ** depth


def scale_working(depth: int, width: int, deviation: float, start: float) -> Sequence[str]:
    factor = width * deviation**2 / 2.0
    return (
        f"variance of a weight = {deviation:g}^2 = {deviation**2:.6g}",
        f"factor of the mean square = {width} x {deviation**2:.6g} / 2 = {factor:.6g}",
        f"factor of the RMS = sqrt({factor:.6g}) = {math.sqrt(factor):.6g}",
        f"RMS at the input = {start:g} x {math.sqrt(factor):.6g}^{depth} "
        f"= {gradient_scale(depth, width, deviation, start):.6g}",
    )


gradient_after_layers = Predict(
    id="gradient-after-layers",
    draw=draw_depth,
    ask=(
        "A network has {depth} layers of {width} units, each followed by a ReLU, without biases. "
        "Its weights are normal with mean 0 and standard deviation {deviation:g}. The gradient at "
        "the network's output has the RMS {start:g}. Which RMS does the gradient at its input "
        "have, by the theory of this session?"
    ),
    answer=gradient_scale,
    tolerance=0.02,
    working=scale_working,
    hints=(
        "First the factor of one layer for the mean square: units, variance, slopes.",
        "The question is about the root mean square, not about the mean square.",
    ),
)

# --------------------------------------------------------------------------- measure-flow

HIDDEN = 12
SCRIPT = f"""import numpy as np
from firsthand.llm.foundations.digits import load_digits
from firsthand.llm.foundations.gradient_flow import gradient_rms
from mine.foundations.layers import MLP  # or firsthand.llm.foundations.layers

images, labels = load_digits()
for activation in ("sigmoid", "relu"):
    sizes = [64] + [64] * {HIDDEN} + [10]
    model = MLP(sizes, np.random.default_rng(0), activation)
    scales = gradient_rms(model, images[:100], labels[:100])
    print(activation, scales[0], scales[-2])
"""


def flow_ratio() -> float:
    """First over last hidden layer: the share with ReLU over the share with sigmoid."""
    images, labels = load_digits()
    shares = {}
    for activation in ("sigmoid", "relu"):
        model = MLP([64, *[64] * HIDDEN, 10], np.random.default_rng(0), activation)
        scales = gradient_rms(model, images[:100], labels[:100])
        shares[activation] = scales[0] / scales[-2]
    return shares["relu"] / shares["sigmoid"]


measure_flow = Measure(
    id="measure-flow",
    ask=(
        "Save this as `flow_run.py` beside your workspace folder (here it is called `mine`) and "
        "run `python flow_run.py`. Each line has the RMS of the gradient at the first and at the "
        f"last hidden layer.\n\n```python\n{SCRIPT}```\n\n"
        "Divide first by last in each line. Report the quotient of the two: "
        "(first / last with relu) / (first / last with sigmoid)."
    ),
    experiment=flow_ratio,
    within=1.1,
    working=(
        "the share of one network is its first RMS over its last RMS",
        "example, sigmoid: 0.00006 / 0.3 = 0.0002",
        "example, relu: 0.12 / 0.15 = 0.8",
        "quotient of the two shares = 0.8 / 0.0002 = 4000",
    ),
    hints=(
        "Four numbers are printed. Two quotients come first, then the quotient of these.",
        "The answer is far above 1: the share of the sigmoid is the denominator.",
    ),
    seconds=60.0,
)

# --------------------------------------------------------------------------- trace-gradcheck


def draw_gradcheck(generator: Generator, small: bool) -> Worked:
    power = 2 if small else 3
    step = 0.5 if small else 0.1
    while True:
        lead = int(generator.integers(1, 4))
        slope = int(generator.choice([-5, -4, -3, -2, 2, 3, 4, 5]))
        place = float(generator.choice([1, 2, 3]))
        right = power * lead * place ** (power - 1) + slope
        # sign of the linear term; its derivative lost; the power not brought down
        claims = (right - 2 * slope, right - slope, lead * place ** (power - 1) + slope)
        claim = float(generator.choice(claims))
        if 0.1 < abs(claim - right) / max(abs(claim), abs(right)) < 0.95 and claim != 0:
            break

    def height(w: float) -> float:
        return lead * w**power + slope * w

    above, here, below = height(place + step), height(place), height(place - step)
    # at 0 the step is taken as it is given, so the whole check runs there
    numeric = float(
        numerical_gradient(lambda d: height(place + float(d[0])), np.zeros(1), step=step)[0]
    )

    def blanks(found: float, error: float | None = None) -> dict[str, float]:
        own = relative_error(np.array([claim]), np.array([found])) if error is None else error
        return {"above": above, "below": below, "numeric": found, "error": own}

    error = relative_error(np.array([claim]), np.array([numeric]))
    larger = max(abs(claim), abs(numeric))
    return Worked(
        given=(
            f"f(w) = {'' if lead == 1 else f'{lead} '}w^{power} "
            f"{'+' if slope > 0 else '-'} {abs(slope)} w at w = {place:g}. "
            f"A backward pass says df/dw = {claim:g}. Check it with h = {step:g}: give "
            "above = f(w + h), below = f(w - h), the central difference (numeric) and the "
            "relative error, to four significant digits."
        ),
        blanks=blanks(numeric),
        working=(
            f"above = f({place + step:g}) = {above:.6g}",
            f"below = f({place - step:g}) = {below:.6g}",
            f"numeric = ({above:.6g} - ({below:.6g})) / (2 x {step:g}) = {numeric:.6g}",
            f"error = {abs(claim - numeric):.6g} / {larger:.6g} = {error:.5g}",
        ),
        tolerance=2e-3,
        wrong={
            "trace-one-sided": blanks((above - here) / step),
            "trace-single-step": blanks((above - below) / step),
            "trace-absolute": blanks(numeric, abs(claim - numeric)),
            "trace-smaller-scale": blanks(
                numeric, abs(claim - numeric) / min(abs(claim), abs(numeric))
            ),
        },
    )


trace_gradcheck = Trace(
    id="trace-gradcheck",
    draw=draw_gradcheck,
    hints=(
        "Only f is evaluated; no derivative is needed for the check.",
        "How far apart are w + h and w - h?",
        "The larger of the two magnitudes stands below the line.",
    ),
)

# --------------------------------------------------------------------------- order-debugging

order_debugging = Order(
    id="order-debugging",
    ask=(
        "A classifier does not learn. Put the tests in an order in which each comes after those "
        "that it takes for granted, and leave out the lines that are wrong."
    ),
    lines=(
        Line(id="data", text="draw ten inputs as the network gets them, beside their labels"),
        Line(id="first-loss", text="compare the first loss with log(classes)", needs=("data",)),
        Line(
            id="signals",
            text="print variance and dead units of each layer for one batch of the data",
            needs=("data",),
        ),
        Line(
            id="differences",
            text="compare the gradient of the loss with central differences",
            needs=("first-loss",),
        ),
        Line(
            id="ten-rows",
            text="train on ten rows until their loss is near 0",
            needs=("signals", "differences"),
        ),
        Line(
            id="all-rows",
            text="train on all rows and compare training and validation loss",
            needs=("ten-rows",),
        ),
        Line(id="search", text="search over learning rates and widths", needs=("all-rows",)),
    ),
    wrong={
        "rate-by-trial": "raise the learning rate until the loss of the full run moves",
        "accuracy-as-proof": "take a rising accuracy as proof that the gradient is right",
    },
    hints=(
        "Start with the one test that takes nothing for granted.",
        "To learn ten rows by heart, two things must already have been shown.",
    ),
)

# --------------------------------------------------------------------------- close-depth

NUMERATORS = {
    "He normal weights": 2.0,
    "Xavier normal weights": 1.0,
    "weights uniform on [-1/sqrt(n), 1/sqrt(n)]": 1.0 / 3.0,
}


def ends_apart(factor: float, depth: int) -> float:
    """RMS at one end over the RMS at the other, the larger over the smaller."""
    return math.exp(abs(math.log(factor)) * depth / 2.0)


def draw_depth_budget(generator: Generator, small: bool) -> Scenario:
    he, xavier, bounded = NUMERATORS
    width = int(generator.choice([4, 8, 16] if small else [128, 192, 256, 320]))
    while True:
        open_units = int(generator.integers(40, 48)) / 100
        tanh_slope = int(generator.integers(68, 93)) / 100
        layers = (2, 3, 4, 5) if small else sorted(generator.choice(np.arange(6, 60, 2), 4, False))
        order = generator.permutation(3)
        # the bounded weights shrink most and are only offered shallow
        designs = {
            "bounded": ("ReLU", bounded, open_units, int(layers[0])),
            "tanh": ("tanh", xavier, tanh_slope, int(layers[1 + order[0]])),
            "relu": ("ReLU", he, open_units, int(layers[1 + order[1]])),
            "mixed": ("ReLU", xavier, open_units, int(layers[1 + order[2]])),
        }
        factors = {name: NUMERATORS[d[1]] * d[2] for name, d in designs.items()}
        spreads = {name: ends_apart(factors[name], d[3]) for name, d in designs.items()}
        limit = float(generator.choice([4, 6, 10] if small else [10, 30, 100, 300, 1000]))
        fitting = [name for name in designs if spreads[name] <= limit]
        clear = all(not 0.9 < spread / limit < 1.1 for spread in spreads.values())
        deepest = max(designs, key=lambda name: designs[name][3])
        if clear and len(fitting) > 1 and deepest not in fitting:
            break
    best = max(fitting, key=lambda name: designs[name][3])

    def figures_of(factor: float, spread: float) -> dict[str, float]:
        return {"factor": factor, "spread": spread}

    activation, drawn, slope, depth = designs[best]
    variance = NUMERATORS[drawn] / width
    return Scenario(
        text=(
            f"A network has square layers of width n = {width} without biases. At the first step "
            "of training the RMS of the gradient at the network's input and at its output may "
            f"differ by a factor of at most {limit:g}. Choose the deepest design that keeps this. "
            "State the factor by which one layer scales the mean square of the gradient (factor) "
            "and the quotient of the two RMS, larger over smaller, over all layers (spread)."
        ),
        choices={
            name: f"{d[3]} layers, {d[0]}, {d[1]}, mean square slope {d[2]:g}"
            for name, d in designs.items()
        },
        figures={name: figures_of(factors[name], spreads[name]) for name in designs},
        best=(best,),
        budget={"spread": limit},
        working=(
            f"variance of a weight = {NUMERATORS[drawn]:.6g} / {width} = {variance:.6g}",
            f"factor = {width} x {variance:.6g} x {slope:g} = {factors[best]:.6g}",
            f"RMS factor of one layer = sqrt({factors[best]:.6g}) = {math.sqrt(factors[best]):.6g}",
            f"spread over {depth} layers, {activation} = "
            f"{math.sqrt(factors[best]):.6g}^(-{depth}) = {spreads[best]:.6g}",
        ),
        tolerance=0.02,
        wrong={
            "spread-of-mean-squares": {
                name: figures_of(factors[name], spreads[name] ** 2) for name in designs
            },
            "slopes-left-out": {
                name: figures_of(
                    NUMERATORS[d[1]],
                    ends_apart(NUMERATORS[d[1]], d[3]),
                )
                for name, d in designs.items()
            },
            "one-layer-only": {
                name: figures_of(factors[name], ends_apart(factors[name], 1)) for name in designs
            },
            "bound-taken-as-deviation": {
                "bounded": figures_of(
                    3 * factors["bounded"],
                    ends_apart(3 * factors["bounded"], designs["bounded"][3]),
                )
            },
        },
    )


close_depth = Defend(
    id="close-depth",
    draw=draw_depth_budget,
    closes="initialization",
    hints=(
        "The variance of a weight follows from how it is drawn; the width then cancels.",
        "The factor is for the mean square. The spread compares roots, over all layers.",
        "Work out all spreads, then take the deepest design under the limit.",
    ),
)
