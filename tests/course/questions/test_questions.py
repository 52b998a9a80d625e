"""The six kinds of question: what passes, what is named, what is never shown."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.course.answers import read_number, show_value
from firsthand.course.questions import grading
from firsthand.course.questions.measure import ExperimentError, measured
from firsthand.course.questions.question import Question, QuestionError, ask
from firsthand.course.steps import Build, Line, Order
from firsthand.course.verdicts import Outcome, Verdict

SEEDS = 200
STATEMENTS = ("", "yes", "ok", "I understand", "entiendo", "d'accord", "verstanden", "понятно")


def said(verdict: Verdict) -> str:
    parts = [verdict.headline, verdict.question or "", *(item.text for item in verdict.evidence)]
    return "\n".join([*parts, json.dumps(verdict.data)])


def shows(text: str, value: object) -> bool:
    """Whether the value stands in the text as a token of its own."""
    return re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w.]*\w)", text) is not None


def seeds_for(name: str) -> range:
    return range(3 if name == "measure" else SEEDS)


def test_the_right_answer_passes_on_every_seed(samples: dict[str, Any]) -> None:
    for name, sample in samples.items():
        for seed in seeds_for(name):
            question = ask(sample.step, seed, sample.mistakes, small=seed % 2 == 1)
            answer = "640 MB/s" if name == "measure" else question.solution
            verdict = question.grade(answer)
            assert verdict.outcome is Outcome.PASSED, (name, seed, answer, verdict)
            json.dumps(question.parameters)


def test_a_question_is_a_function_of_step_seed_and_size(sample: Any) -> None:
    first, again = (ask(sample.step, 7, sample.mistakes) for _ in range(2))
    assert replace(first, grade=again.grade) == again
    if sample.step.kind != "Measure":
        others = [ask(sample.step, seed, sample.mistakes).prompt for seed in range(8, 20)]
        assert any(prompt != first.prompt for prompt in others)
        assert ask(sample.step, 7, sample.mistakes, small=True).prompt != first.prompt


def test_every_mistake_is_named_with_its_own_id(samples: dict[str, Any]) -> None:
    for name in ("predict", "shape", "share"):
        step, mistakes = samples[name].step, samples[name].mistakes
        for seed in range(SEEDS):
            question = ask(step, seed, mistakes, small=seed % 2 == 1)
            right = grading.plain(step.answer(**question.parameters))
            for mistake in mistakes:
                value = mistake.formula(**question.parameters)
                verdict = question.grade(show_value(value))
                assert verdict.outcome is Outcome.WRONG
                assert verdict.mistake == mistake.id
                assert mistake.belief in verdict.headline
                assert verdict.question == mistake.question
                assert not shows(said(verdict), show_value(right)), verdict
                assert "accepted" not in verdict.data


def test_every_wrong_expression_is_named(samples: dict[str, Any]) -> None:
    step, mistakes = samples["derive"].step, samples["derive"].mistakes
    for seed in range(40):
        question = ask(step, seed, mistakes)
        k = int(re.findall(r"L = (\d+)", question.prompt)[0])
        answers = {
            "no-chain": f"2*{k}*(wx - y)",
            "no-two": f"{k}x(w x - y)",
            "sign": f"-{2 * k} x (w x - y)",
        }
        for name, text in answers.items():
            verdict = question.grade(text)
            assert verdict.outcome is Outcome.WRONG
            assert verdict.mistake == name
            assert question.solution not in said(verdict)
            assert "yours is" in said(verdict)


def test_every_wrong_trace_is_named_and_the_right_blanks_are_told(
    samples: dict[str, Any],
) -> None:
    step, mistakes = samples["trace"].step, samples["trace"].mistakes
    for seed in range(SEEDS):
        question = ask(step, seed, mistakes)
        w, x, b = map(int, re.findall(r"= (\d+)", question.prompt)[:3])
        product, z = w * x, w * x + b
        right = {"product": product, "z": z, "a": math.tanh(z / 100), "size": (1, 1)}
        wrong = {
            "no-bias": {"z": product, "a": math.tanh(product / 100)},
            "sum": {"product": w + x, "z": w + x + b, "a": math.tanh((w + x + b) / 100)},
        }
        for name, values in wrong.items():
            answer = right | values
            verdict = question.grade(", ".join(f"{key} = {value}" for key, value in answer.items()))
            assert verdict.mistake == name
            first = next(iter(values))
            assert f"`{first}`" in verdict.headline
            for blank in values:
                assert not shows(said(verdict), right[blank])
        verdict = question.grade("; ".join(map(str, (right | {"a": 0.123}).values())))
        assert verdict.outcome is Outcome.WRONG
        assert verdict.mistake is None
        assert verdict.evidence[0].text == "product, z, size"


def letters(question: Question) -> dict[str, str]:
    return {text: letter for letter, text in re.findall(r"^([A-Z])  (.*)$", question.prompt, re.M)}


def test_order_is_graded_on_the_graph(samples: dict[str, Any]) -> None:
    step, mistakes = samples["order"].step, samples["order"].mistakes
    text_of = {line.id: line.text for line in step.lines}
    for seed in range(SEEDS):
        question = ask(step, seed, mistakes)
        letter = letters(question)

        def answer(ids: str, letter: dict[str, str] = letter) -> str:
            return " ".join(letter[text_of[name]] for name in ids.split())

        for order in ("out act z w b", "act out z b w", "out act z b w"):
            assert question.grade(answer(order)).passed
        for order in ("z out act w b", "out z act w b", "b w z act out", "w b z out act"):
            verdict = question.grade(answer(order))
            assert verdict.outcome is Outcome.WRONG
            assert "before a line that it needs" in verdict.headline
        early = question.grade(answer("out z act w b"))
        assert f"Line {letter[text_of['z']]} " in early.headline
        missing = question.grade(answer("out act z w"))
        assert missing.outcome is Outcome.WRONG
        for name, text in step.wrong.items():
            verdict = question.grade(f"{answer('out act z w')} {letter[text]}")
            assert verdict.mistake == name
            assert verdict.outcome is Outcome.WRONG
        both = question.grade(" ".join(letter[text] for text in step.wrong.values()))
        assert both.mistake is None
        assert "2 of these lines are wrong" in both.headline


def test_a_small_order_is_the_first_half_closed_under_needs(samples: dict[str, Any]) -> None:
    sample = samples["order"]
    question = ask(sample.step, 3, sample.mistakes, small=True)
    assert question.parameters["lines"] == ["out", "act", "z"]


def test_every_wrong_figure_is_named(samples: dict[str, Any]) -> None:
    step, mistakes = samples["defend"].step, samples["defend"].mistakes
    for seed in range(SEEDS):
        question = ask(step, seed, mistakes)
        scenario = step.draw(grading.generator_for(step.id, seed, False), False)
        for choice, figures in scenario.figures.items():
            for name, wrong in scenario.wrong.items():
                stated = {**figures, **wrong[choice]}
                text = f"{choice}; memory = {stated['memory']} MB; error = {stated['error']}"
                verdict = question.grade(text)
                assert verdict.mistake == name
                assert "`memory`" in verdict.headline
                assert not shows(said(verdict), show_value(figures["memory"]))


def test_defend_tells_budget_and_goal_apart(samples: dict[str, Any]) -> None:
    sample = samples["defend"]
    question = ask(sample.step, 5, sample.mistakes)
    unit = int(re.findall(r"^(\d+) million", question.prompt)[0])
    over = question.grade(f"float32; memory = {4 * unit}; error = 1")
    assert over.outcome is Outcome.WRONG
    assert "`memory` of `float32` is over the budget" in over.headline
    fits = question.grade(f"choice = INT8, memory: {unit * 10**6} bytes, error: 9")
    assert fits.outcome is Outcome.WRONG
    assert "goal" in fits.headline
    best = question.grade(f"float16\nmemory = {2 * unit} MB\nerror = 3")
    assert best.passed
    missing = question.grade("float16; memory = 5 MB")
    assert missing.outcome is Outcome.MALFORMED
    assert "Missing: error" in missing.headline
    no_choice = question.grade("memory = 5 MB; error = 3")
    assert no_choice.outcome is Outcome.MALFORMED
    assert "float32, float16, int8" in no_choice.headline
    off = question.grade(f"float16; memory = {3 * unit + 1} MB; error = 3")
    assert off.mistake is None
    assert "`error`" not in off.headline


def test_zero_and_negated_answers_fail(samples: dict[str, Any]) -> None:
    for name in ("predict", "share"):
        step = samples[name].step
        for seed in range(SEEDS):
            question = ask(step, seed, samples[name].mistakes)
            for text in ("0", f"-({question.solution})"):
                assert question.grade(text).outcome is Outcome.WRONG
    for text in ("0", "-640"):
        assert ask(samples["measure"].step, 0, ()).grade(text).outcome is Outcome.WRONG
    derive = ask(samples["derive"].step, 0, samples["derive"].mistakes)
    for text in ("0", f"-({derive.solution})"):
        assert derive.grade(text).outcome is Outcome.WRONG
    trace = ask(samples["trace"].step, 0, samples["trace"].mistakes)
    assert trace.grade("0; 0; 0; (0, 0)").outcome is Outcome.WRONG
    negated = re.sub(r"= (?=\d)", "= -", trace.solution)
    assert trace.grade(negated).outcome is Outcome.WRONG
    shape = ask(samples["shape"].step, 0, samples["shape"].mistakes)
    assert shape.grade("(0, 0, 0)").outcome is Outcome.WRONG


def test_c4_a_statement_costs_nothing_and_says_the_form(sample: Any) -> None:
    question = ask(sample.step, 0, sample.mistakes)
    for text in STATEMENTS:
        verdict = question.grade(text)
        assert verdict.outcome is Outcome.MALFORMED
        assert not verdict.outcome.costs_attempt
        assert f"An answer here is {question.form}" in verdict.headline


def test_the_example_of_a_form_never_passes(sample: Any) -> None:
    for seed in range(30):
        question = ask(sample.step, seed, sample.mistakes)
        examples = re.findall(r"`([^`]+)`", question.form)
        assert examples
        for example in examples:
            verdict = question.grade(example)
            assert verdict.outcome is Outcome.WRONG, (example, verdict)
        if sample.step.kind == "Measure":
            break


@given(text=st.text(max_size=40))
def test_any_text_is_graded(text: str, samples: dict[str, Any]) -> None:
    for name, sample in samples.items():
        if name != "measure":
            verdict = ask(sample.step, 1, sample.mistakes).grade(text)
            assert verdict.outcome is not Outcome.UNDECIDED
            assert Verdict.from_json(verdict.to_json()) == verdict


@given(factor=st.floats(0.2, 5.0))
def test_an_unnamed_wrong_number_is_read_back_and_nothing_else(
    factor: float, samples: dict[str, Any]
) -> None:
    sample = samples["share"]
    question = ask(sample.step, 11, sample.mistakes)
    right = float(question.solution)
    typed = f"{right * factor:.6f}"
    verdict = question.grade(typed + " %")
    inside = abs(float(typed) - right) <= 0.01 * right
    assert verdict.passed == inside
    if not inside:
        assert verdict.mistake is None
        assert f"Read as {show_value(read_number(typed).value)} %" in verdict.headline
        assert "large" not in said(verdict)
        assert "small" not in said(verdict)


def test_the_accepted_interval_is_told_after_the_pass_only(samples: dict[str, Any]) -> None:
    sample = samples["share"]
    question = ask(sample.step, 4, sample.mistakes)
    right = float(question.solution)
    verdict = question.grade(question.solution)
    low, high = verdict.data["accepted"]
    assert (low, high) == (pytest.approx(right * 0.99), pytest.approx(right * 1.01))
    assert "Accepted: " in verdict.headline
    assert question.grade(str(low + 1e-9)).passed
    assert not question.grade(str(low - 1e-3)).passed


def test_the_rank_of_a_shape_may_be_told(samples: dict[str, Any]) -> None:
    question = ask(samples["shape"].step, 0, samples["shape"].mistakes)
    assert "number of axes" in said(question.grade("(2, 3)"))
    assert "number of axes" not in said(question.grade("(2, 3, 1)"))


def test_declarations_without_a_fair_draw_name_their_step(samples: dict[str, Any]) -> None:
    cache, mistakes = samples["predict"].step, samples["predict"].mistakes
    same = replace(mistakes[0], id="same", formula=cache.answer)
    with pytest.raises(QuestionError, match="cache-bytes"):
        ask(cache, 0, (*mistakes, same))
    with pytest.raises(QuestionError, match="cache-bytes"):
        ask(replace(cache, answer=lambda **_: 0), 0, ())
    with pytest.raises(QuestionError, match="cache-bytes"):
        ask(replace(cache, answer=lambda **_: float("nan")), 0, ())
    square = samples["derive"].step
    for other in ("2*x*(w*x - y)", "2*x*y + 2*x*(w*x - 2*y)"):

        def draw(generator: Any, small: bool, other: str = other) -> Any:
            drawn = square.draw(generator, small)
            return replace(drawn, answer="2*x*(w*x - y)", wrong={"same": other})

        with pytest.raises(QuestionError, match="square-gradient"):
            ask(replace(square, draw=draw), 0, ())
    order = samples["order"].step
    free = replace(order, lines=(Line(id="a", text="a"), Line(id="b", text="b")))
    with pytest.raises(QuestionError, match="backward"):
        ask(free, 0, ())
    backwards = Order(id="o", ask="", lines=tuple(reversed(order.lines)), wrong={})
    with pytest.raises(QuestionError, match="declared before"):
        ask(backwards, 0, ())


def test_a_crash_of_the_checker_is_undecided() -> None:
    def crash(text: str) -> Verdict:
        raise KeyError("lost")

    verdict = grading.graded(crash)("1")
    assert verdict.outcome is Outcome.UNDECIDED
    assert not verdict.outcome.costs_attempt


def test_measure_does_not_tell_a_refused_number_what_was_measured(samples: dict[str, Any]) -> None:
    question = ask(samples["measure"].step, 0, ())
    for text, outcome in (("330", Outcome.PASSED), ("1.25 GB/s", Outcome.PASSED)):
        assert question.grade(text).outcome is outcome
    for text in ("300", "1300"):
        verdict = question.grade(text)
        assert verdict.outcome is Outcome.WRONG
        said = verdict.headline + "".join(item.text for item in verdict.evidence)
        assert text in said
        assert "640" not in said


def crash() -> float:
    raise RuntimeError("no such device")


def leave() -> float:
    import os

    os._exit(0)


def hang() -> float:
    time.sleep(600)
    return 1.0


@pytest.mark.parametrize(
    ("experiment", "says"),
    [
        (crash, "no such device"),
        (leave, "without a number"),
        (hang, "longer than"),
        (lambda: float("nan"), "not a positive number"),
        (lambda: 0.0, "not a positive number"),
        (lambda: "text", "ValueError"),
    ],
)
def test_an_experiment_that_fails_is_undecided(
    experiment: Any, says: str, samples: dict[str, Any]
) -> None:
    step = replace(samples["measure"].step, experiment=experiment, seconds=1.0)
    with pytest.raises(ExperimentError, match=says):
        measured(step)
    verdict = ask(step, 0, ()).grade("640")
    assert verdict.outcome is Outcome.UNDECIDED
    assert says in said(verdict)


def test_steps_answered_with_a_file_have_no_typed_question() -> None:
    build = Build(
        id="b",
        part="a:b",
        probes=lambda generator: [],
        oracle=lambda: 0,
        small=lambda: (),
        key_line="",
    )
    with pytest.raises(TypeError, match="file"):
        ask(build, 0, ())
