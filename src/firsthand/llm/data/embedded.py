"""The corpus that is always there: the running Python's own source and documentation."""

from __future__ import annotations

import hashlib
import io
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from firsthand.llm.data.documents import Document, document_of
from firsthand.llm.data.problems import Cursor, Problem, SourceError
from firsthand.llm.data.sources import START, files_below, fingerprint_of_files
from firsthand.llm.data.text_files import bad_utf8

LICENCE = (
    "Python Software Foundation License Version 2: "
    "the text comes from the Python installed on this machine and is not redistributed"
)
SUFFIXES = (".py", ".rst", ".txt")
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


def _utf8(path: Path) -> bytes | None:
    """A file's text as UTF-8 by the encoding that it declares (PEP 263); None when it is no text.

    The library's tests hold a few files that are broken on purpose.
    """
    raw = path.read_bytes()
    try:
        encoding = "utf-8"
        if path.suffix == ".py":
            encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding).removeprefix("\ufeff").encode("utf-8")
    except (SyntaxError, UnicodeError, LookupError):
        return None
    return None if bad_utf8(text) else text


class EmbeddedCorpus:
    """The standard library: its modules with their docstrings, and its text files.

    Files come in the order of their paths, the same on every machine with the same Python. How much
    there is depends on the Python: with its own tests about 31 MB, without them about 12.
    """

    def __init__(self, size: int | None = None, folder: Path | None = None) -> None:
        """Choose the files.

        Args:
            size: at most so many bytes, taken from all over the library; None takes all.
            folder: of the library, by default the running Python's.
        Raises:
            SourceError: this Python has no library on disk.
            ValueError: a size below 1.
        """
        if size is not None and size < 1:
            raise ValueError(f"a corpus of {size} bytes")
        root = Path(folder or sysconfig.get_path("stdlib"))
        files = list(files_below(root, SUFFIXES, _FOREIGN))
        if not files:
            raise SourceError(f"{root}: this Python has no library source there")
        self.available_bytes = sum(path.stat().st_size for _, path in files)
        self._size = size
        self._files = files if size is None else _sample(files, size)

    def describe(self) -> dict[str, object]:
        """See Source."""
        return {
            "kind": "embedded",
            "python": platform.python_version(),
            "size": self._size,
            "files": len(self._files),
            "licence": LICENCE,
        }

    def fingerprint(self) -> str:
        """See Source."""
        return fingerprint_of_files(self._files)

    def total_bytes(self) -> int | None:
        """See Source."""
        return sum(path.stat().st_size for _, path in self._files)

    def documents(self, start: Cursor = START) -> Iterator[Document | Problem]:
        """See Source. Files that are no text are left out without a word: they are known."""
        for index, (name, path) in enumerate(self._files[start.file :], start.file):
            text = _utf8(path)
            if text is not None:
                yield document_of(text, name, Cursor(index + 1))

    def texts(self) -> Iterator[str]:
        """The documents as strings, for training a tokenizer."""
        for _, path in self._files:
            text = _utf8(path)
            if text:
                yield text.decode("utf-8")


def _sample(files: list[tuple[str, Path]], size: int) -> list[tuple[str, Path]]:
    # By the hash of the name: the first letters of the alphabet are no fair share of a library.
    drawn = sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest())
    chosen, total = [], 0
    for name, path in drawn:
        length = path.stat().st_size
        if total + length <= size:
            chosen.append((name, path))
            total += length
    if not chosen:
        raise ValueError(f"a corpus of {size} bytes: no file is so small")
    return sorted(chosen)
