"""The page of an audit: one HTML file without scripts, fonts or pictures from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from firsthand.llm.audit import audit_tables as tables
from firsthand.llm.audit.bars import Bar, draw_bars
from firsthand.llm.audit.footprint import Footprint
from firsthand.llm.audit.full import AuditRecord
from firsthand.llm.audit.waterfall import REST, Stage, Waterfall
from firsthand.llm.data.files import write_atomically
from firsthand.llm.training.report.page import Figure, page_environment
from firsthand.llm.training.report.tables import size

PREDICTED = "The upright line in a row is what was predicted."


def audit_html(audit: AuditRecord) -> str:
    """The page as one HTML document."""
    environment = page_environment(PackageLoader("firsthand.llm.audit", "pages"))
    return environment.get_template("audit.html").render(
        title=f"Audit of {audit.about.name}",
        facts=tables.facts(audit),
        headline=tables.headline(audit),
        notes=audit.notes,
        parameters=tables.parameters_table(audit),
        footprints=[tables.footprint_table(found) for found in audit.footprints],
        footprint_figures=[footprint_figure(found) for found in audit.footprints],
        throughput=audit.throughput and tables.throughput_table(audit.throughput),
        latency=tables.latency_table(audit) if audit.waterfalls else None,
        waterfalls=[_waterfall(fall) for fall in audit.waterfalls],
        quality=tables.quality_table(audit),
        energy=tables.energy_table(audit),
    )


def write_audit_page(audit: AuditRecord, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    write_atomically(path, audit_html(audit).encode("utf-8"))


def token_figure(fall: Waterfall) -> Figure:
    """From a token to the next, part by part."""
    bars = _bars(fall.token, fall.rest)
    bars.append(Bar("the engine's call", fall.engine_seconds, fall.predicted_token, whole=True))
    bars.append(Bar("a token, whole", fall.token_whole, whole=True))
    return _figure(f"From a token to the next, {fall.name}", bars)


def first_figure(fall: Waterfall) -> Figure:
    """From the prompt to the first token."""
    bars = _bars(fall.first, fall.first_rest)
    bars.append(Bar("to the first token", fall.first_whole, whole=True))
    return _figure(f"From {fall.prompt} tokens of prompt to the first token", bars)


def footprint_figure(found: Footprint) -> Figure:
    """Predicted bytes by category; the measured total below."""
    bars = [
        Bar(name.replace("_", " "), float(count), text=size(count))
        for name, count in found.predicted.items()
    ]
    whole = found.predicted_total
    bars.append(Bar("predicted", float(whole), whole=True, text=size(whole)))
    if found.total is not None:
        bars.append(Bar("measured", float(found.total), whole=True, text=size(found.total)))
    title = f"Bytes of {found.name}"
    return Figure(title=title, note="", svg=draw_bars(title, bars))


def _waterfall(fall: Waterfall) -> dict[str, Any]:
    return {
        "name": fall.name,
        "figures": [token_figure(fall), first_figure(fall)],
        "table": tables.token_table(fall),
    }


def _bars(stages: tuple[Stage, ...], rest: float) -> list[Bar]:
    return [
        *(Bar(stage.name, stage.seconds, stage.predicted) for stage in stages),
        Bar(REST, rest),
    ]


def _figure(title: str, bars: list[Bar]) -> Figure:
    told = any(bar.predicted is not None for bar in bars)
    return Figure(title=title, note=PREDICTED if told else "", svg=draw_bars(title, bars))
