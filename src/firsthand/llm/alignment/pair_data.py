"""Preference pairs of a run: which are learnt from, which are held out, and their batches."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.preferences import Pair, encoded_pairs, read_pairs, task_preferences
from firsthand.llm.alignment.settings import AlignmentSettings, TaskSettings
from firsthand.llm.data.loading import IGNORED
from firsthand.llm.data.permutation import Permutation
from firsthand.llm.data.tasks import Task, TaskSplit, generate_tasks
from firsthand.llm.tokenizer.chat import ChatTemplate

# Tells the draw of what is held out from the order of what is learnt from.
_HELD_OUT_DRAW = 7


@dataclass(frozen=True)
class PairData:
    """Pairs to learn from, and pairs that are only measured on."""

    train: list[Pair]
    validation: list[Pair]

    def __post_init__(self) -> None:
        for name, pairs in (("training", self.train), ("validation", self.validation)):
            if not pairs:
                raise AlignmentError(f"the {name} split has no preference pair: give more records")

    @property
    def identity(self) -> str:
        """A hash of all ids, in order: equal for equal pairs alone."""
        digest = hashlib.sha256()
        for pair in (*self.train, *self.validation):
            for example in (pair.chosen, pair.rejected):
                ids = np.asarray(example.ids, "<i8")
                digest.update(len(ids).to_bytes(8, "little"))
                digest.update(int(np.argmax(np.asarray(example.trained))).to_bytes(8, "little"))
                digest.update(ids.tobytes())
        return digest.hexdigest()


def pair_data(
    settings: AlignmentSettings,
    template: ChatTemplate,
    *,
    context: int,
    seed: int,
    validation_share: float,
) -> PairData:
    """The pairs that the settings name: of files, or of generated tasks without any.

    Generated pairs are held out by their numbers, those of files by a draw.

    Raises:
        SourceError, AlignmentError: a record that cannot be used; names file and line.
    """
    if settings.files:
        pairs = read_pairs([Path(file) for file in settings.files], template, context)
        held = round(validation_share * len(pairs))
        if not 1 <= held < len(pairs):
            raise AlignmentError(
                f"{len(pairs)} pairs cannot be split with {validation_share:.0%} held out: give "
                "more records or another validation_share"
            )
        order = Permutation(len(pairs), seed, _HELD_OUT_DRAW)(np.arange(len(pairs))).tolist()
        return PairData([pairs[i] for i in order[held:]], [pairs[i] for i in order[:held]])
    train, validation = (
        encoded_pairs(task_preferences(drawn, seed), template, context)
        for drawn in preference_tasks(settings.tasks, settings.tasks.count, seed)
    )
    return PairData(train, validation)


def preference_tasks(tasks: TaskSettings, count: int, seed: int) -> tuple[list[Task], list[Task]]:
    """Tasks to learn from, at most `count`, and tasks with other numbers to measure on."""
    splits: tuple[tuple[TaskSplit, int], ...] = (
        ("train", min(count, tasks.count)),
        ("numbers", tasks.evaluated),
    )
    train, held_out = (
        list(generate_tasks(number, seed=seed, split=split, kinds=tasks.kinds, levels=tasks.levels))
        for split, number in splits
    )
    return train, held_out


@dataclass(frozen=True)
class PairBatch:
    """Pairs as rows padded on the right: the chosen answers first, then the rejected ones.

    Attributes:
        inputs: the tokens that the model reads.
        targets: the next token where it belongs to the answer, else IGNORED.
        reference: ln p of each answer under the reference; empty where there is none.
        tokens: real positions.
    """

    inputs: Int[Tensor, "rows seq"]
    targets: Int[Tensor, "rows seq"]
    reference: Float[Tensor, " rows"]
    tokens: int

    @property
    def pairs(self) -> int:
        """Half the rows."""
        return self.inputs.shape[0] // 2

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each answer."""
        return (self.targets >= 0).sum(dim=1)


def whole_texts(
    inputs: Int[Tensor, "rows seq"], targets: Int[Tensor, "rows seq"], padding: int
) -> tuple[Int[Tensor, "rows longer"], Bool[Tensor, "rows longer"]]:
    """Prompts and answers with their last tokens, which are targets alone, and what is real.

    Args:
        padding: the id of the tokens that are not.
    """
    places = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    lengths = torch.where(targets >= 0, places, 0).amax(dim=1, keepdim=True) + 1
    tokens = torch.nn.functional.pad(inputs, (0, 1), value=padding)
    tokens = tokens.scatter(1, lengths - 1, targets.gather(1, lengths - 2))
    real = torch.arange(tokens.shape[1], device=tokens.device) < lengths
    return tokens, real


def pair_batch(
    pairs: Sequence[Pair],
    device: torch.device,
    *,
    padding: int,
    reference: Sequence[tuple[float, float]] = (),
) -> PairBatch:
    """The batch of these pairs.

    Args:
        padding: the id of unused inputs, which no real position sees.
        reference: ln p of chosen and rejected, for each pair.
    """
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    length = max(len(example.ids) for example in examples) - 1
    inputs = np.full((len(examples), length), padding, np.int64)
    targets = np.full((len(examples), length), IGNORED, np.int64)
    for row, example in enumerate(examples):
        ids, trained = np.asarray(example.ids, np.int64), np.asarray(example.trained, np.bool_)
        inputs[row, : ids.size - 1] = ids[:-1]
        targets[row, : ids.size - 1] = np.where(trained[1:], ids[1:], IGNORED)
    known = [values[0] for values in reference] + [values[1] for values in reference]
    return PairBatch(
        inputs=torch.from_numpy(inputs).to(device),
        targets=torch.from_numpy(targets).to(device),
        reference=torch.tensor(known, dtype=torch.float32, device=device),
        tokens=sum(len(example.ids) - 1 for example in examples),
    )
