from __future__ import annotations

import contextlib
import math
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firsthand.course.checks import values
from firsthand.course.checks.requests import Opaque
from firsthand.course.checks.values import MalformedValue, UnsendableValue, decode, encode

NUMBERS = st.sampled_from(
    ["?", "i1", "<i2", "<i4", "<i8", ">i4", "u1", "<u8", "<f2", "<f4", "<f8", ">f8", "<c8", "<c16"]
)
ARRAYS = NUMBERS.flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
SCALARS = NUMBERS.flatmap(lambda code: hnp.arrays(code.replace(">", "<"), (1,))).map(lambda a: a[0])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ARRAYS | SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Equal in type, bits and structure; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, np.ndarray | np.generic):
        return (left.dtype, left.shape, left.tobytes()) == (
            right.dtype,
            right.shape,
            right.tobytes(),
        )
    if isinstance(left, float):
        return math.copysign(1, left) == math.copysign(1, right) and (
            left == right or (math.isnan(left) and math.isnan(right))
        )
    return bool(left == right)


@settings(deadline=None)
@given(PLAIN)
def test_a_plain_value_comes_back_the_same(value: Any) -> None:
    assert same(decode(encode(value, opaque=False)), value)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_plain_value_or_the_documented_error(data: bytes) -> None:
    try:
        value = decode(data)
    except MalformedValue:
        return
    assert decode(encode(value)) is not None or value is None


@settings(deadline=None)
@given(PLAIN, st.data())
def test_damaged_bytes_give_a_plain_value_or_the_documented_error(
    value: Any, data: st.DataObject
) -> None:
    good = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedValue):
        decode(bytes(good[: data.draw(st.integers(0, len(good)))]))


@settings(deadline=None)
@given(PLAIN)
def test_a_prefix_and_a_longer_text_are_both_refused(value: Any) -> None:
    data = encode(value)
    with pytest.raises(MalformedValue):
        decode(data[:-1])
    with pytest.raises(MalformedValue):
        decode(data + b"N")


def test_an_array_comes_back_writable_and_owning_whatever_its_layout_was() -> None:
    original = np.arange(12.0).reshape(3, 4).T[::2]
    copy = decode(encode(original))
    assert np.array_equal(copy, original)
    assert copy.flags.writeable
    assert copy.flags.owndata
    assert copy.flags.c_contiguous


def test_numpy_and_python_numbers_are_told_apart() -> None:
    assert type(decode(encode(np.float64(1.5)))) is np.float64
    assert type(decode(encode(1.5))) is float
    assert type(decode(encode(np.array(1.5)))) is np.ndarray
    assert type(decode(encode(np.bool_(True)))) is np.bool_


class LyingArray(np.ndarray):  # type: ignore[type-arg]
    def __eq__(self, other: object) -> Any:
        return True

    def tobytes(self, order: Any = "C") -> bytes:
        raise AssertionError("the encoder must not call this")


class LyingFloat(float):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class LyingMeta(type):
    def __eq__(cls, other: object) -> bool:
        return True

    def __hash__(cls) -> int:
        return hash(np.float64)


class LiesAboutItsType(metaclass=LyingMeta):
    dtype = np.dtype("f8")

    def tobytes(self) -> bytes:
        return bytes(8)


class Text(str):
    pass


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.zeros(2).view(LyingArray), "LyingArray"),
        (LyingFloat(1.0), "LyingFloat"),
        (LiesAboutItsType(), "LiesAboutItsType"),
        (namedtuple("Pair", "a b")(1, 2), "Pair"),
        (OrderedDict(a=1), "OrderedDict"),
        ({1: 2}, "dict"),
        ({Text("a"): 1}, "dict"),
        (Text("a"), "Text"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (1j, "complex"),
        (len, "builtin_function_or_method"),
        (np.array([None]), "ndarray"),
        (np.array(["a"]), "ndarray"),
        (np.array("2020", "M8[D]"), "ndarray"),
        (np.zeros(1, [("a", "f8")]), "ndarray"),
        (np.ma.masked_array([1.0]), "MaskedArray"),
    ],
)
def test_what_is_not_plain_travels_as_its_types_name(value: object, name: str) -> None:
    assert decode(encode(value)) == Opaque(name)
    assert decode(encode([value])) == [Opaque(name)]
    with pytest.raises(UnsendableValue):
        encode((value,), opaque=False)


def test_limits_of_depth_bytes_items_and_integers() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnsendableValue, match="deep"):
        encode(endless)
    with pytest.raises(UnsendableValue, match="bytes"):
        encode(np.zeros(1000), max_bytes=7999)
    with pytest.raises(UnsendableValue, match="bytes"):
        encode("a" * 100, max_bytes=99)
    with pytest.raises(UnsendableValue, match="items"):
        encode([None] * (values.MAX_ITEMS + 1))
    with pytest.raises(UnsendableValue, match="integer"):
        encode(1 << (8 * values.MAX_INT_BYTES + 8))
    with pytest.raises(UnsendableValue, match="bytes"):
        encode(np.broadcast_to(np.zeros(1), (1 << 40,)))


def test_announced_sizes_are_checked_before_memory_is_taken() -> None:
    huge = (1 << 60).to_bytes(8, "big")
    for data in (b"l" + huge, b"s" + huge, b"d" + huge, b"i" + huge):
        with pytest.raises(MalformedValue):
            decode(data)
    code = b"<f8"
    array = b"a" + len(code).to_bytes(8, "big") + code + (1).to_bytes(8, "big") + huge
    with pytest.raises(MalformedValue):
        decode(array + (8).to_bytes(8, "big") + bytes(8))
    with pytest.raises(MalformedValue, match="deep"):
        decode((b"l" + (1).to_bytes(8, "big")) * 40 + b"N")


@pytest.mark.parametrize("code", [b"|O", b"<M8", b"<U4", b"f8", b"<f8\n", b"|V8", b"<f3"])
def test_only_dtypes_of_numbers_are_decoded(code: bytes) -> None:
    size = len(code).to_bytes(8, "big")
    with pytest.raises(MalformedValue):
        decode(b"g" + size + code + (8).to_bytes(8, "big") + bytes(8))
