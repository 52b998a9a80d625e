"""From a finished run to a verdict, stage by stage.

The part under check is `scaled(x, factor)`: the doubled, summed and shifted thing below. Versions
of it run in this process; the judge only ever sees what came back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firsthand.course.authoring import sentences
from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.judge import Examination
from firsthand.course.checks.requests import Opaque, Raised, Returned, Run, RunStatus
from firsthand.course.checks.signatures import parameters_of
from firsthand.course.checks.trial import prepare, request_for
from firsthand.course.steps import Build, Gradient, Layout, Mistake, Relation, Speed
from firsthand.course.verdicts import Outcome, Stage, StageState, Verdict

SIGNATURE = "(x, factor)"
ORDER = list(Stage)


def scaled(x: Any, factor: Any) -> Any:
    """The right part: the slope of sum(factor * x**2 / 2)."""
    if factor < 0:
        raise ValueError("negative")
    return x * factor


def oracle(x: Any, factor: Any) -> Any:
    if factor < 0:
        raise ValueError("no")
    return x.astype(np.longdouble) * np.longdouble(factor)


def probes(generator: np.random.Generator) -> list[tuple[Any, ...]]:
    return [
        (np.array([1.0, -2.0]), 3.0),
        (generator.normal(size=(2, 3)), 2.0),
        (generator.normal(size=(3, 4)), 0.5),
        (np.ones(2), -1.0),
    ]


def twice(generator: np.random.Generator) -> list[list[tuple[Any, ...]]]:
    x = generator.normal(size=3)
    return [[(x, 1.5), (2 * x, 1.5)]]


BUILD = Build(
    id="scale",
    part="maths.scaling:scaled",
    probes=probes,
    oracle=oracle,
    small=lambda: (np.ones(2), 2.0),
    key_line="return x * factor",
    relations=(
        Relation(
            says="twice the input gives twice the output",
            groups=twice,
            holds=lambda group, out: bool(np.allclose(out[1], 2 * out[0])),
        ),
    ),
    gradient=Gradient(
        forward=lambda x: arguments_free(x),
        inputs=lambda arguments: (arguments[0],),
        cotangent=lambda arguments: np.full_like(arguments[0], arguments[1]),
    ),
    layout=Layout(shares_argument=-1, contiguous=True, most_bytes=lambda arguments: 4096),
)


def arguments_free(x: Any) -> Any:
    return x**2 / 2


def mistake(name: str, code: Callable[..., Any]) -> Mistake:
    return Mistake(
        id=name, step="scale", belief=f"The belief of {name}.", question=f"Why {name}?", code=code
    )


def halved(x: Any, factor: Any) -> Any:
    return scaled(x, factor) / 2


def shifted(x: Any, factor: Any) -> Any:
    return scaled(x, factor) + 1


def unguarded(x: Any, factor: Any) -> Any:
    return x * factor


MISTAKES = (mistake("halved", halved), mistake("shifted", shifted), mistake("unguarded", unguarded))


def judge(
    part: Any,
    build: Build = BUILD,
    mistakes: tuple[Mistake, ...] = MISTAKES,
    change: Callable[[Run], Run] = lambda run: run,
    **fields: Any,
) -> Verdict:
    versions = [(item, item.code) for item in mistakes]
    trial = prepare(build, 7, versions, stack="none", session_module="none")
    request = request_for(
        build, trial.calls, stack="none", session_module="none", workspace=Path(".")
    )
    run = change(InProcess(part).execute(request))
    return Examination(
        trial=trial, run=run, mistakes=mistakes, reference_signature=SIGNATURE, **fields
    ).verdict()


def evidence(verdict: Verdict) -> dict[str, str]:
    return {item.label: item.text for item in verdict.evidence}


def states(verdict: Verdict) -> dict[Stage, StageState]:
    return {report.stage: report.state for report in verdict.stages}


# ---------------------------------------------------------------------- stage by stage


def import_fails(run: Run) -> Run:
    return Run(RunStatus.SYNTAX, message="Line 3 cannot be read.", line=3, source="retrun x")


def other_name(x: Any, scale: Any) -> Any:
    return scaled(x, scale)


def as_list(x: Any, factor: Any) -> Any:
    return scaled(x, factor).tolist()


def with_nan(x: Any, factor: Any) -> Any:
    return scaled(x, factor) * np.where(x < 0, np.nan, 1.0)


def squared(x: Any, factor: Any) -> Any:
    return scaled(x, factor) ** 2


def off_a_little(x: Any, factor: Any) -> Any:
    return scaled(x, factor) * 1.001


def in_fortran_order(x: Any, factor: Any) -> Any:
    return np.asfortranarray(scaled(x, factor))


def nothing(run: Run) -> Run:
    return run


@pytest.mark.parametrize(
    ("stage", "part", "change", "outcome"),
    [
        (Stage.IMPORT, scaled, import_fails, Outcome.BROKEN),
        (Stage.SIGNATURE, other_name, nothing, Outcome.BROKEN),
        (Stage.SHAPE, as_list, nothing, Outcome.WRONG),
        (Stage.FINITE, with_nan, nothing, Outcome.WRONG),
        (Stage.RELATIONS, squared, nothing, Outcome.WRONG),
        (Stage.VALUES, off_a_little, nothing, Outcome.WRONG),
        (Stage.LAYOUT, in_fortran_order, nothing, Outcome.WRONG),
    ],
)
def test_the_first_failing_stage_ends_it_and_the_later_ones_are_not_run(
    stage: Stage, part: Any, change: Callable[[Run], Run], outcome: Outcome
) -> None:
    verdict = judge(part, change=change)
    assert verdict.outcome is outcome
    for each, state in states(verdict).items():
        place = ORDER.index(each) - ORDER.index(stage)
        expected = (
            StageState.PASSED
            if place < 0
            else StageState.FAILED
            if place == 0
            else StageState.NOT_RUN
        )
        assert state is expected, each
    assert Stage.SPEED not in states(verdict)  # not declared: left out
    assert sentences(verdict.headline) <= 3


def test_the_gradient_stage_fails_where_the_oracle_is_as_wrong_as_the_part() -> None:
    def wrong_oracle(x: Any, factor: Any) -> Any:
        return 2 * oracle(x, factor)

    def doubled(x: Any, factor: Any) -> Any:
        return 2 * scaled(x, factor)

    verdict = judge(doubled, replace(BUILD, oracle=wrong_oracle))
    assert verdict.outcome is Outcome.WRONG
    assert "central differences" in verdict.headline
    found = states(verdict)
    assert (found[Stage.VALUES], found[Stage.GRADIENT]) == (StageState.PASSED, StageState.FAILED)
    assert found[Stage.LAYOUT] is StageState.NOT_RUN
    assert "gradient of input 1 at [1]" in evidence(verdict)


def test_everything_right_passes_every_declared_stage() -> None:
    verdict = judge(scaled)
    assert verdict.passed
    assert set(states(verdict).values()) == {StageState.PASSED}
    assert list(states(verdict)) == ORDER[:-1]
    assert (verdict.mistake, verdict.question, verdict.evidence) == (None, None, ())
    assert "on 5 cases" in verdict.headline


def test_another_style_passes() -> None:  # PROTOCOL G4
    def in_another_style(x, factor):  # type: ignore[no-untyped-def]
        if not factor >= 0:
            raise ValueError
        out = np.zeros(x.shape)
        for index, value in np.ndenumerate(x):
            out[index] = factor * value
        return out

    assert judge(in_another_style).passed


# ---------------------------------------------------------------------- diagnosis


@pytest.mark.parametrize("wrong", MISTAKES, ids=lambda item: item.id)
def test_a_unique_fingerprint_is_named(wrong: Mistake) -> None:
    verdict = judge(wrong.code)
    assert verdict.outcome is Outcome.WRONG
    assert verdict.mistake == wrong.id
    assert verdict.question == wrong.question
    assert verdict.headline.endswith(wrong.belief)
    assert sentences(verdict.headline) <= 3


def test_a_mistake_is_recognised_though_the_refusal_is_left_out_too() -> None:
    assert judge(lambda x, factor: x * factor / 2).mistake == "halved"
    assert judge(lambda x, factor: x * factor * 1.001).mistake is None


def test_two_equal_fingerprints_name_none() -> None:
    twins = (*MISTAKES, mistake("halved-too", lambda x, factor: scaled(x, factor) * 0.5))
    verdict = judge(halved, mistakes=twins)
    assert verdict.outcome is Outcome.WRONG
    assert verdict.mistake is None
    assert verdict.question is None
    assert "belief" not in verdict.headline


def test_who_matches_nothing_gets_no_name() -> None:
    for part in (off_a_little, squared, as_list, with_nan, lambda x, factor: x * 0):
        assert judge(part).mistake is None


def test_who_is_near_a_mistake_but_not_at_it_gets_no_name() -> None:
    verdict = judge(lambda x, factor: halved(x, factor) * (1 + 1e-4))
    assert (verdict.outcome, verdict.mistake) == (Outcome.WRONG, None)


def test_nothing_but_exceptions_identifies_nobody() -> None:
    def always(x: Any, factor: Any) -> Any:
        raise ValueError("no")

    verdict = judge(always, mistakes=(*MISTAKES, mistake("raises", always)))
    assert verdict.outcome is Outcome.BROKEN
    assert verdict.mistake is None


def test_a_mistake_is_recognised_by_its_facts_too() -> None:
    def in_place(x: Any, factor: Any) -> Any:
        if factor >= 0:
            x *= factor
        return scaled(x, 1.0 if factor >= 0 else factor)

    verdict = judge(in_place, mistakes=(*MISTAKES, mistake("in-place", in_place)))
    assert verdict.mistake == "in-place"
    assert judge(in_place).mistake is None


# ---------------------------------------------------------------------- what is said


def test_the_call_shown_fails_when_pasted() -> None:  # PROTOCOL G3
    verdict = judge(halved, replace(BUILD, relations=()))
    shown = evidence(verdict)
    assert shown["call"] == "scaled(np.array([1., -2.]), 3.0)"
    names = {"np": np, "scaled": halved}
    assert np.array_equal(eval(shown["call"], names), eval(shown["got"], names))
    right = eval(shown["call"], {"np": np, "scaled": scaled})
    assert np.array_equal(right, eval(shown["expected"], names))
    assert shown["largest difference"] == "[1]: got -3.0, expected -6.0"


def test_a_step_shows_its_calls_its_own_way() -> None:
    build = replace(BUILD, show=lambda x, factor: f"scaled(x)  # factor {factor}", relations=())
    assert evidence(judge(halved, build))["call"] == "scaled(x)  # factor 3.0"


def test_a_broken_relation_shows_its_sentence_and_its_calls() -> None:
    verdict = judge(squared)
    labels = [item.label for item in verdict.evidence]
    assert labels == ["relation", "call", "got", "call", "got"]
    assert evidence(verdict)["relation"] == "twice the input gives twice the output"


def test_a_relation_that_cannot_read_the_results_does_not_hold() -> None:
    def grumpy(group: Any, out: Any) -> bool:
        raise IndexError

    relation = replace(BUILD.relations[0], holds=grumpy)
    verdict = judge(scaled, replace(BUILD, relations=(relation,)))
    assert (verdict.outcome, states(verdict)[Stage.RELATIONS]) == (
        Outcome.WRONG,
        StageState.FAILED,
    )


def test_a_constant_factor_of_a_gradient_is_told() -> None:
    verdict = judge(lambda x, factor: -scaled(x, factor), replace(BUILD, relations=()), mistakes=())
    assert evidence(verdict)["gradient"] == "for input 1 every entry is -1 times the right one"


def test_printed_text_is_shown_with_a_failure_only() -> None:
    def printed(run: Run) -> Run:
        return replace(run, printed="x" * 1000)

    assert len(evidence(judge(halved, change=printed))["printed"]) == 400
    assert judge(scaled, change=printed).evidence == ()


def test_a_method_is_called_by_its_whole_name() -> None:
    verdict = judge(halved, replace(BUILD, part="maths.scaling:Scale", methods=("apply",)))
    assert verdict.headline.startswith("Scale.apply ")


# ---------------------------------------------------------------------- exceptions


def test_an_expected_exception_must_come_and_be_of_its_type() -> None:
    verdict = judge(unguarded, mistakes=())
    assert verdict.outcome is Outcome.WRONG
    assert verdict.headline == "scaled accepts a call that its contract refuses."
    assert evidence(verdict)["call"] == "scaled(np.array([1., 1.]), -1.0)"
    assert evidence(verdict)["expected"] == "ValueError"

    def other_type(x: Any, factor: Any) -> Any:
        if factor < 0:
            raise TypeError("negative")
        return scaled(x, factor)

    verdict = judge(other_type)
    assert verdict.outcome is Outcome.WRONG
    assert verdict.headline == (
        "scaled refuses a call with TypeError where its contract names ValueError."
    )
    assert evidence(verdict)["got"] == "TypeError: negative"


def test_an_exception_on_a_valid_call_is_broken_code() -> None:
    def impatient(x: Any, factor: Any) -> Any:
        if x.ndim == 2:
            raise RuntimeError("two axes")
        return scaled(x, factor)

    verdict = judge(impatient)
    assert verdict.outcome is Outcome.BROKEN
    assert evidence(verdict)["raised"] == "RuntimeError: two axes"
    assert evidence(verdict)["call"].startswith("scaled(np.array([[")
    assert verdict.line is not None
    assert not verdict.outcome.costs_attempt


def test_not_implemented_is_unfinished_wherever_it_comes() -> None:
    def half_done(x: Any, factor: Any) -> Any:
        if factor < 1:
            raise NotImplementedError
        return scaled(x, factor)

    verdict = judge(half_done)
    assert (verdict.outcome, verdict.mistake) == (Outcome.UNFINISHED, None)
    assert not verdict.outcome.costs_attempt


# ---------------------------------------------------------------------- runs that did not finish


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (RunStatus.MISSING, Outcome.BROKEN),
        (RunStatus.SYNTAX, Outcome.BROKEN),
        (RunStatus.IMPORT, Outcome.BROKEN),
        (RunStatus.REFERENCE, Outcome.LIBRARY),
        (RunStatus.TIME, Outcome.STOPPED),
        (RunStatus.MEMORY, Outcome.STOPPED),
        (RunStatus.OUTPUT, Outcome.STOPPED),
        (RunStatus.PROCESSES, Outcome.STOPPED),
        (RunStatus.EXITED, Outcome.STOPPED),
        (RunStatus.CRASHED, Outcome.STOPPED),
        (RunStatus.ENGINE, Outcome.UNDECIDED),
    ],
)
@pytest.mark.parametrize("full", [False, True], ids=["without results", "with right results"])
def test_a_run_that_did_not_finish_is_never_a_pass(
    status: RunStatus, outcome: Outcome, full: bool
) -> None:
    def stopped(run: Run) -> Run:
        return replace(
            run,
            status=status,
            results=run.results if full else (),
            message="It ended.",
            current=0,
            line=4,
            source="  while True:",
        )

    verdict = judge(scaled, change=stopped)
    assert verdict.outcome is outcome
    assert states(verdict)[Stage.IMPORT] is StageState.FAILED
    assert verdict.mistake is None
    if outcome is Outcome.STOPPED:
        assert evidence(verdict) == {
            "call": "scaled(np.array([1., -2.]), 3.0)",
            "line": "4: while True:",
        }
        assert verdict.line == 4


def test_every_status_has_been_asked_about() -> None:
    marks = test_a_run_that_did_not_finish_is_never_a_pass.pytestmark
    asked = {case[0] for mark in marks for case in mark.args[1] if isinstance(case, tuple)}
    assert asked == set(RunStatus) - {RunStatus.FINISHED}


@pytest.mark.parametrize("keep", [0, 1, 5])
def test_fewer_results_than_calls_is_undecided(keep: int) -> None:
    def cut(run: Run) -> Run:
        return replace(run, results=run.results[:keep])

    verdict = judge(scaled, change=cut)
    assert verdict.outcome is Outcome.UNDECIDED
    assert not verdict.outcome.costs_attempt


def test_more_results_than_calls_is_undecided() -> None:
    verdict = judge(scaled, change=lambda run: replace(run, results=run.results * 2))
    assert verdict.outcome is Outcome.UNDECIDED


def test_a_result_without_its_arguments_is_undecided() -> None:
    def stripped(run: Run) -> Run:
        first = run.results[0]
        assert isinstance(first, Returned)
        return replace(run, results=(replace(first, arguments=()), *run.results[1:]))

    assert judge(scaled, change=stripped).outcome is Outcome.UNDECIDED


def test_a_forbidden_use_is_its_own_verdict() -> None:
    verdict = judge(scaled, change=lambda run: replace(run, used=("numpy.multiply", "@")))
    assert verdict.outcome is Outcome.LIBRARY
    assert "uses numpy.multiply, @" in verdict.headline
    assert verdict.outcome.costs_attempt


# ---------------------------------------------------------------------- signature


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("(a, b=1, *, c)", ["a", "b", "*", "c"]),
        ("(a: int, /, *rest: float, **named) -> 'X'", ["a", "*rest", "**named"]),
        ("()", []),
        ("(x: <no expression>)", None),
    ],
)
def test_parameters(text: str, names: list[str] | None) -> None:
    assert parameters_of(text) == names


def test_annotations_and_defaults_are_free_and_names_are_not() -> None:
    def annotated(x: np.ndarray[Any, Any], factor: float = 2.0) -> object:
        return scaled(x, factor)

    assert judge(annotated).passed
    verdict = judge(other_name)
    assert evidence(verdict) == {"found": "(x, scale)", "expected": "(x, factor)"}


@pytest.mark.parametrize(
    ("signature", "right"),
    [
        ("(x, factor, verbose=False)", True),
        ("(x, factor, *, verbose=False, **named)", True),
        ("(x, factor, *rest)", True),
        ("(*arguments, **named)", True),  # a decorator without functools.wraps, numpy.vectorize
        ("(x, factor, scale)", False),
        ("(x, factor, *, verbose)", False),
        ("(*arguments)", False),
        ("(factor, x)", False),
        ("(x)", False),
        ("()", False),
    ],
)
def test_parameters_beyond_the_starters_are_optional(signature: str, right: bool) -> None:
    verdict = judge(scaled, change=lambda run: replace(run, signature=signature))  # PROTOCOL G4
    assert verdict.passed is right


def test_an_exception_of_a_derived_class_is_the_one_of_the_contract() -> None:
    class NegativeFactor(ValueError):
        pass

    def derived(x: Any, factor: Any) -> Any:
        if factor < 0:
            raise NegativeFactor("negative")
        return scaled(x, factor)

    assert judge(derived).passed


def test_a_signature_that_cannot_be_read_is_no_fault() -> None:
    assert judge(scaled, change=lambda run: replace(run, signature=None)).passed


# ---------------------------------------------------------------------- values


def test_infinity_where_a_number_is_expected_is_not_finite() -> None:
    verdict = judge(lambda x, factor: scaled(x, factor) / np.where(x == -2.0, 0.0, 1.0))
    assert "not finite" in verdict.headline
    assert evidence(verdict)["got"] == "np.array([3., -np.inf])"


def test_infinity_where_it_is_expected_passes() -> None:
    build = replace(
        BUILD,
        probes=lambda generator: [(np.array([np.inf, 1.0]), 2.0)],
        relations=(),
        gradient=None,
    )
    assert judge(scaled, build, mistakes=()).passed
    verdict = judge(lambda x, factor: -scaled(x, factor), build, mistakes=())
    assert states(verdict)[Stage.VALUES] is StageState.FAILED


def test_float32_is_refused_and_an_opaque_object_too() -> None:
    verdict = judge(lambda x, factor: scaled(x, factor).astype(np.float32))
    assert "dtype float32 instead of float64" in verdict.headline
    verdict = judge(lambda x, factor: {1, 2} if factor >= 0 else scaled(x, factor))
    assert "an object of type set" in verdict.headline


def test_an_argument_changed_in_place_is_wrong_unless_it_is_allowed() -> None:
    def writes_into_x(x: Any, factor: Any) -> Any:
        result = scaled(x, factor)
        x += 1
        return result

    verdict = judge(writes_into_x)
    assert verdict.outcome is Outcome.WRONG
    assert verdict.headline == "scaled changes its argument 1 in place."
    assert evidence(verdict)["argument after the call"] == "np.array([2., -1.])"
    assert judge(writes_into_x, replace(BUILD, mutates=(0,))).passed
    assert not judge(writes_into_x, replace(BUILD, mutates=(1,))).passed


# ---------------------------------------------------------------------- layout

VIEW = replace(
    BUILD,
    id="view",
    oracle=lambda x, factor: x[::-1] if factor >= 0 else oracle(x, factor),
    relations=(),
    gradient=None,
    layout=Layout(shares_argument=0),
)


def reversed_view(x: Any, factor: Any) -> Any:
    return x[::-1] if factor >= 0 else scaled(x, factor)


def test_a_view_passes_and_a_copy_does_not() -> None:
    assert judge(reversed_view, VIEW, mistakes=()).passed
    verdict = judge(lambda x, factor: reversed_view(x, factor).copy(), VIEW, mistakes=())
    assert verdict.outcome is Outcome.WRONG
    assert "right, its memory is not: the result is a copy" in verdict.headline
    assert evidence(verdict)["strides"] == "[8]"


def test_a_copy_may_be_asked_for() -> None:
    fresh = replace(VIEW, layout=Layout(shares_argument=-1))
    verdict = judge(reversed_view, fresh, mistakes=())
    assert "shares the memory of argument 1" in verdict.headline
    assert judge(lambda x, factor: reversed_view(x, factor).copy(), fresh, mistakes=()).passed


def test_contiguity_both_ways() -> None:
    assert "not contiguous" in judge(in_fortran_order).headline
    strided = replace(VIEW, layout=Layout(contiguous=False))
    assert judge(reversed_view, strided, mistakes=()).passed
    copied = judge(lambda x, factor: reversed_view(x, factor).copy(), strided, mistakes=())
    assert copied.headline.endswith("the result is contiguous.")


def test_allocated_bytes_are_counted() -> None:
    def wasteful(x: Any, factor: Any) -> Any:
        np.zeros(100_000)
        return scaled(x, factor)

    verdict = judge(wasteful)
    assert "allocates more than it may" in verdict.headline
    allocated = re.match(r"(\d+) bytes, at most 4096 are needed", evidence(verdict)["allocated"])
    assert allocated is not None
    assert int(allocated[1]) >= 800_000


# ---------------------------------------------------------------------- speed

QUICK = replace(
    BUILD,
    speed=Speed(arguments=lambda generator: (np.ones(9), 2.0), ratio=3.0, why="It is one pass."),
)


def test_slow_needs_a_measurement_and_is_never_wrong() -> None:  # PROTOCOL G2, G3
    verdict = judge(scaled, QUICK, learner_seconds=0.040, reference_seconds=0.010)
    assert verdict.outcome is Outcome.SLOW
    assert "4.0 times as long" in verdict.headline
    assert verdict.headline.endswith("It is one pass.")
    assert evidence(verdict) == {"yours": "40.000 ms", "reference": "10.000 ms"}
    assert states(verdict)[Stage.SPEED] is StageState.FAILED
    assert set(list(states(verdict).values())[:-1]) == {StageState.PASSED}
    assert verdict.mistake is None
    assert not verdict.outcome.costs_attempt
    assert judge(scaled, QUICK, learner_seconds=0.03, reference_seconds=0.01).passed


@pytest.mark.parametrize(("mine", "reference"), [(None, 1.0), (1.0, None), (1.0, 0.0)])
def test_without_a_measurement_it_is_undecided(mine: Any, reference: Any) -> None:
    verdict = judge(scaled, QUICK, learner_seconds=mine, reference_seconds=reference)
    assert verdict.outcome is Outcome.UNDECIDED


def test_wrong_code_is_wrong_however_slow_it_is() -> None:
    verdict = judge(halved, QUICK, learner_seconds=9.0, reference_seconds=0.01)
    assert verdict.outcome is Outcome.WRONG
    assert states(verdict)[Stage.SPEED] is StageState.NOT_RUN


# ---------------------------------------------------------------------- what nobody may pass with


@pytest.mark.parametrize(
    "result",
    [
        Returned(None, ()),
        Returned(Opaque("Everything"), ()),
        Raised("ValueError", "always", None),
        Returned(np.array(0.0), ()),
        Returned("passed", ()),
    ],
    ids=["None", "opaque", "exception", "zero", "text"],
)
def test_the_same_result_for_every_call_never_passes(result: Returned | Raised) -> None:
    def same(run: Run) -> Run:
        results = tuple(
            replace(
                result, arguments=(np.ones(2), -1.0) if isinstance(call, Raised) else call.arguments
            )
            if isinstance(result, Returned)
            else result
            for call in run.results
        )
        return replace(run, results=results)

    assert not judge(scaled, change=same).passed
