"""Two audits side by side: the GPU machine beside the CPU laptop, or a machine before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from firsthand.llm.audit import audit_tables as tables
from firsthand.llm.audit.bars import Bar, draw_bars
from firsthand.llm.audit.full import AuditRecord
from firsthand.llm.audit.machine_tables import facts as machine_facts
from firsthand.llm.audit.machine_tables import seconds_text
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.audit.roofline import giga_text
from firsthand.llm.data.files import write_atomically
from firsthand.llm.training.report.page import Figure, page_environment
from firsthand.llm.training.report.tables import Row, Table, size

NONE = "-"
COMPARISON = "comparison.html"


@dataclass(frozen=True)
class Line:
    """A figure of both audits.

    Attributes:
        section: what it belongs to: "latency", "training", "memory", "quality", "machine" ...
        name: of the figure.
        values: of both; None where one has none.
        shown: the same for a reader.
        better: "less", "more" or "" where neither is.
    """

    section: str
    name: str
    values: tuple[float | None, float | None]
    shown: tuple[str, str]
    better: str = ""

    @property
    def ratio(self) -> float | None:
        """The second over the first; None where one is missing or 0."""
        first, second = self.values
        return second / first if first and second is not None else None


@dataclass(frozen=True)
class Comparison:
    """Two audits, and all figures that at least one of them has.

    Attributes:
        audits: both.
        names: of both, different from each other.
        warnings: what makes figures incomparable, in sentences.
        lines: the figures.
    """

    audits: tuple[AuditRecord, AuditRecord]
    names: tuple[str, str]
    warnings: tuple[str, ...]
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """Names, warnings, and each figure with its ratio."""
        return {
            "names": list(self.names),
            "warnings": list(self.warnings),
            "lines": [
                {
                    "section": line.section,
                    "name": line.name,
                    "values": list(line.values),
                    "ratio": line.ratio,
                }
                for line in self.lines
            ],
        }


def compared(first: AuditRecord, second: AuditRecord) -> Comparison:
    """Set two audits side by side; audits of different models are, too, with a warning."""
    audits = first, second
    lines = [
        *_latency(audits),
        *_training(audits),
        *_memory(audits),
        *_quality(audits),
        *_energy(audits),
        *_machine(audits),
    ]
    return Comparison(audits, _names(audits), tuple(_warnings(audits)), tuple(lines))


def comparison_tables(found: Comparison) -> list[Table]:
    """A table for each section."""
    sections = dict.fromkeys(line.section for line in found.lines)
    made = []
    for section in sections:
        rows: list[Row] = [
            (line.name, *line.shown, NONE if line.ratio is None else f"{line.ratio:.3g}")
            for line in found.lines
            if line.section == section
        ]
        head = ("figure", *found.names, "ratio")
        made.append(Table(title=section.capitalize(), head=head, rows=rows))
    return made


def machines_table(found: Comparison) -> Table:
    """What both machines are."""
    both = [dict(machine_facts(audit.processor)) for audit in found.audits]
    rows: list[Row] = [(name, both[0][name], both[1].get(name, NONE)) for name in both[0]]
    return Table(title="Machines", head=("", *found.names), rows=rows, numbers=3)


def comparison_html(found: Comparison) -> str:
    """The page as one HTML document, without scripts, fonts or pictures from elsewhere."""
    environment = page_environment(PackageLoader("firsthand.llm.audit", "pages"))
    return environment.get_template("comparison.html").render(
        title=f"{found.names[0]} beside {found.names[1]}",
        audits=[
            {"name": name, "facts": tables.facts(audit)}
            for name, audit in zip(found.names, found.audits, strict=True)
        ],
        warnings=found.warnings,
        figures=_figures(found),
        machines=machines_table(found),
        tables=comparison_tables(found),
    )


def write_comparison(found: Comparison, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    write_atomically(path, comparison_html(found).encode("utf-8"))


# --------------------------------------------------------------------------- lines

Audits = tuple[AuditRecord, AuditRecord]
Show = Callable[[float], str]


def _line(
    section: str,
    name: str,
    values: tuple[float | None, float | None],
    show: Show,
    better: str = "",
) -> list[Line]:
    """None where neither audit has the figure."""
    if values == (None, None):
        return []
    shown = tuple(NONE if value is None else show(value) for value in values)
    return [Line(section, name, values, (shown[0], shown[1]), better)]


def _latency(audits: Audits) -> list[Line]:
    falls = [{fall.key: fall for fall in audit.waterfalls} for audit in audits]
    lines: list[Line] = []
    for key in dict.fromkeys([*falls[0], *falls[1]]):
        both = [fall.get(key) for fall in falls]
        name = next(fall.name for fall in both if fall is not None)
        for what, field in (
            ("first token", "first_whole"),
            ("a token", "token_whole"),
            ("a token in the engine", "engine_seconds"),
        ):
            values = [None if fall is None else float(getattr(fall, field)) for fall in both]
            lines += _line(
                "latency", f"{name}: {what}", (values[0], values[1]), seconds_text, "less"
            )
    return lines


def _training(audits: Audits) -> list[Line]:
    speeds = [audit.throughput for audit in audits]

    def both(take: Callable[[Any], float | None]) -> tuple[float | None, float | None]:
        found = [None if speed is None else take(speed) for speed in speeds]
        return found[0], found[1]

    units = {speed.unit for speed in speeds if speed is not None}
    rate = both(lambda s: s.tokens_per_second) if len(units) == 1 else (None, None)
    return [
        *_line("training", f"{''.join(units)}/s", rate, _plain, "more"),
        *_line("training", "share of the peak", both(lambda s: s.share), _percent, "more"),
    ]


def _memory(audits: Audits) -> list[Line]:
    both = [{found.name: found for found in audit.footprints} for audit in audits]
    lines: list[Line] = []
    for name in dict.fromkeys([*both[0], *both[1]]):
        found = [each.get(name) for each in both]
        predicted = [None if f is None else float(f.predicted_total) for f in found]
        measured = [None if f is None or f.total is None else float(f.total) for f in found]
        lines += _line("memory", f"{name}, predicted", (predicted[0], predicted[1]), size, "less")
        lines += _line("memory", f"{name}, measured", (measured[0], measured[1]), size, "less")
    return lines


def _quality(audits: Audits) -> list[Line]:
    first, second = (audit.quality for audit in audits)
    lines = [
        *_line("quality", "bits per byte, float32", (first.bits_before, second.bits_before), _fine),
        *_line("quality", "bits per byte, INT8", (first.bits_after, second.bits_after), _fine),
    ]
    before = first.accuracy_before, second.accuracy_before
    after = first.accuracy_after, second.accuracy_after
    lines += _line("quality", "accuracy, float32", before, _percent, "more")
    return lines + _line("quality", "accuracy, INT8", after, _percent, "more")


def _energy(audits: Audits) -> list[Line]:
    both = [{each.name: each.joules for each in audit.energies} for audit in audits]
    lines: list[Line] = []
    for name in dict.fromkeys([*both[0], *both[1]]):
        values = both[0].get(name), both[1].get(name)
        lines += _line("energy", f"{name}: a token", values, lambda j: f"{1e3 * j:.3g} mJ", "less")
    return lines


def _machine(audits: Audits) -> list[Line]:
    lines: list[Line] = []
    for device in ("cpu", "gpu"):
        limits: list[DeviceCeilings | None] = [
            getattr(audit.machine, device) if audit.machine else None for audit in audits
        ]
        title = device.upper()
        memory = [None if d is None else d.bandwidths[-1].read for d in limits]
        lines += _line(
            "machine", f"{title}: reading memory", (memory[0], memory[1]), _giga_bytes, "more"
        )
        for dtype in ("float32", "bfloat16", "int8"):
            rates = [None if d is None else d.flop_rates.get(dtype) for d in limits]
            lines += _line(
                "machine", f"{title}: {dtype} products", (rates[0], rates[1]), _giga_flops, "more"
            )
    return lines


def _names(audits: Audits) -> tuple[str, str]:
    """The machines' names where they differ, else the models', else first and second."""
    for take in (_machine_name, lambda audit: audit.about.name):
        first, second = (take(audit) for audit in audits)
        if first != second:
            return first, second
    return "first", "second"


def _machine_name(audit: AuditRecord) -> str:
    card = audit.processor.gpu
    return card.name if card else audit.processor.model


def _warnings(audits: Audits) -> list[str]:
    first, second = (audit.about for audit in audits)
    if first.model != second.model:
        return [
            f"These are different models, {first.name} of {first.total:,} parameters and "
            f"{second.name} of {second.total:,}: a ratio of their figures is not that of the "
            "machines."
        ]
    found = []
    if first.identity != second.identity:
        found.append("The models have one shape and different weights: their quality may differ.")
    texts = [(audit.quality.text, audit.quality.tokens) for audit in audits]
    if texts[0] != texts[1]:
        found.append("Their quality was measured on different text.")
    return found


def _figures(found: Comparison) -> list[Figure]:
    """A token of each engine that both have."""
    made = []
    for line in found.lines:
        first, second = line.values
        if line.section == "latency" and line.name.endswith(": a token"):
            if first is None or second is None:
                continue
            bars = [
                Bar(tables.short_name(name), value, whole=True)
                for name, value in zip(found.names, (first, second), strict=True)
            ]
            made.append(Figure(title=line.name, note="", svg=draw_bars(line.name, bars)))
    return made


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _fine(value: float) -> str:
    return f"{value:.5f}"


def _giga_bytes(value: float) -> str:
    return f"{giga_text(value)} GB/s"


def _giga_flops(value: float) -> str:
    return f"{giga_text(value)} GFLOP/s"
