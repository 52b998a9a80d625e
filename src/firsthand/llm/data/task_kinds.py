"""The kinds of generated tasks: what is drawn, what is asked, and what is right."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

Operand = int | str | list[int]
Operands = tuple[Operand, ...]

LEVELS = (1, 2, 3)
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SYMBOLS = {"+": "plus", "-": "minus", "*": "times"}


@dataclass(frozen=True, slots=True)
class TaskKind:
    """One kind of task.

    draw(generator, level) gives operands. values(operands) gives what the phrasings name in braces.
    solve(operands) gives the answer in its one written form. read(text) gives an answer as a value
    that compares equal for every accepted way to write it, or None when the text is no answer of
    this kind. phrasings are learnt from; held_out ones are not. A model that saw few phrasings
    learns them by heart and not what their words ask for, so most are composed of parts that
    occur in many.
    """

    name: str
    draw: Callable[[random.Random, int], Operands]
    values: Callable[[Operands], dict[str, str]]
    solve: Callable[[Operands], str]
    read: Callable[[str], object | None]
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]


def _composed(*parts: Sequence[str], end: str = "") -> tuple[str, ...]:
    """Every phrasing that takes one of each part, with a space between them."""
    return tuple(" ".join(taken) + end for taken in product(*parts))


def _read_integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,40}", text) else None


def _read_integers(text: str) -> tuple[int, ...] | None:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    words = [word for word in re.split(r"[,\s]+", inner.strip()) if word]
    numbers = [_read_integer(word) for word in words]
    return None if not numbers or None in numbers else tuple(n for n in numbers if n is not None)


def _read_text(text: str) -> str | None:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1]
    return text or None


def _read_bytes(text: str) -> tuple[int, str] | None:
    found = re.fullmatch(r"([0-9]{1,40})\s*(bytes|byte|B|KiB|MiB|GiB)", text)
    if not found:
        return None
    unit = found[2]
    return int(found[1]), unit if unit in _UNITS else "bytes"


def _word(generator: random.Random, length: int, letters: str = string.ascii_lowercase) -> str:
    return "".join(generator.choice(letters) for _ in range(length))


def _numbers(operand: Operand) -> list[int]:
    assert isinstance(operand, list)
    return operand


def _integer(operand: Operand) -> int:
    assert isinstance(operand, int)
    return operand


# Arithmetic


def _draw_arithmetic(generator: random.Random, level: int) -> Operands:
    sign = generator.choice("+-*")
    top = 10 ** (level if sign == "*" else level + 1)
    return generator.randrange(top), sign, generator.randrange(top)


def _solve_arithmetic(operands: Operands) -> str:
    left, sign, right = _integer(operands[0]), operands[1], _integer(operands[2])
    return str(left + right if sign == "+" else left - right if sign == "-" else left * right)


ARITHMETIC = TaskKind(
    "arithmetic",
    _draw_arithmetic,
    lambda o: {"a": str(o[0]), "sign": str(o[1]), "word": _SYMBOLS[str(o[1])], "b": str(o[2])},
    _solve_arithmetic,
    _read_integer,
    (
        "{a} {sign} {b} =",
        "What is {a} {sign} {b}?",
        "Compute {a} {word} {b}.",
        "Give the value of {a} {sign} {b} as an integer.",
        *_composed(
            ("Calculate", "Work out", "Find", "State"),
            ("{a} {sign} {b}", "{a} {word} {b}", "the result of {a} {sign} {b}"),
            ("exactly.", "as a number."),
        ),
        *_composed(
            ("What does", "Which number does"), ("{a} {sign} {b}", "{a} {word} {b}"), ("give?",)
        ),
    ),
    (
        "Evaluate the expression ({a}) {sign} ({b}).",
        "How much is {a} {word} {b}?",
    ),
)


# Copying


def _draw_copying(generator: random.Random, level: int) -> Operands:
    letters = string.ascii_lowercase + string.digits
    return (_word(generator, generator.randint(4 * level, 6 * level), letters),)


COPYING = TaskKind(
    "copying",
    _draw_copying,
    lambda o: {"text": str(o[0])},
    lambda o: str(o[0]),
    _read_text,
    (
        "Repeat exactly: {text}",
        "Copy this string: {text}",
        "Write {text} once more.",
        "Echo the following text and nothing else: {text}",
        *_composed(
            ("Repeat", "Copy", "Write", "Echo"),
            ("{text}", "the text {text}", "the letters and digits {text}"),
            ("as they stand.", "once.", "and nothing else."),
        ),
    ),
    (
        "Give back {text} unchanged.",
        "Reproduce the characters {text} in the same order.",
    ),
)


# Sorting


def _draw_sorting(generator: random.Random, level: int) -> Operands:
    count = generator.randint(2 * level + 1, 3 * level + 1)
    return [generator.randrange(10**level) for _ in range(count)], generator.choice(("up", "down"))


def _list(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


_ORDERS = {
    "up": {"order": "ascending", "from": "smallest", "to": "largest"},
    "down": {"order": "descending", "from": "largest", "to": "smallest"},
}

_SORT = ("Sort", "Order", "Arrange", "Return")
_NUMBERS = ("{numbers}", "the numbers {numbers}", "the list {numbers}")
_DIRECTIONS = ("in {order} order", "from {from} to {to}", "with the {from} first")
_TOLD = (*_DIRECTIONS, "so that the {from} is first", "until they are {order}")
_ASKED = (*_DIRECTIONS, "if the {from} is first", "if they are {order}")

SORTING = TaskKind(
    "sorting",
    _draw_sorting,
    lambda o: {"numbers": _list(_numbers(o[0])), **_ORDERS[str(o[1])]},
    lambda o: _list(sorted(_numbers(o[0]), reverse=o[1] == "down")),
    _read_integers,
    (
        "Sort in {order} order: {numbers}",
        "Put these numbers in {order} order, separated by commas: {numbers}",
        "List {numbers} from {from} to {to}.",
        "Arrange from {from} to {to}: {numbers}",
        *_composed(_SORT, _NUMBERS, _TOLD, end="."),
        *_composed(_SORT, _DIRECTIONS, ("these numbers: {numbers}", "this list: {numbers}")),
        *_composed(("How do", "How would"), _NUMBERS, ("read", "stand"), _ASKED, end="?"),
        *_composed(("Which list do", "What do"), _NUMBERS, ("make", "become"), _ASKED, end="?"),
    ),
    (
        "Which order do {numbers} have when the {from} comes first?",
        "Rewrite the list {numbers} so that it is {order}.",
    ),
)


# String edits


def _draw_edit(generator: random.Random, level: int) -> Operands:
    word = _word(generator, generator.randint(3 * level + 1, 4 * level + 2))
    edit = generator.choice(("reverse", "upper", "remove", "replace"))
    old = generator.choice(word)
    new = generator.choice([letter for letter in string.ascii_lowercase if letter != old])
    # A word that is one letter over and over would leave nothing to answer.
    if edit == "remove" and not word.replace(old, ""):
        edit = "replace"
    return (
        word,
        edit,
        old if edit in ("remove", "replace") else "",
        new if edit == "replace" else "",
    )


def _solve_edit(operands: Operands) -> str:
    word, edit, old, new = (str(operand) for operand in operands)
    if edit == "reverse":
        return word[::-1]
    if edit == "upper":
        return word.upper()
    return word.replace(old, new)


def _edit_values(operands: Operands) -> dict[str, str]:
    word, edit, old, new = (str(operand) for operand in operands)
    does = {
        "reverse": "reverse the letters",
        "upper": "write all letters as capitals",
        "remove": f"remove every letter {old}",
        "replace": f"replace every {old} by {new}",
    }[edit]
    return {"word": word, "does": does}


STRING_EDITS = TaskKind(
    "string edits",
    _draw_edit,
    _edit_values,
    _solve_edit,
    _read_text,
    (
        "In the word {word}, {does}.",
        "Take {word} and {does}.",
        "Given the string {word}: {does}.",
        "Word: {word}. Task: {does}.",
        *_composed(
            ("Look at", "Change", "Begin with", "Start from"),
            ("{word}", "the word {word}", "the letters {word}"),
            ("and {does}.", "as follows: {does}."),
        ),
        *_composed(("What is {word}", "What becomes of {word}"), ("when you {does}?",)),
    ),
    (
        "What results from {word} if you {does}?",
        "Edit {word} as follows: {does}.",
    ),
)


# Counting


def _draw_counting(generator: random.Random, level: int) -> Operands:
    letters = generator.sample(string.ascii_lowercase, 3)
    word = _word(generator, generator.randint(4 * level, 7 * level), "".join(letters))
    return word, generator.choice(letters)


COUNTING = TaskKind(
    "counting",
    _draw_counting,
    lambda o: {"word": str(o[0]), "letter": str(o[1])},
    lambda o: str(str(o[0]).count(str(o[1]))),
    _read_integer,
    (
        "How many times does {letter} occur in {word}?",
        "Count the letter {letter} in {word}.",
        "Number of {letter} in the string {word}:",
        "In {word}, how often is there the letter {letter}?",
        *_composed(
            ("Determine the count of", "State the number of", "Say how many there are of"),
            ("{letter}", "the letter {letter}", "every {letter}"),
            ("in {word}.", "in the word {word}.", "in the characters {word}."),
        ),
        *_composed(("How many {letter}", "How often {letter}"), ("has {word}?", "is in {word}?")),
    ),
    (
        "Give the count of {letter} among the characters of {word}.",
        "{word} holds how many {letter}?",
    ),
)


# Unit conversion of bytes


def _draw_units(generator: random.Random, level: int) -> Operands:
    units = ["bytes", "KiB", "MiB", "GiB"]
    first, second = sorted(generator.sample(range(4), 2))
    amount = generator.randrange(1, 10**level)
    if generator.random() < 0.5:
        return amount, units[second], units[first]
    return amount * (1 << (10 * (second - first))), units[first], units[second]


def _solve_units(operands: Operands) -> str:
    amount, given, wanted = _integer(operands[0]), str(operands[1]), str(operands[2])
    total = amount * _UNITS.get(given, 1)
    return f"{total // _UNITS.get(wanted, 1)} {wanted}"


UNIT_CONVERSION = TaskKind(
    "unit conversion",
    _draw_units,
    lambda o: {"amount": str(o[0]), "given": str(o[1]), "wanted": str(o[2])},
    _solve_units,
    _read_bytes,
    (
        "Convert {amount} {given} to {wanted}.",
        "How many {wanted} are {amount} {given}? Name the unit.",
        "Express {amount} {given} in {wanted}.",
        "{amount} {given} = ? {wanted}",
        *_composed(
            ("Convert", "Render", "State", "Give"),
            ("{amount} {given}", "a size of {amount} {given}", "the length {amount} {given}"),
            ("in {wanted}.", "as {wanted}.", "counted in {wanted}."),
        ),
        *_composed(
            ("A disk holds {amount} {given}.", "There are {amount} {given}."),
            (
                "How many {wanted} is that?",
                "Convert that to {wanted}.",
                "Express that in {wanted}.",
            ),
        ),
        *_composed(
            ("What is", "How much is"), ("{amount} {given}",), ("in {wanted}?", "as {wanted}?")
        ),
    ),
    (
        "A file has {amount} {given}. Give its size in {wanted}.",
        "Write {amount} {given} with the unit {wanted}.",
    ),
)

KINDS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (ARITHMETIC, COPYING, SORTING, STRING_EDITS, COUNTING, UNIT_CONVERSION)
}
