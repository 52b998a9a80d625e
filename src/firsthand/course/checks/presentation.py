"""Values and calls as short text that can be pasted into Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from firsthand.course.checks.comparison import leaves
from firsthand.course.checks.requests import Opaque, Raised, Returned
from firsthand.course.sources import PartName
from firsthand.course.steps import Build

MOST_ELEMENTS = 24
MOST_CHARACTERS = 400


def value_text(value: Any) -> str:
    """`np.array([[1.0, 2.0], [0.5, 3.0]])`, `0.25`, `(3, 4)`; long arrays are cut, saying so."""
    if isinstance(value, Opaque):
        return f"<{value.type_name} object>"
    if isinstance(value, np.ndarray):
        return _array_text(value)
    if isinstance(value, np.generic):
        return value_text(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            return _float_text(value)
        return f"{value:.6g}" if len(repr(value)) > 8 else repr(value)
    if isinstance(value, tuple):
        inside = ", ".join(value_text(item) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, list):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {value_text(item)}" for key, item in value.items()) + "}"
    if callable(value):
        return str(getattr(value, "__name__", "a function"))
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " ..."


def _array_text(array: np.ndarray[Any, Any]) -> str:
    if array.size > MOST_ELEMENTS:
        head = ", ".join(f"{item:.4g}" for item in array.ravel()[:6].tolist())
        return f"<{array.dtype} array of shape {array.shape}: {head}, ...>"
    text = np.array2string(
        array,
        separator=", ",
        threshold=10**6,
        formatter={"float_kind": lambda value: _float_text(float(value))},
    )
    text = " ".join(text.split()).replace("[ ", "[")
    if array.ndim and not array.size:
        return f"np.zeros({array.shape}{_dtype_text(array)})"
    return f"np.array({text}{_dtype_text(array)})"


def _dtype_text(array: np.ndarray[Any, Any]) -> str:
    """Nothing for the dtypes that the text alone gives back."""
    usual = array.dtype in (np.float64, np.int64, np.bool_, np.complex128)
    if usual and (array.size or array.dtype == np.float64):
        return ""
    return f", dtype=np.{array.dtype.name}"


def _float_text(value: float) -> str:
    """Six significant digits, always recognisable as a float; `np.nan` and `np.inf` by name."""
    if not math.isfinite(value):
        return "np.nan" if math.isnan(value) else "np.inf" if value > 0 else "-np.inf"
    text = f"{value:.6g}"
    return text if any(mark in text for mark in ".en") else f"{text}."


def forbidden_text(name: str) -> str:
    """A forbidden name as the learner writes it: 'method:dot' is `.dot()`."""
    return f".{name.removeprefix('method:')}()" if name.startswith("method:") else name


def call_text(name: str, arguments: tuple[Any, ...]) -> str:
    return f"{name}({', '.join(value_text(argument) for argument in arguments)})"


def call_of(build: Build, arguments: tuple[Any, ...]) -> str:
    """A call of a step's part, as the step shows it or by the part's name and arguments."""
    if build.show is not None:
        return build.show(*arguments)
    return call_text(PartName.parse(build.part).name, arguments)


def result_text(result: Returned | Raised) -> str:
    if isinstance(result, Raised):
        return f"{result.type_name}: {result.message}" if result.message else result.type_name
    return value_text(result.value)


def first_difference(got: Any, expected: Any, tolerance: float) -> str | None:
    """Where two results of one form differ most: '[1][0, 2]: got 3.0, expected 2.0'."""
    worst, text = tolerance, None
    for one, other in zip(leaves(got), leaves(expected), strict=False):
        if not isinstance(other.value, np.ndarray) or np.shape(one.value) != other.value.shape:
            continue
        if other.value.size <= 1 or other.value.dtype.kind not in "fiu":
            continue
        with np.errstate(all="ignore"):
            gaps = np.abs(np.asarray(one.value, float) - np.asarray(other.value, float))
        gaps = np.where(np.isnan(gaps), np.inf, gaps)
        position = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
        if gaps[position] > worst:
            worst = float(gaps[position])
            index = ", ".join(str(int(i)) for i in position)
            text = (
                f"{one.path}[{index}]: got {value_text(one.value[position])}, "
                f"expected {value_text(other.value[position])}"
            )
    return text
