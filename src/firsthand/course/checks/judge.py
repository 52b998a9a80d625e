"""From a finished run to a verdict: the stages in order, the first failure ends it.

Relations explain, fingerprints identify: the stage that fails says what is wrong with the smallest
failing case; a mistake is named only if its fingerprint alone matches (CHECKS.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from firsthand.course.checks import gradients
from firsthand.course.checks.comparison import (
    all_finite,
    form_mismatch,
    leaves,
    result_distance,
)
from firsthand.course.checks.presentation import (
    call_of,
    first_difference,
    forbidden_text,
    result_text,
    value_text,
)
from firsthand.course.checks.requests import Raised, Returned, Run, RunStatus
from firsthand.course.checks.signatures import parameters_of, takes
from firsthand.course.checks.trial import Print, Trial, print_of
from firsthand.course.sources import PartName
from firsthand.course.steps import Mistake
from firsthand.course.verdicts import (
    Evidence,
    Outcome,
    Stage,
    StageReport,
    StageState,
    Verdict,
)

STOPPED_STATUSES = {
    RunStatus.TIME,
    RunStatus.MEMORY,
    RunStatus.OUTPUT,
    RunStatus.PROCESSES,
    RunStatus.EXITED,
    RunStatus.CRASHED,
}


@dataclass
class Examination:
    """The judging of one run. `verdict()` is the only entry."""

    trial: Trial
    run: Run
    mistakes: Sequence[Mistake]
    reference_signature: str | None = None
    reference_seconds: float | None = None
    learner_seconds: float | None = None
    reports: list[StageReport] = field(default_factory=list)

    def verdict(self) -> Verdict:
        for stage, examine in (
            (Stage.IMPORT, self._import),
            (Stage.SIGNATURE, self._signature),
            (Stage.SHAPE, self._shape),
            (Stage.FINITE, self._finite),
            (Stage.RELATIONS, self._relations),
            (Stage.VALUES, self._values),
            (Stage.GRADIENT, self._gradient),
            (Stage.LAYOUT, self._layout),
            (Stage.SPEED, self._speed),
        ):
            if not self._declared(stage):
                continue
            failure = examine()
            state = StageState.FAILED if failure else StageState.PASSED
            self.reports.append(StageReport(stage, state, self._cases(stage)))
            if failure:
                return self._finish(failure)
        return self._finish(Verdict(Outcome.PASSED, self._passed_text()))

    # ------------------------------------------------------------------ parts of the verdict

    @property
    def _name(self) -> str:
        name = PartName.parse(self.trial.build.part).name
        methods = self.trial.build.methods
        return f"{name}.{methods[0]}" if len(methods) == 1 else name

    def _declared(self, stage: Stage) -> bool:
        build = self.trial.build
        return {
            Stage.RELATIONS: bool(build.relations),
            Stage.GRADIENT: build.gradient is not None,
            Stage.LAYOUT: build.layout is not None,
            Stage.SPEED: build.speed is not None,
        }.get(stage, True)

    def _cases(self, stage: Stage) -> int:
        if stage is Stage.RELATIONS:
            return len(self.trial.groups)
        if stage in (Stage.SHAPE, Stage.FINITE, Stage.VALUES, Stage.GRADIENT, Stage.LAYOUT):
            return self.trial.probe_count
        return 1

    def _finish(self, verdict: Verdict) -> Verdict:
        done = {report.stage for report in self.reports}
        rest = [
            StageReport(stage, StageState.NOT_RUN)
            for stage in Stage
            if stage not in done and self._declared(stage)
        ]
        evidence = list(verdict.evidence)
        if self.run.printed and not verdict.passed:
            evidence.append(Evidence("printed", self.run.printed[:400]))
        mistake, question, headline = verdict.mistake, verdict.question, verdict.headline
        if verdict.outcome in (Outcome.WRONG, Outcome.BROKEN):
            named = self._diagnosis()
            if named:
                mistake, question = named.id, named.question
                headline = f"{headline} {named.belief}"
        return Verdict(
            outcome=verdict.outcome,
            headline=headline,
            evidence=tuple(evidence),
            stages=tuple(self.reports + rest),
            mistake=mistake,
            question=question,
            line=verdict.line,
            seconds=self.run.seconds,
            data=verdict.data,
        )

    def _diagnosis(self) -> Mistake | None:
        if self.run.status is not RunStatus.FINISHED:
            return None
        matches = self.trial.matches(self._print)
        if len(matches) != 1:
            return None
        return next(mistake for mistake in self.mistakes if mistake.id == matches[0])

    @cached_property
    def _print(self) -> Print:
        """The learner's own fingerprint; only of a run that is finished and complete."""
        return print_of(self.trial.build, self.trial.calls[: self.trial.probe_count], self.run)

    def _passed_text(self) -> str:
        count = self.trial.probe_count + len(self.trial.groups)
        return f"{self._name} passes every stage on {count} cases."

    def _call(self, index: int) -> str:
        return call_of(self.trial.build, self.trial.calls[index])

    def _learner_line(self, result: Raised | Run) -> tuple[Evidence, ...]:
        if result.line is None:
            return ()
        return (Evidence("line", f"{result.line}: {result.source.strip()}"),)

    def _probes(self) -> list[tuple[int, Returned | Raised, Returned | Raised]]:
        """(index, what came back, what is expected) for each probe."""
        return [
            (index, self.run.results[index], self.trial.expected.results[index])
            for index in range(self.trial.probe_count)
        ]

    # ------------------------------------------------------------------ the stages

    def _complete(self) -> bool:
        """Whether there is one result for each call, with all its arguments."""
        calls, results = self.trial.calls, self.run.results
        return len(results) == len(calls) and all(
            isinstance(result, Raised) or len(result.arguments) == len(arguments)
            for arguments, result in zip(calls, results, strict=True)
        )

    def _import(self) -> Verdict | None:
        run = self.run
        if run.status is RunStatus.FINISHED:
            if not self._complete():  # fail closed: fewer answers than questions is never a pass
                return Verdict(Outcome.UNDECIDED, "The check came back incomplete. Check again.")
            if run.used:
                used = ", ".join(map(forbidden_text, run.used))
                return Verdict(
                    Outcome.LIBRARY,
                    f"{self._name} uses {used}, which is what this step builds. "
                    "Write it from the operations below it.",
                )
            return None
        if run.status is RunStatus.ENGINE:
            return Verdict(Outcome.UNDECIDED, f"The checker failed, not your code: {run.message}")
        if run.status is RunStatus.REFERENCE:
            return Verdict(
                Outcome.LIBRARY,
                f"The file imports the stack's own {self._name}. This step is to write it.",
                self._learner_line(run),
                line=run.line,
            )
        evidence: tuple[Evidence, ...] = ()
        if run.current is not None and 0 <= run.current < len(self.trial.calls):
            evidence = (Evidence("call", self._call(run.current)),)
        outcome = Outcome.STOPPED if run.status in STOPPED_STATUSES else Outcome.BROKEN
        return Verdict(outcome, run.message, evidence + self._learner_line(run), line=run.line)

    def _signature(self) -> Verdict | None:
        if self.reference_signature and self.run.signature:
            wanted = parameters_of(self.reference_signature)
            found = parameters_of(self.run.signature)
            if wanted is not None and found is not None and not takes(self.run.signature, wanted):
                return Verdict(
                    Outcome.BROKEN,
                    f"{self._name} has other parameters than its starter.",
                    (
                        Evidence("found", f"({', '.join(found)})"),
                        Evidence("expected", f"({', '.join(wanted)})"),
                    ),
                )
        for index, result in enumerate(self.run.results):
            if not isinstance(result, Raised):
                continue
            if result.type_name == "NotImplementedError":
                return Verdict(
                    Outcome.UNFINISHED,
                    f"{self._name} still raises NotImplementedError.",
                    self._learner_line(result),
                    line=result.line,
                )
            if index < self.trial.probe_count:
                expected = self.trial.expected.results[index]
                if isinstance(expected, Raised):
                    continue
            return Verdict(
                Outcome.BROKEN,
                f"{self._name} raises {result.type_name} on a valid call.",
                (
                    Evidence("call", self._call(index)),
                    Evidence("raised", result_text(result)),
                    *self._learner_line(result),
                ),
                line=result.line,
            )
        return None

    def _shape(self) -> Verdict | None:
        for index, got, expected in self._probes():
            if isinstance(got, Raised) or isinstance(expected, Raised):
                continue
            problem = form_mismatch(got.value, expected.value)
            if problem:
                return Verdict(
                    Outcome.WRONG,
                    f"{self._name} returns {problem}.",
                    (
                        Evidence("call", self._call(index)),
                        Evidence("got", result_text(got)),
                    ),
                )
        return None

    def _finite(self) -> Verdict | None:
        for index, got, expected in self._probes():
            if isinstance(got, Raised) or isinstance(expected, Raised):
                continue
            if all_finite(expected.value) and not all_finite(got.value):
                return Verdict(
                    Outcome.WRONG,
                    f"{self._name} returns values that are not finite.",
                    (
                        Evidence("call", self._call(index)),
                        Evidence("got", result_text(got)),
                        Evidence("expected", result_text(expected)),
                    ),
                )
        return None

    def _relations(self) -> Verdict | None:
        for relation_index, first, last in self.trial.groups:
            relation = self.trial.build.relations[relation_index]
            results = self.run.results[first:last]
            outputs = [item.value for item in results if isinstance(item, Returned)]
            group = self.trial.calls[first:last]
            try:
                holds = len(outputs) == len(group) and bool(relation.holds(group, outputs))
            except (TypeError, ValueError, IndexError, AttributeError, KeyError):
                holds = False  # a result of a form that the relation cannot even read
            if not holds:
                evidence = [Evidence("relation", relation.says)]
                for offset, output in enumerate(outputs):
                    evidence.append(Evidence("call", self._call(first + offset)))
                    evidence.append(Evidence("got", value_text(output)))
                return Verdict(Outcome.WRONG, f"{self._name} breaks a relation.", tuple(evidence))
        return None

    def _values(self) -> Verdict | None:
        for index, got, expected in self._probes():
            arguments = self.trial.calls[index]
            if isinstance(expected, Raised):
                if isinstance(got, Raised) and got.is_a(expected.type_name):
                    continue
                did = (
                    f"refuses a call with {got.type_name} where its contract names "
                    f"{expected.type_name}."
                    if isinstance(got, Raised)
                    else "accepts a call that its contract refuses."
                )
                return Verdict(
                    Outcome.WRONG,
                    f"{self._name} {did}",
                    (
                        Evidence("call", self._call(index)),
                        Evidence("got", result_text(got)),
                        Evidence("expected", f"{expected.type_name}"),
                    ),
                )
            if result_distance(got, expected) > self.trial.tolerance:
                evidence = [
                    Evidence("call", self._call(index)),
                    Evidence("got", result_text(got)),
                    Evidence("expected", result_text(expected)),
                ]
                if isinstance(got, Returned):
                    where = first_difference(got.value, expected.value, self.trial.tolerance)
                    if where:
                        evidence.append(Evidence("largest difference", where))
                    evidence.extend(self._gradient_class(arguments, got))
                return Verdict(
                    Outcome.WRONG, f"{self._name} returns a wrong value.", tuple(evidence)
                )
        for index, got, _ in self._probes():
            changed = self._print.facts[index].changed
            if changed:
                assert isinstance(got, Returned)
                return Verdict(
                    Outcome.WRONG,
                    f"{self._name} changes its argument {changed[0] + 1} in place.",
                    (
                        Evidence("call", self._call(index)),
                        Evidence("argument after the call", value_text(got.arguments[changed[0]])),
                    ),
                )
        return None

    def _faults(self, arguments: tuple[Any, ...], got: Returned) -> list[gradients.GradientFault]:
        rule = self.trial.build.gradient
        if rule is None:
            return []
        point = rule.inputs(arguments)
        cotangent = rule.cotangent(arguments) if rule.cotangent else None
        numeric = gradients.numerical_gradients(rule.forward, point, cotangent, rule.step)
        found = []
        arrays = [np.asarray(leaf.value, dtype=np.float64) for leaf in leaves(got.value)]
        for number, (one, other) in enumerate(zip(arrays, numeric, strict=False)):
            fault = gradients.compare(one, other, number, tolerance=1e-5)
            if fault:
                found.append(fault)
        return found

    def _gradient_class(self, arguments: tuple[Any, ...], got: Returned) -> list[Evidence]:
        try:
            faults = self._faults(arguments, got)
        except (TypeError, ValueError):
            return []
        return [
            Evidence("gradient", f"for input {fault.argument + 1} {fault.class_}")
            for fault in faults
            if fault.class_
        ][:1]

    def _gradient(self) -> Verdict | None:
        for index, got, expected in self._probes():
            if isinstance(got, Raised) or isinstance(expected, Raised):
                continue
            faults = self._faults(self.trial.calls[index], got)
            if faults:
                fault = faults[0]
                return Verdict(
                    Outcome.WRONG,
                    f"{self._name} disagrees with central differences.",
                    (
                        Evidence("call", self._call(index)),
                        Evidence(
                            f"gradient of input {fault.argument + 1} at {list(fault.index)}",
                            f"got {fault.got:.6g}, central differences give {fault.expected:.6g}",
                        ),
                    ),
                )
        return None

    def _layout(self) -> Verdict | None:
        for index, got, _ in self._probes():
            broken = self._print.facts[index].layout_broken
            if broken and isinstance(got, Returned):
                evidence = [Evidence("call", self._call(index))]
                if got.layout:
                    evidence.append(Evidence("strides", str(got.layout.get("strides"))))
                rule = self.trial.build.layout
                if got.allocated is not None and rule and rule.most_bytes:
                    most = rule.most_bytes(self.trial.calls[index])
                    evidence.append(
                        Evidence("allocated", f"{got.allocated} bytes, at most {most} are needed")
                    )
                return Verdict(
                    Outcome.WRONG,
                    f"The values of {self._name} are right, its memory is not: {broken}.",
                    tuple(evidence),
                )
        return None

    def _speed(self) -> Verdict | None:
        rule = self.trial.build.speed
        if rule is None or self.learner_seconds is None or not self.reference_seconds:
            return Verdict(Outcome.UNDECIDED, "The speed could not be measured. Check again.")
        ratio = self.learner_seconds / self.reference_seconds
        if ratio <= rule.ratio:
            return None
        return Verdict(
            Outcome.SLOW,
            f"{self._name} is right and takes {ratio:.1f} times as long as the reference; "
            f"at most {rule.ratio:g} times is asked for. {rule.why}",
            (
                Evidence("yours", f"{self.learner_seconds * 1e3:.3f} ms"),
                Evidence("reference", f"{self.reference_seconds * 1e3:.3f} ms"),
            ),
        )
