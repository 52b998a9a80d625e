"""What every benchmark shares: the machine, the spread of several runs, the table, the last line.

Each benchmark prints a table and then, as its last line, one JSON object
`{"benchmark": name, "machine": {...}, "results": {...}}`, which it also stores under
`benchmarks/results/<name>-<machine>.json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from firsthand.course.machine import measure_machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def percentile(self, share: float) -> float:
        """The value below which `share` of the measurements lie (nearest rank)."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def several(measure: Callable[[], float], runs: int) -> Spread:
    """Measure `runs` times in a row."""
    return Spread(tuple(measure() for _ in range(runs)))


def in_own_process(benchmark: str, *words: str) -> dict[str, Any]:
    """The record that a benchmark prints as its last line, run in a new Python with these options.

    What it writes to standard error is shown.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} ended with exit code {done.returncode}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def machine() -> dict[str, Any]:
    """The machine as its results name it."""
    found = measure_machine()
    return {
        "processor": found.processor,
        "cores": found.cores,
        "memory_bytes": found.memory,
        "gpu": found.gpu.name if found.gpu else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def report(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    results: dict[str, Any],
    *,
    note: str = "",
    store: bool = True,
) -> None:
    """Print the table and the last line, and store the record."""
    console = Console()
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if note:
        console.print(note, markup=False, highlight=False)
    record = {"benchmark": name, "machine": machine(), "results": results}
    if store:
        RESULTS.mkdir(exist_ok=True)
        words = "".join(c if c.isalnum() else "-" for c in str(record["machine"]["processor"]))
        file = RESULTS / f"{name}-{'-'.join(filter(None, words.lower().split('-')))}.json"
        dated = {**record, "measured_at": datetime.now(UTC).isoformat(timespec="seconds")}
        file.write_text(json.dumps(dated, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record))
