"""A source of text by the names that a command line or a config gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from firsthand.llm.data.embedded import EmbeddedCorpus
from firsthand.llm.data.problems import SourceError
from firsthand.llm.data.sources import LocalFiles, Source
from firsthand.llm.data.tables import HuggingFaceDataset
from firsthand.llm.data.text_files import Unit

EMBEDDED = "embedded"
HUB = "hf:"


def named_source(
    names: Sequence[str], *, field: str = "text", size: int | None = None, unit: str = "file"
) -> Source:
    """The embedded corpus, files and folders, or `hf:NAME[:CONFIGURATION]`, streamed.

    Args:
        names: none is the embedded corpus.
        field: of a JSONL or Parquet record.
        size: at most so many bytes of the embedded corpus.
        unit: what a document is in a text file.
    Raises:
        SourceError: names that do not go together, or what the source itself refuses.
    """
    if not names or list(names) == [EMBEDDED]:
        return EmbeddedCorpus(size=size)
    if size is not None:
        raise SourceError("a size is for the embedded corpus alone")
    if not any(name.startswith(HUB) for name in names):
        if unit not in get_args(Unit):
            raise SourceError(f"unit is one of {', '.join(get_args(Unit))}, not {unit}")
        return LocalFiles(names, field=field, unit=cast(Unit, unit))
    if len(names) > 1:
        raise SourceError("one dataset at a time, and no files beside it")
    name, _, configuration = names[0].removeprefix(HUB).partition(":")
    return HuggingFaceDataset(name, field=field, configuration=configuration or None)
