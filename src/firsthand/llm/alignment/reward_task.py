"""The reward model as a task of the training loop; the objective stands in `reward_model`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.alignment.dpo_task import PairTask, named_pair_accuracy
from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.lora import add_lora
from firsthand.llm.alignment.methods import Setup
from firsthand.llm.alignment.pair_data import PairBatch, PairData, pair_data, whole_texts
from firsthand.llm.alignment.policy_task import Scores
from firsthand.llm.alignment.reference import require_same_tokens
from firsthand.llm.alignment.reward_model import (
    add_head,
    reward_losses,
    sequence_rewards,
)
from firsthand.llm.alignment.rewards import Question
from firsthand.llm.alignment.rollouts import Rollouts
from firsthand.llm.alignment.settings import RewardSettings, read_settings
from firsthand.llm.alignment.sums import Sums
from firsthand.llm.model.config import resized
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.training.checkpoints import load_latest
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.runs import open_run
from firsthand.llm.training.state import load_state

SAMPLES = 4


class RewardTask(PairTask):
    """Pairs, and a head that is to score the chosen answer above the rejected one.

    Args:
        model: gets a reward head if it has none.
        settings: of the reward model.
    Others: as `PairTask`.
    """

    def __init__(
        self,
        model: Transformer,
        data: PairData,
        tokenizer: Tokenizer,
        config: RunConfig,
        settings: RewardSettings,
        world: World,
    ) -> None:
        super().__init__(data, config, world, padding=ChatTemplate(tokenizer).end)
        add_head(model)
        self.tokenizer, self.settings = tokenizer, settings

    def loss(self, model: Transformer, batch: PairBatch) -> Loss:
        """-ln σ(r_c - r_r) + center (r_c + r_r)², summed over the pairs."""
        total, sums = self._losses(model, batch)
        self.sums.add(sums, batch.pairs)
        return Loss(total, torch.tensor(batch.pairs))

    def validate(self, model: Transformer, batches: int) -> dict[str, float | int | None]:
        """Loss and accuracy on held-out pairs."""
        sums = Sums(self.world, ("loss", "accuracy", "chosen_reward", "rejected_reward"))
        for numbers in self.validation_batches(batches)[self.world.rank :: self.world.ranks]:
            batch = self.padded([self.data.validation[n] for n in numbers])
            with torch.no_grad():
                total, found = self._losses(model, batch)
            sums.add({"loss": float(total), **found}, batch.pairs)
        return {**named_pair_accuracy(sums.means())}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Held-out answers with their rewards; a reward model writes nothing itself."""
        pairs = self.data.validation[:SAMPLES]
        batch = self.padded(pairs)
        with torch.no_grad():
            rewards = self._rewards(model, batch).tolist()
        records = []
        for row, pair in enumerate(pairs):
            for name, example in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                reward = rewards[row + (len(pairs) if name == "rejected" else 0)]
                first = list(example.trained).index(True)
                ids = [int(identity) for identity in example.ids]
                records.append(
                    {
                        "prompt": self.tokenizer.decode(ids[:first]),
                        "text": f"{self.tokenizer.decode(ids[first:-1])}  ({name}: {reward:+.2f})",
                    }
                )
        return records

    def _rewards(self, model: Transformer, batch: PairBatch) -> Tensor:
        """Of all rows, read where the model has seen the answer's last token, its end."""
        tokens, real = whole_texts(batch.inputs, batch.targets, self.padding)
        return sequence_rewards(model, tokens, real)

    def _losses(self, model: Transformer, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        rewards = self._rewards(model, batch)
        chosen, rejected = rewards[: batch.pairs], rewards[batch.pairs :]
        found = reward_losses(chosen, rejected)
        total = found.losses.sum()
        if self.settings.center:
            total = total + self.settings.center * (chosen + rejected).square().sum()
        sums = {
            "accuracy": float(found.accurate.sum()),
            "chosen_reward": float(chosen.detach().sum()),
            "rejected_reward": float(rejected.detach().sum()),
        }
        return total, sums


def load_reward_model(folder: Path, parts: Parts) -> tuple[Transformer, Tokenizer]:
    """The reward model that a run has come to, frozen, with its head.

    Raises:
        AlignmentError: the run is of another method, or has no checkpoint yet.
        TrainingError: no run, or a damaged one.
    """
    run = open_run(folder)
    record = run.record().get("alignment", {})
    if record.get("method") != "reward":
        raise AlignmentError(
            f"{folder}: not a reward model; make one by `firsthand align --method reward`"
        )
    found = load_latest(run.checkpoints, only=("model",)).checkpoint
    if found is None:
        raise AlignmentError(f"{folder}: the reward model has no checkpoint yet")
    tokenizer = Tokenizer.load(run.tokenizer)
    model = Transformer(resized(run.config.model, tokenizer.vocabulary_size), parts)
    settings = read_settings(record["settings"])
    if settings.lora is not None:
        add_lora(model, settings.lora, run.config.seed)
    add_head(model)
    load_state(dict(model.state_dict()), found.tensors["model"], f"{found.path}: it is")
    return model.eval().requires_grad_(False), tokenizer


def model_scores(model: Transformer, padding: int) -> Scores:
    """Rewards of rollouts by a reward model, read at each answer's last token.

    Args:
        model: as `load_reward_model` gives it, with the policy's tokens.
        padding: the id behind shorter answers.
    """

    def scores(rollouts: Rollouts, asked: Sequence[Question]) -> Tensor:
        tokens, real = whole_texts(rollouts.inputs, rollouts.targets, padding)
        # A text that fills the policy's context and its last token do not fit; the end is cut.
        length = model.config.context
        with torch.no_grad():
            return sequence_rewards(model, tokens[:, :length], real[:, :length])

    return scores


def chosen_scores(setup: Setup) -> Scores | None:
    """Those of the settings' reward model, or None where a program judges.

    Raises:
        AlignmentError: as `load_reward_model`, or another vocabulary.
    """
    model, tokenizer = setup.model, setup.tokenizer
    if not setup.settings.reward_model:
        return None
    judge, theirs = load_reward_model(Path(setup.settings.reward_model), model.parts)
    require_same_tokens(judge, theirs, model, tokenizer, "the reward model")
    return model_scores(judge.to(setup.world.device), ChatTemplate(tokenizer).end)


def reward_task(setup: Setup) -> RewardTask:
    """Pairs of the settings' files or tasks.

    Raises:
        AlignmentError, SourceError: as `pair_data`.
    """
    config, settings = setup.config, setup.settings
    data = pair_data(
        settings,
        ChatTemplate(setup.tokenizer),
        context=config.sequence_length - 1,
        seed=config.seed,
        validation_share=settings.reward.validation_share,
    )
    return RewardTask(setup.model, data, setup.tokenizer, config, settings.reward, setup.world)
