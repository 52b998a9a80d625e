"""What a run writes into its folder on the way, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from firsthand.llm.model.settings import to_record
from firsthand.llm.training.checkpoints import (
    CheckpointError,
    begin_checkpoint,
    commit_checkpoint,
    explained_write,
    load_latest,
    prune,
    save_checkpoint,
)
from firsthand.llm.training.distributed import World
from firsthand.llm.training.loop import Record, Training
from firsthand.llm.training.metrics import MetricsLog, RecordLog, TensorBoardLog
from firsthand.llm.training.random_state import random_state, restore_random_state
from firsthand.llm.training.runs import Run, require_same_config, require_same_data
from firsthand.llm.training.sharded_checkpoints import is_sharded, read_sharded, write_sharded
from firsthand.llm.training.state import load_state


class Watcher(Protocol):
    """Who looks on: a progress bar, or nobody."""

    def stage(self, name: str, done: float, total: float | None) -> None:
        """How far something before the training is."""

    def line(self, record: Record) -> None:
        """A line of the metrics."""

    def samples(self, step: int, records: list[Record]) -> None:
        """Texts that the model wrote."""

    def said(self, text: str) -> None:
        """Something to know, in a sentence."""

    def stop_asked(self) -> bool:
        """Whether the run shall end after this step, resumable."""


class Nobody:
    """A watcher that looks away."""

    def stage(self, name: str, done: float, total: float | None) -> None:
        """Nothing."""

    def line(self, record: Record) -> None:
        """Nothing."""

    def samples(self, step: int, records: list[Record]) -> None:
        """Nothing."""

    def said(self, text: str) -> None:
        """Nothing."""

    def stop_asked(self) -> bool:
        """Never."""
        return False


class NoJournal(Nobody):
    """A journal without a folder, for benchmarks and tests: lines are kept in `lines`."""

    def __init__(self) -> None:
        self.lines: list[Record] = []

    def line(self, record: Record) -> None:
        """Keep it."""
        self.lines.append(record)

    def save(self, training: Training) -> None:
        """Nothing."""


class RunJournal:
    """Metrics, samples and checkpoints in the folder of a run. Use `open_journal`.

    Only the first rank writes files, save for the pieces of a sharded checkpoint.
    """

    def __init__(self, run: Run, world: World, watcher: Watcher, identity: Record) -> None:
        """Open the files.

        Args:
            identity: of the data, kept with every checkpoint and compared on resuming.
        Raises:
            TrainingError: a file cannot be opened, or TensorBoard is not installed.
        """
        self.run, self.world, self.watcher, self.identity = run, world, watcher, identity
        self._metrics = MetricsLog(run.metrics) if world.is_first else None
        self._samples = MetricsLog(run.samples) if world.is_first else None
        self._others: list[RecordLog] = []

    def line(self, record: Record) -> None:
        """Write it down and show it."""
        if self._metrics is None:
            return
        self._metrics.append(record)
        for other in self._others:
            other.append(record)
        self.watcher.line(record)

    def event(self, step: int, text: str) -> None:
        """A sentence for the metrics and whoever looks on."""
        self.line({"kind": "event", "step": step, "text": text})
        if self.world.is_first:
            self.watcher.said(text)

    def samples(self, step: int, records: list[Record]) -> None:
        """Write them down and show them."""
        if self._samples is None:
            return
        for record in records:
            self._samples.append({"step": step, **record})
        self.watcher.samples(step, records)

    def stop_asked(self) -> bool:
        """Whether whoever looks on wants an end."""
        return self.watcher.stop_asked()

    def save(self, training: Training) -> None:
        """A checkpoint, whole when this returns; older ones go.

        Raises:
            CheckpointError: the disk refuses; the earlier ones stay.
        """
        state = self._state(training)
        folder, step, tensors = self.run.checkpoints, training.step, _tensors(training)
        path = None
        if training.spread.sharded:
            path = self._save_sharded(folder, step, tensors, state)
        elif self.world.is_first:
            path = save_checkpoint(folder, step, tensors, state)
        if path is not None:
            prune(folder, training.settings.keep, sure=path)
        self.world.wait()

    def _save_sharded(
        self, folder: Path, step: int, tensors: dict[str, dict[str, Any]], state: Record
    ) -> Path | None:
        """Each rank writes its pieces, the first one gives the folder its name."""
        with explained_write(folder, step, tensors):
            partial = folder / f".step-{step:08d}.partial"
            if self.world.is_first:
                partial = begin_checkpoint(folder, step)
            self.world.wait()
            write_sharded(partial, tensors)
            self.world.wait()
            return commit_checkpoint(partial, step, state) if self.world.is_first else None

    def _state(self, training: Training) -> Record:
        for log in (self._metrics, self._samples):
            if log is not None:
                log.sync()
        return {
            "config": to_record(self.run.config),
            "data": self.identity,
            "tokens": training.tokens,
            "seconds": training.seconds,
            "task": training.task.state(),
            "optimizer_steps": training.optimizer.steps,
            "average_updates": training.average.updates if training.average else 0,
            "scaler": training.scaler.state(),
            "random": random_state(),
            "metrics_bytes": self._metrics.length if self._metrics else 0,
            "samples_bytes": self._samples.length if self._samples else 0,
        }

    def restore(self, training: Training) -> bool:
        """Put the training where the newest whole checkpoint left it.

        Returns:
            Whether there was one.
        Raises:
            CheckpointError: none is whole, or it is of another config, data or tokenizer.
        """
        latest = load_latest(self.run.checkpoints)
        for problem in latest.problems:
            self.watcher.said(f"{problem}. Going on from an older checkpoint.")
        found = latest.checkpoint
        if found is None:
            self._cut(0, 0)
            return False
        state = found.state
        require_same_config(state["config"], self.run.config, found.path)
        require_same_data(state["data"], self.identity, found.path)
        tensors = _tensors(training)
        if is_sharded(found.path):
            read_sharded(found.path, tensors)
        else:
            if sorted(found.tensors) != sorted(tensors):
                raise CheckpointError(
                    f"{found.path}: it holds {', '.join(found.tensors)}; this run needs "
                    f"{', '.join(tensors)}"
                )
            for group, named in tensors.items():
                load_state(named, found.tensors[group], f"{found.path}: its {group} is")
        training.optimizer.steps = state["optimizer_steps"]
        if training.average is not None:
            training.average.updates = state["average_updates"]
        training.step, training.tokens = found.step, state["tokens"]
        training.seconds = state["seconds"]
        training.task.restore(state["task"])
        training.scaler.restore(state["scaler"])
        restore_random_state(state["random"])
        self._cut(state["metrics_bytes"], state["samples_bytes"])
        was, now = state["config"]["training"]["steps"], training.settings.steps
        if was != now:
            self.event(found.step, f"The run has {now} steps; until here it had {was}.")
        return True

    def _cut(self, metrics: int, samples: int) -> None:
        """Drop the lines behind the checkpoint: the same steps write them again."""
        for log, length in ((self._metrics, metrics), (self._samples, samples)):
            if log is not None:
                missing = log.truncate(length)
                if missing:
                    self.watcher.said(f"{log.path} lacks {missing} bytes that it once had")

    def show_on_tensorboard(self, step: int) -> None:
        """Write TensorBoard's files too, from this step on.

        Raises:
            TrainingError: the package is missing.
        """
        if self.world.is_first:
            self._others.append(TensorBoardLog(self.run.folder / "tensorboard", step=step))

    def close(self) -> None:
        """Close the files."""
        for log in (self._metrics, self._samples, *self._others):
            if log is not None:
                log.close()


@contextmanager
def open_journal(
    run: Run, world: World, watcher: Watcher, identity: Record
) -> Iterator[RunJournal]:
    """A journal whose files are closed at the end."""
    journal = RunJournal(run, world, watcher, identity)
    try:
        yield journal
    finally:
        journal.close()


def _tensors(training: Training) -> dict[str, dict[str, Any]]:
    tensors = {
        "model": dict(training.model.state_dict()),
        "optimizer": dict(training.optimizer.tensors()),
    }
    if training.average is not None:
        tensors["average"] = dict(training.average.tensors())
    return tensors
