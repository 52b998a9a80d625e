"""Greedy answers, judged: against answers found one by one, and with a judge that is known."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from firsthand.llm.alignment.accuracy import accuracy, greedy_answers
from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.rewards import Judgement, Question, task_questions
from firsthand.llm.data.records import Message
from firsthand.llm.data.tasks import generate_tasks
from firsthand.llm.training.distributed import World


def asked(text: str, right: str = "") -> Question:
    def judge(completion: str) -> Judgement:
        return Judgement(exact=completion == right, formed=bool(completion))

    return Question((Message("user", text),), judge, "here")


class Deaf(World):
    """A rank that never hears of the others."""

    def sums(self, values: Sequence[float]) -> list[float]:
        return list(values)


def best_by_hand(small: Any, model: Any, question: Question, tokens: int) -> tuple[str, bool]:
    """Each token from all before it, without cache and without neighbours in a batch."""
    ids = list(question.ids(small.template, small.context))
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + tokens:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] == small.template.end:
                return small.tokenizer.decode(ids[start:-1]), True
    return small.tokenizer.decode(ids[start:]), False


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_answers_are_the_most_probable_tokens_in_the_order_of_the_questions(
    small: Any, rows: int
) -> None:
    model = small.model(4)
    with torch.no_grad():  # ends some of the answers
        model.embedding.weight[small.template.end] *= -3
    questions = [asked("x" * n) for n in (5, 1, 9, 30, 2, 14)]
    found = greedy_answers(model, small.tokenizer, questions, 7, rows=rows)
    assert [answer.question for answer in found] == questions
    expected = [best_by_hand(small, model, question, 7) for question in questions]
    assert [(answer.text, answer.ended) for answer in found] == expected
    assert {ended for _, ended in expected} == {True, False}


def test_shares_of_each_split(small: Any) -> None:
    model = small.model(4)
    with torch.no_grad():
        model.embedding.weight[small.template.end] *= -3
    texts = {text: best_by_hand(small, model, asked(text), 5) for text in ("a", "b", "cc", "dd")}
    questions = {
        "one": [asked("a", texts["a"][0]), asked("b", "no")],
        "two": [asked("cc", texts["cc"][0]), asked("dd", texts["dd"][0])],
    }
    ended = {text: float(end) for text, (_, end) in texts.items()}
    assert set(ended.values()) == {0.0, 1.0}
    found = accuracy(model, small.tokenizer, questions, 5)
    assert found["accuracy_one"] == ended["a"] / 2
    assert found["accuracy_two"] == (ended["cc"] + ended["dd"]) / 2
    assert found["accuracy"] == (ended["a"] + ended["cc"] + ended["dd"]) / 4


def test_an_answer_that_is_cut_off_is_wrong(small: Any) -> None:
    model = small.model(4)
    text, ended = best_by_hand(small, model, asked("abc"), 3)
    assert not ended
    found = accuracy(model, small.tokenizer, {"all": [asked("abc", text)]}, 3)
    assert found == {"accuracy": 0.0, "formed": 0.0}


def test_ranks_ask_every_question_once(small: Any) -> None:
    model, seen = small.model(4), []
    questions = task_questions(generate_tasks(7, seed=1, kinds=["sorting"], levels=[1]))

    def recorded(question: Question) -> Question:
        def judge(completion: str) -> Judgement:
            seen.append(question.place + question.messages[0].content)
            return Judgement(exact=True, formed=True)

        return Question(question.messages, judge, question.place)

    listed = {"numbers": [recorded(question) for question in questions]}
    for rank in range(2):
        accuracy(model, small.tokenizer, listed, 2, Deaf(rank, 2, torch.device("cpu")))
    assert sorted(seen) == sorted(q.place + q.messages[0].content for q in questions)


def test_without_questions_there_is_no_figure(small: Any) -> None:
    assert accuracy(small.model(), small.tokenizer, {}, 5) == {}
    assert accuracy(small.model(), small.tokenizer, {"numbers": []}, 5) == {}


def test_a_question_that_fills_the_context_is_named(small: Any) -> None:
    with pytest.raises(AlignmentError, match="here: the prompt has 96 tokens"):
        greedy_answers(small.model(), small.tokenizer, [asked("x" * 93)], 5)
