"""Defend: a design under a budget, and the figures that support it, which are recomputed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from firsthand.course.answers import (
    Malformed,
    read_number,
    refuse_statement,
    show_number,
    split_assignments,
)
from firsthand.course.questions.grading import (
    MOST_DRAWS,
    Mistakes,
    Question,
    QuestionError,
    WrongLines,
    apart,
    close,
    finite,
    generator_for,
    graded,
    is_zero,
    only,
    passed,
    with_unit,
    wrong,
)
from firsthand.course.questions.lines import NUMBER, scaled, with_value
from firsthand.course.steps import Defend, Scenario
from firsthand.course.verdicts import Evidence, Verdict

Figures = Mapping[str, float]


def ask_defend(step: Defend, seed: int, mistakes: Mistakes, small: bool = False) -> Question:
    """Raises QuestionError where the scenario has no fitting best choice or mistakes coincide."""
    generator = generator_for(step.id, seed, small)
    for _ in range(MOST_DRAWS):
        scenario = step.draw(generator, small)
        if _fair(scenario):
            break
    else:
        raise QuestionError(
            f"step {step.id}: in {MOST_DRAWS} draws there was never a best choice within the "
            "budget whose figures are finite, non-zero and different from every mistake's"
        )
    form = _form(scenario)
    choices = "\n".join(f"- `{name}`: {text}" for name, text in scenario.choices.items())
    names = _figure_names(scenario)
    figures = "\n".join(
        f"- `{name}`" + (f" in {scenario.units[name]}" if name in scenario.units else "")
        for name in names
    )
    best = scenario.best[0]
    return Question(
        prompt=(
            f"{scenario.text}\n\nThe choices:\n\n{choices}\n\n"
            f"State your choice and its figures, to within {100 * scenario.tolerance:.3g} %:\n\n"
            f"{figures}"
        ),
        form=form,
        grade=graded(lambda text: _judge(text, scenario, mistakes, form)),
        working=tuple(scenario.working),
        wrong_lines=_wrong_lines(scenario),
        solution=_answer(best, _plain(scenario, best)),
        seed=seed,
        parameters={"text": scenario.text, "choices": list(scenario.choices)},
        wrong_answers={
            mistake: _answer(choice, {**_plain(scenario, choice), **designs[choice]})
            for mistake, designs in scenario.wrong.items()
            for choice in (best if best in designs else next(iter(designs)),)
        },
    )


def _answer(choice: str, figures: Figures) -> str:
    return "; ".join((choice, *(f"{name} = {float(value)!r}" for name, value in figures.items())))


def _plain(scenario: Scenario, choice: str) -> dict[str, float]:
    return {
        name: value.item() if hasattr(value, "item") else value
        for name, value in scenario.figures[choice].items()
    }


def _figure_names(scenario: Scenario) -> list[str]:
    return list(dict.fromkeys(name for values in scenario.figures.values() for name in values))


def _over_budget(scenario: Scenario, figures: Figures) -> list[str]:
    return [name for name, most in scenario.budget.items() if figures.get(name, 0.0) > most]


def _judge(text: str, scenario: Scenario, mistakes: Mistakes, form: str) -> Verdict:
    choice, stated = _read(text, scenario, form)
    right = _plain(scenario, choice)
    off = [name for name in right if not close(stated[name], right[name], scenario.tolerance)]
    shown = tuple(
        Evidence("read as", f"{name} = {with_unit(stated[name], scenario.units.get(name, ''))}")
        for name in (off or right)
    )
    if off:
        matches = [
            mistake
            for mistake, wrong_figures in scenario.wrong.items()
            if choice in wrong_figures
            and _matches(stated, {**right, **wrong_figures[choice]}, scenario.tolerance)
        ]
        which = ", ".join(f"`{name}`" for name in off)
        headline = f"For `{choice}` this does not agree with what is computed: {which}."
        return wrong(headline, *shown, mistake=only(matches, mistakes))
    if broken := _over_budget(scenario, right):
        which = ", ".join(f"`{name}`" for name in broken)
        return wrong(
            f"The figures are right, and {which} of `{choice}` is over the budget.",
            *shown,
            question="Which of the choices stays within every limit?",
        )
    if choice not in scenario.best:
        return wrong(
            f"The figures are right and `{choice}` fits the budget, but another fitting choice "
            "meets the stated goal better.",
            *shown,
            question="What does the goal ask for, beside the limits?",
        )
    values = ", ".join(
        f"{name} = {with_unit(value, scenario.units.get(name, ''))}"
        for name, value in right.items()
    )
    return passed(f"Right: `{choice}` fits the budget and meets the goal; {values}.")


def _matches(stated: Figures, values: Figures, tolerance: float) -> bool:
    return all(close(stated[name], value, tolerance) for name, value in values.items())


def _read(text: str, scenario: Scenario, form: str) -> tuple[str, dict[str, float]]:
    refuse_statement(text, form)
    before, values = split_assignments(text, _figure_names(scenario), form)
    written = re.sub(r"^choice\s*[=:]?\s*", "", before, flags=re.IGNORECASE).strip(" `'\"\n")
    names = [name for name in scenario.choices if name.casefold() == written.casefold()]
    if len(names) != 1:
        known = ", ".join(scenario.choices)
        problem = "The choice is missing" if not written else f"`{written[:40]}` is not a choice"
        raise Malformed(f"{problem}; the choices are {known}.", form)
    choice = names[0]
    wanted = scenario.figures[choice]
    if missing := [name for name in wanted if name not in values]:
        raise Malformed(f"Missing: {', '.join(missing)}.", form)
    return choice, {
        name: read_number(values[name], scenario.units.get(name, ""), form=form).value
        for name in wanted
    }


def _fair(scenario: Scenario) -> bool:
    for choice, wanted in scenario.figures.items():
        if choice not in scenario.choices or not all(map(finite, wanted.values())):
            return False
        versions = [dict(wanted)]
        versions += [{**wanted, **w[choice]} for w in scenario.wrong.values() if choice in w]
        for index, a in enumerate(versions):
            for b in versions[index + 1 :]:
                if not any(apart(a[name], b[name], scenario.tolerance) for name in wanted):
                    return False
    return bool(scenario.best) and all(
        choice in scenario.figures
        and not _over_budget(scenario, scenario.figures[choice])
        and not all(is_zero(value) for value in scenario.figures[choice].values())
        for choice in scenario.best
    )


def _wrong_lines(scenario: Scenario) -> WrongLines:
    """For each mistake the working line that shows a figure of a design, with its wrong value."""
    lines = []
    for mistake, designs in scenario.wrong.items():
        pairs = [
            (scenario.figures[choice][name], value)
            for choice, values in designs.items()
            for name, value in values.items()
            if apart(scenario.figures[choice][name], value, scenario.tolerance)
        ]
        line = _line_with(scenario.working, pairs)
        if line is not None:
            lines.append((mistake, line))
    return tuple(lines)


def _line_with(working: tuple[str, ...], pairs: list[tuple[float, float]]) -> str | None:
    for line in reversed(working):
        for hit in reversed(list(NUMBER.finditer(line))):
            for right, value in pairs:
                if close(float(hit.group().replace("_", "")), right, 1e-3):
                    return with_value(line, right, float(f"{value:.6g}"))
    # a line may show the figure in another unit: the ratio stays what the mistake makes of it
    usable = [(right, value) for right, value in pairs if right]
    if not usable:
        return None
    right, value = usable[0]
    changed = (scaled(line, value / right) for line in reversed(working))
    return next((line for line in changed if line is not None), None)


def _form(scenario: Scenario) -> str:
    choice = next(iter(scenario.choices))
    stated = "; ".join(
        f"{name} = {show_number(0.125)} {scenario.units.get(name, '')}".strip()
        for name in scenario.figures[choice]
    )
    return f"a choice and its figures, for example `{choice}; {stated}`"
