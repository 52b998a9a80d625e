"""Measurements in turn, again and again until the time is over.

What else runs on the machine comes and goes. Measured one after the other, whatever was measured
meanwhile would be wrong; in turns it loses a few of its runs, and the best of the others counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Protocol

# The share that is done, 0 to 1.
Report = Callable[[float], None]


class Probe(Protocol):
    """Something to measure, in steps that can be repeated in any order."""

    def steps(self) -> Sequence[Callable[[], None]]:
        """Each measures one thing a few times, and keeps what it found."""
        ...


def in_rounds(
    probes: Sequence[Probe],
    seconds: float,
    report: Report = lambda share: None,
    shares: Sequence[float] = (),
) -> None:
    """Take each step of each probe once, and then again in turn until the time is over.

    Args:
        probes: each with a step or more.
        seconds: at least 0; each step is taken once however long that takes.
        report: called before each step.
        shares: of the time, above 0, one for each probe; empty is as much for each. The next step
            is always of the probe that is furthest behind its share.
    """
    waiting = [
        _Turns(probe, share)
        for probe, share in zip(probes, shares or [1.0] * len(probes), strict=True)
    ]
    began, whole = time.monotonic(), sum(len(turns.steps) for turns in waiting)
    while True:
        spent = time.monotonic() - began
        over = spent >= seconds
        open_ = [turns for turns in waiting if not (over and turns.complete)]
        if not open_:
            return
        done = sum(min(turns.taken, len(turns.steps)) for turns in waiting)
        report(min(1.0, done / whole, spent / seconds if seconds else 1.0))
        min(open_, key=lambda turns: (turns.spent / turns.share, turns.complete)).take()


class _Turns:
    """The steps of a probe, in a circle, and the time that they took after the first round.

    In the first one much is compiled, and that is nobody's share.
    """

    def __init__(self, probe: Probe, share: float) -> None:
        self.steps, self.share = list(probe.steps()), share
        self.taken, self.spent = 0, 0.0
        self._circle = cycle(self.steps)

    @property
    def complete(self) -> bool:
        return self.taken >= len(self.steps)

    def take(self) -> None:
        began = time.monotonic()
        compiles = not self.complete
        next(self._circle)()
        self.taken += 1
        if not compiles:
            self.spent += time.monotonic() - began
