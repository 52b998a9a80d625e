"""The loop: token-exact updates, half precision, the alarm, an early end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firsthand.llm.data.loading import IGNORED, TokenBatch, TokenStream
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.alarm import NonFiniteError
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.checkpoints import list_checkpoints
from firsthand.llm.training.config import (
    OptimizerSettings,
    RunConfig,
    ScheduleSettings,
    TrainingSettings,
)
from firsthand.llm.training.distributed import World
from firsthand.llm.training.journal import Nobody, NoJournal, RunJournal
from firsthand.llm.training.loop import Training, accumulate, train
from firsthand.llm.training.next_token import Corpus, NextToken
from firsthand.llm.training.precision import FIRST_SCALE
from firsthand.llm.training.runs import create_run
from firsthand.llm.training.task import Size

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def config(**training: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(vocab_size=29, context=8, d_model=12, n_layers=2, n_heads=2, d_ff=20),
        optimizer=OptimizerSettings(learning_rate=0.01),
        schedule=ScheduleSettings(kind="constant", warmup=0),
        training=TrainingSettings(
            **{"steps": 6, "batch_size": 6, "save_every": 2, "flow_every": 0, **training}
        ),
    )


def corpus(tokens: int = 400) -> Corpus:
    ids = (np.arange(tokens) * np.arange(tokens) // 3 % 29).astype(np.uint16)
    return Corpus(
        train=TokenStream([ids], 0),
        validation=TokenStream([ids[:100]], 0),
        byte_lengths=np.full(29, 2, np.int64),
    )


def training_of(settings: RunConfig, journal: Any = None) -> Training:
    model = Transformer(settings.model, FAST, seed=1)
    task = NextToken(corpus(), settings, ALONE)
    return assemble(settings, model, task, ALONE, journal or NoJournal())


def losses(journal: NoJournal) -> list[float]:
    return [line["loss"] for line in journal.lines if line["kind"] == "train"]


def test_uneven_micro_batches_give_the_gradient_of_the_mean_over_tokens() -> None:
    training = training_of(config())
    generator = np.random.default_rng(3)
    inputs = generator.integers(0, 29, (6, 8))
    targets = generator.integers(0, 29, (6, 8))
    targets[1, 3:] = targets[2] = targets[5, 1:] = IGNORED

    def batch(rows: slice) -> TokenBatch:
        wanted = targets[rows]
        return TokenBatch(inputs[rows], wanted, None, int((wanted >= 0).sum()))

    def gradient(parts: list[slice]) -> tuple[float, torch.Tensor]:
        batches = [batch(rows) for rows in parts]
        training.optimizer.zero_gradients()
        nats = accumulate(training, batches, training.task.size(batches))
        grads = [p.grad for p in training.model.parameters() if p.grad is not None]
        return nats, torch.cat([g.flatten() for g in grads])

    whole_nats, whole = gradient([slice(0, 6)])
    nats, parts = gradient([slice(0, 1), slice(1, 3), slice(3, 6)])
    assert nats == pytest.approx(whole_nats, rel=1e-6)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    # What a mean of the means would give is another gradient, well outside of the tolerance.
    model = training.model
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6)):
        loss = model.loss(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))
        (loss.mean / 3).backward()
    naive = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (naive - whole).norm() > 0.05 * whole.norm()


def test_every_step_has_a_line_and_the_loss_falls() -> None:
    journal = NoJournal()
    training = training_of(config(steps=30, evaluate_every=10, flow_every=10), journal)
    train(training)
    lines = [line for line in journal.lines if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert losses(journal)[-1] < 0.9 * losses(journal)[0]
    first = lines[0]
    assert first["loss"] == pytest.approx(math.log(29), rel=0.05)
    assert first["bits_per_byte"] == pytest.approx(first["loss"] / math.log(2) / 2)
    real = sum(48 * line["real_token_fraction"] for line in lines)
    assert lines[-1]["tokens"] == training.tokens == real
    assert [line["step"] for line in journal.lines if line["kind"] == "validation"] == [10, 20, 30]
    assert [line["step"] for line in journal.lines if line["kind"] == "flow"] == [10, 20, 30]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_nearly_alike(precision: str) -> None:
    exact, half = NoJournal(), NoJournal()
    train(training_of(config(steps=12), exact))
    training = training_of(config(steps=12, precision=precision), half)
    train(training)
    assert losses(half) == pytest.approx(losses(exact), rel=0.02)
    assert losses(half) != losses(exact)
    assert all(p.dtype == torch.float32 for p in training.model.parameters())
    assert training.scaler.scale == (FIRST_SCALE if precision == "float16" else 1.0)


class Bursting(NextToken):
    """The gradients of some steps overflow."""

    def __init__(self, *arguments: Any, broken: set[int]) -> None:
        super().__init__(*arguments)
        self.broken, self.calls = broken, 0

    def loss(self, model: Transformer, batch: TokenBatch) -> Loss:
        loss = super().loss(model, batch)
        self.calls += 1
        if self.calls in self.broken:
            return Loss(loss.total * math.inf, loss.tokens)
        return loss


def bursting(settings: RunConfig, broken: set[int], journal: Any) -> Training:
    model = Transformer(settings.model, FAST, seed=1)
    task = Bursting(corpus(), settings, ALONE, broken=broken)
    return assemble(settings, model, task, ALONE, journal)


def test_float16_halves_its_scale_and_skips_a_step_that_overflows() -> None:
    training = bursting(config(steps=2, precision="float16"), {2}, NoJournal())
    before = {}

    class Watching(NoJournal):
        def line(self, record: dict[str, Any]) -> None:
            if record["kind"] == "train":
                before[record["step"]] = training.model.embedding.weight.detach().clone()

    training.journal = Watching()
    train(training)
    assert training.scaler.scale == FIRST_SCALE / 2
    assert torch.equal(before[1], before[2])
    assert training.optimizer.steps == 1


def test_a_loss_that_is_not_finite_stops_names_the_layer_and_keeps_the_last_good(
    tmp_path: Path,
) -> None:
    settings = config(steps=6)
    run = create_run(tmp_path / "run", settings)
    journal = RunJournal(run, ALONE, Nobody(), {})
    training = training_of(settings, journal)
    update = training.optimizer.step

    def spoil(scale: float = 1.0) -> None:
        update(scale)
        if training.optimizer.steps == 5:
            with torch.no_grad():
                training.model.blocks[1].feed_forward.up.weight[3, 2] = math.nan

    training.optimizer.step = spoil  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError) as raised:
        train(training)
    journal.close()
    assert raised.value.step == 6
    assert raised.value.layer == "blocks.1.feed_forward.up.weight"
    assert "step 6" in str(raised.value)
    assert [path.name for path in list_checkpoints(run.checkpoints)] == [
        "step-00000002",
        "step-00000004",
    ]


def test_nothing_but_the_loss_being_infinite_is_said_to_be_the_loss() -> None:
    with pytest.raises(NonFiniteError, match=r"step 3: the first activation.*the loss"):
        train(bursting(config(), {3, 4}, NoJournal()))


class Impatient(NoJournal):
    """Asks for an end after the third line, and remembers what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[int] = []

    def stop_asked(self) -> bool:
        return len(losses(self)) == 3

    def save(self, training: Training) -> None:
        self.saved.append(training.step)


def test_asked_to_stop_it_saves_and_ends() -> None:
    journal = Impatient()
    training = training_of(config(), journal)
    train(training)
    assert journal.saved == [2, 3]
    assert training.step == 3


def test_the_average_is_validated_and_the_weights_go_on() -> None:
    plain, averaged = NoJournal(), NoJournal()
    settings = config(steps=12, evaluate_every=4, evaluate_batches=0)
    train(training_of(settings, plain))
    lagging = replace(settings, training=replace(settings.training, average=0.9))
    train(training_of(lagging, averaged))
    assert losses(plain) == losses(averaged)

    def validations(journal: NoJournal) -> list[float]:
        return [line["loss"] for line in journal.lines if line["kind"] == "validation"]

    assert validations(averaged)[-1] > validations(plain)[-1]


def test_checkpointed_blocks_change_no_bit() -> None:
    plain, lean = NoJournal(), NoJournal()
    train(training_of(config(), plain))
    train(training_of(config(checkpoint_blocks=True), lean))
    assert losses(plain) == losses(lean)


@pytest.mark.slow
def test_compiled_blocks_train_alike() -> None:
    plain, compiled = NoJournal(), NoJournal()
    train(training_of(config(), plain))
    train(training_of(config(compile=True, flow_every=2), compiled))
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)


def test_sizes_count_targets_bytes_and_positions() -> None:
    training = training_of(config())
    batches = training.task.next_batches()
    assert training.task.size(batches) == Size(tokens=48, text_bytes=96, positions=48)
