"""One number as a learner types it: separators, arithmetic, units. `Malformed` for the rest.

Arithmetic is computed with exact fractions and bounded sizes; no text is ever evaluated.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from dataclasses import dataclass
from fractions import Fraction

MOST_CHARACTERS = 200
MOST_BITS = 8192
MOST_EXPONENT = 1100
MOST_NODES = 80

BYTES: dict[str, Fraction] = {"B": Fraction(1), "byte": Fraction(1), "bytes": Fraction(1)}
for _power, _letter in enumerate("KMGT", start=1):
    BYTES[f"{_letter}B"] = Fraction(1000**_power)
    BYTES[f"{_letter}iB"] = Fraction(1024**_power)
BYTES["kB"] = BYTES["KB"]

FLOPS: dict[str, Fraction] = {}
for _prefix, _size in (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12)):
    for _word in ("FLOP", "FLOPs", "FLOPS"):
        FLOPS[_prefix + _word] = Fraction(_size)

SECONDS: dict[str, Fraction] = {
    "s": Fraction(1),
    "seconds": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}
FAMILIES = (BYTES, FLOPS, SECONDS)

TYPOGRAPHY = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "÷": "/",
        "μ": "µ",
        "^": "^",
        "\u00a0": "\u202f",
        "\u2009": "\u202f",
        "，": ",",
        "；": ";",
    }
)
_GROUPS = re.compile(r"(?<![\d.,_])\d{1,3}(?:(?:,\d{3})+|(?:\u202f\d{3})+)(?![\d,_\u202f])")
LITERAL = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ARITHMETIC = re.compile(r"[0-9eE_.+\-*/()\s]*")
_SPECIAL = {"inf": math.inf, "infinity": math.inf, "∞": math.inf, "nan": math.nan}
_STATEMENTS = frozenset(
    """yes|yeah|yep|yup|no|nope|ok|okay|okey|sure|fine|right|true|done|next|continue|skip|clear
    understood|i understand|i understood|understand|got it|i got it|i see|i know|i know it
    i get it|i agree|agreed|of course|ready|i am ready|i'm ready|no questions|all clear|makes sense
    sí|si|entiendo|lo entiendo|entendido|vale|claro|de acuerdo|comprendo|comprendido|listo
    oui|d'accord|daccord|compris|je comprends|j'ai compris|bien sûr|c'est clair|entendu
    ja|jawohl|verstanden|ich verstehe|klar|alles klar|in ordnung|einverstanden
    sim|entendi|compreendo|certo|va bene|ho capito|capito|capisco|certo|chiaro
    ja|begrepen|ik begrijp het|tak|rozumiem|zrozumiałem|evet|tamam|anladım|razumem
    да|ок|понял|поняла|понятно|понимаю|ясно|хорошо|так|розумію|зрозуміло
    是|好|好的|明白|明白了|懂了|我明白|我懂了|はい|わかりました|分かりました|了解|네|예|알겠습니다
    نعم|حسنا|فهمت|हाँ|ठीक है|समझ गया|כן|הבנתי
    """.replace("\n", "|")
    .replace("    ", "")
    .split("|")
)


class Malformed(ValueError):
    """A text that cannot be read. `form` is what an answer looks like, with an example."""

    def __init__(self, problem: str, form: str) -> None:
        self.problem = problem
        self.form = form
        super().__init__(f"{problem} An answer here is {form}.".strip())


@dataclass(frozen=True)
class Number:
    """A number as it was read: an int when it is whole (exact at any size), else a float."""

    value: int | float
    text: str

    def __str__(self) -> str:
        return show_number(self.value)


Value = int | float | tuple[int, ...]


def show_number(value: float) -> str:
    """The number for a message: integers plainly (`1024`), floats in at most 10 digits."""
    if isinstance(value, bool) or not isinstance(value, int):
        value = float(value)
        if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
            return str(int(value))
        return format(value, ".10g")
    return str(value) if abs(value) < 10**24 else format(Fraction(value), ".6e")


def show_value(value: Value) -> str:
    """A number or a shape for a message."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(str, value)) + ("," if len(value) == 1 else "") + ")"
    return show_number(value)


def number_form(unit: str = "", example: str = "") -> str:
    """What a number looks like here, e.g. 'a number in bytes, for example `96` or `1.5 KiB`'."""
    if not example:
        if unit in BYTES:
            example = "`96`, `3*4*8` or `1.5 KiB`"
        elif unit:
            example = f"`12.5 {unit}` or `3*4`" if unit != "%" else "`12.5` or `12.5 %`"
        else:
            example = "`12.5`, `3*4` or `1e3`"
    noun = f"a number in {unit}" if unit and unit != "%" else "a number"
    return f"{noun}{' in percent' if unit == '%' else ''}, for example {example}"


def refuse_statement(text: str, form: str) -> None:
    """Raise `Malformed` for an empty text and for statements like "ok", in several languages."""
    words = re.sub(r"[\s.!?…,;:\"'’`]+$", "", text.strip().casefold().replace("’", "'"))
    if not words or words in _STATEMENTS:
        raise Malformed("", form)


# --------------------------------------------------------------------------- one number


def _arithmetic(text: str, form: str) -> tuple[Fraction, bool]:
    """The value of an arithmetic text, and whether its outermost operation is a sum."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Malformed(f"`{text.strip()[:60]}` is not a number.", form) from None
    if sum(1 for _ in ast.walk(root)) > MOST_NODES:
        raise Malformed("This is too long for one number.", form)

    def bounded(value: Fraction) -> Fraction:
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
            raise Malformed("This number is too large to be computed here.", form)
        return value

    def power(base: Fraction, exponent: Fraction) -> Fraction:
        if exponent.denominator != 1:
            if base < 0:
                raise Malformed("A root of a negative number is not a real number.", form)
            return Fraction(float(base) ** float(exponent))
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) > MOST_EXPONENT or bits * abs(exponent) > MOST_BITS:
            raise Malformed("This number is too large to be computed here.", form)
        return Fraction(base ** int(exponent))

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() as whole) if not isinstance(whole, bool):
                return bounded(Fraction(whole))
            case ast.Constant(value=float() as real) if math.isfinite(real):
                # repr is the shortest text of the float: 0.1 is read as one tenth, exactly
                return bounded(Fraction(repr(real)))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return value(operand)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = value(left), value(right)
                match op:
                    case ast.Add():
                        return bounded(a + b)
                    case ast.Sub():
                        return bounded(a - b)
                    case ast.Mult():
                        return bounded(a * b)
                    case ast.Div():
                        return bounded(a / b)
                    case ast.Pow():
                        return bounded(power(a, b))
        raise Malformed(f"`{text.strip()[:60]}` is not a number.", form)

    try:
        result = value(root)
    except ZeroDivisionError:
        raise Malformed("This divides by zero.", form) from None
    except (OverflowError, RecursionError):
        raise Malformed("This number is too large to be computed here.", form) from None
    is_sum = isinstance(root, ast.BinOp) and isinstance(root.op, ast.Add | ast.Sub)
    return result, is_sum and not wrapped(text.strip())


def wrapped(text: str) -> bool:
    """True where one pair of brackets encloses the whole text."""
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return index == len(text) - 1
    return False


def _factor(word: str, unit: str, form: str) -> Fraction:
    """What a number with the unit `word` is multiplied by to be in `unit`."""
    for rate in ("/s", "/token"):
        if unit.endswith(rate) and word.endswith(rate):
            return _factor(word[: -len(rate)].strip(), unit[: -len(rate)], form)
    family = next((family for family in FAMILIES if unit in family), None)
    if family is not None:
        if word in family:
            return family[word] / family[unit]
        folded = word.casefold()
        if family is not BYTES or folded.endswith("ib") or folded.startswith("byte"):
            for name, size in family.items():
                if name.casefold() == folded:
                    return size / family[unit]
    if family is BYTES and word.endswith(("b", "bit", "bits")):
        raise Malformed(f"The unit `{word}` reads as bits; the answer is in {unit}.", form)
    if unit and word.casefold().rstrip("s") == unit.casefold().rstrip("s"):
        return Fraction(1)
    if unit == "%" and word.casefold() in ("%", "percent"):
        return Fraction(1)
    asked = f"the unit asked for is {unit}" if unit else "no unit is asked for"
    raise Malformed(f"`{word[:40]}` is not a unit here; {asked}.", form)


def read_number(text: str, unit: str = "", *, special: bool = False, form: str = "") -> Number:
    """One number: `1_024`, `1,024`, `1e3`, `2^10`, `3*4*8`, `1/3`, `4 MiB`.

    unit: what the value is in; the typed unit is optional. Bytes know B, kB ... TB (powers of
    1000) and KiB ... TiB (powers of 1024); bits are never taken for bytes. special: `inf` and
    `nan` are accepted as words. Raises Malformed.
    """
    form = form or number_form(unit)
    refuse_statement(text, form)
    if len(text) > MOST_CHARACTERS:
        raise Malformed("This is too long for one number.", form)
    body = text.translate(TYPOGRAPHY).strip().lstrip("=≈~").strip().rstrip(".;,").strip()
    if body.casefold().lstrip("+-") in _SPECIAL:
        if not special:
            raise Malformed(f"`{body}` is not a finite number.", form)
        sign = -1.0 if body.startswith("-") else 1.0
        return Number(sign * _SPECIAL[body.casefold().lstrip("+-")], text)
    factor = Fraction(1)
    if found := re.search(r"[^\W\d_](?<![\d.][eE])[^\d()*+=,;]*$|%$", body):
        word = found.group().strip()
        body = body[: found.start()].strip()
        if not re.search(r"\d", body):
            raise Malformed(f"`{text.strip()[:60]}` is not a number.", form)
        factor = _factor(word, unit, form)
    body = _GROUPS.sub(lambda match: re.sub(r"[,\u202f]", "", match.group()), body)
    body = body.replace("^", "**")
    if "," in body:
        problem = "A comma only groups thousands, as in 1,024; decimals are written with a point."
        raise Malformed(problem, form)
    if not _ARITHMETIC.fullmatch(body):
        raise Malformed(f"`{text.strip()[:60]}` is not a number.", form)
    exact, is_sum = _arithmetic(body, form)
    if is_sum and factor != 1:
        raise Malformed("It is unclear whether the unit belongs to the whole sum: use ( ).", form)
    exact *= factor
    if exact.denominator == 1:
        return Number(int(exact), text)
    try:
        return Number(float(exact), text)
    except OverflowError:
        raise Malformed("This number is too large to be computed here.", form) from None
