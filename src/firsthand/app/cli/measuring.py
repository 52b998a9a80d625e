"""How well a model predicts: `firsthand evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firsthand.app.cli.options import (
    DeviceOption,
    ModelArgument,
    SourceArgument,
    StepOption,
    open_model,
    source_of,
)
from firsthand.app.cli.stack import one_sentence, progress_bar
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.training.trained import Trained


def evaluate(
    model: ModelArgument,
    sources: SourceArgument = None,
    overlap: Annotated[
        int, typer.Option(help="Tokens of each window that are context alone.")
    ] = -1,
    step: StepOption = 0,
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
        figures: dict[str, Any]
        trained = open_model(model, device, step)
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


def _measured(trained: Trained, sources: list[str] | None, overlap: int) -> dict[str, Any]:
    import tempfile

    from rich.progress import TimeRemainingColumn

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
    with (
        tempfile.TemporaryDirectory(prefix="firsthand-") as temporary,
        progress_bar(TimeRemainingColumn(), words=11) as bar,
    ):
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
    for name, value in _flat(figures):
        if isinstance(value, int | float):
            value = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        table.add_row(names.get(name, name), str(value))
    console().print(table)


def _flat(figures: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The figures of a benchmark by its name and theirs, all others by their own."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name} {key}", figure) for key, figure in value.items())
        else:
            yield name, value
