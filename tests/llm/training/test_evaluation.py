"""Token-exact evaluation, against sums done by hand."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.data.loading import IGNORED, TokenStream, open_split
from firsthand.llm.data.preparation import prepare
from firsthand.llm.data.sources import Texts
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer import train
from firsthand.llm.training.distributed import World
from firsthand.llm.training.evaluation import Evaluation, Windows, byte_lengths, evaluate

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=23, context=12, d_model=16, n_layers=1, n_heads=2, d_ff=20)
END = 22
LENGTHS = np.array([1 + n % 4 for n in range(22)] + [0])


def _model() -> Transformer:
    return Transformer(CONFIG, FAST, seed=3).double()


def _stream(tokens: int, seed: int = 0) -> TokenStream:
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, tokens).astype("<u2")
    return TokenStream([ids[: tokens // 3], ids[tokens // 3 :]], END)


def _ids(stream: TokenStream) -> list[int]:
    out = np.empty(len(stream), np.int64)
    stream.read(0, out)
    return [int(token) for token in out]


def _nats(model: Transformer, context: list[int], target: int) -> float:
    with torch.no_grad():
        return -float(model(torch.tensor([context]))[0, -1].log_softmax(-1)[target])


def test_bits_per_byte_of_a_model_that_knows_nothing() -> None:
    """With equal logits every token costs ln 23 nats, and by hand here 4 tokens are 7 bytes."""
    model = _model()
    torch.nn.init.zeros_(model.embedding.weight)
    stream = TokenStream([np.array([2, END, 1, 1], "<u2")], END)  # 3 + 0 + 2 + 2 bytes
    found = evaluate(model, stream, lengths=LENGTHS)
    assert (found.tokens, found.bytes) == (4, 7)
    assert found.nats_per_token == pytest.approx(math.log(23))
    assert found.perplexity == pytest.approx(23)
    assert found.bits_per_byte == pytest.approx(4 * math.log2(23) / 7)
    assert evaluate(model, stream).bits_per_byte is None


@pytest.mark.parametrize("overlap", [0, 3, 6, 11])
def test_each_token_is_predicted_from_its_window(overlap: int) -> None:
    """The oracle predicts token after token, each from the longest context its window has."""
    model, stream = _model(), _stream(41)
    ids = _ids(stream)
    known = [END, *ids]
    step, total = CONFIG.context - overlap, 0.0
    for place, target in enumerate(ids):
        window = 0 if place < CONFIG.context else (place - overlap) // step
        total += _nats(model, known[window * step : place + 1], target)
    found = evaluate(model, stream, lengths=LENGTHS, overlap=overlap, batch_size=3)
    assert found.tokens == 41
    assert found.bytes == sum(LENGTHS[ids])
    assert found.nats == pytest.approx(total, rel=1e-10)


@given(
    tokens=st.integers(1, 60),
    length=st.integers(1, 15),
    share=st.floats(0, 0.999),
)
def test_every_token_is_a_target_once(tokens: int, length: int, share: float) -> None:
    stream, overlap = _stream(tokens), int(share * length)
    windows = Windows(tokens, length, overlap)
    inputs, targets = windows.read(stream, list(range(len(windows))))
    assert [int(t) for t in targets[targets != IGNORED]] == _ids(stream)
    assert (targets != IGNORED).any(axis=1).all()
    real = [(int(a), int(b)) for a, b in zip(inputs.ravel(), targets.ravel(), strict=True)]
    pairs = list(zip([END, *_ids(stream)], _ids(stream), strict=False))
    assert [pair for pair in real if pair[1] != IGNORED] == pairs
    if overlap * 2 >= length and len(windows) > 1:
        first_real = (targets[1:] != IGNORED).argmax(axis=1)
        assert (first_real >= length // 2).all()


@settings(deadline=None, max_examples=20)
@given(
    batch_size=st.integers(1, 9),
    overlap=st.integers(0, 11),
    documents=st.booleans(),
)
def test_batch_size_changes_nothing(batch_size: int, overlap: int, documents: bool) -> None:
    model, stream = _model(), _stream(70)
    one = evaluate(
        model, stream, lengths=LENGTHS, overlap=overlap, batch_size=1, documents=documents
    )
    many = evaluate(
        model, stream, lengths=LENGTHS, overlap=overlap, batch_size=batch_size, documents=documents
    )
    assert (many.tokens, many.bytes) == (one.tokens, one.bytes)
    assert many.nats == pytest.approx(one.nats, rel=1e-12)


class _Meeting(World):
    """Ranks as threads of this process, whose sums are added at a barrier."""

    def __init__(self, rank: int, ranks: int, table: dict[int, list[float]], barrier: object):
        super().__init__(rank, ranks, torch.device("cpu"))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "barrier", barrier)

    def sums(self, values: object) -> list[float]:
        self.table[self.rank] = list(values)  # type: ignore[attr-defined, call-overload]
        self.barrier.wait()  # type: ignore[attr-defined]
        return [sum(column) for column in zip(*self.table.values(), strict=True)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("max_batches", [0, 2])
@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_ranks_change_nothing(ranks: int, max_batches: int) -> None:
    model, stream = _model(), _stream(90)
    calls: list[int] = []
    alone = evaluate(model, stream, lengths=LENGTHS, batch_size=2, max_batches=max_batches)
    table: dict[int, list[float]] = {}
    barrier = threading.Barrier(ranks)
    found: dict[int, Evaluation] = {}

    def run(rank: int) -> None:
        with torch.no_grad():
            found[rank] = evaluate(
                model,
                stream,
                lengths=LENGTHS,
                batch_size=2,
                max_batches=max_batches,
                world=_Meeting(rank, ranks, table, barrier),
                progress=lambda done, total: calls.append(done),
            )

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == ranks
    for evaluation in found.values():
        assert (evaluation.tokens, evaluation.bytes) == (alone.tokens, alone.bytes)
        assert evaluation.nats == pytest.approx(alone.nats, rel=1e-12)
    # With FSDP a rank that made fewer passes than the others would leave them waiting.
    assert len(calls) % ranks == 0


def test_a_quick_one_takes_the_same_spread_windows_each_time() -> None:
    model, stream = _model(), _stream(12 * 40)
    quick = [
        evaluate(model, stream, lengths=LENGTHS, batch_size=4, max_batches=2) for _ in range(2)
    ]
    assert quick[0].nats == quick[1].nats
    assert quick[0].tokens == 8 * 12
    assert Windows(12 * 40, 12).spread(8) == [0, 5, 10, 15, 20, 25, 30, 35]
    ids = np.array(_ids(stream)).reshape(40, 12)
    assert quick[0].bytes == LENGTHS[ids[::5]].sum()
    whole = evaluate(model, stream, lengths=LENGTHS, batch_size=4, max_batches=1000)
    assert whole.tokens == len(stream)


def test_documents_keep_attention_within_a_text() -> None:
    """A text costs the same whatever stands before it, when attention stays within it."""
    model = _model()

    def cost(before: list[int], documents: bool) -> float:
        stream = TokenStream([np.array([*before, END, 5, 6, 7], "<u2")], END)
        rest = TokenStream([np.array([*before, END], "<u2")], END)
        return (
            evaluate(model, stream, documents=documents).nats
            - evaluate(model, rest, documents=documents).nats
        )

    assert cost([1, 2], True) == pytest.approx(cost([9, 4], True), rel=1e-9)
    assert cost([1, 2], False) != pytest.approx(cost([9, 4], False), rel=1e-9)


def test_bytes_of_a_whole_split_are_those_of_its_manifest(tmp_path: Path) -> None:
    texts = [f"text {n}: añ€ the same words again {n * n}\n" for n in range(60)]
    tokenizer = train(texts, 300, special_tokens=["<|endoftext|>"])
    manifest = prepare(
        Texts("test", lambda: texts),
        tokenizer,
        tmp_path / "data",
        validation_share=0.4,
        processes=1,
    )
    split = manifest.splits["validation"]
    model = Transformer(replace(CONFIG, vocab_size=tokenizer.vocabulary_size), FAST)
    found = evaluate(
        model, open_split(tmp_path / "data", "validation"), lengths=byte_lengths(tokenizer)
    )
    assert split.bytes > 0
    assert (found.bytes, found.tokens) == (split.bytes, split.tokens)


def test_the_model_is_left_as_it_was() -> None:
    model, stream = _model(), _stream(30)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(model, stream, precision="bfloat16")
    assert found.nats > 0
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    loss = model.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]))
    loss.total.backward()  # nothing that evaluation kept is closed to autograd


def test_figures_follow_from_the_sums() -> None:
    found = Evaluation(nats=6.0, tokens=4, bytes=5, seconds=0.5)
    assert found.to_record() == {
        "loss": 1.5,
        "perplexity": pytest.approx(math.exp(1.5)),
        "bits_per_byte": pytest.approx(6 / math.log(2) / 5),
        "tokens": 4,
        "bytes": 5,
        "seconds": 0.5,
    }
    assert Evaluation(nats=4000.0, tokens=4, bytes=0, seconds=0).perplexity == math.inf


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda m: evaluate(m, TokenStream([], END)), "nothing to predict"),
        (lambda m: evaluate(m, _stream(9), overlap=12), "12 tokens with 12 of context"),
        (lambda m: evaluate(m, _stream(9), batch_size=0), "batches of 0 windows"),
        (lambda m: evaluate(m, _stream(99), lengths=LENGTHS[:3]), "has no length"),
        (lambda m: evaluate(m, _stream(99), sequence_length=40), "longer than the context"),
    ],
)
def test_bad_sizes(run: Callable[[Transformer], object], says: str) -> None:
    model = _model()
    model.train()
    with pytest.raises(ValueError, match=says):
        run(model)
    assert model.training


def test_special_tokens_have_no_bytes() -> None:
    tokenizer = train(["ab ab ab añ"], 260, special_tokens=["<|endoftext|>", "<|user|>"])
    lengths = byte_lengths(tokenizer)
    for identity in tokenizer.special_tokens.values():
        assert lengths[identity] == 0
    text = "ab añ, ab"
    ids: Tensor = torch.tensor(tokenizer.encode(text))
    assert lengths[ids.numpy()].sum() == len(text.encode())
