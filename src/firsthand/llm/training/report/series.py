"""The numbers of the metrics as lines to draw: which there are, what they are called, thinned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from firsthand.llm.training.report.contents import TOKENS, Contents, Record, finite, number

MOST_POINTS = 300

Role = Literal["train", "validation", "layer", "reference"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a plot.

    Attributes:
        name: what stands beside it.
        points: (x, y), by x, all finite.
        band: for thinned lines the least and largest y around each point, else ().
        role: decides how it is drawn.
        depth: of a layer, 0 the first and 1 the last.
        label: what stands beside its end; "" is its name and its last value.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float], ...] = ()
    role: Role = "train"
    depth: float = 0.0
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Lines over the same steps, or over another quantity.

    Attributes:
        title: with the unit.
        note: a sentence below it.
        logarithmic: the y axis; every y is above 0 then.
        x_name: what the x axis is, in a word.
        x_logarithmic: the x axis; every x is above 0 then.
        dropped: values that were not finite, or not above 0 on a logarithmic axis.
    """

    title: str
    series: tuple[Series, ...]
    note: str = ""
    logarithmic: bool = False
    dropped: int = 0
    x_name: str = "step"
    x_logarithmic: bool = False


@dataclass(frozen=True)
class Known:
    """What is known about a metric by its name."""

    title: str
    note: str = ""
    logarithmic: bool = False
    scale: float = 1.0


KNOWN = {
    "loss": Known("Loss, nats per token"),
    "bits_per_byte": Known("Bits per byte", "Of UTF-8 text, so tokenizers compare."),
    "perplexity": Known("Perplexity", "e to the loss.", True),
    "learning_rate": Known("Learning rate"),
    "gradient_norm": Known("Norm of the gradient", "Before clipping, over all parameters.", True),
    "tokens_per_second": Known("Tokens per second"),
    "memory_bytes": Known("Peak memory, MB", scale=1e-6),
    "real_token_fraction": Known("Share of positions that are trained on"),
    "accuracy": Known("Accuracy"),
    "reward": Known("Reward"),
    "kl": Known("KL divergence from the reference, nats"),
    "entropy": Known("Entropy, nats"),
}
FLOW = {
    "activation_rms": Known("Activations, root mean square", "Of each layer's output.", True),
    "attention_rms": Known(
        "What attention adds", "Root mean square of what it adds to the stream.", True
    ),
    "feed_forward_rms": Known(
        "What the feed-forward adds", "Root mean square of what it adds to the stream.", True
    ),
    "activation_gradient_rms": Known(
        "Gradients of activations", "Of the loss for each layer's output, root mean square.", True
    ),
    "gradient_rms": Known(
        "Gradients of weights", "Root mean square over the layer's parameters.", True
    ),
    "update_ratio": Known(
        "Update / weight", "How far a step moves a layer, as a share of its weights.", True
    ),
    "weight_rms": Known("Weights, root mean square", "", True),
    "update_rms": Known("Updates, root mean square", "", True),
}
# Sizes and clocks of a record, which are no curves.
_NO_CURVE = {"step", "tokens", "seconds", "bytes", "positions"}
# A factor from which on a linear axis would hide most of an unknown metric.
_WIDE = 1000.0


def metric_plots(contents: Contents) -> tuple[list[Plot], dict[str, float]]:
    """A plot for each numeric metric of training and validation; and the ones that never change.

    Known metrics come first, in the order of `KNOWN`, then the others by name.
    """
    train, validation = contents.of_kind("train"), contents.of_kind("validation")
    names = _numeric_names(train + validation)
    order = [name for name in KNOWN if name in names]
    order += sorted(names - set(KNOWN))
    plots, constant = [], {}
    for name in order:
        plot = _metric_plot(name, train, validation, contents)
        values = {y for series in plot.series for _, y in series.points}
        if len(values) == 1 and any(len(series.points) > 1 for series in plot.series):
            constant[plot.title] = values.pop()
        elif values or plot.dropped:
            plots.append(plot)
    return plots, constant


def flow_plots(contents: Contents) -> list[Plot]:
    """A plot for each figure of the gradient flow, a line for each layer."""
    records = [r for r in contents.of_kind("flow") if isinstance(r.get("layers"), dict)]
    layers = list(dict.fromkeys(name for record in records for name in record["layers"]))
    figures = _numeric_names([f for r in records for f in r["layers"].values() if _is_record(f)])
    order = [name for name in FLOW if name in figures] + sorted(figures - set(FLOW))
    plots = []
    for figure in order:
        known = FLOW.get(figure, Known(_spoken(figure), logarithmic=True))
        series, dropped = [], 0
        for place, layer in enumerate(layers):
            values = [
                (step(record), record["layers"].get(layer, {}).get(figure))
                for record in records
                if _is_record(record["layers"].get(layer, {}))
            ]
            points, lost = _points(values, known)
            dropped += lost
            if points:
                depth = place / max(1, len(layers) - 1)
                series.append(Series(name=layer, points=points, role="layer", depth=depth))
        if series or dropped:
            plots.append(
                Plot(
                    title=known.title,
                    note=known.note,
                    series=tuple(series),
                    logarithmic=known.logarithmic,
                    dropped=dropped,
                )
            )
    return plots


def step(record: Record) -> float:
    """The step of a record; 0 without one."""
    return finite(record.get("step")) or 0.0


def thinned(
    points: tuple[tuple[float, float], ...], most: int = MOST_POINTS
) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
    """At most so many points, each the mean of its neighbours, and their least and largest y.

    A line that is short enough stays, and has no band.
    """
    if len(points) <= most:
        return points, ()
    means, band = [], []
    for k in range(most):
        group = points[len(points) * k // most : len(points) * (k + 1) // most]
        ys = [y for _, y in group]
        means.append((sum(x for x, _ in group) / len(group), sum(ys) / len(ys)))
        band.append((min(ys), max(ys)))
    return tuple(means), tuple(band)


def _metric_plot(
    name: str, train: list[Record], validation: list[Record], contents: Contents
) -> Plot:
    known = KNOWN.get(name, Known(_spoken(name)))
    if contents.unit != TOKENS:
        known = replace(known, title=_titles(contents.unit).get(name, known.title))
    series, dropped, wide = [], 0, known.logarithmic
    both = [[(step(record), record.get(name)) for record in part] for part in (train, validation)]
    if name not in KNOWN:
        found = [y for part in both for _, value in part if (y := finite(value)) is not None]
        wide = bool(found) and min(found) > 0 and max(found) > _WIDE * min(found)
    shown = Known(known.title, known.note, wide, known.scale)
    roles: tuple[Role, Role] = ("train", "validation")
    for role, values in zip(roles, both, strict=True):
        points, lost = _points(values, shown)
        dropped += lost
        if points:
            thin, band = thinned(points)
            label = "training" if role == "train" else role
            series.append(Series(name=label, points=thin, band=band, role=role))
    gzip = finite(contents.about.get("gzip_bits_per_byte"))
    if name == "bits_per_byte" and gzip is not None and series:
        xs = [x for line in series for x, _ in line.points]
        ends = ((min(xs), gzip), (max(xs), gzip))
        series.append(Series(name="gzip -9", points=ends, role="reference"))
    return Plot(
        title=known.title,
        note=known.note,
        series=tuple(series),
        logarithmic=wide,
        dropped=dropped,
    )


def _titles(unit: str) -> dict[str, str]:
    """Of the metrics whose meaning depends on what an update counts."""
    return {
        "loss": f"Loss, mean over {unit}",
        "tokens_per_second": f"{unit.capitalize()} per second",
    }


def _points(
    values: Iterable[tuple[float, object]], known: Known
) -> tuple[tuple[tuple[float, float], ...], int]:
    """The values that can be drawn, and how many numbers cannot."""
    points, dropped = [], 0
    for x, value in values:
        y = number(value)
        if y is None:
            continue
        if not math.isfinite(y) or (known.logarithmic and y <= 0):
            dropped += 1
        else:
            points.append((x, y * known.scale))
    return tuple(points), dropped


def _numeric_names(records: Iterable[Record]) -> set[str]:
    found = {name for r in records for name, value in r.items() if number(value) is not None}
    return found - _NO_CURVE


def _is_record(value: object) -> bool:
    return isinstance(value, dict)


def _spoken(name: str) -> str:
    return name.replace("_", " ").capitalize()
