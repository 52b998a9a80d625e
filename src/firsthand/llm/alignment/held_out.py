"""What a run asks its model on the way: questions that it never learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from firsthand.llm.alignment.accuracy import accuracy, greedy_answers
from firsthand.llm.alignment.logprobs import batch_token_logprobs
from firsthand.llm.alignment.rewards import Question
from firsthand.llm.alignment.rollouts import roll_out
from firsthand.llm.alignment.settings import TaskSettings
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.training.distributed import World

SAMPLES = 6
# Answers that the divergence is estimated by.
DRAWN = 128


class HeldOut:
    """Accuracy on held-out questions by split, and answers to show.

    The splits differ in what is new: "numbers", "phrasings", or both. Rewards come from known
    phrasings alone, so a policy that has learnt to please the verifier and not to solve the task
    falls behind on the other two.

    Args:
        questions: by split; none gives no measures.
        tokenizer: of the model.
        tasks: how many questions are asked, and how long answers may be.
        world: whose ranks share the questions.

    Attributes:
        reference: gives the model that the divergence is measured from, as it is asked for; None
            measures none.
    """

    def __init__(
        self,
        questions: Mapping[str, Sequence[Question]],
        tokenizer: Tokenizer,
        tasks: TaskSettings,
        world: World,
    ) -> None:
        self.questions, self.tokenizer = questions, tokenizer
        self.tasks, self.world = tasks, world
        self.reference: Callable[[Transformer], Transformer] | None = None

    def measures(self, model: Transformer, *, last: bool) -> dict[str, float]:
        """As `accuracy.accuracy`, and "kl" where there is a reference.

        Args:
            last: the last evaluation of a run asks more.
        """
        count = self.tasks.evaluated_last if last else self.tasks.evaluated
        asked = {name: listed[:count] for name, listed in self.questions.items()}
        found = accuracy(model, self.tokenizer, asked, self.tasks.max_new_tokens, self.world)
        if self.reference is not None and any(asked.values()):
            found["kl"] = self.divergence(model, self.reference(model))
        return found

    def divergence(self, model: Transformer, reference: Transformer) -> float:
        """KL(model ‖ reference) in nats per answer to held-out questions, estimated by samples.

        k1 summed over the tokens of answers drawn from the model at temperature 1: no bias (see
        `kl`). The same answers on every rank.
        """
        template = ChatTemplate(self.tokenizer)
        listed = [question for split in self.questions.values() for question in split]
        chosen = listed[:: max(1, len(listed) // DRAWN)][:DRAWN]
        rollouts = roll_out(
            model,
            [question.ids(template, model.config.context) for question in chosen],
            self.tokenizer,
            end=template.end,
            samples=1,
            max_new_tokens=self.tasks.max_new_tokens,
            temperature=1.0,
            seed=0,
        )
        with torch.no_grad():
            theirs = batch_token_logprobs(reference, rollouts.inputs, rollouts.targets)
        return float((rollouts.sampled - theirs).sum(dim=1).mean())

    def samples(self, model: Transformer) -> list[dict[str, Any]]:
        """The most probable answers to a few questions, in turn of each split."""
        listed = list(self.questions.values())
        chosen = [split[k] for k in range(SAMPLES) for split in listed if k < len(split)][:SAMPLES]
        answers = greedy_answers(model, self.tokenizer, chosen, self.tasks.max_new_tokens)
        return [
            {"prompt": f"{a.question.messages[-1].content}\n", "text": a.text, "right": a.correct}
            for a in answers
        ]
