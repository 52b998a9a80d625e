"""What happens inside of a training step: `firsthand layout`, `firsthand gallery`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from firsthand.app.cli.options import DeviceOption, SetOption
from firsthand.app.cli.stack import one_sentence, progress_bar
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.audit.flow_gallery import Exhibit
    from firsthand.llm.audit.layout import Group, Layout

ROWS = 2
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, no table.")]
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


def layout(
    preset: Annotated[
        str, typer.Argument(help="nano, laptop-10m, full-100m, or a file NAME.toml.")
    ] = "nano",
    rows: Annotated[int, typer.Option(help="Of the micro-batch; 0 is the preset's.")] = ROWS,
    length: Annotated[int, typer.Option(help="Tokens in a row; 0 is the preset's.")] = 0,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16. Default: the preset's.")
    ] = "",
    plain: Annotated[
        bool, typer.Option("--plain", help="The plain parts, not the fast ones.")
    ] = False,
    settings: SetOption = None,
    top: Annotated[int, typer.Option(help="Lines of each list.")] = 12,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Copies, casts and strides in one training step, with their bytes.

    One micro-batch goes forward and backward, with random tokens and weights. Each operation counts
    the bytes of its operands once. What is listed is what moves bytes and computes nothing.
    """
    with one_sentence():
        from firsthand.llm.audit.layout import trace_step
        from firsthand.llm.model.settings import nearest
        from firsthand.llm.parts import FAST, REFERENCE
        from firsthand.llm.training.distributed import pick_device
        from firsthand.llm.training.precision import DTYPES
        from firsthand.llm.training.presets import run_config

        if precision and precision not in DTYPES:
            close = nearest(precision, DTYPES) or ", ".join(DTYPES)
            raise FirsthandError(f"There is no precision {precision}; the nearest is {close}.")
        if rows < 0 or length < 0 or top < 1:
            raise FirsthandError("--rows and --length are 0 or more, --top is 1 or more.")
        found = trace_step(
            run_config(preset, settings or []),
            REFERENCE if plain else FAST,
            rows=rows,
            length=length,
            precision=precision or None,  # type: ignore[arg-type]
            device=pick_device(device),
        )
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        _print_layout(found, top)


def _print_layout(found: Layout, top: int) -> None:
    from rich.table import Table

    from firsthand.app.cli.terminal import console

    facts, out = found.facts, console()
    out.print(
        f"{facts['run']}: {facts['rows']} rows of {facts['length']} tokens, {facts['precision']}, "
        f"{facts['device']}. One micro-batch, forward and backward, moves "
        f"{found.nbytes / 1e6:,.1f} MB.\n",
        markup=False,
    )
    phases = list(dict.fromkeys(event.phase for event in found.events))
    by_phase = {phase: found.totals(phase) for phase in phases}
    table = Table("", "count", *(f"{p}, MB" for p in phases), "share", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, total in found.totals().items():
        if total.nbytes:
            moved = [by_phase[p].get(kind) for p in phases]
            cells = ["" if one is None else f"{one.nbytes / 1e6:,.2f}" for one in moved]
            table.add_row(kind, str(total.count), *cells, f"{found.share(kind):.1%}")
    out.print(table)
    views = found.totals().get("view")
    out.print(f"{views.count if views else 0} views moved nothing.")
    for title, kind in (("Copies", "copy"), ("Casts", "cast")):
        groups = found.groups(kind)
        out.print(f"\n[bold]{title}[/]" if groups else f"\n{title}: none.")
        if groups:
            out.print(_listed(groups[:top], found.nbytes))
        if len(groups) > top:
            rest = sum(group.nbytes for group in groups[top:])
            out.print(f"and {len(groups) - top} more: {rest / 1e6:,.2f} MB")
    for title, items in (
        ("Operands that a product must copy inside", found.strided_operands()),
        ("Operands repeated without a copy", found.broadcasts()),
    ):
        if not items:
            out.print(f"\n{title}: none.")
            continue
        stored, seen = (sum(getattr(i, n) for i in items) for n in ("stored", "seen"))
        out.print(
            f"\n{title}: {sum(item.count for item in items)}, {stored / 1e6:,.2f} MB stored, "
            f"{seen / 1e6:,.2f} MB seen; most at {items[0].where}, {items[0].example}.",
            markup=False,
        )


def _listed(groups: list[Group], whole: int) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("MB", "share", "count"):
        table.add_column(name, justify="right")
    table.add_column("what")
    table.add_column("where", overflow="fold")
    for group in groups:
        what = group.reason
        for long, short in SHORT.items():
            what = what.replace(long, short)
        if group.phase != "forward":
            what += f", {group.phase}"
        table.add_row(
            f"{group.nbytes / 1e6:,.2f}",
            f"{group.nbytes / whole:.1%}",
            str(group.count),
            what,
            " ".join(filter(None, (group.module, "/".join(group.where.split("/")[-2:])))),
        )
    return table


def gallery(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045  (typer reads it at run time)
        typer.Argument(help="Breakages, e.g. no-mask high-rate. Default: all."),
    ] = None,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a page with both runs drawn into this file."),
    ] = None,
    run: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Instead: which signatures hold in the metrics of this run."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Updates of each run; 0 is the gallery's own.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """What breaks training, and the trace that each leaves.

    Each breakage is one switch on a small model: another part, or another setting. It is trained
    for some updates beside a healthy one, and the signature is measured in these very runs.
    """
    if run is not None:
        if names or html is not None or steps or seed:
            raise FirsthandError("--run goes alone: it reads a run that is there.")
        _diagnose(run, as_json)
        return
    with one_sentence():
        from firsthand.llm.audit.breakages import BREAKAGES, STEPS
        from firsthand.llm.audit.flow_gallery import exhibits
        from firsthand.llm.audit.gallery_page import write_gallery
        from firsthand.llm.parts import REFERENCE

        if steps < 0 or seed < 0:
            raise FirsthandError("--steps and --seed are 0 or more.")
        wanted = list(dict.fromkeys(names or BREAKAGES))
        with progress_bar() as bar:
            task = bar.add_task("starting", total=len(wanted) + 1)
            begun = 0

            def show(name: str) -> None:
                nonlocal begun
                bar.update(task, description=name, completed=begun)
                begun += 1

            found = exhibits(wanted, REFERENCE, seed=seed, steps=steps or STEPS, progress=show)
        if html is not None:
            bench = found[0].healthy
            facts = {
                "updates": str(len(bench.train)),
                "seed": str(seed),
                "healthy model": f"{bench.model.n_layers} blocks, d_model {bench.model.d_model}",
                "text": "bytes of the running Python's library",
            }
            write_gallery(found, facts, html)
    if as_json:
        print(json.dumps([exhibit.to_json() for exhibit in found]))
        return
    _print_gallery(found, detailed=bool(names))
    if html is not None:
        from firsthand.app.cli.terminal import console

        console().print(f"Written: {html}", markup=False)


def _diagnose(folder: Path, as_json: bool) -> None:
    with one_sentence():
        from firsthand.llm.audit.flow import flow_of_run
        from firsthand.llm.audit.flow_gallery import diagnose, findings, verdict

        flow = flow_of_run(folder)
        lines = verdict(flow)
        undecided = [finding.name for finding in findings(flow) if not finding.decided]
    if as_json:
        print(json.dumps({"names": diagnose(flow), "undecided": undecided, "says": lines}))
        return
    from firsthand.app.cli.terminal import console

    for line in lines:
        console().print(line, markup=False)


def _print_gallery(found: list[Exhibit], *, detailed: bool) -> None:
    from rich.table import Table

    from firsthand.app.cli.terminal import console
    from firsthand.llm.audit.gallery_page import compared_table, number, verdict_of

    out = console()
    for exhibit in found:
        out.print(f"[bold]{exhibit.breakage.name}[/]: {exhibit.breakage.title}")
        if detailed:
            out.print(exhibit.breakage.what, markup=False)
            if exhibit.broken.failure:
                out.print(
                    f"The run ended at step {exhibit.broken.failed_step}: the first place that is "
                    f"not finite is {exhibit.broken.failure}.",
                    markup=False,
                )
        for statement in exhibit.statements:
            out.print(
                f"  {statement.relation.says}: {number(statement.broken)} "
                f"(healthy {number(statement.healthy)}); told by {statement.relation.bounds}",
                markup=False,
            )
        if not detailed:
            if exhibit.named != [exhibit.breakage.name]:
                out.print(f"  {verdict_of(exhibit)}", markup=False)
            continue
        out.print(verdict_of(exhibit), markup=False)
        rows = compared_table(exhibit)
        table = Table(*rows.head, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows.rows:
            table.add_row(*row)
        out.print("")
        out.print(table)
        out.print("")
