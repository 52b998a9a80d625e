"""The training loop: one function for pretraining, fine-tuning and alignment alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.training.alarm import all_finite, find_first_nonfinite
from firsthand.llm.training.averaging import Average
from firsthand.llm.training.config import TrainingSettings
from firsthand.llm.training.distributed import Spread, World, gradients
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.gradient_flow import FlowRecorder
from firsthand.llm.training.memory import peak_bytes
from firsthand.llm.training.optimizers.optimizer import Optimizer
from firsthand.llm.training.precision import LossScaler, autocast
from firsthand.llm.training.task import Size, Task

Record = dict[str, Any]


class Journal(Protocol):
    """Where a run writes; every rank has one, and only the first rank's holds files."""

    def line(self, record: Record) -> None:
        """One record of the metrics."""

    def samples(self, step: int, records: list[Record]) -> None:
        """Texts that the model wrote."""

    def save(self, training: Training) -> None:
        """A checkpoint of everything that the rest of the run depends on."""

    def stop_asked(self) -> bool:
        """Whether somebody wants the run to end after this step, resumable."""


@dataclass
class Training:
    """All that one update reads or changes.

    Attributes:
        model: holds the weights.
        spread: the same model on all ranks.
        task: the data and the objective.
        optimizer, schedule: `schedule(step)` scales the optimizer's rates.
        settings: how long, how often.
        clip: the largest norm of the gradient; 0 is off.
        world: the ranks.
        journal: where it is written down.
        average: of the weights, or None.
        step: updates so far.
        tokens: that the loss was a mean over, all ranks, all updates.
        seconds: of updates, without validation, samples and checkpoints.
    """

    model: Transformer
    spread: Spread
    task: Task
    optimizer: Optimizer
    schedule: Callable[[int], float]
    settings: TrainingSettings
    clip: float
    world: World
    journal: Journal
    average: Average | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    scaler: LossScaler = field(init=False)
    flow: FlowRecorder = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = LossScaler(self.settings.precision)
        self.flow = FlowRecorder(self.model)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step == self.settings.steps or bool(every and self.step % every == 0)

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the model has the average of its weights where there is one."""
        return nullcontext() if self.average is None else self.average.applied()


def train(training: Training) -> None:
    """Update the weights until `settings.steps`; log, validate, sample and save on the way.

    Each update goes through the micro-batches, joins their gradients over the ranks, clips them,
    and moves the weights. It ends early, after a checkpoint, when the journal asks for it.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; the weights are those before.
        TrainingError: what the journal or the task could not do.
    """
    t, settings = training, training.settings
    clock = _Clock()
    stop = False
    while t.step < settings.steps and not stop:
        batches = t.task.next_batches()
        size = Size(*map(int, t.world.sums(t.task.size(batches))))
        rate = t.schedule(t.step)
        flow_due = bool(settings.flow_every) and (t.step + 1) % settings.flow_every == 0
        with t.flow.watching() if flow_due else nullcontext():
            nats = t.world.sums([accumulate(t, batches, size)])[0]
        scale = t.scaler.scale
        found = gradients(t.model)
        t.scaler.unscale(found)
        norm = float(t.model.parts.clip_gradients(found, t.clip))
        # Or they would live on through the next update's passes.
        del found
        finite = all_finite(norm, nats)
        t.scaler.update(finite)
        if not finite and t.scaler.exhausted:
            raise _first_nonfinite(t, batches, size)
        if finite:
            if flow_due:
                t.flow.before_update()
            t.optimizer.step(rate)
        t.optimizer.zero_gradients()
        if t.average is not None and finite:
            t.average.update()
        t.step, t.tokens = t.step + 1, t.tokens + size.tokens
        t.seconds += clock.count(size.tokens)

        if t.due(settings.log_every):
            t.journal.line(_train_line(t, nats, norm, rate, size, clock))
        if flow_due and finite:
            t.journal.line(t.flow.after_update(t.step, loss_divisor=scale * t.world.ranks))
        with clock.stopped():
            evaluate_and_sample(t)
            stop = t.world.any(t.journal.stop_asked())
            if t.due(settings.save_every) or stop:
                t.journal.save(t)


def accumulate(training: Training, batches: list[Any], size: Size) -> float:
    """Leave the gradient of the mean loss over all micro-batches of all ranks; return the nats.

    The sum of token losses is divided by the number of tokens of the whole update, so the result
    does not depend on how the rows are cut into micro-batches.

    Returns:
        The summed loss of this rank.
    """
    t = training
    total = torch.zeros((), dtype=torch.float64, device=t.world.device)
    for index, batch in enumerate(batches):
        with t.spread.gathering(index == len(batches) - 1):
            share, loss = _backpropagated(t, batch, size)
            share.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return float(total)


def _first_nonfinite(t: Training, batches: list[Any], size: Size) -> TrainingError:
    """The layer where it began; the weights are still those that the step began with."""
    for batch in batches:

        def loss(batch: Any = batch) -> Tensor:
            return _backpropagated(t, batch, size)[0]

        error = find_first_nonfinite(t.model, loss, step=t.step + 1, world=t.world)
        if error is not None:
            return error
    return TrainingError(
        f"step {t.step + 1}: the loss or the norm of the gradient is not finite, but every layer "
        "is, each batch by itself: the sum over batches or ranks overflows"
    )


def _backpropagated(t: Training, batch: Any, size: Size) -> tuple[Tensor, Tensor]:
    """The scalar that is differentiated, and the summed loss of a micro-batch.

    Over all micro-batches of all ranks the first ones add up to the mean loss, times the scale
    of float16; averaging over the ranks, as DDP and FSDP do, is undone by their number.
    """
    with autocast(t.settings.precision, t.world.device):
        loss: Loss = t.spread(t.task.loss, batch)
    return loss.total * (t.scaler.scale * t.world.ranks / max(1, size.tokens)), loss.total


def evaluate_and_sample(training: Training) -> None:
    """What is due of validation and samples, with the averaged weights where there are some."""
    t, settings = training, training.settings
    validate, sample = t.due(settings.evaluate_every), t.due(settings.sample_every)
    if not (validate or sample):
        return
    with t.averaged():
        if validate:
            batches = 0 if t.step == settings.steps else settings.evaluate_batches
            measures = t.task.validate(t.model, batches)
            t.journal.line({"kind": "validation", "step": t.step, **measures})
        if sample and not t.spread.sharded:
            t.journal.samples(t.step, t.task.samples(t.model, t.step))


def _train_line(
    t: Training, nats: float, norm: float, rate: float, size: Size, clock: _Clock
) -> Record:
    return {
        "kind": "train",
        "step": t.step,
        "tokens": t.tokens,
        "loss": nats / max(1, size.tokens),
        "bits_per_byte": nats / math.log(2) / size.text_bytes if size.text_bytes else None,
        "gradient_norm": norm,
        "learning_rate": rate * t.optimizer.settings.learning_rate,
        "real_token_fraction": size.tokens / max(1, size.positions),
        # A task whose loss is a mean over other things than tokens has its own fraction.
        **t.task.metrics(),
        "tokens_per_second": clock.rate(),
        "unit": t.task.unit,
        "memory_bytes": peak_bytes(t.world.device),
        "seconds": t.seconds,
    }


class _Clock:
    """Seconds and tokens of updates alone, without validation, samples and checkpoints."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._seconds = 0.0
        self._tokens = 0

    def count(self, tokens: int) -> float:
        """Add an update; return its seconds."""
        now = time.perf_counter()
        spent, self._begin = now - self._begin, now
        self._seconds += spent
        self._tokens += tokens
        return spent

    def rate(self) -> float:
        """Tokens a second since the last reading."""
        result = self._tokens / self._seconds if self._seconds else 0.0
        self._seconds, self._tokens = 0.0, 0
        return result

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time within does not count."""
        self._seconds += time.perf_counter() - self._begin
        yield
        self._begin = time.perf_counter()
