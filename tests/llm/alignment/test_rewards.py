"""What a program rewards: the right answer, its form, and nothing that only looks like it."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.rewards import (
    Judgement,
    final_number,
    read_questions,
    reward_of,
    task_question,
)
from firsthand.llm.data.tasks import generate_tasks

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k-train.jsonl"


def test_a_task_rewards_its_answer_and_its_form() -> None:
    for task in generate_tasks(60, seed=3):
        judge = task_question(task).judge
        assert judge(task.expected) == Judgement(exact=True, formed=True)
        assert judge("") == Judgement(exact=False, formed=False)
    (task,) = generate_tasks(1, seed=0, kinds=["arithmetic"])
    right = int(task.expected)
    judge = task_question(task).judge
    assert judge(str(right + 1)) == Judgement(exact=False, formed=True)
    for shown in (f"{right} or {right + 1}", f"{right} {right + 1}", "the sum"):
        assert judge(shown) == Judgement(exact=False, formed=False)


def test_an_answer_that_is_cut_off_has_no_reward() -> None:
    right, wrong = Judgement(exact=True, formed=True), Judgement(exact=False, formed=True)
    assert reward_of(right, True, 0.1) == 1.1
    assert reward_of(wrong, True, 0.1) == 0.1
    assert reward_of(Judgement(exact=False, formed=False), True, 0.1) == 0
    assert reward_of(right, False, 0.1) == 0


@given(st.integers(-(10**9), 10**9))
def test_a_final_number_is_read_in_each_spelling(number: int) -> None:
    for text in (f"#### {number}", f"so it is\n#### {number:,}.", f"#### {number}.0"):
        assert final_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "42", "####", "#### forty", "#### 4 or 5", "#### 4\nno, 5", "#### 4 apples"]
)
def test_what_is_no_final_number(text: str) -> None:
    assert final_number(text) is None


def test_only_the_last_mark_counts() -> None:
    assert final_number("#### 1\nno\n#### 2") == 2


def test_records_need_a_verifiable_answer(tmp_path: Path) -> None:
    def line(answer: str) -> str:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": messages}) + "\n"

    path = tmp_path / "r.jsonl"
    path.write_text(line("1 + 1\n#### 2") + line("who knows"), encoding="utf-8")
    with pytest.raises(AlignmentError, match="line 2: no verifiable answer"):
        read_questions([path])
    path.write_text(line("1 + 1\n#### 2"), encoding="utf-8")
    (question,) = read_questions([path])
    assert [message.content for message in question.messages] == ["q"]
    assert question.judge("so #### 2").exact
    assert not question.judge("#### 3").exact


def test_a_prompt_that_fills_the_context_names_its_place(small) -> None:
    (question,) = small.questions(1)
    length = len(question.ids(small.template, small.context))
    with pytest.raises(AlignmentError, match=f"generated arithmetic: the prompt has {length}"):
        question.ids(small.template, length)


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{os.fspath(GSM8K)} is absent")
def test_every_record_of_gsm8k_can_be_verified() -> None:
    questions = read_questions([GSM8K])
    assert len(questions) > 7000
    assert not any(question.judge("#### -987654321").exact for question in questions)
