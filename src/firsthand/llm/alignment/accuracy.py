"""Accuracy on questions that a program judges: greedy answers, exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firsthand.llm.alignment.rewards import Judgement, Question
from firsthand.llm.generation.decoding import generate
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.training.distributed import World

# Rows that are decoded together. On a CPU a step of 128 rows takes little longer than one of 32.
ROWS = 128


@dataclass(frozen=True)
class Answer:
    """What the model said to a question.

    Attributes:
        question: that was asked.
        text: of the answer.
        ended: the model ended it; one that was cut off counts as wrong.
        judgement: of the text.
    """

    question: Question
    text: str
    ended: bool
    judgement: Judgement

    @property
    def correct(self) -> bool:
        """Whether it is right, and whole."""
        return self.ended and self.judgement.exact


def greedy_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    max_new_tokens: int,
    *,
    rows: int = ROWS,
) -> list[Answer]:
    """The most probable answer to each question, token by token, in the order of the questions.

    Args:
        max_new_tokens: an answer is cut after so many.
        rows: answered together; those of similar length are, so that little is padding.
    Raises:
        AlignmentError: a question that leaves no room in the context.
        TokenizerError: the tokenizer has no chat tokens.
    """
    template = ChatTemplate(tokenizer)
    context = model.config.context
    prompts = [question.ids(template, context) for question in questions]
    order = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))
    sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        found = generate(
            model,
            [prompts[k] for k in chosen],
            sampling,
            tokenizer=tokenizer,
            end_tokens=(template.end,),
        )
        for k, result in zip(chosen, found, strict=True):
            question = questions[k]
            ended = result.reason == "end"
            answers[k] = Answer(question, result.text, ended, question.judge(result.text))
    return [answers[k] for k in range(len(questions))]


def accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Mapping[str, Sequence[Question]],
    max_new_tokens: int,
    world: World | None = None,
) -> dict[str, float]:
    """The share of right answers: "accuracy" over all questions, "accuracy_SPLIT" of each split.

    And "formed", the share that has the form of an answer and ends. {} where there is no question.

    Args:
        questions: by split.
        world: whose ranks share the questions; None is one process alone.
    Raises:
        AlignmentError, TokenizerError: as `greedy_answers`.
    """
    rank, ranks = (0, 1) if world is None else (world.rank, world.ranks)
    asked = [(split, question) for split, listed in questions.items() for question in listed]
    if not asked:
        return {}
    own = asked[rank::ranks]
    answers = greedy_answers(model, tokenizer, [question for _, question in own], max_new_tokens)
    names = list(questions)
    counts = dict.fromkeys([*names, "formed"], 0.0)
    for (split, _), answer in zip(own, answers, strict=True):
        counts[split] += answer.correct
        counts["formed"] += answer.ended and answer.judgement.formed
    sums = list(counts.values()) if world is None else world.sums(list(counts.values()))
    right = dict(zip(counts, sums, strict=True))
    found = {"accuracy": sum(right[name] for name in names) / len(asked)}
    if len(names) > 1:
        found |= {
            f"accuracy_{name}": right[name] / len(questions[name])
            for name in names
            if questions[name]
        }
    return {**found, "formed": right["formed"] / len(asked)}
