"""The full audit of a model, and two audits side by side: `firsthand audit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from firsthand.app.cli.options import StepOption
from firsthand.app.cli.stack import one_sentence, progress_bar
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.audit.comparison import Comparison
    from firsthand.llm.audit.full import AuditRecord
    from firsthand.llm.training.report.tables import Table

FOLDER = "audit"
AUDIT, PAGE, COMPARISON = "audit.json", "audit.html", "comparison.html"
SECONDS, MOST_SECONDS = 2.0, 600.0


def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A run, a quantized folder, one in Hugging Face's format, or a GGUF file; with "
            "--compare two audits.",
            metavar="RUN",
            show_default=False,
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads it at run time)
        typer.Option("--out", "-o", help="Folder. Default: audit in the run, or ./audit."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Set two audits side by side: A.json B.json.")
    ] = False,
    measure: Annotated[
        int, typer.Option(help="Validation tokens to measure on, about; 0 is the whole split.")
    ] = 32_768,
    questions: Annotated[
        int, typer.Option(help="Of each held-out split of an aligned run; 0 asks none.")
    ] = 150,
    seconds: Annotated[float, typer.Option(help="To time each engine for, about.")] = SECONDS,
    training: Annotated[
        bool,
        typer.Option(
            "--training/--no-training", help="Run an update to measure the memory it takes."
        ),
    ] = True,
    step: StepOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Audit a model: memory, latency part by part, quality, energy.

    Measured on this machine, float32 beside INT8, and predicted from the machine's limits where
    `firsthand machine` has measured them. It leaves audit.json and a page, audit.html.
    """
    if compare:
        if len(paths) != 2:
            raise FirsthandError(f"--compare takes two audits, A.json B.json; not {len(paths)}.")
        _compare(paths[0], paths[1], out, as_json)
        return
    if len(paths) != 1:
        raise FirsthandError("audit takes one model; two audits go with --compare.")
    if measure < 0 or questions < 0:
        raise FirsthandError("--measure and --questions are at least 0.")
    if not 0 <= seconds <= MOST_SECONDS:
        raise FirsthandError(f"--seconds is 0 to {MOST_SECONDS:g}; not {seconds:g}.")
    with one_sentence():
        from firsthand.llm.audit.full import Effort
        from firsthand.llm.audit.page import write_audit_page

        effort = Effort(seconds=seconds, tokens=measure, questions=questions, training=training)
        folder = out or _folder(paths[0])
        _require_folder(folder)
        found = _audited(paths[0], step, effort)
        folder.mkdir(parents=True, exist_ok=True)
        found.save(folder / AUDIT)
        write_audit_page(found, folder / PAGE)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    _show(found)
    _print(f"{folder / PAGE}")


def _audited(path: Path, step: int, effort: object) -> AuditRecord:
    from rich.progress import TimeElapsedColumn

    from firsthand.llm.audit.ceilings import found_ceilings
    from firsthand.llm.audit.full import Effort
    from firsthand.llm.audit.full import audit as audited
    from firsthand.llm.audit.subject import open_subject
    from firsthand.llm.parts import FAST

    assert isinstance(effort, Effort)
    subject = open_subject(path, FAST, step=step)
    ceilings, why = found_ceilings()
    if why:
        print(why, file=sys.stderr)
    with progress_bar(TimeElapsedColumn(), words=26) as bar:
        task = bar.add_task("starting", total=1.0)
        return audited(
            subject,
            FAST,
            ceilings=ceilings,
            effort=effort,
            progress=lambda what, share: bar.update(task, description=what, completed=share),
        )


def _folder(path: Path) -> Path:
    """In a run; what is no run, such as a quantized folder, is left as it is."""
    return path / FOLDER if (path / "config.toml").exists() else Path(FOLDER)


def _require_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FirsthandError(f"--out is a folder; {folder} is a file.")


def _compare(first: Path, second: Path, out: Path | None, as_json: bool) -> None:
    with one_sentence():
        from firsthand.llm.audit.comparison import compared, write_comparison
        from firsthand.llm.audit.full import AuditRecord

        folder = out or Path()
        _require_folder(folder)
        found = compared(AuditRecord.load(first), AuditRecord.load(second))
        folder.mkdir(parents=True, exist_ok=True)
        write_comparison(found, folder / COMPARISON)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    _show_comparison(found)
    _print(f"{folder / COMPARISON}")


# --------------------------------------------------------------------------- what is shown


def _show(found: AuditRecord) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    from firsthand.app.cli.terminal import console
    from firsthand.llm.audit import audit_tables as tables

    out = console()
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="label", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in [*tables.facts(found), ("parameters", f"{found.about.total:,}")]:
        grid.add_row(name, Text(value))
    out.print(grid)
    for table in (
        tables.latency_table(found),
        tables.quality_table(found),
        tables.memory_table(found),
        tables.energy_table(found),
    ):
        if table.rows:
            _table(table)
    if found.throughput is not None:
        speed = found.throughput
        share = "" if speed.share is None else f", {speed.share:.1%} of the peak"
        _print(f"\nTrained at {speed.tokens_per_second:,.0f} {speed.unit}/s{share}.")
    for note in [*found.notes, *([found.no_energy] if found.no_energy else [])]:
        _print(f"Note: {note}")


def _show_comparison(found: Comparison) -> None:
    from firsthand.llm.audit.comparison import comparison_tables

    for warning in found.warnings:
        _print(f"Note: {warning}")
    for table in comparison_tables(found):
        _print(f"\n{table.title}")
        _table(table, note=False)


def _table(table: Table, *, note: bool = True) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    from firsthand.app.cli.terminal import console

    out = console()
    drawn = RichTable(box=None, pad_edge=False)
    for place, name in enumerate(table.head):
        right = place >= table.numbers
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    if note:
        out.print()
    out.print(drawn)
    if note and table.note:
        out.print(Text(table.note, style="dim"))


def _print(text: str) -> None:
    from rich.text import Text

    from firsthand.app.cli.terminal import console

    console().print(Text(text))
