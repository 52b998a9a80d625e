"""Pre-tokenization: the patterns that cut text into pieces, and the classes they are made of.

A merge never crosses the border of a piece, so the pattern decides what a token can be: words with
their leading space, runs of digits, runs of signs, white space.
Sources: Radford et al. 2019 (GPT-2's `encoder.py`); GPT-4's `cl100k_base`, in the form without
possessive quantifiers that Llama 3's `tokenizer.json` has, which cuts the same way.
"""

from functools import cache
from typing import Literal, get_args

import numpy as np
import regex
from numpy.typing import NDArray

from firsthand.llm.tokenizer.errors import TokenizerError

PatternName = Literal["gpt2", "gpt4"]

PATTERNS: dict[str, str] = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3
"""Classes of characters: \\p{L}, \\p{N}, \\s, and all the rest (signs, marks, bytes astray)."""

_CODE_POINTS = 0x110000
# Between two characters that match this, both patterns always cut, whatever stands further left or
# right: nothing that starts with a letter or a number goes on into another class, and no piece goes
# on from a sign into a number or into white space other than line ends.
_SAFE_CUT = regex.compile(
    r"(?r)(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})|(?<=[^\s\p{L}\p{N}])(?=\p{N}|[^\S\r\n])"
)


def require_pattern(name: str) -> None:
    """Raises TokenizerError unless `name` is a key of PATTERNS."""
    if name not in PATTERNS:
        raise TokenizerError(
            f"pattern {name!r} is unknown: choose one of {', '.join(get_args(PatternName))}"
        )


@cache
def compiled_pattern(name: str) -> "regex.Pattern[str]":
    """The pattern `name` ("gpt2" or "gpt4") as a compiled expression of the `regex` package."""
    require_pattern(name)
    return regex.compile(PATTERNS[name])


def to_utf8(text: str) -> bytes:
    """The bytes of a text.

    Raises:
        TokenizerError: a lone surrogate, with its place.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} is the lone surrogate U+{ord(text[error.start]):04X}, which "
            "UTF-8 cannot carry; pass bytes, or encode the text with errors='replace' before"
        ) from None


def split(text: str, pattern: str) -> list[str]:
    """The pieces of `text`, in order; joined they are `text` again."""
    pieces: list[str] = compiled_pattern(pattern).findall(text)
    return pieces


def last_safe_cut(text: str) -> int:
    """The last index where `text` may be cut so that both halves give the pieces of the whole.

    It holds whatever text comes before and after. 0 if there is none.
    """
    found = _SAFE_CUT.search(text)
    return found.start() if found else 0


@cache
def character_classes() -> NDArray[np.uint8]:
    """The class of every code point, (0x110000,), as the `regex` package sees it.

    Taken from `regex` and not from `unicodedata`, so that the compiled scan and the plain one agree
    on every character under any Python version.
    """
    classes = np.zeros(_CODE_POINTS, np.uint8)
    everything = "".join(map(chr, range(_CODE_POINTS)))
    for expression, value in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)):
        for run in regex.finditer(expression, everything):
            classes[run.start() : run.end()] = value
    return classes
