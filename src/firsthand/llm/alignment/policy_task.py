"""What PPO and GRPO share: rollouts, their rewards, minibatches of them, and when to stop.

One round: the policy answers a batch of questions, a program rewards the answers, the method
derives what it learns from, and the answers are gone through in minibatches, `epochs` times. An
update of the loop is one minibatch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.alignment.experience import Experience
from firsthand.llm.alignment.held_out import HeldOut
from firsthand.llm.alignment.kl import kl_estimates, require_near
from firsthand.llm.alignment.logprobs import batch_token_logprobs
from firsthand.llm.alignment.orders import SeededOrder
from firsthand.llm.alignment.reference import frozen_copy
from firsthand.llm.alignment.rewards import Question, reward_of
from firsthand.llm.alignment.rollouts import TOLERANCES, Rollouts, require_agreement, roll_out
from firsthand.llm.alignment.settings import GrpoSettings, PpoSettings
from firsthand.llm.alignment.sums import Sums
from firsthand.llm.data.permutation import Permutation
from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.next_token import rows_of_rank
from firsthand.llm.training.precision import autocast
from firsthand.llm.training.task import Size

Scores = Callable[[Rollouts, Sequence[Question]], Tensor]


class PolicyTask(ABC):
    """Questions, a policy that answers them, and minibatches of its answers.

    Args:
        model: the policy, before its first update; where a reference is needed, a frozen copy of
            it is made now.
        tokenizer: with the chat tokens.
        questions: to learn from.
        config: of the run; `training.batch_size` is not read, the method's minibatch is.
        settings: of the method.
        prompts: questions of one round, over all ranks.
        samples: answers to each.
        format_reward: for an answer of the right form; a right one has 1 more.
        held_out: what the model is asked on the way, or None.
        world: whose rank's answers these are.
        scores: (rows,) rewards that take the place of the judges', such as a reward model's.
    Raises:
        AlignmentError: no questions, or one that fills the context.
        TrainingError: rows that the ranks cannot share evenly.
    """

    unit = "answer tokens"

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        config: RunConfig,
        settings: PpoSettings | GrpoSettings,
        world: World,
        *,
        prompts: int,
        samples: int,
        format_reward: float = 0.1,
        held_out: HeldOut | None = None,
        scores: Scores | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config, self.world = model, tokenizer, config, world
        self.questions, self.held_out, self.scores = questions, held_out, scores
        self.samples_of_prompt, self.format_reward = samples, format_reward
        self.limits = settings
        template = ChatTemplate(tokenizer)
        self.end = template.end
        self.prompts = [question.ids(template, model.config.context) for question in questions]
        self.order = SeededOrder(len(questions), config.seed)
        self.prompts_of_rank, _ = rows_of_rank(prompts, 0, world.ranks)
        self.rows, self.micro_batches = rows_of_rank(
            settings.minibatch, config.training.micro_batch, world.ranks
        )
        self.tolerance = TOLERANCES[config.training.precision]
        needed = settings.kl_coefficient > 0 or settings.stop_kl > 0
        self.reference = reference = frozen_copy(model) if needed else None
        if held_out is not None and reference is not None:
            held_out.reference = lambda policy: reference
        self.rounds = self.updates = self.done = 0
        self.experience: Experience | None = None
        self.by_token = Sums(world)
        self._difference = 0.0
        self._real = [0.0, 0.0]

    @property
    def answers(self) -> int:
        """Answers of one round on this rank."""
        return self.prompts_of_rank * self.samples_of_prompt

    @property
    def updates_of_round(self) -> int:
        """Minibatches of one round, all epochs."""
        return self.limits.epochs * self.answers // (self.rows * self.micro_batches)

    @abstractmethod
    def derived(
        self, rollouts: Rollouts, rewards: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What the objective needs beside the rollouts, a row for each answer, and log figures.

        Args:
            rewards: (rows,).
        """

    @abstractmethod
    def objective(self, model: Transformer, experience: Experience) -> tuple[Tensor, int, Tensor]:
        """The summed loss of a micro-batch, what it is a sum over, and ln π of its tokens.

        Sums for the log line go into `by_token`.
        """

    def counted(self, experience: Experience) -> int:
        """What the loss of these answers is a mean over: their tokens."""
        return experience.tokens

    def learnt_from(self, experience: Experience) -> Experience:
        """The rows that go through the model: equal answers once."""
        return experience.folded()

    # ------------------------------------------------------------------ the loop's side

    def next_batches(self) -> list[Experience]:
        """The micro-batches of one minibatch; with the first of a round the policy answers."""
        if self.experience is None or self.done == self.updates_of_round:
            self._begin_round()
        share = self.rows * self.micro_batches
        epoch, place = divmod(self.done, self.answers // share)
        order = Permutation(self.answers, self.config.seed, self.rounds, epoch)
        numbers = order(torch.arange(place * share, (place + 1) * share).numpy()).tolist()
        self.done += 1
        self.updates += 1
        self.by_token.clear()
        assert self.experience is not None
        batches = [
            self.learnt_from(self.experience.rows(numbers[at : at + self.rows]))
            for at in range(0, share, self.rows)
        ]
        inputs = [batch.rollouts.inputs for batch in batches]
        # The end token pads, and a prompt has its own: only what is behind the answer is padding.
        real = sum(float(batch.rollouts.real_tokens) for batch in batches)
        self._real = [real, float(sum(tensor.numel() for tensor in inputs))]
        return batches

    def size(self, batches: list[Experience]) -> Size:
        """What the loss is a mean over, and all positions."""
        return Size(
            tokens=sum(self.counted(batch) for batch in batches),
            text_bytes=0,
            positions=sum(self.counted(batch) for batch in batches),
        )

    def loss(self, model: Transformer, batch: Experience) -> Loss:
        """The objective, once trainer and sampler agree and the policy is near its reference.

        Raises:
            AlignmentError: they do not agree.
            DivergenceError: the policy is too far from its reference; no weight has moved since
                the last update.
        """
        total, count, logprobs = self.objective(model, batch)
        if self.done == 1:
            # The weights are those that wrote the answers: nothing but rounding may differ.
            difference = require_agreement(
                logprobs, batch.rollouts, tolerance=self.tolerance, what=f"step {self.updates}"
            )
            self._difference = max(difference, self._difference)
        tokens = batch.tokens
        sums: dict[str, float] = {}
        if self.reference is not None:
            sums["kl"] = self._divergence(logprobs.detach(), batch)
            require_near(sums["kl"] / tokens, self.limits.stop_kl, self.updates)
        self.by_token.add(sums, tokens)
        return Loss(total, torch.tensor(count))

    def metrics(self) -> dict[str, float]:
        """Figures of the round, and means over the tokens of the latest update."""
        figures = {} if self.experience is None else self.experience.figures
        real, positions = self.world.sums(self._real)
        return {
            **figures,
            **self.by_token.means(),
            "sampler_difference": self._difference,
            "real_token_fraction": real / max(1, positions),
        }

    def validate(self, model: Transformer, batches: int) -> dict[str, float | int | None]:
        """Right answers to held-out questions."""
        if self.held_out is None:
            return {}
        return {**self.held_out.measures(model, last=batches == 0)}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Answers to held-out questions."""
        return [] if self.held_out is None else self.held_out.samples(model)

    def state(self) -> dict[str, Any]:
        """Where the questions stand, and the rollouts that are still learnt from.

        Raises:
            DivergenceError: the latest update has taken the policy too far from its reference, so
                that there is no checkpoint of it and the one before stays the newest.
        """
        self._require_near_now()
        going = self.experience is not None and self.done < self.updates_of_round
        return {
            "order": self.order.state(),
            "rounds": self.rounds,
            "updates": self.updates,
            "done": self.done if going else 0,
            "difference": self._difference,
            "experience": self.experience.state() if going and self.experience else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            AlignmentError: it is of other questions or of another seed.
        """
        self.order.restore(state["order"])
        self.rounds, self.updates, self.done = state["rounds"], state["updates"], state["done"]
        self._difference = state["difference"]
        kept = state["experience"]
        self.experience = None if kept is None else Experience.from_state(kept, self.world.device)

    # ------------------------------------------------------------------ parts of these

    def _begin_round(self) -> None:
        share, rank = self.prompts_of_rank, self.world.rank
        taken = self.order.take(share * self.world.ranks)
        chosen = taken[rank * share : (rank + 1) * share]
        rollouts = roll_out(
            self.model,
            [self.prompts[number] for number in chosen],
            self.tokenizer,
            end=self.end,
            samples=self.samples_of_prompt,
            max_new_tokens=self.limits.max_new_tokens,
            temperature=self.limits.temperature,
            seed=self.config.seed,
            first_stream=(self.rounds * self.world.ranks + rank) * self.answers,
        )
        # Equal answers differ by the rounding of their place in the batch; what is derived from
        # them shall be equal, too.
        first, place = rollouts.distinct()
        rollouts = replace(rollouts, sampled=rollouts.sampled[first][place])
        asked = [self.questions[number] for number in chosen for _ in range(self.samples_of_prompt)]
        judged = [q.judge(text) for q, text in zip(asked, rollouts.texts, strict=True)]
        ended = rollouts.ended.tolist()
        if self.scores is None:
            given = [
                reward_of(judgement, end, self.format_reward)
                for judgement, end in zip(judged, ended, strict=True)
            ]
            rewards = torch.tensor(given, device=self.world.device)
        else:
            rewards = self.scores(rollouts, asked)
        figures = Sums(self.world)
        figures.add(
            {
                "reward": float(rewards.sum()),
                "right": float(sum(j.exact and e for j, e in zip(judged, ended, strict=True))),
                "formed": float(sum(j.formed and e for j, e in zip(judged, ended, strict=True))),
                "answer_length": float(rollouts.lengths.sum()),
            },
            len(asked),
        )
        self._difference = 0.0
        extras, more = self.derived(rollouts, rewards)
        self.experience = Experience(rollouts, extras, {**figures.means(), **more})
        self.rounds, self.done = self.rounds + 1, 0

    def reference_logprobs(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """ln π_ref of all answers as "reference"; {} where there is no reference."""
        if self.reference is None:
            return {}
        return {"reference": self.by_micro_batch(rollouts, self._logprobs_of(self.reference))}

    def by_micro_batch(
        self, rollouts: Rollouts, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """function(inputs, targets) of all rows, no gradient; of equal rows once."""
        first, place = rollouts.distinct()
        found = []
        with torch.no_grad(), autocast(self.config.training.precision, self.world.device):
            for at in range(0, len(first), self.rows):
                rows = first[at : at + self.rows]
                found.append(function(rollouts.inputs[rows], rollouts.targets[rows]))
        return torch.cat(found)[place]

    def _logprobs_of(self, model: Transformer) -> Callable[[Tensor, Tensor], Tensor]:
        temperature = self.limits.temperature
        return lambda inputs, targets: batch_token_logprobs(
            model, inputs, targets, temperature=temperature
        )

    def _divergence(self, logprobs: Tensor, batch: Experience) -> float:
        """k3 to the reference, summed over the answers' tokens."""
        found = kl_estimates(logprobs, batch.extras["reference"], "k3")
        by_answer = found.masked_fill(~batch.rollouts.answered, 0.0).sum(dim=1)
        return float((by_answer * batch.counts).sum())

    def _require_near_now(self) -> None:
        """Measure the weights as they are on the first rows of the round's answers."""
        if self.experience is None or self.reference is None or not self.limits.stop_kl:
            return
        batch = self.experience.rows(list(range(min(self.rows, self.answers))))
        with torch.no_grad():
            now = self._logprobs_of(self.model)(batch.rollouts.inputs, batch.rollouts.targets)
        tokens = batch.tokens
        require_near(self._divergence(now, batch) / tokens, self.limits.stop_kl, self.updates)
