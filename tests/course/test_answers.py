"""Every accepted spelling is read alike; everything else says which form is expected."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firsthand.course.answers import (
    Malformed,
    read_assignments,
    read_number,
    read_numbers,
    read_order,
    read_shape,
    show_number,
    split_assignments,
)

STATEMENTS = [
    "",
    "   ",
    "yes",
    "Yes.",
    "ok",
    "OK!",
    "I understand",
    "understood",
    "got it",
    "entiendo",
    "sí",
    "d'accord",
    "D’accord.",
    "je comprends",
    "verstanden",
    "ja",
    "entendi",
    "ho capito",
    "понятно",
    "да",
    "明白了",
    "はい",
    "네",
    "نعم",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_c4_a_statement_is_no_answer_in_any_form(statement: str) -> None:
    readers = (
        lambda text: read_number(text),
        lambda text: read_number(text, "bytes"),
        read_shape,
        read_numbers,
        lambda text: read_assignments(text, ["a", "b"]),
        lambda text: read_order(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    )
    for read in readers:
        with pytest.raises(Malformed, match="An answer here is "):
            read(statement)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("2", "", 2),
        ("1_024", "", 1024),
        ("1,024", "", 1024),
        ("12,345,678", "", 12345678),
        ("1\u202f024", "", 1024),
        ("1e3", "", 1000),
        ("-3.5", "", -3.5),
        ("−3.5", "", -3.5),
        (".5", "", 0.5),
        ("= 7", "", 7),
        ("2^10", "", 1024),
        ("2**10", "", 1024),
        ("3*4*8", "", 96),
        ("3 × 4 × 8", "", 96),
        ("(1 + 2) * 3 - 1", "", 8),
        ("1/3", "", 1 / 3),
        ("0.1 + 0.2", "", 0.3),
        ("16^0.5", "", 4),
        ("50%", "%", 50),
        ("50 percent", "%", 50),
        ("50", "%", 50),
        ("64", "bytes", 64),
        ("64 B", "bytes", 64),
        ("64 bytes", "bytes", 64),
        ("4MB", "bytes", 4_000_000),
        ("4 kB", "bytes", 4000),
        ("4 KB", "bytes", 4000),
        ("4 KiB", "bytes", 4096),
        ("4 MiB", "bytes", 4 << 20),
        ("4 mib", "bytes", 4 << 20),
        ("1.5 GiB", "bytes", 3 << 29),
        ("2*3 GiB", "bytes", 6 << 30),
        ("(2 + 3) MiB", "bytes", 5 << 20),
        ("16 GiB", "GiB", 16),
        ("2048 MiB", "GiB", 2),
        ("3 GB/s", "MB/s", 3000),
        ("12 GFLOPs", "FLOPs", 12_000_000_000),
        ("3 ms", "s", 0.003),
        ("7 parameters", "parameters", 7),
        ("7 Parameter", "parameters", 7),
        ("7", "parameters", 7),
        ("9 tokens/s", "tokens/s", 9),
    ],
)
def test_every_spelling_of_a_number(text: str, unit: str, value: float) -> None:
    read = read_number(text, unit).value
    assert read == value
    assert isinstance(read, int) == isinstance(value, int)


@pytest.mark.parametrize(
    ("text", "unit", "says"),
    [
        ("4 bits", "bytes", "bits"),
        ("4 Mb", "bytes", "bits"),
        ("4 Mbit", "bytes", "bits"),
        ("4 b", "bytes", "bits"),
        ("4 M", "bytes", "not a unit"),
        ("2 + 3 MiB", "bytes", "whole sum"),
        ("4 bytes", "", "no unit"),
        ("4 s", "tokens", "tokens"),
        ("1,5", "", "point"),
        ("12,34", "", "point"),
        ("1 2", "", "not a number"),
        ("3x4", "", "not a number"),
        ("1/0", "", "zero"),
        ("(-1)^0.5", "", "root"),
        ("1e400", "", "number"),
        ("inf", "", "finite"),
        ("nan", "", "finite"),
        ("True", "", "number"),
        ("3j", "", "unit"),
        ("0x10", "", "number"),
        ("2 if 1 else 3", "", "number"),
        ("__import__('os').getpid()", "", "number"),
        ("[1]", "", "number"),
        ("four", "", "number"),
    ],
)
def test_what_is_no_number_says_so_with_an_example(text: str, unit: str, says: str) -> None:
    with pytest.raises(Malformed, match=says) as caught:
        read_number(text, unit)
    assert "An answer here is a number" in str(caught.value)
    assert "for example `" in str(caught.value)


@pytest.mark.parametrize(
    "bomb",
    [
        "9**9**9",
        "9^9^9^9",
        "(9^999)^999",
        "2^-99999999",
        "9" * 10_000,
        "(" * 190 + "1" + ")" * 3,
        "-" * 150 + "1",
        "1+" * 99 + "1",
        "9**9" + "**9" * 40,
        "(" * 5000 + "1" + ")" * 5000,
    ],
)
def test_a_bomb_is_refused_at_once(bomb: str) -> None:
    with pytest.raises(Malformed):
        read_number(bomb)


def test_infinity_and_nan_only_as_words_when_asked() -> None:
    assert read_number("inf", special=True).value == math.inf
    assert read_number("-Infinity", special=True).value == -math.inf
    assert math.isnan(read_number("nan", special=True).value)


@given(st.integers(-(10**30), 10**30))
@example(0)
def test_all_spellings_of_an_integer_agree(number: int) -> None:
    for text in (str(number), f"{number:_}", f"{number:,}", f" {number} ", f"({number})"):
        assert read_number(text).value == number
    assert read_number(f"{number} KiB", "bytes").value == number * 1024
    if abs(number) < 10**24:
        assert read_number(show_number(number)).value == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_read_exactly_as_python_prints_it(number: float) -> None:
    assert float(read_number(repr(number)).value) == number
    assert float(read_number(f"{number!r} MB", "MB").value) == number


@given(st.text(max_size=60))
@example("²")
@example("١٢")
@example("1e٣")
def test_any_text_is_read_or_malformed(text: str) -> None:
    messages = []
    for read in (
        lambda text: read_number(text, "bytes"),
        read_shape,
        read_numbers,
        lambda text: read_assignments(text, ["a", "w_1"], ["w_1"]),
        lambda text: read_order(text, "ABCD"),
    ):
        try:
            read(text)
        except Malformed as malformed:
            messages.append(str(malformed))
    assert all("An answer here is" in message for message in messages)


@given(st.text("0123456789.eE+-*/^() ,_%KMGiB", max_size=60))
def test_any_text_of_arithmetic_is_read_or_malformed(text: str) -> None:
    try:
        value: float | None = read_number(text, "bytes").value
    except Malformed:
        value = None
    assert value is None or math.isfinite(value)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
def test_all_spellings_of_a_shape_agree(sizes: list[int]) -> None:
    shape = tuple(sizes)
    words = list(map(str, sizes))
    for text in (
        str(shape),
        str(sizes),
        ", ".join(words),
        ",".join(words),
        "x".join(words),
        " x ".join(words),
        "×".join(words),
        " ".join(words),
        f"torch.Size({sizes})",
    ):
        assert read_shape(text) == shape


def test_odd_shapes() -> None:
    assert read_shape("()") == ()
    assert read_shape("(5,)") == (5,)
    for text in ("1,024", "3.5", "(3, -4)", "3x4, 5", "(3, 4", "a x b", "3,,4", ","):
        with pytest.raises(Malformed, match="An answer here is a shape"):
            read_shape(text)


@pytest.mark.parametrize(
    "text",
    [
        "1, 2, 3, 4",
        "1 2 3 4",
        "1; 2; 3; 4",
        "1\n2\n3\n4",
        "[1, 2, 3, 4]",
        "(1, 2, 3, 4)",
        "[[1, 2], [3, 4]]",
        "[[1. 2.]\n [3. 4.]]",
        "([1, 2], [3, 4])",
        "([1, 2], 3, 4)",
        "array([[1., 2.], [3., 4.]])",
        "tensor([1., 2., 3., 4.])",
        "(1, 2), (3, 4)",
        "2/2, 1+1, 3, 2*2",
    ],
)
def test_every_spelling_of_a_list(text: str) -> None:
    assert read_numbers(text, 4) == [1, 2, 3, 4]


def test_a_list_of_the_wrong_length_is_malformed() -> None:
    with pytest.raises(Malformed, match="3 numbers were read and 4 are asked for"):
        read_numbers("1, 2, 3", 4)
    assert read_numbers("True, False") == [1, 0]
    assert read_numbers("(1 + 2) * 3, 4") == [9, 4]


@pytest.mark.parametrize(
    "text",
    [
        "a = 3, b = 4.5",
        "a=3;b=4.5",
        "b = 4.5\na = 3",
        "a: 3, b: 4.5",
        "`a` = 3 and b = 4.5",
        "A = 3, B = 4.5",
        "3, 4.5",
        "3 4.5",
        "3; 4.5",
        "3\n4.5",
        "a = 6/2, b = 9/2",
    ],
)
def test_every_spelling_of_named_values(text: str) -> None:
    assert read_assignments(text, ["a", "b"]) == {"a": 3, "b": 4.5}


def test_names_that_hold_each_other_and_shapes() -> None:
    names = ["x", "x_1", "dL/dx", "peak memory"]
    text = "x = 1, x_1 = 2; dL/dx = -3\npeak  memory = (4, 5)"
    read = read_assignments(text, names, ["peak memory"])
    assert read == {"x": 1, "x_1": 2, "dL/dx": -3, "peak memory": (4, 5)}
    assert read_assignments("(2, 3); 4", ["s", "n"], ["s"]) == {"s": (2, 3), "n": 4}
    assert read_assignments("w = 1, W = 2", ["w", "W"]) == {"w": 1, "W": 2}
    assert split_assignments("gqa; mem = 4 MB", ["mem"], "") == ("gqa", {"mem": "4 MB"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = 3", "Missing: b"),
        ("a = 3, b = 4, a = 5", "twice"),
        ("c = 1, a = 2, b = 3", "not one of the names"),
        ("c = 1, d = 2", "The names are a, b"),
        ("3", "2 values are asked for"),
        ("1, 2, 3", "2 values are asked for"),
        ("a = , b = 2", "An answer here"),
        ("a = three, b = 2", "not a number"),
    ],
)
def test_unreadable_named_values(text: str, says: str) -> None:
    with pytest.raises(Malformed, match=says) as caught:
        read_assignments(text, ["a", "b"])
    assert "An answer here is a value for each name" in str(caught.value)


@given(st.permutations("ABCDE"), st.integers(1, 5))
def test_all_spellings_of_an_order_agree(letters: list[str], count: int) -> None:
    wanted = letters[:count]
    for separator in (" ", ",", ", ", "", " > ", "-", "\n"):
        text = separator.join(wanted)
        assert read_order(text, "ABCDE") == wanted
        assert read_order(text.lower(), "ABCDE") == wanted


@pytest.mark.parametrize("text", ["ABX", "AA", "A B A", "1 2", "AB C", "A and B", "?"])
def test_unreadable_orders(text: str) -> None:
    with pytest.raises(Malformed, match="An answer here is an order of letters"):
        read_order(text, "ABCD")
