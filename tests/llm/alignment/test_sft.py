"""The objective of supervised fine-tuning, against each conversation by itself in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from firsthand.llm.alignment.chat_data import chat_data
from firsthand.llm.alignment.settings import AlignmentSettings, TaskSettings
from firsthand.llm.alignment.sft import Sft
from firsthand.llm.data.packing import Example, PackedBatch
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.loop import train

SETTINGS = AlignmentSettings(
    tasks=TaskSettings(kinds=("sorting", "counting"), count=30, evaluated=2, evaluated_last=3)
)


def task_of(small: Any, **training: Any) -> Sft:
    data = chat_data(SETTINGS, small.template, length=small.context, seed=1)
    return Sft(data, small.tokenizer, small.config(**training), SETTINGS, small.alone)


def nats_alone(model: Transformer, example: Example) -> tuple[float, int]:
    """The loss of one conversation in a row of its own, every logit at once."""
    ids = torch.tensor(np.asarray(example.ids, np.int64))
    trained = torch.tensor(np.asarray(example.trained))[1:]
    logprobs = torch.log_softmax(model(ids[None, :-1])[0].double(), dim=-1)
    chosen = logprobs[torch.arange(len(ids) - 1), ids[1:]]
    return float(-chosen[trained].detach().sum()), int(trained.sum())


def examples_in(batch: PackedBatch) -> list[Example]:
    """The conversations that the rows were packed from, found again by their documents."""
    found = []
    for inputs, targets, documents in zip(
        batch.inputs, batch.targets, batch.documents, strict=True
    ):
        for number in range(documents.max() + 1):
            own = np.flatnonzero(documents == number)
            ids = [*inputs[own], targets[own[-1]]]
            found.append(Example(ids, [False, *(targets[own] >= 0)]))
    return found


def test_the_loss_of_packed_rows_is_the_sum_of_conversations_alone(small: Any) -> None:
    task, model = task_of(small), small.model().double()
    (batch,) = task.next_batches()
    loss = task.loss(model, batch)
    expected = [nats_alone(model, example) for example in examples_in(batch)]
    assert batch.examples == len(expected) > batch.inputs.shape[0]
    assert float(loss.total.detach()) == pytest.approx(sum(nats for nats, _ in expected), rel=1e-9)
    count = sum(number for _, number in expected)
    assert int(loss.tokens) == task.size([batch]).tokens == count


def test_other_targets_than_the_answers_do_not_exist(small: Any) -> None:
    task = task_of(small)
    (batch,) = task.next_batches()
    for row, position in zip(*np.nonzero(batch.targets >= 0), strict=True):
        own = batch.documents[row] == batch.documents[row, position]
        before = batch.inputs[row][: position + 1][own[: position + 1]]
        assert small.tokenizer.special_tokens["<|assistant|>"] in before


def test_bytes_are_those_of_the_answers(small: Any) -> None:
    task = task_of(small)
    (batch,) = task.next_batches()
    answers = batch.targets[batch.targets >= 0].tolist()
    spelt = [token for token in answers if token != small.template.end]
    size = task.size([batch])
    assert (size.tokens, size.positions) == (len(answers), batch.inputs.size)
    assert size.text_bytes == len(small.tokenizer.decode(spelt))


def test_validation_is_the_mean_over_all_held_out_answers(small: Any) -> None:
    task, model = task_of(small), small.model()
    found = task.validate(model, 0)
    with torch.inference_mode():
        expected = [nats_alone(model, example) for example in task.data.validation]
    tokens = sum(number for _, number in expected)
    assert found["tokens"] == tokens
    assert found["loss"] == pytest.approx(sum(nats for nats, _ in expected) / tokens, rel=1e-5)
    assert 0 <= found["token_accuracy"] <= 1  # type: ignore[operator]


def test_a_few_answers_are_learnt_by_heart(small: Any) -> None:
    settings = AlignmentSettings(
        tasks=TaskSettings(kinds=("counting",), count=4, evaluated=2, evaluated_last=2)
    )
    data = chat_data(settings, small.template, length=small.context, seed=1)
    config = small.config(steps=120)
    task = Sft(data, small.tokenizer, config, settings, small.alone)
    model = small.model()
    training, journal = small.assembled(task, model, config)
    train(training)
    losses = [line["loss"] for line in journal.lines if line["kind"] == "train"]
    assert losses[-1] < 0.1 * losses[0]
    with torch.inference_mode():
        for example in data.train:
            nats, number = nats_alone(model, example)
            assert nats / number < 1


def test_samples_are_the_same_for_the_same_weights(small: Any) -> None:
    task, model = task_of(small), small.model()
    one, other = task.samples(model, 0), task.samples(model, 7)
    assert one == other
    assert len(one) == 6
    assert {"prompt", "text"} <= one[0].keys()
