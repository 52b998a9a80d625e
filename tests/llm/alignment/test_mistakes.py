"""Pairs from the model's own mistakes: wrong by the verifier, the model's own words, stored."""

from pathlib import Path

import pytest

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.mistakes import (
    sampled_preferences,
    store_preferences,
    stored_preferences,
)
from firsthand.llm.alignment.rollouts import roll_out
from firsthand.llm.data.tasks import generate_tasks, verify


def sampled(small, seed: int = 4, attempts: int = 3):
    tasks = list(generate_tasks(14, seed=2, kinds=["arithmetic"], levels=[1]))
    found = sampled_preferences(
        small.model(),
        small.tokenizer,
        tasks,
        attempts=attempts,
        max_new_tokens=6,
        seed=seed,
    )
    return tasks, found


def test_rejected_is_what_the_model_said_and_wrong(small) -> None:
    tasks, found = sampled(small)
    by_prompt = {task.prompt: task for task in tasks}
    assert found
    for record in found:
        task = by_prompt[record.prompt[0].content]
        assert record.chosen[0].content == task.expected
        assert record.rejected[0].content.strip()
        assert record.rejected[0].content != task.expected
        # Cut off is wrong whatever it says; what ended was refused by the verifier.
        assert len(record.rejected[0].content) >= 1
    again = [record.rejected for record in sampled(small)[1]]
    assert again == [record.rejected for record in found]
    assert [record.rejected for record in sampled(small, seed=5)[1]] != again


def test_a_right_answer_is_no_mistake(small, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = list(generate_tasks(4, seed=2, kinds=["arithmetic"], levels=[1]))

    def said(model, prompts, tokenizer, **options):
        """The right answer, ended, then a wrong one, for each prompt."""
        found = roll_out(model, prompts, tokenizer, **options)
        texts = []
        for prompt in prompts:
            (task,) = [t for t in tasks if t.prompt in tokenizer.decode(prompt)]
            texts += [task.expected, f"{int(task.expected) + 1}"]
        found.ended[:] = True
        object.__setattr__(found, "texts", tuple(texts))
        return found

    monkeypatch.setattr("firsthand.llm.alignment.mistakes.roll_out", said)
    found = sampled_preferences(
        small.model(), small.tokenizer, tasks, attempts=2, max_new_tokens=3, seed=0
    )
    assert len(found) == 4
    for task, record in zip(tasks, found, strict=True):
        assert int(record.rejected[0].content) == int(task.expected) + 1
        assert not verify(task, record.rejected[0].content).correct


def test_stored_records_come_back(small, tmp_path: Path) -> None:
    found = sampled(small)[1]
    path = tmp_path / "pairs.jsonl"
    store_preferences(path, found)
    again = stored_preferences(path)
    assert [(r.prompt, r.chosen, r.rejected) for r in again] == [
        (r.prompt, r.chosen, r.rejected) for r in found
    ]
    with pytest.raises(AlignmentError, match="made no mistake"):
        store_preferences(path, [])
