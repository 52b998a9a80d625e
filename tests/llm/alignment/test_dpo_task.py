"""DPO as a task: exact over micro-batches, resumable bit for bit, its reference computed once."""

from pathlib import Path

import pytest
import torch

from firsthand.llm.alignment.dpo_task import DpoTask
from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.logprobs import sequence_logprobs
from firsthand.llm.alignment.pair_data import PairData, pair_batch
from firsthand.llm.alignment.preferences import encoded_pairs, task_preferences
from firsthand.llm.alignment.reference import ReferenceTable, frozen_copy, require_same_tokens
from firsthand.llm.alignment.settings import DpoSettings
from firsthand.llm.data.tasks import generate_tasks
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.tokenizer.tokenizer import Tokenizer
from firsthand.llm.training.loop import train


def pairs_of(small, count: int = 10, seed: int = 1) -> PairData:
    tasks = generate_tasks(count, seed=seed, kinds=["arithmetic"], levels=[1])
    pairs = encoded_pairs(task_preferences(tasks, seed), small.template, small.context)
    return PairData(pairs[: count - 3], pairs[count - 3 :])


def made(small, path: Path, model, config, **settings) -> DpoTask:
    data = pairs_of(small)
    table = ReferenceTable(path / "reference.safetensors", data.identity, 10)
    task = DpoTask(
        data,
        table,
        config,
        DpoSettings(**{"beta": 0.5, "likelihood": 0.0, **settings}),
        small.alone,
    )
    table.fill(model, [*data.train, *data.validation], task.needed(), 4)
    return task


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_training_separates_the_pairs(small, tmp_path: Path, kind: str) -> None:
    config, model = small.config(steps=12), small.model()
    task = made(small, tmp_path, model, config, kind=kind)
    training, journal = small.assembled(task, model, config)
    train(training)
    lines = [line for line in journal.lines if line["kind"] == "train"]
    assert lines[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["margin"] > 0.2
    assert lines[-1]["pair_accuracy"] > 0.7
    if kind == "sigmoid":
        assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert 0.3 < lines[0]["real_token_fraction"] <= 1
    measures = task.validate(model, 0)
    assert set(measures) >= {"loss", "margin", "pair_accuracy"}


def test_the_likelihood_keeps_chosen_answers_probable(small, tmp_path: Path) -> None:
    rewards = {}
    for likelihood in (0.0, 2.0):
        config, model = small.config(steps=12), small.model()
        path = tmp_path / str(likelihood)
        path.mkdir()
        task = made(small, path, model, config, likelihood=likelihood)
        training, journal = small.assembled(task, model, config)
        train(training)
        lines = [line for line in journal.lines if line["kind"] == "train"]
        rewards[likelihood] = lines[-1]["chosen_reward"]
        first = lines[0]["loss"]
        assert (first == pytest.approx(0.693147, abs=1e-5)) == (likelihood == 0)
    assert rewards[2.0] > rewards[0.0]
    with pytest.raises(SettingsError, match="likelihood is at least 0"):
        DpoSettings(likelihood=-1.0)


def test_the_cut_into_micro_batches_does_not_matter(small, tmp_path: Path) -> None:
    weights = []
    for micro_batch in (0, 1, 2):
        config, model = small.config(steps=3, micro_batch=micro_batch), small.model()
        task = made(small, tmp_path, model, config)
        training, _ = small.assembled(task, model, config)
        train(training)
        weights.append(small.bits(model))
    for other in weights[1:]:
        for one, two in zip(weights[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_has_the_same_bits(small, tmp_path: Path) -> None:
    config, whole = small.config(steps=6), small.model()
    training, _ = small.assembled(made(small, tmp_path, whole, config), whole, config)
    train(training)

    model = small.model()
    first, _ = small.assembled(made(small, tmp_path, model, config), model, config)
    first.settings = small.config(steps=3).training
    train(first)
    state = first.task.state()
    again = small.model()
    second, _ = small.assembled(made(small, tmp_path, again, config), again, config)
    again.load_state_dict(model.state_dict())
    second.optimizer.load(first.optimizer.tensors(), first.optimizer.steps)
    second.task.restore(state)
    second.step = 3
    train(second)
    assert small.same_bits(small.bits(whole), small.bits(again))


def test_the_reference_is_the_model_before_training_and_read_again(small, tmp_path: Path) -> None:
    config, model = small.config(), small.model()
    task = made(small, tmp_path, model, config)
    pairs = [*task.data.train, *task.data.validation]
    for index in (0, 6, 9):
        batch = pair_batch([pairs[index]], torch.device("cpu"), padding=0)
        with torch.no_grad():
            alone = sequence_logprobs(model, batch.inputs, batch.targets).tolist()
        assert task.table.of([index])[0] == pytest.approx(alone, abs=1e-4)
    again = ReferenceTable(tmp_path / "reference.safetensors", task.data.identity, 10)
    assert torch.equal(again.values, task.table.values)
    assert again.fill(small.model(seed=9), pairs, task.needed(), 4) == 0
    with pytest.raises(AlignmentError, match="of other pairs or of another reference"):
        ReferenceTable(tmp_path / "reference.safetensors", "another", 10)
    (tmp_path / "reference.safetensors").write_bytes(b"cut")
    with pytest.raises(AlignmentError, match="damaged"):
        ReferenceTable(tmp_path / "reference.safetensors", task.data.identity, 10)


def test_a_run_that_is_short_computes_what_it_reads(small, tmp_path: Path) -> None:
    config, model = small.config(steps=1), small.model()
    task = made(small, tmp_path, model, config)
    assert len(task.needed()) == 4 + 3
    known = ~task.table.values[:, 0].isnan()
    assert int(known.sum()) == 7
    missing = int((~known).nonzero()[0])
    with pytest.raises(AlignmentError, match=f"no value for pair {missing}"):
        task.table.of([missing])
    task.next_batches()


def test_other_pairs_do_not_go_on(small, tmp_path: Path) -> None:
    config, model = small.config(), small.model()
    task = made(small, tmp_path, model, config)
    state = task.state()
    with pytest.raises(AlignmentError, match="other preference pairs"):
        task.restore({**state, "pairs": "x"})
    task.order.seed = 6
    with pytest.raises(AlignmentError, match="seed 5; now it is 6"):
        task.restore(state)


def test_a_reference_of_another_vocabulary_is_refused(small) -> None:
    model, larger = small.model(), small.model(vocab_size=300)
    with pytest.raises(AlignmentError, match="vocabulary of 300 and the model one of 262"):
        require_same_tokens(larger, small.tokenizer, model, small.tokenizer)
    other = Tokenizer([], special_tokens=[f"<|{n}|>" for n in "abcdef"])
    with pytest.raises(AlignmentError, match="another tokenizer of the same size"):
        require_same_tokens(small.model(), other, model, small.tokenizer)
    require_same_tokens(frozen_copy(model), small.tokenizer, model, small.tokenizer)


def test_a_frozen_copy_stays(small) -> None:
    model = small.model()
    copy = frozen_copy(model)
    before = small.bits(copy)
    with torch.no_grad():
        model.embedding.weight += 1
    assert small.same_bits(before, small.bits(copy))
    assert not any(p.requires_grad for p in copy.parameters())
    assert copy.parts is model.parts
