"""Reading what a learner types: numbers, shapes, lists, named values, orders of lines.

Reading decides nothing about right or wrong. A text that cannot be read raises `Malformed`, whose
message says which form is expected; such an answer costs no attempt (gate rule C3). A statement
such as "I understand" is not an answer in any form (C4), so it is malformed as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from firsthand.course.quantities import (
    BYTES,
    LITERAL,
    MOST_CHARACTERS,
    TYPOGRAPHY,
    Malformed,
    Number,
    Value,
    number_form,
    read_number,
    refuse_statement,
    show_number,
    show_value,
    wrapped,
)

__all__ = [
    "BYTES",
    "Malformed",
    "Number",
    "Value",
    "number_form",
    "read_assignments",
    "read_number",
    "read_numbers",
    "read_order",
    "read_shape",
    "refuse_statement",
    "show_number",
    "show_value",
    "split_assignments",
]

MOST_LIST_CHARACTERS = 4000


def read_shape(text: str, form: str = "") -> tuple[int, ...]:
    """A shape: `(3, 4)`, `[3, 4]`, `3x4`, `3, 4`, `3 4`, `(5,)`, `()`. Raises Malformed."""
    form = form or "a shape, for example `(2, 5)` or `2x5`"
    refuse_statement(text, form)
    body = text.translate(TYPOGRAPHY).strip()
    body = re.sub(r"^(?:torch\.Size|tuple|shape)\s*(?=\()|^shape\s*[=:]\s*", "", body)
    bracketed = False
    while len(body) > 1 and (body[0], body[-1]) in (("(", ")"), ("[", "]")):
        body, bracketed = body[1:-1].strip(), True
    if not body and bracketed:
        return ()
    pieces: list[str] | None = None
    for separator in (r"\s*,\s*", r"\s*[xX*]\s*", r"\s+"):
        candidates = re.split(separator, body)
        if candidates[-1] == "" and separator.startswith(r"\s*,") and len(candidates) > 1:
            candidates.pop()
        if all(re.fullmatch(r"0|[1-9][\d_]{0,17}", piece) for piece in candidates):
            pieces = candidates
            break
    if pieces is None or len(pieces) > 12:
        raise Malformed(f"`{text.strip()[:60]}` is not a shape.", form)
    return tuple(int(piece) for piece in pieces)


def _split(text: str, separators: str) -> list[str]:
    """The pieces between separators that stand outside round brackets."""
    pieces, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and letter in separators:
            pieces.append(text[start:index])
            start = index + 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces]


def read_numbers(text: str, count: int | None = None, form: str = "") -> list[int | float]:
    """A list of numbers, in brackets or not, separated by commas, semicolons, lines or spaces.

    Nested brackets are flattened in row order, so a printed array can be pasted. `True` and
    `False` read as 1 and 0. Raises Malformed, also when there are not `count` numbers.
    """
    form = form or f"{'a list of' if count is None else count} numbers, for example `1.5, -2, 7`"
    refuse_statement(text, form)
    if len(text) > MOST_LIST_CHARACTERS:
        raise Malformed("This is too long for a list of numbers.", form)
    body = re.sub(r"\b(?:array|tensor)\s*\(|,\s*dtype=[\w.]+", "(", text.translate(TYPOGRAPHY))
    body = body.strip() if body.count("(") == body.count(")") else re.sub(r"[()]", " ", body)
    body = re.sub(r"\bTrue\b", "1", re.sub(r"\bFalse\b", "0", body))
    body = (
        re.sub(r"[\])]\s*,?\s*[\[(]", ",", body)
        if re.search(r"[\])]\s*,?\s*\[|\)\s*,\s*\(", body)
        else body
    )
    body = body.replace("[", " ").replace("]", " ").strip()
    while wrapped(body):
        body = body[1:-1].strip()
    numbers: list[int | float] = []
    pieces = _split(body.rstrip(",; \n"), ",;\n")
    for piece in pieces:
        words = piece.split()
        if len(words) > 1 and all(LITERAL.fullmatch(word) for word in words):
            numbers.extend(read_number(word, form=form).value for word in words)
        else:
            numbers.append(read_number(piece, form=form).value)
    if count is not None and len(numbers) != count:
        raise Malformed(f"{len(numbers)} numbers were read and {count} are asked for.", form)
    return numbers


# --------------------------------------------------------------------------- named values


def split_assignments(text: str, names: Sequence[str], form: str) -> tuple[str, dict[str, str]]:
    """What stands before the first `name =`, and the text of each name's value.

    Names are matched whole; upper and lower case count only where two names differ in nothing
    else. Raises Malformed for a name given twice.
    """
    folded = {name.casefold() for name in names}
    flags = re.IGNORECASE if len(folded) == len(names) else re.NOFLAG
    known = {(name.casefold() if flags else name): name for name in names}
    longest_first = sorted(names, key=len, reverse=True)
    alternatives = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in longest_first)
    # `name is 3` is not accepted: only = and : separate a name from its value
    pattern = re.compile(rf"(?<![\w.])`?({alternatives})`?\s*[=:]\s*", flags)
    hits = list(pattern.finditer(text))
    values: dict[str, str] = {}
    for index, hit in enumerate(hits):
        written = re.sub(r"\s+", " ", hit.group(1))
        name = known[written.casefold() if flags else written]
        if name in values:
            raise Malformed(f"`{name}` is given twice.", form)
        end = hits[index + 1].start() if index + 1 < len(hits) else len(text)
        values[name] = re.sub(r"(?:[\s,;]|\band\b)+$", "", text[hit.end() : end])
    before = text[: hits[0].start()] if hits else text
    return before.strip(" \t\n,;"), values


def read_assignments(
    text: str, names: Sequence[str], shapes: Sequence[str] = (), form: str = ""
) -> dict[str, Value]:
    """`a = 3, b = 4.5`, one a line or separated by `;` or `,`, or the plain values in order.

    names: all of them must be given. shapes: the names whose value is a shape. Raises Malformed.
    """
    example = ", ".join(f"{name} = {'(2, 5)' if name in shapes else '7.5'}" for name in names)
    form = form or f"a value for each name, for example `{example}`"
    refuse_statement(text, form)
    if len(text) > MOST_LIST_CHARACTERS:
        raise Malformed("This is too long.", form)
    before, values = split_assignments(text, names, form)
    if not values:
        values = _in_order(text, names, form)
    elif before:
        raise Malformed(f"`{before[:40]}` is not one of the names.", form)
    if missing := [name for name in names if name not in values]:
        raise Malformed(f"Missing: {', '.join(missing)}.", form)
    return {
        name: read_shape(values[name], form)
        if name in shapes
        else read_number(values[name], form=form).value
        for name in names
    }


def _in_order(text: str, names: Sequence[str], form: str) -> dict[str, str]:
    if "=" in text or ":" in text:
        raise Malformed(f"The names are {', '.join(names)}.", form)
    if len(names) == 1:
        return {names[0]: text}
    body = text.strip()
    for separators in (";\n", ",;\n", " \t,;\n"):
        pieces = [piece for piece in _split(body, separators) if piece]
        if len(pieces) == len(names):
            return dict(zip(names, pieces, strict=True))
    raise Malformed(f"{len(names)} values are asked for: {', '.join(names)}.", form)


# --------------------------------------------------------------------------- orders


def read_order(text: str, letters: Sequence[str], form: str = "") -> list[str]:
    """Letters in order: `C A D`, `CAD`, `c,a,d`, `C > A > D`. Raises Malformed.

    letters: the letters on offer, upper case. None may stand twice.
    """
    form = form or "an order of letters, for example `" + " ".join(reversed(letters[:3])) + "`"
    refuse_statement(text, form)
    if len(text) > MOST_CHARACTERS:
        raise Malformed("This is too long for an order.", form)
    pieces = [piece for piece in re.split(r"[\s,;.>→\-()\[\]]+", text.strip().upper()) if piece]
    found = [letter for piece in pieces for letter in piece]
    if any(len(piece) > 1 for piece in pieces) and len(pieces) > 1:
        raise Malformed("Separate all letters or none.", form)
    if unknown := [letter for letter in found if letter not in letters]:
        raise Malformed(f"`{unknown[0]}` is not the letter of a line.", form)
    if twice := [letter for index, letter in enumerate(found) if letter in found[:index]]:
        raise Malformed(f"`{twice[0]}` stands twice.", form)
    if not found:
        raise Malformed("", form)
    return found
