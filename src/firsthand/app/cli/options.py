"""Arguments and options that several commands share, and what they name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from firsthand.llm.data.sources import Source
    from firsthand.llm.training.trained import Trained

WorkspaceOption = Annotated[
    Optional[Path],  # noqa: UP045  (typer reads it at run time)
    typer.Option("--workspace", "-w", help="Your folder. Default: the one you are in, or ./mine."),
]
SourceArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        help="Files or folders (text, .jsonl, .parquet), or hf:NAME, a dataset of the Hugging Face "
        "hub. Default: embedded, the library of the Python that runs this."
    ),
]
ModelArgument = Annotated[
    Path,
    typer.Argument(
        help="A run, a quantized folder, one in Hugging Face's format, or a GGUF file.",
        show_default=False,
    ),
]
StepOption = Annotated[int, typer.Option(help="Of the checkpoint. Default: the newest.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]

# Of a run that is made or gone on with.
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set", "-s", help="Override a setting, e.g. --set model.n_layers=8. Repeatable."
    ),
]
AlignmentSetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        "-s",
        help="Override a setting, e.g. --set training.steps=200, --set tasks.levels=[1,2]. "
        "Repeatable.",
    ),
]
OutOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", "-o", help="Folder of the run. Default: runs/PRESET."),
]
AlignmentOutOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", "-o", help="Folder of the run. Default: the base's with -METHOD."),
]
ResumeOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Go on with the run in this folder, bit for bit."),
]
StepsOption = Annotated[int, typer.Option(help="With --resume: a new length of the run.")]
MineOption = Annotated[
    bool, typer.Option("--mine", help="Use your own parts wherever they are mastered.")
]

# Of a text that is sampled.
TemperatureOption = Annotated[float, typer.Option(help="0 takes the most probable token.")]
TopKOption = Annotated[int, typer.Option(help="Of the k most probable; 0 is off.")]
TopPOption = Annotated[float, typer.Option(help="Of those that sum to p; 1 is off.")]
MinPOption = Annotated[float, typer.Option(help="Share of the best one's; 0 is off.")]
PenaltyOption = Annotated[float, typer.Option(help="1 is off.")]


def source_of(paths: list[str] | None, field: str, size: int | None, unit: str = "file") -> Source:
    """The text that the arguments of a command name."""
    from firsthand.llm.data.named import named_source

    return named_source(paths or (), field=field, size=size, unit=unit)


def open_model(folder: Path, device: str, step: int) -> Trained:
    """The model that the arguments of a command name; damaged checkpoints are told of."""
    from firsthand.llm.parts import FAST
    from firsthand.llm.quantization.loading import load_any
    from firsthand.llm.training.distributed import pick_device
    from firsthand.llm.training.trained import Trained

    if folder.suffix == ".gguf" and not folder.is_dir():
        from firsthand.llm.quantization.gguf_import import load_gguf

        found = load_gguf(folder, FAST)
        if found.tokenizer is None:
            raise ValueError(found.no_tokenizer)
        return Trained(found.model.to(pick_device(device)).eval(), found.tokenizer)
    trained = load_any(folder, FAST, device=pick_device(device), step=step)
    for problem in trained.problems:
        print(problem, file=sys.stderr)
    return trained
