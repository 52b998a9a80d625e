"""`firsthand course check` reports each broken promise, at the step that breaks it.

Each sabotage is an edit of a copy of session 1.1; the copy itself has no finding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firsthand.course.authoring import Finding, Seeds, answer_stands_in, check_course, sentences
from firsthand.course.checks.cheats import cheats, mapped, pairwise_different
from firsthand.course.loading import Course
from firsthand.course.questions.question import ask

Copy = Callable[..., Course]
QUICK = Seeds(builds=1, answers=1, measures=1)
TOML, LESSON, STEPS, MISTAKES = "session.toml", "lesson.md", "steps.py", "mistakes.py"

PROSE_OF_BYTES = "An array keeps its elements side by side with nothing between them."
HINT_OF_BYTES = "The name float64 tells the width of one element, in bits."
SABOTAGES: dict[str, tuple[tuple[tuple[str, str, str], ...], str, str]] = {
    # name: edits, place, words of the finding
    "a mistake equal to the reference": (
        ((MISTAKES, '(("total += ", "total = "),)', '(("total += ", "total += 0 + "),)'),),
        "1.1/dot-product",
        "the mistake last-product-only passes",
    ),
    "two mistakes that are one": (
        (
            (
                MISTAKES,
                '(("return total", "return total / max(len(weights), 1)"),)',
                '(("total += ", "total = "),)',
            ),
        ),
        "1.1/dot-product",
        "the mistake mean-of-products is diagnosed as None",
    ),
    "a mistake that does not apply": (
        ((MISTAKES, '(("total += ", "total = "),)', '(("totals += ", "total = "),)'),),
        "1.1/dot-product",
        "a mistake does not apply",
    ),
    "a mistake of no step": (
        (
            (
                MISTAKES,
                'id="bits-for-bytes",\n        step="vector-bytes"',
                'id="bits-for-bytes",\n        step="vector-bits"',
            ),
        ),
        "1.1",
        "mistake bits-for-bytes belongs to no step: vector-bits",
    ),
    "two mistakes of one name": (
        ((MISTAKES, 'id="float32-width"', 'id="bits-for-bytes"'),),
        "1.1",
        "two mistakes are named bits-for-bytes",
    ),
    "two mistakes only": (
        (
            (
                MISTAKES,
                'id="bias-summed",\n        step="layer"',
                'id="bias-summed",\n        step="neuron"',
            ),
            (
                MISTAKES,
                'id="bias-subtracted",\n        step="layer"',
                'id="bias-subtracted",\n        step="neuron"',
            ),
        ),
        "1.1/layer",
        "2 mistakes; at least 3 are asked for",
    ),
    "a mistake that asks twice": (
        ((MISTAKES, "Which dtype does NumPy give to", "Why? Which dtype does NumPy give to"),),
        "1.1/vector-bytes",
        "mistake float32-width asks 2 questions, not one",
    ),
    "a belief of three sentences": (
        ((MISTAKES, "The products are averaged.", "They are averaged. Yes. Really."),),
        "1.1/dot-product",
        "the belief of mean-of-products is longer than two sentences",
    ),
    "no alternative": (
        ((MISTAKES, '    Alternative(step="layer", code=layer_by_rows),\n', ""),),
        "1.1/layer",
        "no differently written right version",
    ),
    "an alternative that is wrong": (
        (
            (
                MISTAKES,
                'Alternative(step="layer", code=layer_by_rows)',
                'Alternative(step="layer", code=lambda inputs, weights, biases: inputs @ weights)',
            ),
        ),
        "1.1/layer",
        "the alternative <lambda> is wrong, not passed",
    ),
    "an oracle that is wrong": (
        ((STEPS, "products) + biases[column]", "products) - biases[column]"),),
        "1.1/layer",
        "the reference is wrong, not passed",
    ),
    "a typed number": (
        ((LESSON, PROSE_OF_BYTES, PROSE_OF_BYTES + " A page is 4096 bytes."),),
        "1.1/vector-bytes",
        "numbers typed in the prose, not computed: 4096",
    ),
    "an answer in the theory": (
        (
            (
                STEPS,
                '    return {"count": int(generator.integers(300, 3000)), '
                '"vectors": int(generator.integers(5, 40))}',
                '    return {"count": 512, "vectors": 4}',
            ),
            (LESSON, PROSE_OF_BYTES, PROSE_OF_BYTES + " So it is {{ 512 * 4 * 8 }} here."),
        ),
        "1.1/vector-bytes",
        "the answer '16384' stands in the theory",
    ),
    "a broken expression": (
        ((LESSON, "{{ np.zeros(3).nbytes }}", "{{ np.zeros(3).nbites }}"),),
        "1.1/vector-bytes",
        "lesson of 1.1/vector-bytes",
    ),
    "a broken expression in the opening": (
        ((LESSON, "# One neuron\n", "# One neuron\n\n{{ 1 / 0 }}\n"),),
        "1.1",
        "lesson of 1.1, the opening: ZeroDivisionError",
    ),
    "a theory of one line": (
        (
            (
                LESSON,
                "Everything in a network is a chain of lines in which each uses what stands above "
                "it. To know what depends on what is to know what can run at the same time, what "
                "must be kept for the backward pass, and where an error can come from. Session 4 "
                "makes a data structure of it; here it is on paper.\n\n",
                "",
            ),
        ),
        "1.1/order-layer",
        "the theory before the question is too short to learn from",
    ),
    "an unknown proof": (
        ((TOML, '["dot-product", "neuron", "trace-neuron"]', '["dot-product", "nerve"]'),),
        "1.1",
        "concept dot-product names steps that do not exist: ['1.1/nerve']",
    ),
    "one kind of proof": (
        ((TOML, '["dot-product", "neuron", "trace-neuron"]', '["dot-product", "neuron"]'),),
        "1.1",
        "concept dot-product needs a Build and a proof of another kind",
    ),
    "four resources": (
        (
            (
                TOML,
                '[[resources]]\ntitle = "Array programming with NumPy"\nkind = "paper"\n'
                'where = "Harris et al. 2020, Nature 585, 357-362"\n'
                'why = "shape, strides and views in one figure"\n\n',
                "",
            ),
            (
                TOML,
                '[[resources]]\ntitle = "Internal organization of NumPy arrays"\n'
                'kind = "documentation"\n'
                'where = "https://numpy.org/doc/stable/dev/internals.html"\n'
                'why = "row-major and column-major order, in the library\'s own words"\n\n',
                "",
            ),
        ),
        "1.1",
        "4 resources; five to seven are asked for",
    ),
    "a session before it that is not there": (
        ((TOML, "requires = []", 'requires = ["0.9"]'),),
        "1.1",
        "requires 0.9, which does not exist",
    ),
    "nothing closed": (
        ((STEPS, '    closes="layer",\n', ""),),
        "1.1",
        "the last step closes none of the session's concepts",
    ),
    "a key line in two lines": (
        (
            (
                STEPS,
                'key_line="total += float(weight) * float(value)"',
                'key_line="total"',
            ),
        ),
        "1.1/dot-product",
        "key_line 'total' is in 3 lines of the reference, not one",
    ),
    "a key line in no line": (
        ((STEPS, 'key_line="return inputs @ weights + biases"', 'key_line="return nothing"'),),
        "1.1/layer",
        "key_line 'return nothing' is in 0 lines of the reference, not one",
    ),
    "a hint that holds the key line": (
        (
            (
                STEPS,
                "Two stages: the weighted sum z, then the activation of z.",
                "z = weighted_sum(inputs, weights, bias)",
            ),
        ),
        "1.1/neuron",
        "a hint holds the key line",
    ),
    "no hints": (
        (
            (
                STEPS,
                '    hints=(\n        "Data and parameters need nothing before them.",\n'
                '        "Check the shapes of each line against the lines it uses.",\n    ),\n',
                "",
            ),
        ),
        "1.1/order-layer",
        "0 hints; one to three are asked for",
    ),
    "four hints": (
        ((STEPS, f'"{HINT_OF_BYTES}",', f'"{HINT_OF_BYTES}", "Second.", "Third.",'),),
        "1.1/vector-bytes",
        "4 hints; one to three are asked for",
    ),
    "a step that needs a later part": (
        (
            (
                STEPS,
                "    build_dot_product,\n    trace_neuron,\n    build_neuron,\n",
                "    build_neuron,\n    trace_neuron,\n    build_dot_product,\n",
            ),
            (LESSON, "## Build: the dot product {#dot-product}", "## Build: the dot {#swap}"),
            (LESSON, "## Build: the neuron {#neuron}", "## Build: the product {#dot-product}"),
            (LESSON, "## Build: the dot {#swap}", "## Build: the neuron {#neuron}"),
            (STEPS, 'part="foundations.neuron:neuron"', 'part="foundations.neuron:weighted_sum"'),
        ),
        "1.1/neuron",
        "the reference uses dot_product, which the later step 1.1/dot-product builds",
    ),
    "zeros that pass": (
        (
            (
                STEPS,
                "    return [\n        (np.array([2.0]), np.array([3.0])),\n"
                "        (np.array([1.0, -2.0]), np.array([0.5, 4.0])),\n"
                "        *((numbers(generator, size), numbers(generator, size)) "
                "for size in (3, 5, 8)),\n",
                "    return [\n        (np.array([0.0]), np.array([3.0])),\n"
                "        (np.array([0.0, 0.0]), np.array([0.0, 0.0])),\n",
            ),
            (
                STEPS,
                "        weights, inputs = numbers(generator, size), numbers(generator, size)\n"
                "        groups.append([(weights, inputs), (2.0 * weights, inputs)])",
                "        weights, inputs = np.zeros(size), np.zeros(size)\n"
                "        groups.append([(weights, inputs), (2.0 * weights, inputs)])",
            ),
            (
                STEPS,
                "        weights, inputs = numbers(generator, size), numbers(generator, size)\n"
                "        groups.append([(weights, inputs), (inputs, weights)])",
                "        weights, inputs = np.zeros(size), np.zeros(size)\n"
                "        groups.append([(weights, inputs), (inputs, weights)])",
            ),
        ),
        "1.1/dot-product",
        "a version that returns zeros passes",
    ),
    "square probes only": (
        (
            (
                STEPS,
                "(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 2.0], [0.5, 1.0, -1.0]]), "
                "np.ones(3)),",
                "(np.eye(2), np.ones((2, 2)), np.ones(2)),",
            ),
            (STEPS, "((2, 3, 4), (5, 2, 3), (4, 4, 4), (3, 5, 1))", "((4, 4, 4), (3, 3, 3))"),
            (STEPS, "batch = numbers(generator, 4, 2)", "batch = numbers(generator, 2, 2)"),
            (
                STEPS,
                "weights, biases = numbers(generator, 2, 3), numbers(generator, 3)\n    batch",
                "weights, biases = numbers(generator, 2, 2), numbers(generator, 2)\n    batch",
            ),
            (
                STEPS,
                "probes.append((np.ones((2, 3)), np.ones((2, 4)), np.ones(4)))",
                "probes.append((np.ones((2, 2)), np.ones((3, 3)), np.ones(3)))",
            ),
        ),
        "1.1/layer",
        "no probe has arrays with axes of pairwise different sizes",
    ),
    "a wrong formula that is right": (
        (
            (
                MISTAKES,
                "formula=lambda count, vectors: 4 * count * vectors",
                "formula=lambda count, vectors: 8 * count * vectors",
            ),
        ),
        "1.1/vector-bytes",
        "the question cannot be asked: QuestionError",
    ),
    "a wrong answer without words": (
        ((MISTAKES, 'id="sigmoid-sign"', 'id="sigmoid-turned"'),),
        "1.1/trace-neuron",
        "mistakes.py has no words for the wrong answer sigmoid-sign",
    ),
    "a part that is not there": (
        ((STEPS, 'part="foundations.neuron:layer"', 'part="foundations.neuron:layers"'),),
        "1.1/layer",
        "no function or class layers",
    ),
    "a session that cannot be imported": (
        ((STEPS, "STEPS = (", "STEPS = (no_such_step,"),),
        "1.1",
        "NameError",
    ),
    "no table": (
        (
            (LESSON, "|---|---|---|\n| `float64`", "| `float64`"),
            (LESSON, "|---|---|---|---|---|\n| 1 |", "| 1 |"),
            (LESSON, "|---|---|---|\n| `inputs`", "| `inputs`"),
            (LESSON, "|---|---|---|\n| weights", "| weights"),
        ),
        "1.1",
        "no table",
    ),
}


def test_the_copy_itself_has_no_finding(copied_course: Copy) -> None:
    assert check_course(copied_course(), seeds=QUICK) == []


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_is_found_where_it_is(copied_course: Copy, name: str) -> None:
    edits, place, words = SABOTAGES[name]
    findings = check_course(copied_course(*edits), seeds=QUICK)
    assert any(found.place == place and words in found.problem for found in findings), findings


def test_no_diagram(copied_course: Copy) -> None:
    course = copied_course()
    path = course.outline.session("1.1").folder / "lesson.md"
    path.write_text(path.read_text().replace("```mermaid", "```text"))
    assert Finding("1.1", "no diagram") in check_course(course, seeds=QUICK)


def test_an_outline_that_cannot_be_read(copied_course: Copy) -> None:
    (finding,) = check_course(copied_course(("phase.toml", "hours = 7", "")))
    assert finding.place == "outline"
    assert "phase.toml: the key 'hours' is missing" in str(finding)


def test_only_the_sessions_asked_for_and_each_step_is_told(copied_course: Copy) -> None:
    course, told = copied_course(), []
    assert check_course(course, ["1.1"], on_step=told.append, seeds=QUICK) == []
    assert told == [step.id for step in course.outline.session("1.1").steps]


def test_the_check_leaves_no_file_behind(
    copied_course: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    check_course(copied_course(), seeds=QUICK)
    assert list(scratch.iterdir()) == []


def test_cheats_know_nothing_and_are_counted() -> None:
    def part(x: np.ndarray, flag: bool) -> tuple[np.ndarray, bool, list[float]]:  # type: ignore[type-arg]
        return x * 2, not flag, [1.0]

    zeros, negated, first = cheats(part)
    x = np.array([1.0, -2.0])
    assert [np.asarray(item).tolist() for item in zeros.part(x, True)] == [[0, 0], False, [0]]
    assert [np.asarray(item).tolist() for item in negated.part(x, False)] == [[-2, 4], True, [-1]]
    assert first.part(x, True) is x
    assert zeros.touched == negated.touched == 3
    assert list(cheats(dict)) == []  # a class: there is nothing to change
    assert mapped("text", lambda number: 0) == "text"
    assert list(mapped(iter([1, 2]), lambda number: -number)) == [-1, -2]


@pytest.mark.parametrize(
    ("shapes", "different"),
    [
        ([(2, 3)], True),
        ([(2, 2)], False),
        ([(1, 1, 4)], True),
        ([(2, 3), (4, 4)], False),
        ([], True),
    ],
)
def test_axes_of_pairwise_different_sizes(shapes: list[tuple[int, ...]], different: bool) -> None:
    assert pairwise_different(tuple(np.zeros(shape) for shape in shapes)) is different


def test_sentences() -> None:
    assert [sentences(text) for text in ("One.", "One. Two!", "0.5 is 1.5", "Why? So.")] == [
        1,
        2,
        0,
        2,
    ]


def test_small_whole_numbers_may_stand_in_the_theory(real_course: Course) -> None:
    step = real_course.step("1.1/vector-bytes")
    mistakes = real_course.code("1.1").mistakes_of(step)
    small = ask(step, 1, mistakes, small=True)
    large = ask(step, 1, mistakes)
    theory = f"It is {small.solution} or {large.solution}."
    assert abs(float(large.solution)) >= 100
    assert answer_stands_in(large, theory, step)
    assert not answer_stands_in(large, f"It is 1{large.solution}.", step)
    if abs(float(small.solution)) < 100:
        assert not answer_stands_in(small, theory, step)
