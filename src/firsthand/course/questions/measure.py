"""Measure: a number from the learner's machine, measured again when the answer is checked."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from firsthand.course.answers import number_form, read_number, show_number
from firsthand.course.questions.grading import (
    Mistakes,
    Question,
    graded,
    passed,
    undecided,
    with_unit,
    wrong,
)
from firsthand.course.questions.lines import scaled
from firsthand.course.steps import Measure
from firsthand.course.verdicts import Evidence, Verdict


class ExperimentError(RuntimeError):
    """The experiment raised, ended without a number, or took too long."""


def _run(experiment: Callable[[], float], pipe: Connection) -> None:
    # its own group, so that everything the experiment starts ends with it
    if hasattr(os, "setsid"):
        os.setsid()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        try:
            pipe.send(("value", float(experiment())))
        except BaseException as error:
            pipe.send(("error", f"{type(error).__name__}: {error}"[:300]))


def measured(step: Measure) -> float:
    """Run the experiment in a child process; the number it gives, finite and positive.

    The child is forked where the system can fork, so that a session's modules are there as they
    are, and its process group is killed after `step.seconds`. Raises ExperimentError.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(step.experiment, sending), daemon=False)  # type: ignore[attr-defined]
    child.start()
    sending.close()
    try:
        if not receiving.poll(step.seconds):
            raise ExperimentError(f"the experiment took longer than {step.seconds:g} seconds")
        kind, value = receiving.recv()
    except EOFError:
        child.join(1.0)
        raise ExperimentError(
            f"the experiment ended without a number (exit code {child.exitcode})"
        ) from None
    finally:
        receiving.close()
        _end(child.pid)
        child.kill()
        child.join()
        child.close()
    if kind == "error":
        raise ExperimentError(str(value))
    if not math.isfinite(value) or value <= 0:
        raise ExperimentError(f"the experiment gave {value}, which is not a positive number")
    return float(value)


def _end(pid: int | None) -> None:
    """Kill the child's process group; it may be gone already, or not have been made."""
    if pid is None or not hasattr(os, "killpg"):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)


def ask_measure(step: Measure, seed: int, mistakes: Mistakes, small: bool = False) -> Question:
    """The question is the same at each attempt; the evidence is measured at that moment."""
    example = f"`{show_number(123456.5)}{' ' + step.unit if step.unit else ''}`"
    form = number_form(step.unit, example)

    def judge(text: str) -> Verdict:
        read = read_number(text, step.unit, form=form).value
        try:
            value = measured(step)
        except ExperimentError as error:
            return undecided(str(error))
        shown = Evidence("read as", with_unit(read, step.unit))
        low, high = sorted((value / step.within, value * step.within))
        if low <= read <= high:
            measured_now = with_unit(float(f"{value:.4g}"), step.unit)
            return passed(
                f"Confirmed: you gave {with_unit(read, step.unit)}, measured now: {measured_now}.",
                shown,
                Evidence("measured", measured_now),
                accepted=[low, high],
                measured=value,
            )
        # The measured number is not told: it could be copied instead of measured.
        return wrong(
            f"Not confirmed: measured again just now, it differs by more than the factor "
            f"{step.within:g} that is allowed.",
            shown,
            question="What differed between your run and this one: the size, the unit, the load?",
        )

    working = tuple(step.working)
    invented = (scaled(line, 10.0) for line in reversed(working))
    distractor = next((line for line in invented if line is not None), None)
    return Question(
        prompt=step.ask,
        form=form,
        grade=graded(judge),
        working=working,
        wrong_lines=(("", distractor),) if distractor else (),
        seed=seed,
    )
