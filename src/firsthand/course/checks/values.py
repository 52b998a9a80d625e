"""Plain values as bytes and back: what may travel between the engine and the learner's process.

The format is a tagged tree without code, names to import or references, so that decoding hostile
bytes can only give plain values or `MalformedValue`. Types are compared by identity: a subclass may
override `__eq__`, `__len__` or `tobytes`, so it never travels as what it claims to be.

One byte of tag, then:
  N, T, F            None, True, False
  i  length, bytes   int, two's complement, big-endian
  f  8 bytes         float, IEEE 754
  s  length, UTF-8   str
  t, l  count, items tuple, list
  d  count, pairs    dict with str keys, in order
  g  dtype, bytes    NumPy scalar
  a  dtype, rank, sizes, bytes    NumPy array, row-major
  o  length, UTF-8   Opaque: the type's name only
Lengths and counts are 8 bytes, big-endian.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from struct import Struct
from typing import Any

import numpy as np

from firsthand.course.checks.requests import Opaque

# The encoder runs beside code that may replace builtins. Functions look builtins up in their
# module's __builtins__ as it is when they are created, so a private copy is set first.
globals()["__builtins__"] = dict(vars(builtins))

MAX_DEPTH = 32
MAX_ITEMS = 1 << 22  # in all containers of one value together
MAX_BYTES = 1 << 28
MAX_INT_BYTES = 1 << 16

_LENGTH = Struct(">Q")
_DOUBLE = Struct(">d")
_DTYPE = re.compile(r"[<>|](b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32))\Z")
_TYPE_NAME = vars(type)["__name__"].__get__
_SCALARS = frozenset(
    id(kind)
    for kind in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.longlong, np.intc),
        *(np.uint8, np.uint16, np.uint32, np.uint64, np.ulonglong, np.uintc),
        *(np.float16, np.float32, np.float64, np.longdouble),
        *(np.complex64, np.complex128, np.clongdouble),
    )
)


class MalformedValue(ValueError):
    """Bytes that `encode` cannot have written."""


class UnsendableValue(ValueError):
    """A value over the limits of depth, items or bytes, or not plain where only plain may go."""


def class_name(kind: type, /) -> str:
    """The real name of a class, whatever its metaclass says."""
    return str(_TYPE_NAME(kind))


def type_name(value: object, /) -> str:
    """The name of the object's real type."""
    return class_name(type(value))


def encode(value: object, *, opaque: bool = True, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a plain value.

    Args:
        value: None, bool, int, float, str, tuple, list, dict with str keys, NumPy scalars and
            arrays of bool, int, uint, float and complex; nested.
        opaque: send anything else as `Opaque`; False: raise.
        max_bytes: the most bytes of array data, text and integers together.
    Raises:
        UnsendableValue: over a limit, or not plain and `opaque` is False.
    """
    pieces: list[bytes] = []
    _write(value, pieces, _Budget(max_bytes, MAX_ITEMS), 0, opaque)
    return b"".join(pieces)


def decode(data: bytes) -> Any:
    """The value that `encode` wrote; arrays are fresh, writable and own their memory.

    Raises:
        MalformedValue: anything else.
    """
    reader = _Reader(data)
    value = _read(reader, 0)
    if reader.position != len(data):
        raise MalformedValue(f"{len(data) - reader.position} bytes are left over")
    return value


class _Budget:
    """What one encoding may still use."""

    __slots__ = ("bytes", "items")

    def __init__(self, size: int, items: int) -> None:
        self.bytes = size
        self.items = items

    def spend(self, size: int, items: int = 0) -> None:
        self.bytes -= size
        self.items -= items
        if self.bytes < 0:
            raise UnsendableValue("larger than the limit of bytes")
        if self.items < 0:
            raise UnsendableValue(f"more than {MAX_ITEMS:,} items")


_ARRAY, _DTYPE_OF = np.ndarray, np.dtype


# Types and functions are bound as defaults: what the learner's code assigns to numpy.* later
# cannot reach them. The methods of an exact ndarray are C and cannot be replaced.
def _write(
    value: Any,
    out: list[bytes],
    budget: _Budget,
    depth: int,
    opaque: bool,
    *,
    length: Callable[[int], bytes] = _LENGTH.pack,
    double: Callable[[float], bytes] = _DOUBLE.pack,
    array_type: type = _ARRAY,
    scalars: frozenset[int] = _SCALARS,
    opaque_type: type = Opaque,
) -> None:
    if depth > MAX_DEPTH:
        raise UnsendableValue(f"nested more than {MAX_DEPTH} deep")
    kind = type(value)
    if value is None:
        out.append(b"N")
    elif kind is bool:
        out.append(b"T" if value else b"F")
    elif kind is int:
        size = value.bit_length() // 8 + 1
        if size > MAX_INT_BYTES:
            raise UnsendableValue(f"an integer of {size:,} bytes")
        budget.spend(size)
        out += (b"i", length(size), value.to_bytes(size, "big", signed=True))
    elif kind is float:
        out += (b"f", double(value))
    elif kind is str:
        _write_text(b"s", value, out, budget)
    elif kind is tuple or kind is list:
        items = tuple(value)  # a snapshot: a thread of the learner may still append
        budget.spend(0, len(items))
        out += (b"t" if kind is tuple else b"l", length(len(items)))
        for item in items:
            _write(item, out, budget, depth + 1, opaque)
    elif kind is dict and all(type(key) is str for key in tuple(value)):
        pairs = tuple(value.items())
        budget.spend(0, 2 * len(pairs))
        out += (b"d", length(len(pairs)))
        for key, item in pairs:
            _write(key, out, budget, depth + 1, opaque)
            _write(item, out, budget, depth + 1, opaque)
    elif id(kind) in scalars:
        _write_text(b"g", value.dtype.str, out, budget)
        data = value.tobytes()
        out += (length(len(data)), data)
    elif kind is array_type and _DTYPE.match(code := value.dtype.str):
        budget.spend(value.nbytes)
        shape, data = value.shape, value.tobytes()
        _write_text(b"a", code, out, budget)
        out.append(length(len(shape)))
        out += [length(size) for size in shape]
        out += (length(len(data)), data)
    elif kind is opaque_type:
        _write_text(b"o", value.type_name, out, budget)
    elif opaque:
        _write_text(b"o", type_name(value), out, budget)
    else:
        raise UnsendableValue(f"a value of type {type_name(value)} is no plain value")


def _write_text(tag: bytes, text: str, out: list[bytes], budget: _Budget) -> None:
    data = str.encode(text, "utf-8", "surrogatepass")
    budget.spend(len(data))
    out += (tag, _LENGTH.pack(len(data)), data)


class _Reader:
    """A cursor over the bytes that never reads past their end."""

    __slots__ = ("data", "items", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.items = MAX_ITEMS

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise MalformedValue(f"{size} bytes are announced at {self.position}, fewer are left")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def length(self) -> int:
        return int(_LENGTH.unpack(self.take(8))[0])

    def count(self) -> int:
        count = self.length()
        self.items -= count
        if self.items < 0 or count > len(self.data) - self.position:
            raise MalformedValue(f"{count} items are announced")
        return count

    def text(self) -> str:
        try:
            return self.take(self.length()).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise MalformedValue("text that is not UTF-8") from error

    def dtype(self) -> np.dtype[Any]:
        code = self.text()
        if not _DTYPE.match(code):
            raise MalformedValue(f"no dtype of numbers: {code[:20]!r}")
        try:
            return _DTYPE_OF(code)
        except TypeError as error:
            raise MalformedValue(f"this machine has no dtype {code}") from error


def _read(reader: _Reader, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise MalformedValue(f"nested more than {MAX_DEPTH} deep")
    tag = reader.take(1)
    if tag == b"N":
        return None
    if tag in b"TF":
        return tag == b"T"
    if tag == b"i":
        size = reader.length()
        if not 1 <= size <= MAX_INT_BYTES:
            raise MalformedValue(f"an integer of {size} bytes")
        return int.from_bytes(reader.take(size), "big", signed=True)
    if tag == b"f":
        return _DOUBLE.unpack(reader.take(8))[0]
    if tag == b"s":
        return reader.text()
    if tag == b"o":
        return Opaque(reader.text())
    if tag in b"tl":
        items = [_read(reader, depth + 1) for _ in range(reader.count())]
        return tuple(items) if tag == b"t" else items
    if tag == b"d":
        return _read_dict(reader, depth)
    if tag == b"g":
        dtype = reader.dtype()
        return _array(dtype, (), reader.take(reader.length()))[()]
    if tag == b"a":
        dtype = reader.dtype()
        rank = reader.length()
        if rank > 64:
            raise MalformedValue(f"an array of {rank} dimensions")
        shape = tuple(reader.length() for _ in range(rank))
        return _array(dtype, shape, reader.take(reader.length()))
    raise MalformedValue(f"an unknown tag: {tag!r}")


def _read_dict(reader: _Reader, depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    count = reader.count()
    for _ in range(count):
        key = _read(reader, depth + 1)
        if type(key) is not str or key in result:
            raise MalformedValue("a key that is no text, or twice the same key")
        result[key] = _read(reader, depth + 1)
    return result


def _array(dtype: np.dtype[Any], shape: tuple[int, ...], data: bytes) -> np.ndarray[Any, Any]:
    size = dtype.itemsize
    for axis in shape:
        size *= axis
    if size != len(data):
        raise MalformedValue(f"shape {shape} of {dtype} needs {size} bytes, not {len(data)}")
    try:
        return _ARRAY(shape, dtype, buffer=data).copy()
    except (ValueError, TypeError, MemoryError, OverflowError) as error:
        raise MalformedValue(f"no array of shape {shape[:8]}: {error}") from error
