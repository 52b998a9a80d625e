"""One page of HTML: each broken run drawn beside the healthy one, with its signature measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from firsthand.llm.audit.flow import Flow
from firsthand.llm.audit.flow_gallery import Exhibit, compared
from firsthand.llm.data.files import write_atomically
from firsthand.llm.training.report.page import figure_of, page_environment
from firsthand.llm.training.report.plots import short
from firsthand.llm.training.report.series import Plot, Role, Series
from firsthand.llm.training.report.tables import Table

Points = list[tuple[float, float | None]]
MISSING = "not measured"


def gallery_html(exhibits: Sequence[Exhibit], facts: dict[str, str]) -> str:
    """The page as one HTML document, without scripts, fonts or pictures from elsewhere.

    Args:
        exhibits: at least one; all beside the same healthy run.
        facts: what is said at the top, name to value.
    """
    shown: list[dict[str, Any]] = [
        {
            "name": exhibit.breakage.name,
            "title": exhibit.breakage.title,
            "what": exhibit.breakage.what,
            "verdict": verdict_of(exhibit),
            "failure": exhibit.broken.failure,
            "failed_step": exhibit.broken.failed_step,
            "figures": [figure_of(plot) for plot in plots(exhibit)],
            "signature": signature_table(exhibit),
            "compared": compared_table(exhibit),
        }
        for exhibit in exhibits
    ]
    environment = page_environment(PackageLoader("firsthand.llm.audit", "pages"))
    return environment.get_template("gallery.html").render(
        title="Gradient flow: what breaks it, and how that shows",
        facts=list(facts.items()),
        exhibits=shown,
    )


def write_gallery(exhibits: Sequence[Exhibit], facts: dict[str, str], path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    write_atomically(path, gallery_html(exhibits, facts).encode("utf-8"))


def verdict_of(exhibit: Exhibit) -> str:
    """Whether the signature named the breakage in this run."""
    names = exhibit.named
    if names == [exhibit.breakage.name]:
        return "In this run the signature holds, and no other does."
    if not names:
        return "In this run the signature does not hold."
    return f"In this run these signatures hold: {', '.join(names)}."


def signature_table(exhibit: Exhibit) -> Table:
    """The relations of the signature with both runs' values."""
    rows = [
        (
            statement.relation.says,
            statement.relation.bounds,
            number(statement.broken),
            number(statement.healthy),
        )
        for statement in exhibit.statements
    ]
    return Table(title="Signature", head=("figure", "told by", "broken", "healthy"), rows=rows,
                 numbers=2)  # fmt: skip


def compared_table(exhibit: Exhibit) -> Table:
    """Figures of both runs at the first and the last step."""
    rows = [(says, number(broken), number(healthy)) for says, healthy, broken in compared(exhibit)]
    return Table(title="Both runs", head=("figure", "broken", "healthy"), rows=rows)


def number(value: float | None) -> str:
    """A figure in a table."""
    return MISSING if value is None else short(value)


def plots(exhibit: Exhibit) -> list[Plot]:
    """Loss, gradients, stream, updates and entropy, the broken run over the healthy one."""
    flows = (exhibit.healthy, exhibit.broken)
    by_step = [
        ("Loss, nats per byte", False, [_logged(flow, "loss") for flow in flows]),
        (
            "Norm of the gradient before clipping",
            True,
            [_logged(flow, "gradient_norm") for flow in flows],
        ),
        (
            "Update / weight, first block",
            True,
            [_steps(flow, "blocks.0", "update_ratio") for flow in flows],
        ),
        (
            "Entropy of attention, first block",
            False,
            [_steps(flow, "blocks.0", "attention_entropy") for flow in flows],
        ),
    ]
    by_block = [
        ("Stream behind each block at step 1, rms", "activation_rms"),
        ("Gradients of each block's weights at step 1, rms", "gradient_rms"),
    ]
    drawn = [_plot(title, lines, logarithmic=log) for title, log, lines in by_step]
    for title, figure in by_block:
        lines = [_blocks(flow, figure) for flow in flows]
        drawn.append(_plot(title, lines, logarithmic=True, x_name="block"))
    return [plot for plot in drawn if plot.series]


def _plot(title: str, lines: list[Points], *, logarithmic: bool, x_name: str = "step") -> Plot:
    """Healthy dashed, broken drawn; what cannot be drawn is counted."""
    if logarithmic and not any(value for points in lines for _, value in points):
        logarithmic = False  # zero everywhere
    names: tuple[tuple[str, Role], ...] = (("healthy", "reference"), ("broken", "train"))
    series, dropped = [], 0
    for (name, role), points in zip(names, lines, strict=True):
        kept = tuple((x, y) for x, y in points if _drawable(y, logarithmic) and y is not None)
        dropped += len(points) - len(kept)
        if kept:
            series.append(Series(name=name, points=kept, role=role))
    return Plot(
        title=title,
        series=tuple(series),
        logarithmic=logarithmic,
        dropped=dropped,
        x_name=x_name,
    )


def _drawable(value: float | None, logarithmic: bool) -> bool:
    return value is not None and math.isfinite(value) and not (logarithmic and value <= 0)


def _logged(flow: Flow, name: str) -> Points:
    return [(float(r["step"]), flow.logged(int(r["step"]), name)) for r in flow.train]


def _steps(flow: Flow, layer: str, figure: str) -> Points:
    return [(float(r["step"]), flow.at(int(r["step"]), layer, figure)) for r in flow.flow]


def _blocks(flow: Flow, figure: str) -> Points:
    if not flow.flow:
        return []
    numbers: Iterable[int] = range(flow.model.n_layers)
    return [(float(n), flow.at(1, f"blocks.{n}", figure)) for n in numbers]
