"""The roofline of a device: the FLOPs a second that each arithmetic intensity allows.

A loop with an intensity of so many FLOPs for each byte that it moves gets at most intensity times
the bandwidth of the memory that the bytes come from, and at most the peak of its arithmetic. Where
the two meet is the ridge: below it memory decides, above it arithmetic does.

Source: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for
Multicore Architectures", 2009.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.processor import Level
from firsthand.llm.audit.records import Bandwidths, DeviceCeilings
from firsthand.llm.training.report.series import Plot, Series

GIGA = 1e9
# FLOPs a byte at the left edge of a drawing; the right edge is beyond the last ridge.
FIRST_INTENSITY = 1 / 16
_BEYOND = 4.0
_LABELS = 17
_AXIS = 8


@dataclass(frozen=True)
class Step:
    """What one memory gives.

    Attributes:
        level: the memory.
        total: bytes of all that the threads have together.
        measured: with the largest working set that it surely holds; of DRAM, with the largest.
    """

    level: Level
    total: int
    measured: Bandwidths


def levels_of(ceilings: MachineCeilings, device: str) -> tuple[Level, ...]:
    """The caches of "cpu" or "cuda" and, behind them, its memory."""
    card = ceilings.processor.gpu
    if device == "cpu":
        return ceilings.processor.levels
    return (*card.levels, Level("DRAM", card.memory)) if card else ()


def steps_of(device: DeviceCeilings, levels: Sequence[Level]) -> list[Step]:
    """The memories whose bandwidth was measured, innermost first.

    A cache with the largest working set of at most half of it, for it holds other things too; DRAM
    with one of at least twice the last cache.

    Args:
        device: its measured limits.
        levels: its caches, then its memory.
    """
    found, inner = [], 0
    for level in levels[:-1]:
        total = level.total(device.threads)
        fitting = [b for b in device.bandwidths if inner < b.working_set <= total // 2]
        if fitting:
            found.append(Step(level, total, fitting[-1]))
        inner = total
    if device.bandwidths[-1].working_set >= 2 * inner:
        found.append(Step(levels[-1], levels[-1].size, device.bandwidths[-1]))
    return found


def level_of(working_set: int, device: DeviceCeilings, levels: Sequence[Level]) -> str:
    """The name of the innermost memory that can hold so many bytes of all threads."""
    for level in levels[:-1]:
        if working_set <= level.total(device.threads):
            return level.name
    return levels[-1].name


def giga_text(rate: float) -> str:
    """A rate in thousands of millions, to three digits or to a whole number."""
    scaled = rate / GIGA
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def ridge(rate: float, bandwidth: float) -> float:
    """FLOPs a byte from which on arithmetic is the limit and not memory."""
    return rate / bandwidth


def attainable(intensity: float, rate: float, bandwidth: float) -> float:
    """FLOPs a second at most, at so many FLOPs a byte."""
    return min(rate, intensity * bandwidth)


def text_roofline(
    device: DeviceCeilings, steps: Sequence[Step], *, width: int = 76, height: int = 14
) -> list[str]:
    """The roofline in plain ASCII, both axes logarithmic, with a line that says what is what.

    Args:
        device: its measured limits; without a product there is no drawing.
        steps: of `steps_of`.
        width: columns, at least 40.
        height: rows of the field.
    """
    if not device.flop_rates or not steps:
        return []
    columns = max(width, 40) - _AXIS - _LABELS
    peak, slowest = max(device.flop_rates.values()), steps[-1].measured.read
    first, last = math.log(FIRST_INTENSITY), math.log(_last_intensity(device, steps))
    low = math.log(min(FIRST_INTENSITY * slowest, *device.flop_rates.values()) * 0.9)
    high = math.log(peak * 1.2)

    def row(rate: float) -> int:
        return height - 1 - round((math.log(rate) - low) / (high - low) * (height - 1))

    field = [[" "] * columns for _ in range(height)]
    intensities = [math.exp(first + (last - first) * c / (columns - 1)) for c in range(columns)]
    fastest = steps[0].measured.read
    for rate in device.flop_rates.values():
        for column, intensity in enumerate(intensities):
            if intensity >= ridge(rate, fastest):
                field[row(rate)][column] = "-"
    for step in steps:
        mark = "/" if step is steps[-1] else "."
        for column, intensity in enumerate(intensities):
            if intensity <= ridge(peak, step.measured.read):
                place = row(intensity * step.measured.read)
                if 0 <= place < height:
                    field[place][column] = mark
    labels = _labels(device, row, height)
    lines = ["GFLOP/s"]
    for place in range(height):
        lines.append(
            f"{_tick(place, height, low, high):>{_AXIS - 2}} |"
            f"{''.join(field[place])} {labels.get(place, '')}".rstrip()
        )
    lines.append(" " * (_AXIS - 1) + "+" + "-" * columns)
    lines.append(" " * _AXIS + _intensity_ticks(intensities) + " FLOP/byte")
    slopes = ", ".join(f"{s.level.name} {giga_text(s.measured.read)}" for s in steps[:-1])
    below = f"/ {steps[-1].level.name} {giga_text(steps[-1].measured.read)} GB/s"
    lines.append(f"- peak of a product   {below}" + (f"   . {slopes} GB/s" if slopes else ""))
    return lines


def roofline_plot(device: DeviceCeilings, steps: Sequence[Step]) -> Plot:
    """The roofline as a plot: a line for each product with bytes from DRAM, one for each memory."""
    series: list[Series] = []
    if device.flop_rates and steps:
        last, peak = _last_intensity(device, steps), max(device.flop_rates.values())
        slowest = steps[-1].measured.read
        for dtype, rate in device.flop_rates.items():
            corners = [FIRST_INTENSITY, max(FIRST_INTENSITY, ridge(rate, slowest)), last]
            series.append(
                Series(
                    name=dtype,
                    points=tuple((x, attainable(x, rate, slowest)) for x in corners),
                    label=f"{dtype} {giga_text(rate)} GFLOP/s",
                )
            )
        for step in steps:
            bandwidth = step.measured.read
            ends = (FIRST_INTENSITY, ridge(peak, bandwidth))
            series.append(
                Series(
                    name=step.level.name,
                    points=tuple((x, x * bandwidth) for x in ends),
                    role="reference",
                    label=f"{step.level.name} {giga_text(bandwidth)} GB/s",
                )
            )
    return Plot(
        title="FLOPs a second by intensity",
        note="Solid: a product whose bytes come from DRAM. Dashed: what each memory allows.",
        series=tuple(series),
        logarithmic=True,
        x_name="FLOP/byte",
        x_logarithmic=True,
    )


def bandwidth_plot(device: DeviceCeilings) -> Plot:
    """Read, write and copy by working set."""
    return Plot(
        title="Bytes a second by working set",
        note=f"{device.threads} threads together. A copy's bytes are those read and those written.",
        series=tuple(
            Series(
                name=kind,
                points=tuple((b.working_set, getattr(b, kind)) for b in device.bandwidths),
                role="validation" if kind == "read" else "layer",
                depth=0.0 if kind == "write" else 1.0,
            )
            for kind in ("read", "write", "copy")
        ),
        logarithmic=True,
        x_name="bytes",
        x_logarithmic=True,
    )


def _last_intensity(device: DeviceCeilings, steps: Sequence[Step]) -> float:
    return _BEYOND * max(1.0, ridge(max(device.flop_rates.values()), steps[-1].measured.read))


def _labels(device: DeviceCeilings, row: Callable[[float], int], height: int) -> dict[int, str]:
    """Names of the peaks by row, each at its own or at the nearest that is free."""
    found: dict[int, str] = {}
    for dtype, rate in sorted(device.flop_rates.items(), key=lambda pair: -pair[1]):
        free = set(range(height)) - set(found)
        place = min(free, key=lambda place: (abs(place - row(rate)), -place))
        found[place] = f"{dtype} {giga_text(rate)}"
    return found


def _tick(place: int, height: int, low: float, high: float) -> str:
    """A power of ten of GFLOP/s that lies nearest to this row; "" if none does."""
    half = (high - low) / (height - 1) / 2
    middle = high - (high - low) * place / (height - 1)
    power = round((middle - math.log(GIGA)) / math.log(10))
    return f"{10.0**power:,g}" if abs(power * math.log(10) + math.log(GIGA) - middle) < half else ""


def _intensity_ticks(intensities: Sequence[float]) -> str:
    """1/16, 1/4, 1, 4 ... where they lie."""
    text = [" "] * len(intensities)
    free, power = 0, -4
    for column, intensity in enumerate(intensities):
        if intensity < 2.0**power * (1 - 1e-9):
            continue
        label = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        if column >= free and column + len(label) <= len(text):
            text[column : column + len(label)] = label
            free = column + len(label) + 1
        power += 2
    return "".join(text).rstrip()
