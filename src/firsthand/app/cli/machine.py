"""What this machine is, and what it does at most: `firsthand machine`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from firsthand.app.cli.stack import one_sentence, progress_bar
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from firsthand.llm.audit.ceilings import MachineCeilings
    from firsthand.llm.training.report.tables import Table

SECONDS = 40
MOST_SECONDS = 600


def machine(
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew; else what was measured before is shown.")
    ] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads it at run time)
        typer.Option("--html", help="Write a page with the roofline, e.g. machine.html."),
    ] = None,
    seconds: Annotated[
        int, typer.Option(help="To measure for, about; the machine should be quiet meanwhile.")
    ] = SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """What this machine is, and what it does at most: measured, once.

    Bytes a second by working set, FLOPs a second of matrix products, what a small operation costs,
    on all cores that this process may use. Nothing is looked up. `fit` and `audit` compute with it.
    """
    if not 0 <= seconds <= MOST_SECONDS:
        raise FirsthandError(f"--seconds is 0 to {MOST_SECONDS}; this is {seconds}.")
    with one_sentence():
        from firsthand.llm.audit.ceilings import found_ceilings, record_path

        ceilings, why = (None, "") if again else found_ceilings()
        stored = ceilings is not None
        messages = [why] if why else []
        if ceilings is None:
            ceilings = measured(seconds)
            messages += _stored(ceilings, record_path())
        if html is not None:
            from firsthand.llm.audit.machine_page import write_machine_page

            write_machine_page(ceilings, html)
    _tell(messages)
    if as_json:
        print(json.dumps(ceilings.to_json()))
        return
    show(ceilings)
    if stored:
        _print("Measured before on this machine; anew: firsthand machine --again")
    if html is not None:
        _print(f"Written: {html}")


def measured(seconds: float = SECONDS) -> MachineCeilings:
    """Measure this machine with a bar."""
    from rich.progress import TimeElapsedColumn

    from firsthand.llm.audit.ceilings import measure_machine_ceilings

    with progress_bar(TimeElapsedColumn(), words=20) as bar:
        task = bar.add_task("starting", total=1.0)
        return measure_machine_ceilings(
            seconds=seconds,
            progress=lambda what, share: bar.update(task, description=what, completed=share),
        )


def show(ceilings: MachineCeilings) -> None:
    """Facts, tables and rooflines, in plain text."""
    from rich.table import Table as RichTable
    from rich.text import Text

    from firsthand.app.cli.terminal import console
    from firsthand.llm.audit import machine_tables as tables
    from firsthand.llm.audit.roofline import text_roofline

    out = console()
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="label", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in tables.facts(ceilings.processor):
        grid.add_row(name, Text(value))
    out.print(grid)
    out.print(Text(tables.measured_state(ceilings)))
    for note in ceilings.notes:
        out.print(Text(f"Note: {note}"))
    for title, device, steps in tables.devices(ceilings):
        out.print()
        out.print(Text(title, style="bold"))
        for table in (
            tables.bandwidth_table(ceilings, device),
            tables.product_table(device, steps),
            tables.overhead_table(device),
        ):
            out.print()
            out.print(_rich(table))
            if table.note:
                out.print(Text(table.note, style="dim"))
        out.print()
        for line in text_roofline(device, steps, width=min(out.width, 80)):
            out.print(Text(line), no_wrap=True, crop=True)


def _rich(table: Table) -> RichTable:
    from rich.table import Table as RichTable

    drawn = RichTable(box=None, pad_edge=False)
    for place, name in enumerate(table.head):
        drawn.add_column(name, justify="right" if place >= table.numbers else "left")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def _stored(ceilings: MachineCeilings, path: Path) -> list[str]:
    """Keep what was measured; what there is to say if that fails, for it is shown all the same."""
    from firsthand.llm.audit.errors import AuditError

    try:
        ceilings.save(path)
    except AuditError as error:
        return [f"It is not kept: {error}. FIRSTHAND_HOME names another folder."]
    return []


def _tell(messages: list[str]) -> None:
    import sys

    for message in messages:
        print(message, file=sys.stderr)


def _print(text: str) -> None:
    from rich.text import Text

    from firsthand.app.cli.terminal import console

    console().print(Text(text))
