"""What is wrong with the data, always with the file and the place in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
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


def write_all(descriptor: int, data: bytes | memoryview, path: Path, offset: int) -> None:
    """Write every byte of data at the descriptor's position.

    Args:
        path, offset: where this is, for the error message only.
    Raises:
        DiskError: the system took only a part.
    """
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        try:
            done += os.write(descriptor, view[done:])
        except OSError as error:
            raise DiskError(f"{path}, byte {offset + done}: cannot write: {error}") from error


def sync_folder(folder: Path) -> None:
    """Make renames inside the folder survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open a folder
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file by data: a reader sees the old one or the new one, never a part.

    Raises:
        DiskError: it could not be written; the old file stands.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(descriptor, data, partial, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DiskError(f"{path}: cannot write: {error}") from error
    except DiskError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
