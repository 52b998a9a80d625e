"""Where text comes from: local files and folders, or an iterable; each can go on from a cursor."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from firsthand.llm.data.documents import Document
from firsthand.llm.data.jsonl import JSONL_SUFFIXES, read_jsonl_documents, text_document
from firsthand.llm.data.problems import Cursor, Problem, SourceError
from firsthand.llm.data.tables import PARQUET_SUFFIX, read_parquet
from firsthand.llm.data.text_files import Unit, read_text_file

START = Cursor()


class Source(Protocol):
    """Documents in an order that is the same at every reading.

    describe() goes into the manifest: plain JSON values, nothing of this machine. fingerprint()
    differs when the source has changed since it was last read. total_bytes() is for a progress bar
    and None where nobody knows. documents(start) goes on where a cursor was left.
    """

    def describe(self) -> dict[str, object]: ...

    def fingerprint(self) -> str: ...

    def total_bytes(self) -> int | None: ...

    def documents(self, start: Cursor = START) -> Iterator[Document | Problem]: ...


def fingerprint_of_files(files: Iterable[tuple[str, Path]]) -> str:
    """One hash over the names, sizes and times of change of files."""
    state = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        state.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return state.hexdigest()


def files_below(
    folder: Path, suffixes: Sequence[str] | None = None, leave_out: Container[str] = ()
) -> Iterator[tuple[str, Path]]:
    """Regular files below a folder as (path with "/" from the folder, path), sorted by the first.

    Hidden files and folders, links to folders, and folders named in leave_out are left out.
    """
    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and name not in leave_out
        ]
        for name in names:
            path = Path(parent, name)
            wanted = suffixes is None or path.suffix.lower() in suffixes
            if wanted and not name.startswith(".") and path.is_file():
                found.append((path.relative_to(folder).as_posix(), path))
    yield from sorted(found)


class LocalFiles:
    """Text, JSONL and Parquet files, named one by one or by their folders."""

    def __init__(
        self,
        paths: Sequence[Path | str],
        *,
        field: str = "text",
        suffixes: Sequence[str] | None = None,
        encoding: str = "utf-8",
        unit: Unit = "file",
        section_bytes: int = 8192,
    ) -> None:
        """List the files.

        Args:
            paths: files and folders, read in this order; a folder's files in the order of names.
            field: of a JSONL record or a Parquet table that holds the text.
            suffixes: of the files wanted from folders, with the dot; None takes all.
            encoding: of text files.
            unit: what a document is in a text file: the file, a line, or a section, which ends at
                the first blank line past section_bytes. A single long file needs sections, or it
                cannot be split.
        Raises:
            SourceError: a path that does not exist, no file at all, or an unknown encoding.
            ValueError: a unit below the file for an encoding that is not UTF-8.
        """
        try:
            self._encoding = codecs.lookup(encoding).name
        except LookupError as error:
            raise SourceError(f"unknown encoding: {encoding}") from error
        if unit != "file" and self._encoding != "utf-8":
            raise ValueError(f"unit={unit!r} needs UTF-8; the encoding is {self._encoding}")
        if section_bytes < 1:
            raise ValueError(f"section_bytes must be at least 1: {section_bytes}")
        self._field, self._unit, self._section_bytes = field, unit, section_bytes
        self._suffixes = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
        self._files: list[tuple[str, Path]] = []
        for given in paths:
            path = Path(given)
            if path.is_dir():
                self._files += [
                    (f"{path.name}/{name}", file)
                    for name, file in files_below(path, self._suffixes)
                ]
            elif path.is_file():
                self._files.append((path.name, path))
            else:
                raise SourceError(f"{path}: no such file or folder")
        if not self._files:
            listed = ", ".join(str(path) for path in paths)
            raise SourceError(f"{listed or 'an empty list of paths'}: no files to read")

    def describe(self) -> dict[str, object]:
        """See Source."""
        return {
            "kind": "local files",
            "files": len(self._files),
            "field": self._field,
            "encoding": self._encoding,
            "unit": self._unit,
            "section_bytes": self._section_bytes,
        }

    def fingerprint(self) -> str:
        """See Source."""
        return fingerprint_of_files(self._files)

    def total_bytes(self) -> int | None:
        """See Source."""
        return sum(path.stat().st_size for _, path in self._files)

    def documents(self, start: Cursor = START) -> Iterator[Document | Problem]:
        """See Source."""
        for index, (_, path) in enumerate(self._files[start.file :], start.file):
            begin = start if index == start.file else Cursor(index)
            # Messages give the whole path: the reader has to open the file.
            yield from self._documents_of(path, str(path), begin)

    def _documents_of(self, path: Path, name: str, begin: Cursor) -> Iterator[Document | Problem]:
        suffix = path.suffix.lower()
        if suffix in JSONL_SUFFIXES:
            return read_jsonl_documents(path, name, begin, self._field)
        if suffix == PARQUET_SUFFIX:
            return read_parquet(path, name, begin, self._field)
        return read_text_file(
            path,
            name,
            begin,
            encoding=self._encoding,
            unit=self._unit,
            section_bytes=self._section_bytes,
        )


class Texts:
    """Documents from an iterable of strings that can be made again."""

    def __init__(self, name: str, texts: Callable[[], Iterable[str]]) -> None:
        """Remember how to make the texts.

        Args:
            name: stands for the content: the same name must mean the same texts.
            texts: called for every reading; gives the same strings in the same order.
        """
        self._name, self._texts = name, texts

    def describe(self) -> dict[str, object]:
        """See Source."""
        return {"kind": "texts", "name": self._name}

    def fingerprint(self) -> str:
        """See Source."""
        return self._name

    def total_bytes(self) -> int | None:
        """See Source."""
        return None

    def documents(self, start: Cursor = START) -> Iterator[Document | Problem]:
        """See Source."""
        texts = islice(self._texts(), start.offset, None)
        for row, text in enumerate(texts, start.offset):
            place = Problem(self._name, "", Cursor(0, row + 1, row + 1), None, row + 1)
            yield text_document(text, "text", place)
