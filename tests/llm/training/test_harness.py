"""What the harness is told, against sums done token by token; and the harness itself on a task."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from firsthand.llm.generation.decoding import generate
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer import Tokenizer, train
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.harness import (
    harness_model,
    run_benchmarks,
    sampling_of,
    score_continuations,
    score_text,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["the cat sat on the mat, the rat ran"] * 4, 280, special_tokens=["<|endoftext|>"])


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocabulary_size, context=16, d_model=24, n_layers=2, n_heads=2
    )
    return Transformer(config, FAST, seed=5)


def _by_hand(model: Transformer, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    total, greedy, seen = 0.0, True, list(context)
    for token in continuation:
        with torch.no_grad():
            logprobs = model(torch.tensor([seen[-16:]]))[0, -1].log_softmax(-1)
        total += float(logprobs[token])
        greedy &= int(logprobs.argmax()) == token
        seen.append(token)
    return total, greedy


def _greedy(model: Transformer, context: list[int], count: int) -> list[int]:
    seen = list(context)
    with torch.no_grad():
        for _ in range(count):
            seen.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
    return seen[len(context) :]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_continuations(model: Transformer, batch_size: int) -> None:
    pairs = [
        ([3, 5, 9], [4]),
        ([7], [8, 9, 10, 11, 12]),
        ([1, 2], _greedy(model, [1, 2], 4)),
        ([5, 6, 7, 8, 9], [*_greedy(model, [5, 6, 7, 8, 9], 2), 3]),
        ([9], []),
    ]
    found = score_continuations(model, pairs, batch_size=batch_size)
    for score, pair in zip(found, pairs, strict=True):
        logprob, greedy = _by_hand(model, *pair)
        assert score.logprob == pytest.approx(logprob, abs=1e-4)
        assert score.is_greedy == greedy
    assert [score.is_greedy for score in found] == [False, False, True, False, True]


def test_a_long_context_loses_its_beginning(model: Transformer) -> None:
    context = [k % 250 for k in range(40)]
    found = score_continuations(model, [(context, [7, 8, 9])])[0]
    kept = context[-(16 - 2) :]
    assert found.logprob == pytest.approx(_by_hand(model, kept, [7, 8, 9])[0], abs=1e-4)


@pytest.mark.parametrize(("pair", "says"), [(([], [1]), "at least one"), (([1], [1] * 17), "17")])
def test_what_cannot_be_scored(model: Transformer, pair: Any, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        score_continuations(model, [pair])


def test_a_text_in_windows(model: Transformer) -> None:
    ids = [k * 7 % 250 for k in range(37)]
    end = model.config.vocab_size - 1
    parts = [([end], ids[:16]), (ids[15:16], ids[16:32]), (ids[31:32], ids[32:])]
    wanted = sum(_by_hand(model, *part)[0] for part in parts)
    assert score_text(model, ids, end) == pytest.approx(wanted, abs=1e-3)
    assert score_text(model, [], end) == 0


def test_options_of_a_request() -> None:
    assert sampling_of({"until": ["\n", ""], "max_gen_toks": 9}) == Sampling(
        temperature=0, max_new_tokens=9, stop=("\n",)
    )
    assert sampling_of({"until": "Q:", "temperature": 0.7, "top_p": 0.9}) == Sampling(
        temperature=0.7, top_p=0.9, max_new_tokens=256, stop=("Q:",)
    )
    assert sampling_of({"do_sample": False, "temperature": 0.7}).temperature == 0
    assert sampling_of({"do_sample": True}).temperature == 1
    with pytest.raises(TrainingError, match="top_p"):
        sampling_of({"top_p": 3.0})


def test_the_message_when_the_package_is_missing(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(TrainingError, match=r"pip install 'firsthand\[evaluation\]'"):
        run_benchmarks(model, tokenizer, ["arc_easy"])


def test_a_tokenizer_without_an_end_of_text(model: Transformer) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(TrainingError, match="no end-of-text"):
        harness_model(model, train(["abc"], 256))


def _local_task(folder: Path, **changes: Any) -> dict[str, Any]:
    """Three questions in a file of their own: nothing is downloaded."""
    lines = [
        '{"question": "the cat", "choices": [" sat", " ran on"], "gold": 0}',
        '{"question": "the rat", "choices": [" mat", " sat on the"], "gold": 1}',
        '{"question": "on the", "choices": [" rat ran", " cat"], "gold": 1}',
    ]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "task": "local_questions",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "questions.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc"}],
        **changes,
    }


def _quick() -> dict[str, Any]:
    """Without reading the harness's own ten thousand tasks, and without error bars."""
    tasks = pytest.importorskip("lm_eval.tasks")
    manager = tasks.TaskManager(include_defaults=False)
    return {"task_manager": manager, "bootstrap_iters": 0, "log_samples": False}


def _run(model: Transformer, tokenizer: Tokenizer, task: dict[str, Any]) -> dict[str, Any]:
    found = run_benchmarks(model, tokenizer, [task], **_quick())
    return found["local_questions"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.mark.usefixtures("offline")
def test_a_multiple_choice_task(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def logprob(question: str, choice: str) -> float:
        context = tokenizer.encode(question)
        return _by_hand(model, context, tokenizer.encode(question + choice)[len(context) :])[0]

    questions = [
        ("the cat", [" sat", " ran on"], 0),
        ("the rat", [" mat", " sat on the"], 1),
        ("on the", [" rat ran", " cat"], 1),
    ]
    right = [
        max((0, 1), key=lambda k: logprob(question, choices[k])) == gold
        for question, choices, gold in questions
    ]
    found = _run(model, tokenizer, _local_task(tmp_path))
    assert found["acc,none"] == pytest.approx(sum(right) / 3)


@pytest.mark.usefixtures("offline")
def test_a_perplexity_task(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = _local_task(
        tmp_path,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    del task["doc_to_choice"]
    found = _run(model, tokenizer, task)
    texts = ["the cat", "the rat", "on the"]
    end = tokenizer.special_tokens["<|endoftext|>"]
    nats = -sum(_by_hand(model, [end], tokenizer.encode(text))[0] for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert found["bits_per_byte,none"] == pytest.approx(nats / size / 0.6931471805599453, rel=1e-4)


@pytest.mark.usefixtures("offline")
def test_a_generation_task(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def answer(question: str) -> str:
        settings = Sampling(temperature=0, max_new_tokens=4, stop=("\n",))
        return generate(model, question, settings, tokenizer=tokenizer)[0].text

    assert answer("the cat") != answer("on the")
    task = _local_task(
        tmp_path,
        output_type="generate_until",
        doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match"}],
    )
    del task["doc_to_choice"]
    found = _run(model, tokenizer, task)
    wanted = [
        answer("the cat") == " sat",
        answer("the rat") == " mat",
        answer("on the") == " rat ran",
    ]
    assert found["exact_match,none"] == pytest.approx(sum(wanted) / 3)


def test_a_task_that_is_not_there(
    model: Transformer, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("offline")
    run: Callable[..., Any] = run_benchmarks
    with pytest.raises(TrainingError, match="no_such_task"):
        run(model, tokenizer, ["no_such_task"], **_quick())
