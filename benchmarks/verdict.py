"""How long a learner waits: from the save of a file to the printed verdict, warm; `status`, cold.

A real `firsthand learn` runs in a pseudo-terminal, as the learner sees it: the file is written, and
the clock stops when the verdict's text has arrived. The saved version is a known mistake, so that
every stage up to the values runs and the mistake is looked for; saving the same version again costs
no attempt, and is checked again in full.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pexpect

from benchmarks.harness import Spread, report
from firsthand.course.checks.checker import Checker
from firsthand.course.checks.in_process import InProcess
from firsthand.course.loading import Course
from firsthand.course.log import EventKind, EventLog
from firsthand.course.sources import PartName, module_source
from firsthand.course.steps import Build
from firsthand.course.verdicts import Outcome, Verdict
from firsthand.course.workspace import Workspace

STEPS = (
    "1.1/dot-product",
    "1.2/linear-gradients",
    "1.3/softmax",
    "1.4/backward-pass",
    "1.5/matmul-backward",
)
SAVES = 40
STATUS_RUNS = 15
PROFILE = {
    "language": "en",
    "level": "NumPy",
    "goals": ["measure"],
    "hardware": {"confirmed": True},
    "time": {"minutes": 60, "per_week": 3},
    "focus": [1, 2, 3, 4, 5],
    "tone": "neutral",
    "pacing": {"kind": "depth-first"},
    "track": "10M",
}


def pass_before(course: Course, log: EventLog, step_id: str) -> None:
    """Write the log of a learner who has passed every step before this one."""
    log.ensure_created()
    for field, value in PROFILE.items():
        log.append(EventKind.PROFILE, field=field, value=value, answer="")
    log.append(EventKind.START)
    verdict = Verdict(Outcome.PASSED, "passed before the measurement").to_json()
    for heading in course.outline.steps:
        if heading.id == step_id:
            return
        log.append(
            EventKind.ATTEMPT,
            heading.session,
            heading.id,
            rung=0,
            seed=0,
            answer="",
            fingerprint=heading.id,
            verdict=verdict,
        )


def mistaken_text(course: Course, step_id: str) -> str:
    """The reference's module with a mistake in it that is found out by its values."""
    step = course.step(step_id)
    assert isinstance(step, Build)
    part = PartName.parse(step.part)
    checker = Checker(course, InProcess(None), Path("."))
    for mistake in checker.mistakes(step_id):
        if not mistake.edits:
            continue
        verdict = checker.check_version(step_id, 0, course.version(mistake, step))
        if verdict.outcome is Outcome.WRONG:
            source = module_source(f"{course.stack}.{part.module}")
            return source.edited(part.name, mistake.edits)
    raise LookupError(f"{step_id} has no mistake that is wrong by its values")


def save_to_verdict(course: Course, step_id: str, folder: Path) -> list[float]:
    """Seconds from each save to the last line of its verdict."""
    workspace = Workspace.create(folder)
    with EventLog(workspace.log_path) as log:
        pass_before(course, log, step_id)
    step = course.step(step_id)
    assert isinstance(step, Build)
    file = workspace.file_of(step)
    text = mistaken_text(course, step_id)
    child = pexpect.spawn(
        sys.executable,
        ["-m", "firsthand", "learn", "--workspace", str(folder)],
        env={**os.environ, "NO_COLOR": "1", "TERM": "xterm"},
        dimensions=(50, 90),
        encoding="utf-8",
        timeout=60,
    )
    try:
        while child.expect([r"q pause", r"Enter[^\n]*[:?.] ?$", r"\(or Enter\)\? "]) != 0:
            child.sendline("")
        time.sleep(2.0)  # the trial is prepared while a learner would be writing
        seconds = []
        for number in range(SAVES + 1):
            file.parent.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            file.write_text(text, encoding="utf-8")
            if number == 0:  # the first one counts as an attempt and draws a fresh question
                child.expect("q pause")
                time.sleep(1.0)
                continue
            # Compared with the last judged text: the same bytes cost nothing.
            child.expect(re.escape("The same as before: it costs no attempt."))
            seconds.append(time.perf_counter() - start)
            time.sleep(0.05)
        return seconds
    finally:
        child.close(force=True)


def status_cold(folder: Path) -> float:
    """Wall time of one `firsthand status` in a new process."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "firsthand", "status", "--workspace", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, store."""
    course = Course()
    rows, everything = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for step_id in STEPS:
            folder = Path(scratch) / step_id.replace("/", "-")
            spread = Spread(tuple(save_to_verdict(course, step_id, folder)))
            everything += spread.values
            rows.append(_row(step_id, spread))
        status = Spread(
            tuple(status_cold(Path(scratch) / "1.3-softmax") for _ in range(STATUS_RUNS))
        )
    total = Spread(tuple(everything))
    rows += [_row("all saves", total), _row("firsthand status, cold", status)]
    results = {
        "numpy_p95_ms": round(total.percentile(0.95) * 1e3, 1),
        "numpy_median_ms": round(total.median * 1e3, 1),
        "status_cold_median_ms": round(status.median * 1e3, 1),
        "status_cold_worst_ms": round(status.high * 1e3, 1),
        "saves": len(total.values),
    }
    report("verdict", ("", "median ms", "p95 ms", "worst ms", "runs"), rows, results)


def _row(name: str, spread: Spread) -> tuple[str, ...]:
    figures = (spread.median, spread.percentile(0.95), spread.high)
    return (name, *(f"{value * 1e3:.0f}" for value in figures), str(len(spread.values)))


if __name__ == "__main__":
    main()
