"""`firsthand kernels ...`: the ladders of the hot operations, timed on this machine."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from firsthand.app.cli.stack import one_sentence, progress_bar
from firsthand.app.cli.traffic import kernels_traffic
from firsthand.course.errors import FirsthandError

kernels_app = typer.Typer(
    no_args_is_help=True, help="The hot operations as ladders of rungs, from plain to fast."
)
kernels_app.command("traffic")(kernels_traffic)


@kernels_app.command("bench")
def kernels_bench(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045  (typer reads it at run time)
        typer.Argument(help="Ladders, e.g. attention softmax. Default: all."),
    ] = None,
    forward: Annotated[bool, typer.Option(help="The forward pass alone.")] = False,
    runs: Annotated[int, typer.Option(help="Measurements of each rung.")] = 5,
    threads: Annotated[int, typer.Option(help="PyTorch's threads; 0 leaves its choice.")] = 0,
    size: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A size of the ladder, e.g. --size seq=1024. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Time each rung beside the machine's measured ceilings: float32, one table a ladder.

    Bytes are what a rung's own passes over memory move; the share is the least time that the
    ceilings allow for the operation over the time it took.
    """
    with one_sentence():
        import torch

        from firsthand.llm.kernels.ceilings import measure_ceilings
        from firsthand.llm.kernels.ladders import LADDERS
        from firsthand.llm.kernels.timing import time_ladder
        from firsthand.llm.model.settings import nearest

        for name in names or ():
            if name not in LADDERS:
                close = nearest(name, LADDERS)
                hint = f"the nearest is {close}" if close else f"there are {', '.join(LADDERS)}"
                raise FirsthandError(f"There is no ladder {name}; {hint}.")
        chosen = [LADDERS[name] for name in names or LADDERS]
        sizes = sizes_of(size or [])
        for name in sizes:
            if name not in chosen[0].shape:
                known = ", ".join(chosen[0].shape)
                raise FirsthandError(f"{chosen[0].name} has no size {name}; it has {known}.")
        if len(chosen) > 1 and sizes:
            raise FirsthandError("--size is for one ladder: name it.")
        if threads:
            torch.set_num_threads(threads)
        with progress_bar() as bar:
            task = bar.add_task("the machine's ceilings", total=len(chosen) + 1)
            ceilings = measure_ceilings()
            measured = []
            for ladder in chosen:
                bar.update(task, advance=1, description=ladder.name)
                rows = time_ladder(ladder, ceilings, shape=sizes, backward=not forward, runs=runs)
                measured.append((ladder, rows))
    if as_json:
        print(json.dumps(_record(ceilings, measured)))
        return
    _print(ceilings, measured, sizes)


def sizes_of(texts: list[str]) -> dict[str, int]:
    """Sizes of a ladder from "name=number"."""
    sizes = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not number.isdigit() or int(number) < 1:
            raise FirsthandError(f"A size is written name=number, e.g. seq=1024; this is {text}.")
        sizes[name] = int(number)
    return sizes


def _record(ceilings, measured) -> dict[str, object]:  # type: ignore[no-untyped-def]
    from dataclasses import asdict

    return {
        "ceilings": asdict(ceilings),
        "rows": [asdict(row) for _, rows in measured for row in rows],
        "not_timed": [
            {"ladder": ladder.name, "rung": rung.name, "needs": rung.needs}
            for ladder, _ in measured
            for rung in ladder.rungs
            if not rung.runs_here
        ],
    }


def _print(ceilings, measured, sizes: dict[str, int]) -> None:  # type: ignore[no-untyped-def]
    from rich.table import Table

    from firsthand.app.cli.terminal import console

    out = console()
    out.print(
        f"Ceilings with {ceilings.threads} threads: {ceilings.bandwidth / 1e9:.1f} GB/s read and "
        f"written, {ceilings.flop_rate / 1e9:.0f} GFLOP/s in float32 products.\n"
        "share: the least time that these allow, over the time it took.",
        highlight=False,
    )
    for ladder, rows in measured:
        passes = "forward and backward" if rows[0].backward else "forward"
        shape = ", ".join(f"{name} {n}" for name, n in {**ladder.shape, **sizes}.items())
        out.print(f"\n[bold]{ladder.name}[/], {passes}: {shape}", highlight=False)
        table = Table("rung", box=None, pad_edge=False)
        for column in ("ms", "range", "MB moved", "GB/s", "MFLOP", "GFLOP/s", "share"):
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(
                row.rung,
                f"{row.seconds * 1e3:.1f}",
                f"{row.fastest * 1e3:.1f}-{row.slowest * 1e3:.1f}",
                f"{row.bytes_moved / 1e6:.1f}",
                f"{row.bandwidth / 1e9:.1f}",
                f"{row.flops / 1e6:.1f}",
                f"{row.flop_rate / 1e9:.1f}",
                f"{row.ceiling_share:.1%}",
            )
        out.print(table)
        for rung in ladder.rungs:
            if not rung.runs_here:
                out.print(f"{rung.name}: not timed, it {rung.needs}.", highlight=False)
