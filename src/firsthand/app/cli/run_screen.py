"""What a run shows on a terminal: stages, one bar, and a line where something was measured."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from firsthand.app.cli.stack import progress_console
from firsthand.app.cli.terminal import console

Record = dict[str, Any]

# Without a terminal a line is enough every so many seconds.
QUIET_SECONDS = 15.0
SAMPLE_CHARACTERS = 400


class RunScreen:
    """A watcher of `llm.training`: standard output for results, standard error for the bar.

    Args:
        steps: of the run.
        samples: show the texts that the model writes.
    """

    def __init__(self, steps: int, *, samples: bool = True) -> None:
        self._steps, self._show_samples = steps, samples
        self._out: Console = console()
        self._errors = progress_console()
        self._bar = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._errors,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._told = time.monotonic()
        self._stop = False

    def stage(self, name: str, done: float, total: float | None) -> None:
        """How far something before the training is."""
        self._move(name, done, total, "")

    def line(self, record: Record) -> None:
        """A line of the metrics."""
        if record["kind"] == "train":
            figures = self._figures(record)
            self._move(f"step {record['step']}", record["step"], self._steps, figures)
            if not self._errors.is_terminal and time.monotonic() - self._told > QUIET_SECONDS:
                self._told = time.monotonic()
                self._print(f"step {record['step']} of {self._steps}: {figures}")
        elif record["kind"] == "validation":
            figures = ", ".join(self._measures(record))
            self._print(f"step {record['step']}: validation {figures}")

    def samples(self, step: int, records: list[Record]) -> None:
        """Texts that the model wrote."""
        for record in records if self._show_samples else ():
            text = (record["prompt"] + record["text"])[:SAMPLE_CHARACTERS].rstrip()
            self._print("\n".join(f"    | {part}" for part in text.splitlines()))

    def said(self, text: str) -> None:
        """Something to know."""
        self._print(text)

    def stop_asked(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop

    @contextmanager
    def shown(self) -> Iterator[RunScreen]:
        """Within, the bar is drawn and the first Ctrl-C ends the run after a checkpoint."""
        before = {}

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            self._print("Stopping after this step, with a checkpoint. Once more stops at once.")

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
        try:
            with self._bar:
                yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _measures(self, record: Record) -> list[str]:
        shown = [("loss", "loss {:.4f}"), ("bits_per_byte", "{:.3f} bits per byte")]
        shown += [("accuracy", "accuracy {:.1%}"), ("reward", "reward {:.3f}"), ("kl", "KL {:.3f}")]
        return [
            form.format(record[name])
            for name, form in shown
            if isinstance(record.get(name), int | float)
        ]

    def _figures(self, record: Record) -> str:
        left = (self._steps - record["step"]) * record["seconds"] / record["step"]
        per_byte = record.get("bits_per_byte")
        figures = [
            f"loss {record['loss']:.3f}",
            f"{per_byte:.2f} bits/byte" if per_byte else "",
            f"{record['tokens_per_second']:,.0f} {record['unit']}/s",
            f"{record['memory_bytes'] / 1e6:,.0f} MB",
            f"{_duration(left)} left",
        ]
        return "  ".join(figure for figure in figures if figure)

    def _move(self, name: str, done: float, total: float | None, figures: str) -> None:
        stage = name.partition(" ")[0]
        if self._task is None or stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total, figures=figures)
            self._stage = stage
        self._bar.update(self._task, completed=done, total=total, description=name, figures=figures)

    def _print(self, text: str) -> None:
        if self._errors.is_terminal and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._out.print(text, markup=False, highlight=False, soft_wrap=True)


def is_first_rank() -> bool:
    """Whether this process is the one that speaks, as torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
