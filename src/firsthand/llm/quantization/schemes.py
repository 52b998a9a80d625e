"""Matrices in 8 bits: which weights share a scale, and how each is rounded.

Symmetric: w ≈ s q with q in [-127, 127] and s = max|w| / 127. Zero is exact, and a product needs
no more than one multiplication after the integer sum. Asymmetric: w ≈ s (q - z) with q in
[-128, 127], so that the 256 steps cover [min w, max w] where that is lopsided.

A scale is shared by the whole matrix, by a row (a "channel": one output), or by `group_size`
neighbouring weights of a row. The fewer share it, the finer the grid of most of them.

Source: Jacob et al. 2018, sections 2.1 and 3; Krishnamoorthi 2018, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.model.settings import SettingsError
from firsthand.llm.quantization.errors import QuantizationError

Granularity = Literal["channel", "tensor", "group"]
Integers = NDArray[np.int8]
Floats = NDArray[np.float32]

SYMMETRIC_LEVELS = 127
ASYMMETRIC_STEPS = 255
_LOWEST = -128
# Below this a scale would have no inverse in float32: such weights count as zero.
_LEAST = np.float32(1e-30)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights become integers.

    Attributes:
        weights: which share a scale: "channel" is a row, "tensor" the matrix, "group" a few
            neighbours in a row.
        group_size: with "group", how many; divides the width of every matrix. 0 otherwise.
        asymmetric: each unit has a zero point of its own.
        percentile: 100 covers the largest weight. Below, the grid ends at this percentile of |w|
            (asymmetric: of w, at both ends) and what lies beyond is clipped to its end.
    """

    weights: Granularity = "channel"
    group_size: int = 0
    asymmetric: bool = False
    percentile: float = 100.0

    def __post_init__(self) -> None:
        if self.weights not in get_args(Granularity):
            choices = ", ".join(get_args(Granularity))
            raise SettingsError(f"weights is one of {choices}; not {self.weights!r}")
        if self.weights == "group" and self.group_size < 1:
            raise SettingsError(f"groups have a group_size of at least 1; not {self.group_size}")
        if self.weights != "group" and self.group_size:
            raise SettingsError(f"group_size {self.group_size} goes with weights = 'group' alone")
        if not 50.0 < self.percentile <= 100.0:
            raise SettingsError(f"percentile is above 50 and at most 100; not {self.percentile:g}")


@dataclass(frozen=True)
class Grid:
    """The numbers that the integers of a matrix stand for: s (q - z).

    Attributes:
        scales: (rows, groups); 0 where all that is represented is 0.
        zeros: (rows, groups), or None: all 0.
        group_size: neighbouring columns that share a scale; the width of the matrix where a
            whole row shares it.
    """

    scales: Floats
    zeros: Integers | None
    group_size: int

    def rounded(self, weight: NDArray[np.floating[Any]], group: int | None = None) -> Integers:
        """The nearest integers, half to even, clipped to the ends of the grid.

        Args:
            weight: (rows, groups · group_size), or (rows, columns) all of one group.
            group: which one; None is all of the matrix.
        """
        if group is None:
            scales, zeros = self.scales[:, :, None], self.zeros
            parts = weight.reshape(*self.scales.shape, self.group_size)
            offsets = None if zeros is None else zeros[:, :, None]
        else:
            scales, parts = self.scales[:, group, None], weight
            offsets = None if self.zeros is None else self.zeros[:, group, None]
        scaled = np.divide(parts, scales, out=np.zeros_like(parts), where=scales > 0)
        np.rint(scaled, out=scaled)
        if offsets is not None:
            scaled += offsets
        lowest = -SYMMETRIC_LEVELS if self.zeros is None else _LOWEST
        integers: Integers = np.clip(scaled, lowest, SYMMETRIC_LEVELS).astype(np.int8)
        return integers.reshape(weight.shape)


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix as integers and what they stand for.

    Attributes:
        values: (rows, cols).
        scales: (rows, groups); a matrix with one scale repeats it in each row, so that whoever
            reads it needs to know one layout only.
        zeros: (rows, groups), or None for a symmetric grid.
        group_size: columns that share a scale: cols / groups.
    """

    values: Integers
    scales: Floats
    zeros: Integers | None
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def groups(self) -> int:
        """Scales in a row."""
        return int(self.scales.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return int(self.values.nbytes + self.scales.nbytes + zeros)

    def dequantized(self) -> Floats:
        """(rows, cols): the numbers that the integers stand for, in float32."""
        parts = self.values.reshape(*self.scales.shape, self.group_size).astype(np.float32)
        if self.zeros is not None:
            parts -= self.zeros[:, :, None]
        parts *= self.scales[:, :, None]
        return parts.reshape(self.values.shape)


def grid_of(weight: Floats, scheme: Scheme, name: str = "the matrix") -> Grid:
    """The grid that a scheme lays over a matrix.

    Symmetric, s = limit / 127 with limit = max|w| or its percentile; asymmetric,
    s = (high - low) / 255 and z = round(-128 - low / s), where [low, high] is widened to hold 0,
    which padding and zeroed channels need exact. Where the percentile is 0 but not all weights
    are, the extremes take its place.

    Args:
        weight: (rows, cols), finite.
        name: for messages.
    Raises:
        QuantizationError: no matrix, NaN or infinite weights, or a group that does not divide
            the width.
    """
    require_matrix(weight, name)
    rows, columns = weight.shape
    size = scheme.group_size or columns
    if columns % size:
        raise QuantizationError(
            f"{name}: groups of {size} do not divide its width of {columns}; "
            f"{_nearest_divisor(columns, size)} would"
        )
    shape = (rows, columns // size)
    units = weight.reshape(1, -1) if scheme.weights == "tensor" else weight.reshape(-1, size)
    if not scheme.asymmetric:
        limits = _percentile(np.abs(units), scheme.percentile, _highest(np.abs(units)))
        limits[limits < _LEAST] = 0
        scales = limits / np.float32(SYMMETRIC_LEVELS)
        return Grid(_laid_out(scales, shape), None, size)
    low = _percentile(units, 100.0 - scheme.percentile, units.min(axis=1)).clip(max=0)
    high = _percentile(units, scheme.percentile, _highest(units)).clip(min=0)
    # In float64, for the difference of two float32 may be beyond float32.
    spans = high.astype(np.float64) - low
    spans[spans < _LEAST] = 0
    scales = (spans / ASYMMETRIC_STEPS).astype(np.float32)
    shifts = np.divide(low, scales, out=np.zeros_like(low), where=scales > 0)
    zeros = np.clip(np.rint(_LOWEST - shifts), _LOWEST, SYMMETRIC_LEVELS).astype(np.int8)
    zeros[scales == 0] = 0
    return Grid(_laid_out(scales, shape), _laid_out(zeros, shape), size)


def quantize_matrix(weight: Floats, scheme: Scheme, name: str = "the matrix") -> QuantizedMatrix:
    """Each weight at the nearest point of its grid.

    Up to the rounding of float32, |w - dequantized| ≤ s / 2 for every weight within the ends of
    the grid; a clipped one is as far off as it lies beyond the end.

    Args:
        weight: (rows, cols), finite.
        scheme: of the grid.
        name: for messages.
    Raises:
        QuantizationError: as `grid_of`.
    """
    grid = grid_of(weight, scheme, name)
    return QuantizedMatrix(grid.rounded(weight), grid.scales, grid.zeros, grid.group_size)


def require_matrix(weight: Floats, name: str) -> None:
    """Finite numbers in rows and columns.

    Raises:
        QuantizationError: another shape, none, or NaN or infinite ones; says how many and where
            the first is.
    """
    if weight.ndim != 2 or not weight.size:
        raise QuantizationError(f"{name}: of the shape {weight.shape}, which is no matrix")
    require_finite(weight, name)


def require_finite(array: NDArray[np.floating[Any]], name: str) -> None:
    """Nothing, or an error.

    Raises:
        QuantizationError: a number that is NaN or infinite; says how many and where the first is.
    """
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise QuantizationError(
            f"{name}: {int(wrong.sum())} of {array.size} numbers are not finite, the first at "
            f"{list(first)}: {array[first]}"
        )


def _highest(units: Floats) -> Floats:
    highest: Floats = units.max(axis=1)
    return highest


def _percentile(units: Floats, percentile: float, extremes: Floats) -> Floats:
    """Of each row, (units,); the extremes where that is all it can be."""
    if percentile in (0.0, 100.0):
        return np.array(extremes, np.float32)
    found = np.percentile(units, percentile, axis=1).astype(np.float32)
    return np.where(found == 0, extremes, found)


def _laid_out(units: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """One number for each unit -> (rows, groups)."""
    return np.broadcast_to(units, shape).copy() if units.size == 1 else units.reshape(shape)


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))
