"""The commands that make a run: `firsthand train|build|report`."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firsthand.app.cli.options import (
    MineOption,
    OutOption,
    ResumeOption,
    SetOption,
    StepsOption,
    WorkspaceOption,
)
from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.app.mine import Row
    from firsthand.llm.model.parts import Parts
    from firsthand.llm.training.config import RunConfig
    from firsthand.llm.training.runs import Run

PresetOption = Annotated[
    str, typer.Option("--preset", "-p", help="nano, laptop-10m, full-100m, or a file NAME.toml.")
]

# After the training, what a run beside the last one is made with, and what is said of it.
ALIGNMENTS = {
    "sft": "Fine-tuning on generated tasks.",
    "dpo": "Preferences: right answers above its own wrong ones.",
}
STAGES = ("train", *ALIGNMENTS)
# Other presets are models that take hours: what comes behind them is decided then.
LAST_STAGE = {"nano": "dpo"}


def train(
    preset: PresetOption = "nano",
    settings: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    steps: StepsOption = 0,
    mine: MineOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train a model: from text to a run's folder, with a report.

    Ctrl-C saves a checkpoint first. Killed at any moment, --resume goes on as if nothing had
    happened. Several processes: torchrun --nproc-per-node 2 -m firsthand train ...
    """
    with one_sentence():
        if resume is not None:
            if settings or out is not None:
                raise FirsthandError(
                    "--resume takes the settings and the folder of the run; only --steps changes it"
                )
            _resume(resume, steps, mine, workspace)
        else:
            if steps:
                raise FirsthandError("--steps goes with --resume; here: --set training.steps=...")
            _start(preset, settings, out, mine, workspace)


def build(
    preset: PresetOption = "nano",
    settings: SetOption = None,
    out: OutOption = None,
    mine: MineOption = False,
    workspace: WorkspaceOption = None,
    until: Annotated[
        str,
        typer.Option(help="The last stage: train, sft or dpo. Default: dpo for nano, else train."),
    ] = "",
) -> None:
    """From text to a model that answers, in one command.

    Training, fine-tuning (SFT), preferences (DPO): each leaves a run of its own beside the others,
    e.g. runs/nano, runs/nano-sft and runs/nano-dpo.
    """
    began = time.monotonic()
    with one_sentence():
        stages = _stages(preset, until)
        folder = out or default_folder(preset, settings)
        for method in stages[1:]:
            _require_free_for(method, folder)
        run, stopped = _start(preset, settings, folder, mine, workspace)
        if stopped:
            raise typer.Exit(130)
        _conclude(run)
        for method in stages[1:]:
            from firsthand.app.cli.finetuning import start_aligned

            print(ALIGNMENTS[method])
            run, stopped = start_aligned(method, run.folder, mine=mine, workspace=workspace)
            if stopped:
                raise typer.Exit(130)
        print(f"{time.monotonic() - began:.0f} s in all.")


def report(run: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write the page of a run anew from its folder: also in the middle, or after a crash."""
    with one_sentence():
        from firsthand.llm.training.report.page import write_report

        path = write_report(run)
    print(path)


# --------------------------------------------------------------------------- parts of these


def default_folder(preset: str, settings: list[str] | None) -> Path:
    """Where the run of a preset goes."""
    from firsthand.llm.training.presets import run_config

    return Path("runs", run_config(preset, settings or ()).name or Path(preset).stem)


def _stages(preset: str, until: str) -> tuple[str, ...]:
    last = until or LAST_STAGE.get(preset, STAGES[0])
    if last not in STAGES:
        raise FirsthandError(f"--until is one of {', '.join(STAGES)}; not {until!r}.")
    return STAGES[: STAGES.index(last) + 1]


def _require_free_for(method: str, base: Path) -> None:
    """Said before the training and not after it."""
    from firsthand.app.cli.finetuning import aligned_folder

    folder = aligned_folder(base, method)
    if folder.exists() and any(folder.iterdir()):
        raise FirsthandError(f"{folder}: not empty; move it, or name another folder with --out.")


def _start(
    preset: str,
    settings: list[str] | None,
    out: Path | None,
    mine: bool,
    workspace: Path | None,
) -> tuple[Run, bool]:
    from firsthand.app.cli.run_screen import RunScreen, is_first_rank
    from firsthand.llm.training.presets import run_config
    from firsthand.llm.training.pretraining import start_run

    config = run_config(preset, settings or ())
    folder = out or Path("runs", config.name or Path(preset).stem)
    parts, rows = parts_of(mine, workspace)
    if is_first_rank():
        _introduce(config, folder, rows)
    screen = RunScreen(config.training.steps)
    with screen.shown():
        run = start_run(folder, config, parts, watcher=screen, record=whose(rows, workspace))
    if is_first_rank():
        _say_end(run, screen.stop_asked())
    return run, screen.stop_asked()


def _resume(folder: Path, steps: int, mine: bool, workspace: Path | None) -> None:
    from firsthand.app.cli.run_screen import RunScreen, is_first_rank
    from firsthand.llm.training.pretraining import resume_run
    from firsthand.llm.training.runs import open_run

    run = open_run(folder)
    if "alignment" in run.record():
        from firsthand.app.cli.finetuning import resume_aligned

        resume_aligned(folder, steps, mine, workspace)
        return
    parts = resumed_parts(run, mine, workspace)
    screen = RunScreen(steps or run.config.training.steps)
    with screen.shown():
        run = resume_run(folder, parts, watcher=screen, steps=steps)
    if is_first_rank():
        _say_end(run, screen.stop_asked())


def resumed_parts(run: Run, mine: bool, workspace: Path | None) -> Parts:
    """The code that a run began with."""
    record = run.record()
    if mine and "whose" not in record:
        raise FirsthandError(
            f"{run.folder} was begun with the stack's parts; a run keeps the code it began with."
        )
    parts, _ = parts_of("whose" in record, workspace, record)
    return parts


def parts_of(
    mine: bool, workspace: Path | None, record: dict[str, Any] | None = None
) -> tuple[Parts, list[Row]]:
    """The stack's parts, or the learner's where they are mastered; `record` of the run resumed."""
    from firsthand.llm.parts import FAST

    if not mine:
        return FAST, []
    from firsthand.app.mine import own_parts

    if record is None:
        return own_parts(workspace, FAST)
    began = {name for name, row in record["whose"].items() if row["whose"] == "yours"}
    place = workspace or Path(record["workspace"])
    parts, rows = own_parts(place, FAST, only=began)
    for file, digest in _digests(rows, place).items():
        if record["files"].get(file) != digest:
            print(
                f"{file} has changed since the run began: from here on its numbers may differ.",
                file=sys.stderr,
            )
    return parts, rows


def whose(rows: list[Row], workspace: Path | None) -> dict[str, Any]:
    """For the record of a run: whose code it is, and the learner's files as they are now."""
    if not rows:
        return {}
    from firsthand.app.cli.place import workspace_at
    from firsthand.app.mine import run_record

    place = workspace_at(workspace).root.resolve()
    return {**run_record(rows), "workspace": str(place), "files": _digests(rows, place)}


def _digests(rows: list[Row], workspace: Path) -> dict[str, str]:
    files = {row.where.rpartition(":")[0] for row in rows if row.whose == "yours"}
    return {
        file: hashlib.sha256((workspace.parent / file).read_bytes()).hexdigest()
        for file in sorted(files)
    }


def _introduce(config: RunConfig, folder: Path, rows: list[Row]) -> None:
    """What is about to be trained: parameters by component, and whose code it is."""
    from rich.table import Table

    from firsthand.app.cli.terminal import console
    from firsthand.llm.model.config import parameter_counts

    counts = {name: n for name, n in parameter_counts(config.model).items() if n}
    total = sum(counts.values())
    console().print(f"{folder}: {total / 1e6:.2f}M parameters", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(f"  {name.replace('_', ' ')}", f"{count:,}", f"{count / total:.1%}")
    console().print(table)
    tokens = config.tokens_per_step * config.training.steps
    console().print(
        f"{config.training.steps} steps of {config.tokens_per_step:,} tokens: "
        f"{tokens / 1e6:.1f}M, {tokens / total:.1f} a parameter.",
        highlight=False,
    )
    if rows:
        from firsthand.app.mine import parts_table

        console().print(parts_table(rows))


def _say_end(run: Run, stopped: bool) -> None:
    if stopped:
        print(f"Stopped with a checkpoint. Go on: firsthand train --resume {run.folder}")
    else:
        print(f"The report: {run.report}")


def _conclude(run: Run) -> None:
    """The figures and a text, the end of `build`."""
    from firsthand.llm.training.metrics import read_metrics

    final = [line for line in read_metrics(run.metrics) if line["kind"] == "validation"][-1]
    compressed = run.record().get("gzip_bits_per_byte")
    bits = final["bits_per_byte"]
    if bits and compressed:
        print(f"{bits:.3f} bits per byte on the validation text; gzip -9 needs {compressed:.3f}.")
    texts = read_metrics(run.samples)
    for record in [line for line in texts if line["step"] == final["step"]][-1:]:
        print("It writes:\n")
        print((record["prompt"] + record["text"]).rstrip())
        print()
    print(f"More: firsthand generate {run.folder} 'def '")
