"""How far two results are apart, leaf by leaf, and how close counts as equal.

The tolerance of a step is not a constant: it is a hundredth of the distance between the reference
and its nearest mistake, and never looser than 1e-6 (CHECKS.md, "Relations explain").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from firsthand.course.checks.requests import Opaque, Raised, Returned

LOOSEST = 1e-6
TIGHTEST = 1e-10  # below this a right version in another order of summation could fail
SAFETY = 100.0


@dataclass(frozen=True)
class Leaf:
    """One array or number of a result. path: '' or '[0]', '["weight"]' ..."""

    path: str
    value: Any


def leaves(value: Any, path: str = "") -> Iterator[Leaf]:
    """The arrays, numbers and other atoms of nested tuples, lists and dictionaries, in order."""
    if isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    else:
        yield Leaf(path, value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.ndarray) and not isinstance(value, bool)


def kind_of(value: Any) -> str:
    """What a value is, for a message: 'float64 array of shape (2, 3)', 'float', 'tuple of 2'."""
    if isinstance(value, Opaque):
        return f"an object of type {value.type_name}"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    if isinstance(value, bool | np.bool_):
        return "a bool"
    if isinstance(value, np.generic):
        return f"a {value.dtype} number"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None:
        return "None"
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def form_mismatch(got: Any, expected: Any, path: str = "") -> str | None:
    """Why `got` has not the form of `expected` (container, shape, dtype), or None.

    A NumPy float64 or a 0-d float64 array passes for a float: unusual, but right (PROTOCOL G4).
    """
    place = f" at {path}" if path else ""
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list):
            return f"{kind_of(got)}{place} instead of {kind_of(expected)}"
        if len(got) != len(expected):
            return f"{len(got)} items{place} instead of {len(expected)}"
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            if problem := form_mismatch(one, other, f"{path}[{index}]"):
                return problem
        return None
    if isinstance(expected, dict):
        if not isinstance(got, dict) or set(got) != set(expected):
            return f"{kind_of(got)}{place} instead of a dict with the keys {sorted(expected)}"
        for key, other in expected.items():
            if problem := form_mismatch(got[key], other, f"{path}[{key!r}]"):
                return problem
        return None
    if isinstance(expected, np.ndarray) and expected.ndim > 0:
        if not isinstance(got, np.ndarray):
            return f"{kind_of(got)}{place} instead of {kind_of(expected)}"
        if got.shape != expected.shape:
            return f"shape {got.shape}{place} instead of {expected.shape}"
        if got.dtype.kind != expected.dtype.kind or (
            got.dtype.kind == "f" and got.dtype.itemsize < min(expected.dtype.itemsize, 8)
        ):
            return f"dtype {got.dtype}{place} instead of {expected.dtype}"
        return None
    if isinstance(expected, bool | np.bool_):
        if not isinstance(got, bool | np.bool_):
            return f"{kind_of(got)}{place} instead of a bool"
        return None
    if is_number(expected):
        imaginary = np.iscomplexobj(got) and not np.iscomplexobj(expected)
        if not is_number(got) or np.ndim(got) != 0 or imaginary:
            return f"{kind_of(got)}{place} instead of a number"
        integral = isinstance(expected, int | np.integer)
        if integral and not isinstance(got, int | np.integer) and not float(got).is_integer():
            return f"{kind_of(got)}{place} instead of a whole number"
        return None
    if expected is None or isinstance(expected, str):
        if type(got) is not type(expected):
            return f"{kind_of(got)}{place} instead of {kind_of(expected)}"
        return None
    return None


def leaf_distance(got: Any, expected: Any) -> float:
    """Largest absolute difference over max(1, largest expected magnitude); inf on another form.

    NaN equals NaN and inf equals inf: for fingerprints, the same failure is the same print.
    """
    if is_number(expected) and is_number(got):
        if type(got) is float and type(expected) is float and math.isfinite(got - expected):
            return abs(got - expected) / max(1.0, abs(expected))
        one, other = np.asarray(got), np.asarray(expected)
        if one.shape != other.shape:
            return math.inf
        if one.size == 0 or (one.dtype == other.dtype and one.tobytes() == other.tobytes()):
            return 0.0
        wide = np.result_type(one.dtype, other.dtype, np.float64)
        one, other = one.astype(wide), other.astype(wide)
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        finite = np.isfinite(one) & np.isfinite(other)
        if not bool(np.all(same | finite)):
            return math.inf
        known = other[np.isfinite(other)]
        scale = max(1.0, float(np.max(np.abs(known), initial=0.0)))
        with np.errstate(all="ignore"):
            gaps = np.where(same, 0.0, np.abs(one - other))
        return float(np.max(gaps)) / scale
    if type(got) is type(expected) or (isinstance(got, str) and isinstance(expected, str)):
        return 0.0 if bool(got == expected) else math.inf
    return math.inf


def value_distance(got: Any, expected: Any) -> float:
    """The largest distance over all leaves; inf where the structures differ."""
    one, other = list(leaves(got)), list(leaves(expected))
    if [leaf.path for leaf in one] != [leaf.path for leaf in other]:
        return math.inf
    return max(
        (leaf_distance(a.value, b.value) for a, b in zip(one, other, strict=True)), default=0.0
    )


def result_distance(got: Returned | Raised, expected: Returned | Raised) -> float:
    """The distance between two results of one call, an exception being a result too."""
    if isinstance(got, Raised) or isinstance(expected, Raised):
        both = isinstance(got, Raised) and isinstance(expected, Raised)
        return 0.0 if both and got.is_a(expected.type_name) else math.inf  # type: ignore[union-attr]
    return value_distance(got.value, expected.value)


def tolerance_from(distances: list[float]) -> float:
    """The tolerance for a step whose mistakes lie at these distances from the reference."""
    nearest = min((distance for distance in distances if distance > 0.0), default=math.inf)
    return max(min(LOOSEST, nearest / SAFETY), TIGHTEST)


def changed_arguments(before: tuple[Any, ...], after: tuple[Any, ...]) -> tuple[int, ...]:
    """Indices of the arguments that a call changed."""
    return tuple(
        index
        for index, (one, other) in enumerate(zip(before, after, strict=True))
        if value_distance(other, one) > 0.0
    )


def all_finite(value: Any) -> bool:
    """Whether every floating-point leaf is free of NaN and infinity."""
    for leaf in leaves(value):
        if is_number(leaf.value) and not bool(np.all(np.isfinite(np.asarray(leaf.value)))):
            return False
    return True
