"""Plain text files as documents: a file each, a line each, or sections between blank lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from firsthand.llm.data.documents import (
    PIECE_BYTES,
    Digest,
    Document,
    digest_of,
    document_of,
)
from firsthand.llm.data.problems import Cursor, Problem, SourceError

Unit = Literal["file", "line", "section"]

# A line or a JSON record beyond this is refused: it would have to be held whole.
MAX_LINE_BYTES = 64 << 20


class _BadText(Exception):
    """Bytes that are no text: where, and why."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason


def bad_utf8(text: bytes) -> tuple[int, str] | None:
    """The first place that is no UTF-8 text, and why; None when all of it is.

    A NUL byte is valid UTF-8 but no text file has one, so it counts as binary.
    """
    nul = text.find(b"\0")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        if nul < 0 or error.start < nul:
            return error.start, f"not UTF-8: byte 0x{text[error.start]:02x}, {error.reason}"
    return None if nul < 0 else (nul, "binary: a NUL byte")


def _decoded(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """A stream as UTF-8, in parts of bounded size; raises _BadText where it is no text."""
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    offset = 0
    while True:
        part = stream.read(PIECE_BYTES)
        pending = len(decoder.getstate()[0])
        if is_utf8 and offset == 0 and part.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise _BadText(0, "a UTF-16 byte order mark; give the encoding 'utf-16'")
        nul = part.find(b"\0") if is_utf8 else -1
        try:
            text = decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            start = offset - pending + error.start
            if nul < 0 or start < offset + nul:
                reason = f"not {encoding.upper()}: byte 0x{error.object[error.start]:02x}"
                raise _BadText(start, f"{reason}, {error.reason}") from None
        if nul >= 0:
            raise _BadText(offset + nul, "binary: a NUL byte")
        if not part:
            if text:
                yield text.encode("utf-8")
            return
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(part)
        try:
            yield text.encode("utf-8")
        except UnicodeEncodeError:  # a codec such as utf-7 can give lone surrogates
            raise _BadText(offset - len(part), "a lone surrogate, which is no character") from None


def _whole_file(path: Path, name: str, encoding: str, after: Cursor) -> Document | Problem:
    def parts() -> Iterator[bytes]:
        with open(path, "rb") as stream:
            yield from _decoded(stream, encoding)

    held: list[bytes] = []
    size = 0

    def measured() -> Iterator[bytes]:
        nonlocal size
        for part in parts():
            size += len(part)
            if size <= PIECE_BYTES:
                held.append(part)
            else:
                held.clear()
            yield part

    try:
        digest = digest_of(measured())
    except _BadText as bad:
        return Problem(name, bad.reason, after, offset=bad.offset)
    except OSError as error:
        return Problem(name, f"cannot be read: {error.strerror or error}", after)
    if size <= PIECE_BYTES:
        return Document(name, digest, size, after, b"".join(held))

    def reread() -> Iterator[bytes]:
        state = Digest()
        try:
            for part in parts():
                state.update(part)
                yield part
        except (_BadText, OSError):
            pass
        if state.digest() != digest:
            raise SourceError(f"{name}: changed while it was being read")

    return Document(name, digest, size, after, None, reread)


def read_lines(
    stream: BinaryIO, start: Cursor, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, int, bytes | None, Cursor]]:
    """Lines from a cursor on: line number from 1, byte offset, the line or None, the cursor behind.

    The line has no line end. None stands for a line of more than max_bytes, which is passed over
    with bounded memory.
    """
    stream.seek(start.offset)
    offset, number = start.offset, start.line
    while line := stream.readline(max_bytes + 2):
        number += 1
        begin = offset
        offset += len(line)
        too_long = not line.endswith(b"\n") and len(line) > max_bytes
        while too_long and (rest := stream.readline(PIECE_BYTES)):
            offset += len(rest)
            if rest.endswith(b"\n"):
                break
        after = Cursor(start.file, offset, number)
        if begin == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        yield (
            number,
            begin,
            None if too_long else line.removesuffix(b"\n").removesuffix(b"\r"),
            after,
        )


def _lines(stream: BinaryIO, name: str, start: Cursor) -> Iterator[Document | Problem]:
    for number, offset, line, after in read_lines(stream, start):
        if line is None:
            yield Problem(name, f"longer than {MAX_LINE_BYTES} bytes", after, offset, number)
        elif bad := bad_utf8(line):
            yield Problem(name, bad[1], after, offset + bad[0], number)
        elif line:
            yield document_of(line, f"{name}, line {number}", after)


def _sections(
    stream: BinaryIO, name: str, start: Cursor, section_bytes: int
) -> Iterator[Document | Problem]:
    """Stretches of at least section_bytes that end at a blank line, or at any line past 1 MiB."""
    held = bytearray()
    first_line, first_offset = start.line + 1, start.offset
    after = start

    def finished() -> Iterator[Document | Problem]:
        text = bytes(held)
        if bad := bad_utf8(text):
            line = first_line + text.count(b"\n", 0, bad[0])
            yield Problem(name, bad[1], after, first_offset + bad[0], line)
        elif text.strip():
            yield document_of(text, f"{name}, line {first_line}", after)

    for number, offset, line, behind in read_lines(stream, start):
        if line is None:
            if held:
                yield from finished()
                held.clear()
            after = behind
            yield Problem(name, f"longer than {MAX_LINE_BYTES} bytes", after, offset, number)
        elif held or line.strip():
            if not held:
                first_line, first_offset = number, offset
            held += line
            held += b"\n"
            after = behind
            blank = not line.strip()
            if (blank and len(held) >= section_bytes) or len(held) >= PIECE_BYTES:
                yield from finished()
                held.clear()
    if held:
        yield from finished()


def read_text_file(
    path: Path, name: str, start: Cursor, *, encoding: str, unit: Unit, section_bytes: int
) -> Iterator[Document | Problem]:
    """The documents of one text file, from a cursor on.

    Line ends stay as they are in files, a byte order mark is dropped; lines and sections end in
    "\\n".

    Args:
        name: how messages call the file.
        encoding: any codec of Python for whole files, UTF-8 for lines and sections.
    """
    if unit == "file":
        yield _whole_file(path, name, encoding, Cursor(start.file + 1))
        return
    try:
        with open(path, "rb") as stream:
            if unit == "line":
                yield from _lines(stream, name, start)
            else:
                yield from _sections(stream, name, start, section_bytes)
    except OSError as error:
        yield Problem(name, f"cannot be read: {error.strerror or error}", Cursor(start.file + 1))
