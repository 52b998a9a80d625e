"""One trial of a Build step: the calls to make, and all that is known of them beforehand.

Everything here is computed in the engine's process, where learner code cannot reach: the expected
results by the oracle, the fingerprints by running each known mistake, and from the distance between
the two the tolerance.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firsthand.course.checks.comparison import (
    changed_arguments,
    result_distance,
    tolerance_from,
)
from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.requests import Limits, Raised, Request, Returned, Run, RunStatus
from firsthand.course.sources import PartName
from firsthand.course.steps import Build, Mistake

Arguments = tuple[Any, ...]
Result = Returned | Raised


@dataclass(frozen=True)
class Facts:
    """What a call did besides returning a value, as far as the step declares it."""

    changed: tuple[int, ...]
    layout_broken: str | None


@dataclass(frozen=True)
class Print:
    """A fingerprint: results and facts over all probes."""

    results: tuple[Result, ...]
    facts: tuple[Facts, ...]

    def only(self, probes: Sequence[int]) -> Print:
        """The print of some of the probes."""
        return Print(
            tuple(self.results[index] for index in probes),
            tuple(self.facts[index] for index in probes),
        )

    def distance(self, other: Print) -> float:
        """inf where the facts differ, else the largest distance of any result."""
        if len(self.results) != len(other.results) or self.facts != other.facts:
            return float("inf")
        pairs = zip(self.results, other.results, strict=True)
        return max((result_distance(one, two) for one, two in pairs), default=0.0)


@dataclass(frozen=True)
class Trial:
    """calls: probes first, then the groups of the relations. groups: (relation, first, last+1)."""

    build: Build
    seed: int
    calls: tuple[Arguments, ...]
    probe_count: int
    groups: tuple[tuple[int, int, int], ...]
    expected: Print
    prints: dict[str, Print]
    tolerance: float

    @property
    def distances(self) -> dict[str, float]:
        """How far each mistake lies from what is expected."""
        return {name: item.distance(self.expected) for name, item in self.prints.items()}

    def matches(self, learner: Print) -> list[str]:
        """The mistakes whose fingerprint the learner's results have.

        A mistake that shows in ordinary calls is recognised by these alone: who makes it has often
        left out the refusal of bad arguments as well. A print of nothing but exceptions identifies
        nobody.
        """
        if not any(isinstance(result, Returned) for result in learner.results):
            return []
        ordinary = [
            index
            for index, result in enumerate(self.expected.results)
            if isinstance(result, Returned)
        ]
        found = []
        for name, item in self.prints.items():
            shown = item.only(ordinary).distance(self.expected.only(ordinary)) > self.tolerance
            probes = ordinary if shown else list(range(len(item.results)))
            if item.only(probes).distance(learner.only(probes)) <= self.tolerance:
                found.append(name)
        return found


def draw(build: Build, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(build.id.encode()), seed])


def request_for(
    build: Build, calls: Sequence[Arguments], *, stack: str, session_module: str, workspace: Path
) -> Request:
    """The request that makes these calls of the step's part."""
    part = PartName.parse(build.part)
    return Request(
        workspace=workspace,
        stack=stack,
        module=part.module,
        name=part.name,
        calls=tuple(calls),
        session_module=session_module if build.driver else None,
        driver=build.driver.__name__ if build.driver else None,
        forbids=build.forbids,
        measure_layout=build.layout is not None,
        limits=Limits(seconds=build.seconds, megabytes=build.megabytes),
    )


def prepare(
    build: Build,
    seed: int,
    versions: Sequence[tuple[Mistake, Any]],
    *,
    stack: str,
    session_module: str,
) -> Trial:
    """Draw the calls of a trial and compute what each version returns for them.

    versions: the step's mistakes with the wrong part that each describes.
    """
    generator = draw(build, seed)
    calls: list[Arguments] = [tuple(item) for item in build.probes(generator)]
    probe_count = len(calls)
    groups: list[tuple[int, int, int]] = []
    for index, relation in enumerate(build.relations):
        for group in relation.groups(generator):
            groups.append((index, len(calls), len(calls) + len(group)))
            calls.extend(tuple(item) for item in group)
    probes = calls[:probe_count]
    request = request_for(
        build, probes, stack=stack, session_module=session_module, workspace=Path(".")
    )
    expected = Print(
        results=tuple(_outcome(build.oracle, arguments) for arguments in probes),
        facts=tuple(Facts((), None) for _ in probes),
    )
    prints = {}
    for mistake, part in versions:
        run = InProcess(part).execute(request)
        if run.status is RunStatus.FINISHED:
            prints[mistake.id] = print_of(build, probes, run)
    distances = [item.distance(expected) for item in prints.values()]
    return Trial(
        build=build,
        seed=seed,
        calls=tuple(calls),
        probe_count=probe_count,
        groups=tuple(groups),
        expected=expected,
        prints=prints,
        tolerance=tolerance_from(distances),
    )


def _outcome(oracle: Callable[..., Any], arguments: Arguments) -> Result:
    inputs = copy.deepcopy(arguments)
    try:
        with np.errstate(all="ignore"):
            value = oracle(*inputs)
    except Exception as error:
        return Raised(type(error).__name__, str(error), None)
    return Returned(plain(value), inputs)


def plain(value: Any) -> Any:
    """Oracle results in wider types, brought to the types that the part returns."""
    if isinstance(value, np.ndarray) and value.dtype == np.longdouble:
        return value.astype(np.float64)
    if isinstance(value, np.longdouble):
        return float(value)
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def print_of(build: Build, probes: Sequence[Arguments], run: Run) -> Print:
    """The fingerprint of a finished run's probe calls."""
    results = run.results[: len(probes)]
    return Print(
        results=results,
        facts=tuple(
            facts_of(build, arguments, result)
            for arguments, result in zip(probes, results, strict=True)
        ),
    )


def facts_of(build: Build, arguments: Arguments, result: Result) -> Facts:
    """Which arguments a call changed that it must not, and which layout rule it broke."""
    if isinstance(result, Raised):
        return Facts((), None)
    changed = tuple(
        index
        for index in changed_arguments(arguments, result.arguments)
        if index not in build.mutates
    )
    return Facts(changed, layout_broken(build, arguments, result))


def layout_broken(build: Build, arguments: Arguments, result: Returned) -> str | None:
    """The first rule of the step's `Layout` that a result breaks, as a short text, or None."""
    rule = build.layout
    if rule is None:
        return None
    layout = result.layout or {}
    shares = list(layout.get("shares", []))
    if rule.shares_argument is not None:
        if rule.shares_argument == -1 and shares:
            return f"the result shares the memory of argument {shares[0] + 1}"
        if rule.shares_argument >= 0 and rule.shares_argument not in shares:
            return f"the result is a copy, not a view of argument {rule.shares_argument + 1}"
    if rule.contiguous is not None and layout and layout.get("contiguous") != rule.contiguous:
        return "the result is contiguous" if not rule.contiguous else "the result is not contiguous"
    most = rule.most_bytes(arguments) if rule.most_bytes is not None else None
    if most is not None and result.allocated is not None and result.allocated > most:
        return "the call allocates more than it may"
    return None
