import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.data.problems import DataError
from firsthand.llm.data.task_kinds import KINDS, Operands
from firsthand.llm.data.tasks import (
    TASK_SPLITS,
    Task,
    TaskSplit,
    answer_in,
    generate_tasks,
    is_held_out,
    verify,
)

ALL = [task for split in TASK_SPLITS for task in generate_tasks(600, seed=1, split=split)]


@pytest.mark.parametrize(
    ("kind", "operands", "expected"),
    [
        ("arithmetic", (17, "-", 25), "-8"),
        ("arithmetic", (17, "+", 25), "42"),
        ("arithmetic", (12, "*", 12), "144"),
        ("copying", ("a0b",), "a0b"),
        ("sorting", ([3, 10, 2, 3], "up"), "2, 3, 3, 10"),
        ("sorting", ([3, 10, 2, 3], "down"), "10, 3, 3, 2"),
        ("string edits", ("abca", "reverse", "", ""), "acba"),
        ("string edits", ("abca", "upper", "", ""), "ABCA"),
        ("string edits", ("abca", "remove", "a", ""), "bc"),
        ("string edits", ("abca", "replace", "a", "z"), "zbcz"),
        ("counting", ("banana", "a"), "3"),
        ("unit conversion", (3, "GiB", "MiB"), "3072 MiB"),
        ("unit conversion", (2, "KiB", "bytes"), "2048 bytes"),
        ("unit conversion", (5 << 20, "bytes", "MiB"), "5 MiB"),
    ],
)
def test_known_answers(kind: str, operands: Operands, expected: str) -> None:
    task = Task(kind, operands, KINDS[kind].phrasings[0])
    assert task.expected == expected
    assert verify(task, expected).correct


@pytest.mark.parametrize("split", TASK_SPLITS)
def test_a_split_holds_its_own_tasks_only(split: TaskSplit) -> None:
    tasks = list(generate_tasks(600, seed=0, split=split))
    assert {task.split for task in tasks} == {split}
    assert Counter(task.kind for task in tasks) == dict.fromkeys(KINDS, 100)


def test_splits_share_no_operands_and_no_phrasings_that_they_must_not() -> None:
    operands, phrasings = {}, {}
    for split in TASK_SPLITS:
        tasks = list(generate_tasks(12_000, seed=5, split=split))
        operands[split] = {(task.kind, json.dumps(task.operands)) for task in tasks}
        phrasings[split] = {task.phrasing for task in tasks}
    assert not operands["train"] & operands["numbers"]
    assert not operands["train"] & operands["both"]
    assert not phrasings["train"] & phrasings["phrasings"]
    assert not phrasings["train"] & phrasings["both"]
    assert phrasings["train"] == phrasings["numbers"]
    assert all(len(kind.phrasings) >= 4 and len(kind.held_out) >= 2 for kind in KINDS.values())


def test_phrasings_are_distinct_and_take_every_operand() -> None:
    for kind in KINDS.values():
        both = (*kind.phrasings, *kind.held_out)
        assert len(set(both)) == len(both), kind.name
        for phrasing in both:
            task = Task(kind.name, kind.draw(random.Random(1), 1), phrasing)
            assert "{" not in task.prompt
            assert task.prompt == task.prompt.strip()


def test_what_is_composed_still_says_all_that_is_asked() -> None:
    # A phrasing that left out the order or a unit would have no right answer.
    needed = {
        "sorting": lambda p: "{numbers}" in p and ("{order}" in p or "{from}" in p),
        "unit conversion": lambda p: all(f"{{{n}}}" in p for n in ("amount", "given", "wanted")),
        "string edits": lambda p: "{word}" in p and "{does}" in p,
        "counting": lambda p: "{word}" in p and "{letter}" in p,
        "copying": lambda p: "{text}" in p,
        "arithmetic": lambda p: "{a}" in p and "{b}" in p and ("{sign}" in p or "{word}" in p),
    }
    for name, kind in KINDS.items():
        for phrasing in (*kind.phrasings, *kind.held_out):
            assert needed[name](phrasing), phrasing


def test_about_one_in_eight_is_held_out() -> None:
    held = sum(is_held_out("arithmetic", (a, "+", b)) for a in range(60) for b in range(60))
    # 450 expected with a standard deviation of 20.
    assert 350 < held < 550


def test_the_same_seed_gives_the_same_tasks() -> None:
    first = list(generate_tasks(50, seed=3))
    assert first == list(generate_tasks(50, seed=3))
    assert first != list(generate_tasks(50, seed=4))
    assert list(generate_tasks(20, seed=3)) == first[:20]


def test_right_answers_pass_and_others_fail() -> None:
    for task in ALL:
        assert verify(task, task.expected).correct, task
        assert verify(task, f"First I think.\nAnswer: {task.expected}.").correct, task
        assert not verify(task, "").correct
        assert not verify(task, f"1{task.expected}").correct, task
        assert not verify(task, f"{task.expected}\nAnswer: no").correct, task


def test_no_task_is_answered_by_the_answers_of_others() -> None:
    # Small numbers coincide; an answer that fits many tasks would make a reward worthless.
    for name in KINDS:
        tasks = [task for task in ALL if task.kind == name]
        for guess in {task.expected for task in tasks[:40]}:
            assert sum(verify(task, guess).correct for task in tasks) < len(tasks) / 3, (
                name,
                guess,
            )


@pytest.mark.parametrize(
    ("kind", "operands", "completion", "correct"),
    [
        ("arithmetic", (2, "+", 2), "+4", True),
        ("arithmetic", (2, "+", 2), " 4 ", True),
        ("arithmetic", (2, "+", 2), "4 5", False),
        ("arithmetic", (2, "+", 2), "1, 2, 3, 4", False),
        ("arithmetic", (2, "+", 2), "4.0", False),
        ("arithmetic", (2, "+", 2), "٤", False),
        ("arithmetic", (2, "+", 2), "Answer: 5\nanswer: 4", True),
        ("arithmetic", (2, "+", 2), "Answer: 4\nAnswer: 5", False),
        ("sorting", ([2, 1], "up"), "[1, 2]", True),
        ("sorting", ([2, 1], "up"), "1 2", True),
        ("sorting", ([2, 1], "up"), "1, 2, 2", False),
        ("sorting", ([2, 1], "up"), "[]", False),
        ("copying", ("ab",), '"ab"', True),
        ("copying", ("ab",), "AB", False),
        ("unit conversion", (2, "KiB", "bytes"), "2048 B", True),
        ("unit conversion", (2, "KiB", "bytes"), "2048", False),
        ("unit conversion", (2, "KiB", "bytes"), "2 KiB", False),
    ],
)
def test_how_an_answer_may_be_written(
    kind: str, operands: Operands, completion: str, correct: bool
) -> None:
    assert verify(Task(kind, operands, KINDS[kind].phrasings[0]), completion).correct is correct


@given(st.text())
def test_no_completion_breaks_the_verifier(completion: str) -> None:
    for name in KINDS:
        task = next(task for task in ALL if task.kind == name)
        verdict = verify(task, completion)
        assert verdict.correct == (not verdict.reason)
        assert verdict.answer == answer_in(completion)


def test_a_task_round_trips_through_json() -> None:
    for task in ALL[:200]:
        again = Task.from_json(json.loads(json.dumps(task.to_json())))
        assert again == task
        assert again.prompt == task.prompt
    record = ALL[0].chat()
    assert record.messages[0].content == ALL[0].prompt
    assert record.messages[1].content == ALL[0].expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "poetry"}, "no kind of task: 'poetry'"),
        ({"phrasing": "Say {a}"}, "no phrasing of"),
        ({"operands": 3}, "are a list"),
        ({"operands": ["x", "+", []]}, "operands that 'arithmetic' cannot have"),
        ({"answer": "0"}, "is right"),
    ],
)
def test_a_task_that_is_none_is_refused(change: dict[str, object], reason: str) -> None:
    record = Task("arithmetic", (2, "+", 2), KINDS["arithmetic"].phrasings[0]).to_json()
    with pytest.raises(DataError, match=reason):
        Task.from_json({**record, **change})


def test_what_makes_no_sense_is_refused() -> None:
    for settings in ({"kinds": ["poetry"]}, {"levels": [4]}, {"split": "test"}, {"kinds": []}):
        with pytest.raises(ValueError, match=r"kind|levels|split"):
            generate_tasks(1, seed=0, **settings)  # type: ignore[arg-type]
