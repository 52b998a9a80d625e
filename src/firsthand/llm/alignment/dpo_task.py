"""DPO and IPO as a task of the training loop: pairs in, the loss of their margins out.

The objective stands in `dpo`. Here the reference costs nothing while training: its
log-probabilities come from a table, and chosen and rejected answers go through the model together.
"""

from __future__ import annotations

from typing import Any

import torch

from firsthand.llm.alignment.dpo import PairLosses, dpo_losses, likelihood_losses
from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.held_out import HeldOut
from firsthand.llm.alignment.logprobs import sequence_logprobs
from firsthand.llm.alignment.methods import Setup
from firsthand.llm.alignment.mistakes import (
    sampled_preferences,
    store_preferences,
    stored_preferences,
)
from firsthand.llm.alignment.orders import SeededOrder
from firsthand.llm.alignment.pair_data import (
    PairBatch,
    PairData,
    pair_batch,
    pair_data,
    preference_tasks,
)
from firsthand.llm.alignment.preferences import Pair, encoded_pairs
from firsthand.llm.alignment.questions import held_out_tasks
from firsthand.llm.alignment.reference import FILE, ReferenceTable, base_of
from firsthand.llm.alignment.settings import DpoSettings
from firsthand.llm.alignment.sums import Sums
from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.next_token import rows_of_rank
from firsthand.llm.training.task import Size

# The pairs that are learnt from, and those that are held out.
MISTAKES = ("pairs.jsonl", "held_out_pairs.jsonl")


class PairTask:
    """What DPO and the reward model share: the order of the pairs, their batches and their size.

    A row of the run's batch is a pair, and the loss is a mean over pairs.

    Args:
        data: the pairs.
        config: of the run.
        world: whose rank's pairs these are.
        held_out: what the model is asked on the way, or None.
        padding: the id of unused inputs.
    """

    unit = "pairs"

    def __init__(
        self,
        data: PairData,
        config: RunConfig,
        world: World,
        *,
        held_out: HeldOut | None = None,
        padding: int = 0,
    ) -> None:
        settings = config.training
        self.data, self.config, self.world = data, config, world
        self.held_out, self.padding = held_out, padding
        self.rows, self.micro_batches = rows_of_rank(
            settings.batch_size, settings.micro_batch, world.ranks
        )
        self.order = SeededOrder(len(data.train), config.seed)
        self.sums = Sums(world)

    def next_batches(self) -> list[PairBatch]:
        """The micro-batches of one update on this rank."""
        chosen = self.order.take(self.config.training.batch_size)
        share = self.rows * self.micro_batches
        mine = chosen[self.world.rank * share : (self.world.rank + 1) * share]
        batches = [self.batch(mine[at : at + self.rows]) for at in range(0, share, self.rows)]
        self.sums.clear()
        for batch in batches:
            self.sums.add({"real": batch.tokens, "positions": batch.inputs.numel()}, 0)
        return batches

    def batch(self, numbers: list[int]) -> PairBatch:
        """The batch of these pairs of the training split."""
        return self.padded([self.data.train[number] for number in numbers])

    def padded(self, pairs: list[Pair], reference: Any = ()) -> PairBatch:
        """A batch on the world's device."""
        return pair_batch(pairs, self.world.device, padding=self.padding, reference=reference)

    def size(self, batches: list[PairBatch]) -> Size:
        """Pairs, and positions of their rows; bits per byte have no meaning."""
        return Size(
            tokens=sum(batch.pairs for batch in batches),
            text_bytes=0,
            positions=sum(batch.pairs for batch in batches),
        )

    def metrics(self) -> dict[str, float]:
        """Means over the pairs of the latest update."""
        means = named_pair_accuracy(self.sums.means())
        real, positions = means.pop("real", 0.0), means.pop("positions", 1.0)
        return {**means, "real_token_fraction": real / positions}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Answers to held-out questions."""
        return [] if self.held_out is None else self.held_out.samples(model)

    def state(self) -> dict[str, Any]:
        """Where the order of the pairs stands, and which pairs they are."""
        return {"order": self.order.state(), "pairs": self.data.identity}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            AlignmentError: it is of other pairs or of another seed.
        """
        if state.get("pairs") != self.data.identity:
            raise AlignmentError(
                "the run was begun with other preference pairs; it goes on only with its own"
            )
        self.order.restore(state["order"])

    def validation_batches(self, batches: int) -> list[list[int]]:
        """Numbers of validation pairs, a list for each batch; 0 is all."""
        count = len(self.data.validation)
        found = [list(range(at, min(at + self.rows, count))) for at in range(0, count, self.rows)]
        return found[:batches] if batches else found


class DpoTask(PairTask):
    """Pairs whose log-probabilities under the reference are known.

    Args:
        table: ln p of the reference for the training pairs and, behind them, the validation pairs.
        settings: of DPO.
    Others: as `PairTask`.
    """

    def __init__(
        self,
        data: PairData,
        table: ReferenceTable,
        config: RunConfig,
        settings: DpoSettings,
        world: World,
        *,
        held_out: HeldOut | None = None,
        padding: int = 0,
    ) -> None:
        super().__init__(data, config, world, held_out=held_out, padding=padding)
        self.table, self.settings = table, settings

    def needed(self) -> list[int]:
        """The pairs, as the table counts them, that the steps of the run and validation read."""
        steps = self.config.training.steps
        taken = min(len(self.data.train), steps * self.config.training.batch_size)
        held = range(len(self.data.train), len(self.data.train) + len(self.data.validation))
        return [*SeededOrder(self.order.count, self.order.seed).peek(taken), *held]

    def batch(self, numbers: list[int]) -> PairBatch:
        """The batch of these pairs with the reference's log-probabilities."""
        return self.padded([self.data.train[n] for n in numbers], self.table.of(numbers))

    def loss(self, model: Transformer, batch: PairBatch) -> Loss:
        """The objective of `dpo`, summed over the pairs."""
        found = self._losses(model, batch)
        self.sums.add(found.sums(), batch.pairs)
        return Loss(found.losses.sum(), torch.tensor(batch.pairs))

    def validate(self, model: Transformer, batches: int) -> dict[str, float | int | None]:
        """Loss, margin and accuracy on held-out pairs; answers to held-out tasks and their KL."""
        names = ("loss", "margin", "accuracy", "chosen_reward", "rejected_reward")
        sums = Sums(self.world, names)
        first = len(self.data.train)
        for numbers in self.validation_batches(batches)[self.world.rank :: self.world.ranks]:
            pairs = [self.data.validation[n] for n in numbers]
            batch = self.padded(pairs, self.table.of([first + n for n in numbers]))
            with torch.no_grad():
                losses = self._losses(model, batch)
            sums.add({"loss": float(losses.losses.sum()), **losses.sums()}, batch.pairs)
        found = named_pair_accuracy(sums.means())
        if self.held_out is not None:
            found |= self.held_out.measures(model, last=batches == 0)
        return {**found}

    def _losses(self, model: Transformer, batch: PairBatch) -> PairLosses:
        found = sequence_logprobs(model, batch.inputs, batch.targets)
        settings, pairs = self.settings, batch.pairs
        losses = dpo_losses(
            found[:pairs],
            found[pairs:],
            batch.reference[:pairs],
            batch.reference[pairs:],
            beta=settings.beta,
            kind=settings.kind,
            label_smoothing=settings.label_smoothing,
            loss=model.parts.dpo_loss,
        )
        if not settings.likelihood:
            return losses
        chosen = likelihood_losses(found[:pairs], batch.lengths[:pairs])
        return losses._replace(losses=losses.losses + settings.likelihood * chosen)


def named_pair_accuracy(means: dict[str, float]) -> dict[str, float]:
    """The same with "pair_accuracy" for the share of pairs the right way round.

    "accuracy" is that of answers to questions, in all methods.
    """
    return {("pair_accuracy" if name == "accuracy" else name): v for name, v in means.items()}


def own_mistakes(setup: Setup) -> PairData:
    """Pairs with the base's own mistakes, sampled once and stored in the run.

    No more tasks are answered than the steps of the run can read; a run that is made longer goes
    through the same pairs again.

    Raises:
        AlignmentError: the base makes no mistake, or a prompt is too long.
        SourceError: a stored file that cannot be read.
    """
    config, settings, world = setup.config, setup.settings, setup.world
    needed = config.training.steps * config.training.batch_size
    drawn = preference_tasks(settings.tasks, needed, config.seed)
    pairs, template = [], ChatTemplate(setup.tokenizer)
    for file, tasks in zip(MISTAKES, drawn, strict=True):
        path = setup.run.folder / file
        if world.is_first and not path.exists():
            found = sampled_preferences(
                setup.model,
                setup.tokenizer,
                tasks,
                attempts=settings.dpo.attempts,
                max_new_tokens=settings.tasks.max_new_tokens,
                seed=config.seed,
            )
            store_preferences(path, found)
        world.wait()
        records = stored_preferences(path)
        pairs.append(encoded_pairs(records, template, config.sequence_length))
    return PairData(*pairs)


def dpo_task(setup: Setup) -> DpoTask:
    """Pairs of the settings' files or tasks; the reference's part of them, stored in the run.

    Raises:
        AlignmentError, SourceError: as `pair_data`, and what `ReferenceTable` refuses.
    """
    run, config, settings, world = setup.run, setup.config, setup.settings, setup.world
    template = ChatTemplate(setup.tokenizer)
    if settings.files or settings.dpo.rejected == "made":
        data = pair_data(
            settings,
            template,
            context=config.sequence_length,
            seed=config.seed,
            validation_share=settings.dpo.validation_share,
        )
    else:
        data = own_mistakes(setup)
    base = run.record().get("alignment", {}).get("base_sha256", "")
    pairs = [*data.train, *data.validation]
    identity = f"{data.identity} {base}"
    held_out = held_out_tasks(settings, setup.tokenizer, config.seed, world)
    held_out.reference = lambda policy: base_of(run.folder, policy)

    def made() -> DpoTask:
        table = ReferenceTable(run.folder / FILE, identity, len(pairs))
        return DpoTask(
            data,
            table,
            config,
            settings.dpo,
            world,
            held_out=held_out,
            padding=template.end,
        )

    task = made()
    if world.is_first:
        task.table.fill(setup.model, pairs, task.needed(), settings.dpo.reference_batch)
    world.wait()
    return task if world.is_first else made()
