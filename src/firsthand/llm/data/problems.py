"""What is wrong with the data, always with the file and the place in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnProblem = Literal["fatal", "skip"]


class DataError(Exception):
    """Data that cannot be used; the message names the file and the place."""


class SourceError(DataError):
    """Text that cannot be read: binary, wrongly encoded, a broken line, a missing field."""


class ShardError(DataError):
    """A token shard that is damaged, cut short, or of another tokenizer."""


class ManifestError(DataError):
    """A prepared folder that is unfinished, damaged, or of another tokenizer."""


class DiskError(DataError):
    """The disk refused to take more: full, a quota, a limit on the size of a file."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a source has been read; reading can start again here.

    file: index in the source's own order of files. offset: bytes into the file, or the row of a
    table. line: the number of lines before the offset, 0 where there are none.
    """

    file: int = 0
    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """One document that a source could not give.

    file: as the source names it. reason: a phrase. offset: the byte in the file, or None. line:
    counted from 1, or None. after: where reading goes on.
    """

    file: str
    reason: str
    after: Cursor
    offset: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        if self.offset is not None:
            place += f", byte {self.offset}"
        return f"{place}: {self.reason}"
