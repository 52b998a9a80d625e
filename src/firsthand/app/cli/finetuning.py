"""From a model that continues a text to one that answers: `firsthand finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from firsthand.app.cli.options import (
    AlignmentOutOption,
    AlignmentSetOption,
    MineOption,
    ResumeOption,
    StepsOption,
    WorkspaceOption,
)
from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.training.runs import Run

BaseArgument = Annotated[
    Optional[Path],  # noqa: UP045  (typer reads it at run time)
    typer.Argument(
        help="The model to go on from: a run, or a folder in Hugging Face's format.",
        show_default=False,
    ),
]
FilesOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--data", "-d", help="A JSONL file of records. Repeatable. Default: generated tasks."
    ),
]
LoraOption = Annotated[
    int, typer.Option("--lora", help="Train adapters of this rank alone; 0 trains all weights.")
]


def finetune(
    base: BaseArgument = None,
    data: FilesOption = None,
    lora: LoraOption = 0,
    settings: AlignmentSetOption = None,
    out: AlignmentOutOption = None,
    resume: ResumeOption = None,
    steps: StepsOption = 0,
    mine: MineOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Teach a model to answer, from conversations or tasks.

    Shows the accuracy on held-out tasks before and after. Ctrl-C saves a checkpoint first;
    --resume goes on. Afterwards: firsthand chat RUN.
    """
    with one_sentence():
        run_method("sft", base, data, lora, settings, out, resume, steps, mine, workspace)


def run_method(
    method: str,
    base: Path | None,
    data: Sequence[str] | None,
    lora: int,
    settings: Sequence[str] | None,
    out: Path | None,
    resume: Path | None,
    steps: int,
    mine: bool,
    workspace: Path | None,
) -> None:
    """What the commands of all methods do with their arguments; see `finetune`."""
    if resume is not None:
        if base is not None or data or lora or settings or out is not None:
            raise FirsthandError(
                "--resume takes base, data, settings and folder of the run; only --steps "
                "changes it."
            )
        resume_aligned(resume, steps, mine, workspace)
        return
    if base is None:
        raise FirsthandError("Name the model to go on from, e.g. runs/nano, or --resume RUN.")
    if steps:
        raise FirsthandError("--steps goes with --resume; here: --set training.steps=...")
    start_aligned(method, base, data, lora, settings, out, mine, workspace)


def start_aligned(
    method: str,
    base: Path,
    data: Sequence[str] | None = None,
    lora: int = 0,
    settings: Sequence[str] | None = None,
    out: Path | None = None,
    mine: bool = False,
    workspace: Path | None = None,
) -> tuple[Run, bool]:
    """A new alignment run with its bar; and whether Ctrl-C ended it before its end."""
    from firsthand.app.cli.run_screen import RunScreen, is_first_rank
    from firsthand.app.cli.running import parts_of, whose
    from firsthand.llm.alignment.methods import method_tables
    from firsthand.llm.alignment.runs import start_alignment
    from firsthand.llm.alignment.settings import read_settings, split_overrides
    from firsthand.llm.model.settings import build, with_overrides
    from firsthand.llm.training.config import TrainingSettings

    of_alignment, of_config = split_overrides(settings or ())
    record: dict[str, Any] = {}
    if lora:
        record["lora"] = {"rank": lora}
    if data:
        record["files"] = list(data)
    wanted = read_settings(with_overrides(record, of_alignment))
    tables = with_overrides(method_tables(method), of_config).get("training", {})
    folder = out or aligned_folder(base, method)
    parts, rows = parts_of(mine, workspace)
    screen = RunScreen(build(TrainingSettings, tables, "training").steps)
    with screen.shown():
        run = start_alignment(
            folder,
            base,
            method,
            wanted,
            of_config,
            parts,
            watcher=screen,
            record=whose(rows, workspace),
        )
    if is_first_rank():
        say_end(run, method, screen.stop_asked())
    return run, screen.stop_asked()


def resume_aligned(folder: Path, steps: int, mine: bool, workspace: Path | None) -> None:
    """Go on with an alignment run of any method."""
    from firsthand.app.cli.run_screen import RunScreen, is_first_rank
    from firsthand.app.cli.running import resumed_parts
    from firsthand.llm.alignment.runs import alignment_record, resume_alignment
    from firsthand.llm.training.runs import open_run

    run = open_run(folder)
    method = alignment_record(run)["method"]
    parts = resumed_parts(run, mine, workspace)
    screen = RunScreen(steps or run.config.training.steps)
    with screen.shown():
        run = resume_alignment(folder, parts, watcher=screen, steps=steps)
    if is_first_rank():
        say_end(run, method, screen.stop_asked())


def aligned_folder(base: Path, method: str) -> Path:
    """Beside the base: runs/nano and runs/nano-sft both lead to runs/nano-dpo."""
    from firsthand.llm.alignment.methods import METHODS

    name = base.resolve().name
    for known in METHODS:
        name = name.removesuffix(f"-{known}")
    return base.parent / f"{name}-{method}"


def say_end(run: Run, method: str, stopped: bool) -> None:
    """Where it is, what it came to, and what to do with it."""
    command = "finetune" if method == "sft" else "align"
    if stopped:
        print(f"Stopped with a checkpoint. Go on: firsthand {command} --resume {run.folder}")
        return
    before_and_after(run)
    print(f"The report: {run.report}")
    if method != "reward":
        print(f"Talk to it: firsthand chat {run.folder} --temperature 0")


def before_and_after(run: Run) -> None:
    """The held-out figures of the base and of the result."""
    from rich.table import Table

    from firsthand.app.cli.terminal import console
    from firsthand.llm.training.metrics import read_metrics

    found = [line for line in read_metrics(run.metrics) if line["kind"] == "validation"]
    if len(found) < 2:
        return
    before, after = found[0], found[-1]
    table = Table("held out", box=None, pad_edge=False)
    for step in ("before", "after"):
        table.add_column(step, justify="right")
    for name, value in after.items():
        if name in ("kind", "step", "tokens") or not isinstance(value, int | float):
            continue
        was = before.get(name)
        share = name.startswith(("accuracy", "token_accuracy", "formed"))
        shown = [
            "-"
            if not isinstance(figure, int | float)
            else f"{figure:.1%}"
            if share
            else f"{figure:.4g}"
            for figure in (was, value)
        ]
        table.add_row(name.replace("_", " "), *shown)
    console().print(table)
