"""The commands of the stack itself: `firsthand tokenizer ...` and `firsthand data ...`.

Bodies import what they need, so that `firsthand status` stays light.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from firsthand.app.cli.options import SourceArgument, source_of
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

    from firsthand.llm.data.preparation import Progress as Prepared
    from firsthand.llm.tokenizer import Tokenizer
    from firsthand.llm.tokenizer.inspect import MergeNode

tokenizer_app = typer.Typer(
    no_args_is_help=True, help="Byte-level BPE: train one, encode, decode, look inside."
)
data_app = typer.Typer(
    no_args_is_help=True, help="Text to token shards: prepare a folder, inspect it, count it."
)

STARTING = "starting (the first time it compiles)"
END_OF_TEXT = "<|endoftext|>"
COLORS = ("on blue", "on magenta", "on cyan", "on green", "on yellow", "on red")

UnitOption = Annotated[
    str, typer.Option(help="What a document is in a text file: file, section or line.")
]
FieldOption = Annotated[str, typer.Option(help="Field of a JSONL or Parquet record.")]
SizeOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="At most so many bytes of the embedded corpus."),
]
FileOption = Annotated[Path, typer.Option("--tokenizer", "-t", help="A tokenizer file.")]


@contextmanager
def one_sentence() -> Iterator[None]:
    """What the stack says of text, files and settings, as the command's one sentence."""
    try:
        from firsthand.llm.data.problems import DataError
        from firsthand.llm.tokenizer import TokenizerError
        from firsthand.llm.training.errors import TrainingError
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    try:
        yield
    except (TokenizerError, DataError, TrainingError, IndexError, ValueError) as error:
        raise FirsthandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    except OSError as error:
        raise FirsthandError(f"{error.filename or 'a file'}: {error.strerror}") from error


def _missing(error: ModuleNotFoundError) -> FirsthandError:
    return FirsthandError(
        f"The package {error.name} is missing, which the stack needs. Install it: make stack"
    )


def progress_console() -> Console:
    """Standard error: a progress bar never gets into what is piped."""
    from rich.console import Console

    return Console(stderr=True)


def progress_bar(*columns: ProgressColumn, words: int = 28) -> Progress:
    """A bar that disappears at its end.

    Args:
        columns: behind the bar.
        words: columns of the description before it, at least.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn(f"{{task.description:<{words}}}"),
        BarColumn(bar_width=30),
        *columns,
        console=progress_console(),
        transient=True,
    )


# --------------------------------------------------------------------------- tokenizer


@tokenizer_app.command("train")
def tokenizer_train(
    sources: SourceArgument = None,
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("tokenizer.json"),
    vocabulary: Annotated[int, typer.Option(help="Bytes, merges and special tokens.")] = 4096,
    pattern: Annotated[str, typer.Option(help="Pre-tokenization: gpt2 or gpt4.")] = "gpt2",
    ties: Annotated[
        str, typer.Option(help="Equal counts: smallest_ids or greatest_bytes.")
    ] = "smallest_ids",
    minimum_frequency: Annotated[int, typer.Option(help="Rarer pairs are never merged.")] = 2,
    field: FieldOption = "text",
    size: SizeOption = None,
) -> None:
    """Learn a vocabulary from text. The special tokens of chats are part of it."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn

    from firsthand.app.cli.terminal import console

    with one_sentence():
        from firsthand.llm.data.documents import Document
        from firsthand.llm.tokenizer import train
        from firsthand.llm.tokenizer.chat import CHAT_TOKENS

        source = source_of(sources, field, size)
        bar = progress_bar(MofNCompleteColumn(), TimeElapsedColumn(), words=16)
        tasks: dict[str, object] = {}
        starting = bar.add_task(STARTING, total=None)

        def show(stage: str, done: int, total: int | None) -> None:
            bar.update(starting, visible=False)
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=float(total or 0))
            bar.update(tasks[stage], completed=float(done), total=float(total or done))  # type: ignore[arg-type]

        def texts() -> Iterator[bytes]:
            for item in source.documents():
                if isinstance(item, Document):
                    yield from item.pieces()
                else:
                    print(f"skipped: {item}", file=sys.stderr)

        with bar:
            trained = train(
                texts(),
                vocabulary,
                pattern=pattern,  # type: ignore[arg-type]
                special_tokens=(END_OF_TEXT, *CHAT_TOKENS),
                minimum_frequency=minimum_frequency,
                ties=ties,  # type: ignore[arg-type]
                progress=show,
            )
        trained.save(out)
    console().print(
        f"{out}: {trained.vocabulary_size} tokens, {len(trained.merges)} of them merges.",
        markup=False,
    )
    if trained.vocabulary_size < vocabulary:
        console().print(
            f"{vocabulary} were asked for; no pair occurs {minimum_frequency} times any more.",
            markup=False,
        )


def _load(path: Path) -> Tokenizer:
    from firsthand.llm.tokenizer import Tokenizer

    return Tokenizer.load(path)


def _text(text: str | None) -> str:
    if text is not None:
        return text
    if sys.stdin.isatty():
        raise FirsthandError("Give the text as an argument or through a pipe.")
    return sys.stdin.read()


@tokenizer_app.command("encode")
def tokenizer_encode(
    text: Annotated[Optional[str], typer.Argument(help="Default: standard input.")] = None,  # noqa: UP045
    tokenizer: FileOption = Path("tokenizer.json"),
    allow_special: Annotated[
        bool, typer.Option(help="Encode special tokens in the text as such.")
    ] = False,
) -> None:
    """Text to ids, separated by spaces. Plain text never makes a special token."""
    with one_sentence():
        loaded = _load(tokenizer)
        ids = loaded.encode(_text(text), "all" if allow_special else ())
    print(" ".join(map(str, ids)))


@tokenizer_app.command("decode")
def tokenizer_decode(
    ids: Annotated[Optional[list[int]], typer.Argument(help="Default: standard input.")] = None,  # noqa: UP045
    tokenizer: FileOption = Path("tokenizer.json"),
) -> None:
    """Ids to text. Bytes that are no UTF-8 are shown as U+FFFD."""
    with one_sentence():
        loaded = _load(tokenizer)
        if ids is None:
            words = _text(None).split()
            wrong = [word for word in words if not word.isdigit()]
            if wrong:
                raise FirsthandError(f"{wrong[0]!r} is no id: ids are whole numbers from 0.")
            ids = [int(word) for word in words]
        decoded = loaded.decode(ids)
    print(decoded, end="" if decoded.endswith("\n") else "\n")


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    text: Annotated[Optional[str], typer.Argument(help="Default: standard input.")] = None,  # noqa: UP045
    tokenizer: FileOption = Path("tokenizer.json"),
    word: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Show the merges that make this word."),
    ] = None,
    width: Annotated[int, typer.Option(help="d_model, for the size of the embedding.")] = 256,
) -> None:
    """Tokens in colour, bytes per token, a word's merge tree, and what a vocabulary costs."""
    from rich.table import Table
    from rich.text import Text

    from firsthand.app.cli.drawing import visible
    from firsthand.app.cli.terminal import console

    def branch(node: MergeNode, depth: int) -> Iterator[str]:
        how = "a byte" if node.rank is None else f"merge {node.rank}"
        yield f"{'  ' * depth}{node.text!r}  id {node.identity}, {how}"
        for part in node.parts:
            yield from branch(part, depth + 1)

    with one_sentence():
        from firsthand.llm.tokenizer.inspect import (
            bytes_per_token,
            merge_tree,
            token_views,
            vocabulary_trade_off,
        )

        loaded = _load(tokenizer)
        sample = _text(text)
        views = token_views(loaded, sample, color_count=len(COLORS))
        shown = Text()
        for view in views:
            # Without colour the bar keeps the borders visible.
            shown.append(str(visible(view.text)), style=f"black {COLORS[view.color]}")
            shown.append("|", style="dim")
        console().print(shown)
        console().print(
            f"{len(views)} tokens for {len(sample.encode())} bytes: "
            f"{bytes_per_token(loaded, sample):.2f} bytes per token.",
            markup=False,
        )
        for tree in merge_tree(loaded, word) if word else ():
            for line in branch(tree, 0):
                console().print(line, markup=False)
        least = 256 + len(loaded.special_tokens)
        sizes = [least, *(1 << power for power in range(9, 20)), loaded.vocabulary_size]
        rows = vocabulary_trade_off(
            loaded,
            sample,
            [size for size in sizes if least <= size <= loaded.vocabulary_size],
            width=width,
        )
    table = Table("vocabulary", "embedding, MB", "tokens", "bytes per token", "length", box=None)
    for row in rows:
        table.add_row(
            str(row.vocabulary_size),
            f"{row.embedding_bytes / 1e6:.2f}",
            str(row.tokens),
            f"{row.bytes_per_token:.2f}",
            f"{row.relative_length:.2f}x",
        )
    console().print(table)
    console().print(f"Embedding: float32, {width} numbers a row, tied to the output.")


# --------------------------------------------------------------------------- data


@data_app.command("prepare")
def data_prepare(
    sources: SourceArgument = None,
    tokenizer: FileOption = Path("tokenizer.json"),
    out: Annotated[Path, typer.Option(help="Folder for the shards.")] = Path("data"),
    validation_share: Annotated[float, typer.Option(help="Share of documents kept apart.")] = 0.02,
    field: FieldOption = "text",
    unit: UnitOption = "file",
    size: SizeOption = None,
    skip_problems: Annotated[
        bool, typer.Option(help="Skip unreadable documents and list them, instead of stopping.")
    ] = False,
    restart: Annotated[bool, typer.Option(help="Throw away what the folder holds.")] = False,
) -> None:
    """Tokenize text into checked shards. The same command goes on after an interruption."""
    from rich.progress import TimeElapsedColumn

    from firsthand.app.cli.terminal import console

    with one_sentence(), progress_bar(TimeElapsedColumn(), words=24) as bar:
        from firsthand.llm.data.preparation import prepare

        task = bar.add_task(STARTING, total=None)

        def show(now: Prepared) -> None:
            words = f"{now.documents} documents"
            bar.update(task, description=words, completed=now.text_bytes, total=now.total_bytes)

        manifest = prepare(
            source_of(sources, field, size, unit),
            _load(tokenizer),
            out,
            validation_share=validation_share,
            on_problem="skip" if skip_problems else "fatal",
            restart=restart,
            report=show,
        )
    for name, split in manifest.splits.items():
        console().print(
            f"{out}: {name}: {split.tokens} tokens in {split.documents} documents.", markup=False
        )
    for problem in manifest.problems:
        console().print(f"skipped: {problem}", markup=False)


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")] = Path("data"),
    document: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Show this document of the training split, counted from 0."),
    ] = None,
    tokenizer: FileOption = Path("tokenizer.json"),
) -> None:
    """Check every shard against its manifest; show a document. Exit code 1 for damage."""
    from rich.table import Table

    from firsthand.app.cli.terminal import console

    with one_sentence():
        from firsthand.llm.data.inspection import inspect_folder, show_document

        _, reports = inspect_folder(folder)
        table = Table("shard", "split", "tokens", "documents", "bytes", "state", box=None)
        for item in reports:
            state = item.problem or "whole"
            cells = (item.file, item.split, item.tokens, item.documents, item.file_bytes, state)
            table.add_row(*map(str, cells))
        console().print(table)
        if document is not None:
            text = show_document(folder, "train", document, _load(tokenizer))
            console().print(text, markup=False)
    if any(item.problem for item in reports):
        raise typer.Exit(1)


@data_app.command("stats")
def data_stats(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")] = Path("data"),
) -> None:
    """Tokens, documents, bytes per token and lengths of each split."""
    from rich.table import Table

    from firsthand.app.cli.terminal import console

    with one_sentence():
        from firsthand.llm.data.inspection import split_statistics
        from firsthand.llm.data.manifest import read_manifest

        found = {name: split_statistics(folder, name) for name in read_manifest(folder).splits}
    table = Table("", *found, box=None)
    rows = {
        "tokens": [str(item.tokens) for item in found.values()],
        "documents": [str(item.documents) for item in found.values()],
        "bytes of text": [str(item.bytes) for item in found.values()],
        "bytes per token": [f"{item.bytes_per_token:.2f}" for item in found.values()],
        "tokens a document: median": [str(item.length_percentiles[1]) for item in found.values()],
        "99 in 100 have at most": [str(item.length_percentiles[3]) for item in found.values()],
        "longest": [str(item.length_percentiles[4]) for item in found.values()],
        "ids used": [f"{item.used_ids} of {item.vocabulary_size}" for item in found.values()],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console().print(table)
