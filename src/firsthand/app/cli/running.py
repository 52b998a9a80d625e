"""The commands of a run: `firsthand train|evaluate|generate|build|report`."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from firsthand.app.cli.stack import SourceArgument, one_sentence, progress_console, source_of
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.app.mine import Row
    from firsthand.llm.model.parts import Parts
    from firsthand.llm.training.config import RunConfig
    from firsthand.llm.training.runs import Run

SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads it at run time)
    typer.Option(
        "--set", "-s", help="Override a setting, e.g. --set model.n_layers=8. Repeatable."
    ),
]
PresetOption = Annotated[
    str, typer.Option("--preset", "-p", help="nano, laptop-10m, full-100m, or a file NAME.toml.")
]
OutOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", "-o", help="Folder of the run. Default: runs/PRESET."),
]
MineOption = Annotated[
    bool, typer.Option("--mine", help="Use your own parts wherever they are mastered.")
]
WorkspaceOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--workspace", "-w", help="Your folder. Default: the one you are in, or ./mine."),
]
ModelArgument = Annotated[
    Path, typer.Argument(help="A run, or a folder in Hugging Face's format.", show_default=False)
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def train(
    preset: PresetOption = "nano",
    settings: SetOption = None,
    out: OutOption = None,
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Go on with the run in this folder, bit for bit."),
    ] = None,
    steps: Annotated[int, typer.Option(help="With --resume: a new length of the run.")] = 0,
    mine: MineOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train a model: text, tokenizer, shards, training, checkpoints and a report in one folder.

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
) -> None:
    """From text to a model that writes, in one command: train, evaluate, write a sample."""
    began = time.monotonic()
    with one_sentence():
        run, stopped = _start(preset, settings, out, mine, workspace)
        if stopped:
            raise typer.Exit(130)
        _conclude(run, time.monotonic() - began)


def evaluate(
    model: ModelArgument,
    sources: SourceArgument = None,
    overlap: Annotated[
        int, typer.Option(help="Tokens of each window that are context alone.")
    ] = -1,
    step: Annotated[int, typer.Option(help="Of the checkpoint. Default: the newest.")] = 0,
    tasks: Annotated[
        str, typer.Option(help="Tasks of the lm-evaluation-harness instead, e.g. arc_easy,piqa.")
    ] = "",
    limit: Annotated[int, typer.Option(help="With --tasks: so many examples of each.")] = 0,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Bits per byte, perplexity and loss: on the run's validation split, or on other text.

    By default each window but the first has half of it as context, so that every token is
    predicted from enough text; --overlap 0 is what training shows on the way.
    """
    with one_sentence():
        from firsthand.llm.parts import FAST
        from firsthand.llm.training.distributed import pick_device
        from firsthand.llm.training.trained import load_trained

        figures: dict[str, Any]
        trained = load_trained(model, FAST, device=pick_device(device), step=step)
        for problem in trained.problems:
            print(problem, file=sys.stderr)
        if tasks:
            from firsthand.llm.training.harness import run_benchmarks

            figures = run_benchmarks(
                trained.model, trained.tokenizer, tasks.split(","), limit=limit or None
            )
        else:
            figures = _measured(trained, sources, overlap)
    if as_json:
        print(json.dumps(figures))
        return
    _print_figures(figures)


def generate(
    model: ModelArgument,
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Default: standard input, or the beginning of a document."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Of the k most probable; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Of those that sum to p; 1 is off.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Share of the best one's; 0 is off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    stop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A string that ends the text. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same text; -1 is any.")] = -1,
    samples: Annotated[int, typer.Option(help="Texts, one after the other.")] = 1,
    step: Annotated[int, typer.Option(help="Of the checkpoint. Default: the newest.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Let a model write, token by token as they come; tokens/s at the end."""
    with one_sentence():
        from firsthand.llm.generation.decoding import requests, stream
        from firsthand.llm.generation.sampling import Sampling
        from firsthand.llm.parts import FAST
        from firsthand.llm.training.distributed import pick_device
        from firsthand.llm.training.trained import load_trained

        if samples < 1:
            raise FirsthandError(f"At least one sample; not {samples}.")
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_new_tokens=tokens,
            stop=tuple(stop or ()),
            seed=seed,
        )
        trained = load_trained(model, FAST, device=pick_device(device), step=step)
        for problem in trained.problems:
            print(problem, file=sys.stderr)
        if prompt is None:
            prompt = "" if sys.stdin.isatty() else sys.stdin.read()
        for request in requests([prompt], sampling, samples):
            print(prompt, end="", flush=True)
            for piece in stream(trained.model, [request], tokenizer=trained.tokenizer):
                print(piece.text, end="", flush=True)
                if piece.result is not None:
                    print(flush=True)
                    _print_speed(piece.result)


def report(run: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write the page of a run anew from its folder: also in the middle, or after a crash."""
    with one_sentence():
        from firsthand.llm.training.report.page import write_report

        path = write_report(run)
    print(path)


# --------------------------------------------------------------------------- parts of these


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
    parts, rows = _parts(mine, workspace)
    if is_first_rank():
        _introduce(config, folder, rows)
    screen = RunScreen(config.training.steps)
    with screen.shown():
        run = start_run(folder, config, parts, watcher=screen, record=_whose(rows, workspace))
    if is_first_rank():
        _say_end(run, screen.stopped)
    return run, screen.stopped


def _resume(folder: Path, steps: int, mine: bool, workspace: Path | None) -> None:
    from firsthand.app.cli.run_screen import RunScreen, is_first_rank
    from firsthand.llm.training.pretraining import resume_run
    from firsthand.llm.training.runs import open_run

    run = open_run(folder)
    record = run.record()
    if mine and "whose" not in record:
        raise FirsthandError(
            f"{folder} was begun with the stack's parts; a run keeps the code it began with."
        )
    parts, _ = _parts("whose" in record, workspace, record)
    screen = RunScreen(steps or run.config.training.steps)
    with screen.shown():
        run = resume_run(folder, parts, watcher=screen, steps=steps)
    if is_first_rank():
        _say_end(run, screen.stopped)


def _parts(
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


def _whose(rows: list[Row], workspace: Path | None) -> dict[str, Any]:
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


def _conclude(run: Run, seconds: float) -> None:
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
    print(f"{seconds:.0f} s in all. More: firsthand generate {run.folder} 'def '")


def _measured(trained: Any, sources: list[str] | None, overlap: int) -> dict[str, Any]:
    import tempfile

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from firsthand.llm.data.loading import open_split
    from firsthand.llm.data.preparation import prepare
    from firsthand.llm.training.corpus import gzip_bits_per_byte
    from firsthand.llm.training.evaluation import byte_lengths
    from firsthand.llm.training.evaluation import evaluate as measure
    from firsthand.llm.training.pretraining import SHARDS

    config = trained.model.config
    length = config.context if trained.run is None else trained.run.config.sequence_length
    if overlap >= length:
        raise FirsthandError(f"--overlap is below the {length} tokens of a window.")
    bar = Progress(
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=30),
        TimeRemainingColumn(),
        console=progress_console(),
        transient=True,
    )
    with tempfile.TemporaryDirectory(prefix="firsthand-") as temporary, bar:
        task = bar.add_task("reading", total=None)
        if sources is None and trained.run is not None:
            place = Path(trained.run.config.data.folder or trained.run.folder / SHARDS)
            stream = open_split(place, "validation", tokenizer_hash=trained.tokenizer.hash)
            what = "validation split"
        else:
            prepare(
                source_of(sources, "text", None), trained.tokenizer, Path(temporary),
                validation_share=0.0, drop_duplicates=False,
            )  # fmt: skip
            stream = open_split(Path(temporary), "train", tokenizer_hash=trained.tokenizer.hash)
            what = " ".join(sources or ["embedded"])
        found = measure(
            trained.model,
            stream,
            lengths=byte_lengths(trained.tokenizer),
            sequence_length=length,
            batch_size=16,
            overlap=length // 2 if overlap < 0 else overlap,
            progress=lambda done, total: bar.update(
                task, description="evaluating", completed=done, total=total
            ),
        )
        compressed = gzip_bits_per_byte(stream, trained.tokenizer)
    return {"text": what, "step": trained.step, **found.to_record(), "gzip": compressed}


def _print_figures(figures: dict[str, Any]) -> None:
    from rich.table import Table

    from firsthand.app.cli.terminal import console

    names = {
        "text": "text",
        "step": "checkpoint of step",
        "bits_per_byte": "bits per byte",
        "gzip": "gzip -9, bits per byte",
        "loss": "nats per token",
        "perplexity": "perplexity",
        "tokens": "tokens",
        "bytes": "bytes",
        "seconds": "seconds",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    flat = {
        " ".join(keys): value
        for name, value in figures.items()
        for keys, value in (
            [((name, key), v) for key, v in value.items()]
            if isinstance(value, dict)
            else [((name,), value)]
        )
    }
    for name, value in flat.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        table.add_row(
            names.get(name, name), f"{value:.4f}" if isinstance(value, float) else str(shown)
        )
    console().print(table)


def _print_speed(result: Any) -> None:
    print(
        f"{len(result.ids)} tokens, {result.tokens_per_second:.0f} tokens/s after "
        f"{len(result.prompt)} tokens of prompt in {result.prefill_seconds * 1e3:.0f} ms; "
        f"ended by {result.reason}.",
        file=sys.stderr,
    )
