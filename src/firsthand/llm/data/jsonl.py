"""JSON lines: one record a line, each error with its line and byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firsthand.llm.data.documents import Document, document_of
from firsthand.llm.data.problems import Cursor, Problem
from firsthand.llm.data.text_files import MAX_LINE_BYTES, bad_utf8, read_lines

JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class JsonLine:
    """One record: its fields, its line from 1, its byte offset, and the cursor behind it."""

    fields: dict[str, object]
    line: int
    offset: int
    after: Cursor


def _parse(text: bytes) -> dict[str, object] | tuple[int, str]:
    """The object of a line, or the byte in it and the reason why there is none."""
    if bad := bad_utf8(text):
        return bad
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = len(text.decode("utf-8")[: error.pos].encode("utf-8"))
        return place, f"broken JSON: {error.msg}"
    except (ValueError, RecursionError) as error:  # an integer too long, a nesting too deep
        return 0, f"broken JSON: {error}"
    if not isinstance(value, dict):
        return 0, f"the line must be an object; it is {type(value).__name__}"
    return value


def read_json_lines(path: Path, name: str, start: Cursor) -> Iterator[JsonLine | Problem]:
    """The records of a file from a cursor on; empty lines are passed over."""
    try:
        with open(path, "rb") as stream:
            for number, offset, line, after in read_lines(stream, start):
                if line is None:
                    reason = f"longer than {MAX_LINE_BYTES} bytes"
                    yield Problem(name, reason, after, offset, number)
                elif line.strip():
                    parsed = _parse(line)
                    if isinstance(parsed, dict):
                        yield JsonLine(parsed, number, offset, after)
                    else:
                        yield Problem(name, parsed[1], after, offset + parsed[0], number)
    except OSError as error:
        yield Problem(name, f"cannot be read: {error.strerror or error}", Cursor(start.file + 1))


def text_document(value: object, field: str, place: Problem) -> Document | Problem:
    """A document from one field of a record, or what is wrong with the field.

    Args:
        place: where the record stands, for the message; its reason is not used.
    """
    if isinstance(value, str):
        try:
            return document_of(value.encode("utf-8"), _place_of(place), place.after)
        except UnicodeEncodeError as error:
            reason = f"the field '{field}' has a lone surrogate at character {error.start}"
    elif value is None:
        reason = f"no field '{field}'"
    else:
        reason = f"the field '{field}' must be text; it is {type(value).__name__}"
    return Problem(place.file, reason, place.after, place.offset, place.line)


def _place_of(place: Problem) -> str:
    return str(Problem(place.file, "", place.after, None, place.line)).removesuffix(": ")


def read_jsonl_documents(
    path: Path, name: str, start: Cursor, field: str
) -> Iterator[Document | Problem]:
    """The named field of every record as a document, from a cursor on."""
    for item in read_json_lines(path, name, start):
        if isinstance(item, Problem):
            yield item
        else:
            place = Problem(name, "", item.after, item.offset, item.line)
            yield text_document(item.fields.get(field), field, place)
