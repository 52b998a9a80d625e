"""Pretraining's task: predict each token of a corpus from those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firsthand.llm.data.loading import Loader, LoaderState, TokenBatch, TokenStream
from firsthand.llm.generation.decoding import generate
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.evaluation import evaluate
from firsthand.llm.training.task import Size


@dataclass(frozen=True)
class Corpus:
    """A tokenized text in two splits.

    Attributes:
        train, validation: the tokens.
        tokenizer: what they mean; None when nothing can be spelt, and then no sample is drawn.
        byte_lengths: (vocabulary,), of the text that each token spells.
    """

    train: TokenStream
    validation: TokenStream
    byte_lengths: NDArray[np.int64]
    tokenizer: Tokenizer | None = None


class NextToken:
    """Batches of a corpus, their loss, its measures on the validation split, and samples.

    Args:
        corpus: the text.
        config: of the run.
        world: whose rank's rows these are.
    Raises:
        TrainingError: rows that the ranks cannot share evenly, or a split with nothing to predict.
    """

    unit = "tokens"

    def __init__(self, corpus: Corpus, config: RunConfig, world: World) -> None:
        settings = config.training
        self.corpus, self.config, self.world = corpus, config, world
        rows, micro_batches = rows_of_rank(settings.batch_size, settings.micro_batch, world.ranks)
        self.rows, self.micro_batches = rows, micro_batches
        for name, stream in (("training", corpus.train), ("validation", corpus.validation)):
            if len(stream) < 2:
                raise TrainingError(
                    f"the {name} split has {len(stream)} tokens, nothing to predict: more text, "
                    "smaller documents (data.unit) or another data.validation_share"
                )
        self._loader = self._new_loader(None)

    def _new_loader(self, state: LoaderState | None) -> Loader:
        return Loader(
            self.corpus.train,
            sequence_length=self.config.sequence_length,
            batch_size=self.rows,
            seed=self.config.seed,
            rank=self.world.rank,
            ranks=self.world.ranks,
            documents=self.config.data.documents,
            state=state,
        )

    def next_batches(self) -> list[TokenBatch]:
        """The micro-batches of one update on this rank."""
        return [self._loader.next_batch() for _ in range(self.micro_batches)]

    def size(self, batches: list[TokenBatch]) -> Size:
        """Real targets, the bytes that they spell, and all positions."""
        targets = [batch.targets[batch.targets >= 0] for batch in batches]
        return Size(
            tokens=sum(batch.real_tokens for batch in batches),
            text_bytes=sum(int(self.corpus.byte_lengths[real].sum()) for real in targets),
            positions=sum(batch.targets.size for batch in batches),
        )

    def loss(self, model: Transformer, batch: TokenBatch) -> Loss:
        """Cross-entropy of the next tokens, summed."""
        device = self.world.device
        inputs = torch.from_numpy(batch.inputs).to(device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        if batch.documents is None:
            return model.loss(inputs, targets)
        documents = torch.from_numpy(batch.documents).to(device, non_blocking=True)
        return model.loss(inputs, targets, documents=documents)

    def metrics(self) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def validate(self, model: Transformer, batches: int) -> dict[str, float | int | None]:
        """Loss, perplexity and bits per byte on the validation split."""
        # As many windows for any number of ranks and any micro-batch.
        share = self.config.training.batch_size // self.rows
        found = evaluate(
            model,
            self.corpus.validation,
            lengths=self.corpus.byte_lengths,
            sequence_length=self.config.sequence_length,
            batch_size=self.rows,
            max_batches=batches * share,
            precision=self.config.training.precision,
            world=self.world,
            documents=self.config.data.documents,
        )
        return found.to_record()

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """One text for each prompt; the same for the same weights, seed and step."""
        tokenizer = self.corpus.tokenizer
        if tokenizer is None:
            return []
        settings = self.config.training
        sampling = Sampling(
            temperature=0.8,
            top_p=0.95,
            max_new_tokens=settings.sample_tokens,
            seed=self.config.seed + step,
        )
        found = generate(model, list(settings.prompts), sampling, tokenizer=tokenizer)
        return [
            {"prompt": prompt, "text": result.text}
            for prompt, result in zip(settings.prompts, found, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """Five integers."""
        return dict(self._loader.state().to_json())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state, also with another batch size or number of ranks.

        Raises:
            DataError: it is of another corpus, sequence length or seed.
        """
        self._loader = self._new_loader(LoaderState.from_json(state))


def rows_of_rank(batch_size: int, micro_batch: int, ranks: int) -> tuple[int, int]:
    """Rows of one forward pass and how many make an update, on each of the ranks.

    Raises:
        TrainingError: the rows cannot be shared evenly; names the nearest batch size that can.
    """
    rows = micro_batch or max(1, batch_size // ranks)
    together = rows * ranks
    if batch_size % together:
        near = max(together, round(batch_size / together) * together)
        what = f"{ranks} ranks" + (f" with micro-batches of {rows}" if micro_batch else "")
        raise TrainingError(
            f"training.batch_size {batch_size} cannot be shared by {what}; {near} can"
        )
    return rows, batch_size // together
