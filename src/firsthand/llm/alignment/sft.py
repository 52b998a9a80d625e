"""Supervised fine-tuning: the loss of pretraining, on the answers of conversations alone.

    L = - (Σ over answer tokens t of ln p(x_t | x_<t)) / (number of answer tokens)

The prompt is read and not learnt. Conversations share rows, and none sees another. The sum runs
over all answers of an update, however they are cut into rows and micro-batches.

Source: Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
section 3.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from firsthand.llm.alignment.chat_data import ChatData, PackedChats, chat_data
from firsthand.llm.alignment.held_out import HeldOut
from firsthand.llm.alignment.methods import Setup
from firsthand.llm.alignment.settings import AlignmentSettings
from firsthand.llm.data.packing import PackedBatch, pack
from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.evaluation import byte_lengths
from firsthand.llm.training.next_token import rows_of_rank
from firsthand.llm.training.precision import autocast
from firsthand.llm.training.task import Size


class Sft:
    """Conversations as batches, their loss, and its measures on what is held out.

    Args:
        data: the conversations.
        tokenizer: with the chat tokens.
        config: of the run.
        settings: how many questions an evaluation asks, and how long answers may be.
        world: whose rank's rows these are.
    Raises:
        TrainingError: rows that the ranks cannot share evenly.
    """

    unit = "answer tokens"

    def __init__(
        self,
        data: ChatData,
        tokenizer: Tokenizer,
        config: RunConfig,
        settings: AlignmentSettings,
        world: World,
    ) -> None:
        self.data, self.config, self.world = data, config, world
        self._held_out = HeldOut(data.questions, tokenizer, settings.tasks, world)
        self._lengths = byte_lengths(tokenizer)
        self._padding = ChatTemplate(tokenizer).end
        training = config.training
        self.rows, self._micro_batches = rows_of_rank(
            training.batch_size, training.micro_batch, world.ranks
        )
        self._batches = PackedChats(
            data.train,
            data.identity,
            length=config.sequence_length,
            rows=self.rows,
            padding=self._padding,
            seed=config.seed,
            rank=world.rank,
            ranks=world.ranks,
        )

    def next_batches(self) -> list[PackedBatch]:
        """The micro-batches of one update on this rank."""
        return [self._batches.next_batch() for _ in range(self._micro_batches)]

    def size(self, batches: list[PackedBatch]) -> Size:
        """Tokens of the answers, the bytes that they spell, and all positions."""
        answers = [batch.targets[batch.targets >= 0] for batch in batches]
        return Size(
            tokens=sum(batch.trained_tokens for batch in batches),
            text_bytes=sum(int(self._lengths[tokens].sum()) for tokens in answers),
            positions=sum(batch.targets.size for batch in batches),
        )

    def loss(self, model: Transformer, batch: PackedBatch) -> Loss:
        """Cross-entropy of the answers' tokens, summed; other positions have no logits at all."""
        hidden, targets = self._answer_hidden(model, batch)
        total = model.parts.cross_entropy(hidden, model.output_weight, targets)
        return Loss(total, torch.tensor(len(targets)))

    def metrics(self) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def validate(self, model: Transformer, batches: int) -> dict[str, float | int | None]:
        """Loss and token accuracy on held-out conversations; accuracy of greedy answers.

        Args:
            batches: of the conversations; 0 takes all of them, and the questions of a last
                evaluation.
        """
        found: dict[str, float | int | None] = dict(self._validation_loss(model, batches))
        found.update(self._held_out.measures(model, last=not batches))
        return found

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Questions that were never trained on, with the most probable answer."""
        return self._held_out.samples(model)

    def state(self) -> dict[str, Any]:
        """The place in the order, and of which conversations."""
        return self._batches.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            AlignmentError: it is of other conversations, another length or seed.
        """
        self._batches.restore(state)

    def _answer_hidden(self, model: Transformer, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        device = self.world.device
        inputs = torch.from_numpy(batch.inputs).to(device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        documents = torch.from_numpy(batch.documents).to(device, non_blocking=True)
        answered = targets >= 0
        return model.hidden(inputs, documents=documents)[answered], targets[answered]

    @torch.inference_mode()
    def _validation_loss(self, model: Transformer, batches: int) -> dict[str, float]:
        """All ranks together measure the first rows, each every so-manieth batch of them."""
        rows = pack(
            self.data.validation,
            length=self.config.sequence_length,
            rows=self.rows,
            padding=self._padding,
        )
        nats = right = tokens = 0.0
        for number, batch in enumerate(rows):
            if batches and number == batches:
                break
            if number % self.world.ranks != self.world.rank:
                continue
            with autocast(self.config.training.precision, self.world.device):
                hidden, targets = self._answer_hidden(model, batch)
                nats += float(model.parts.cross_entropy(hidden, model.output_weight, targets))
                logits = model.parts.vocabulary_logits(hidden, model.output_weight)
            right += float((logits.argmax(dim=-1) == targets).sum())
            tokens += len(targets)
        nats, right, tokens = self.world.sums([nats, right, tokens])
        return {
            "loss": nats / max(1, tokens),
            "token_accuracy": right / max(1, tokens),
            "tokens": int(tokens),
        }


def sft_task(setup: Setup) -> Sft:
    """Conversations of the settings' files or tasks.

    Raises:
        AlignmentError, SourceError: as `chat_data`.
    """
    config, settings, tokenizer = setup.config, setup.settings, setup.tokenizer
    data = chat_data(
        settings, ChatTemplate(tokenizer), length=config.sequence_length, seed=config.seed
    )
    return Sft(data, tokenizer, config, settings, setup.world)
