"""Continuous batching: every text as if it were alone, whoever comes and goes beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firsthand.llm.generation import decoding as in_torch
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.results import Generation
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference import decoding
from firsthand.llm.inference.errors import InferenceError
from firsthand.llm.inference.scheduler import Event, Failure, Scheduler
from firsthand.llm.inference.torch_engine import TorchEngine
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer.tokenizer import Tokenizer

Make = Callable[..., TorchEngine]


class Watched:
    """An engine that writes down its calls and can be told to fail."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine, self.config = engine, engine.config
        self.slots, self.capacity, self.max_rows = engine.slots, engine.capacity, engine.max_rows
        self.calls: list[tuple[list[int], list[int], list[int], list[int]]] = []
        self.error: BaseException | None = None

    def forward(self, *arrays: Any) -> Any:
        self.calls.append(tuple(array.tolist() for array in arrays))
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.engine.forward(*arrays)

    def close(self) -> None:
        self.engine.close()


def finish(scheduler: Scheduler, steps: int = 10_000) -> dict[int, Generation]:
    """All texts to their ends."""
    found = {}
    for _ in range(steps):
        for event in scheduler.step():
            assert not isinstance(event, Failure), event
            if event.result is not None:
                found[event.row] = event.result
        if not scheduler.running and not scheduler.waiting:
            return found
    raise AssertionError("the texts do not end")


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 20]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    max_new_tokens=st.integers(1, 12),
    seed=st.integers(0, 3),
    stop=st.sampled_from([(), ("e",), ("th", "!")]),
    logprobs=st.booleans(),
)
jobs = st.lists(
    st.tuples(
        st.lists(st.integers(0, 299), min_size=1, max_size=40),
        samplings,
        st.integers(0, 3),  # stream
        st.integers(0, 6),  # steps until the next one comes
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25)
@given(jobs=jobs, slots=st.integers(1, 4), rows=st.integers(4, 40), beside=st.integers(1, 9))
def test_a_text_depends_on_nothing_beside_it(
    jobs: list[Any],
    slots: int,
    rows: int,
    beside: int,
    model: Transformer,
    tokenizer: Tokenizer,
) -> None:
    engine = TorchEngine(model, slots=slots, max_rows=rows)
    scheduler = Scheduler(engine, tokenizer, rows_beside=beside)
    found: dict[int, Generation] = {}
    numbers = []

    def note(events: list[Event]) -> None:
        for event in events:
            assert not isinstance(event, Failure)
            if event.result is not None:
                found[event.row] = event.result

    for prompt, sampling, stream, pause in jobs:
        numbers.append(scheduler.submit(prompt, sampling, stream=stream))
        for _ in range(pause):
            note(scheduler.step())
    found |= finish(scheduler)
    for number, (prompt, sampling, stream, _) in zip(numbers, jobs, strict=True):
        request = in_torch.Request(prompt=prompt, sampling=sampling, stream=stream)
        (alone,) = in_torch.generate(model, [request], tokenizer=tokenizer)
        assert found[number].ids == alone.ids
        assert found[number].text == alone.text
        assert found[number].reason == alone.reason
        assert found[number].logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    assert scheduler.running == scheduler.waiting == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 7},
        {"neighbours": 2},
        {"positions": "alibi", "n_kv_heads": 1},
        {"positions": "learned", "norm": "layer", "bias": True, "tied": False},
    ],
    ids=str,
)
def test_every_kind_of_model(
    changes: dict[str, Any], make_model: Callable[..., Transformer], tokenizer: Tokenizer
) -> None:
    model = make_model(**changes)
    sampling = Sampling(temperature=0, max_new_tokens=9)
    prompts: list[Any] = [[5, 6, 7], list(range(40, 75)), [5, 6, 9, 2], [8], list(range(40, 78))]
    scheduler = Scheduler(TorchEngine(model, slots=2, max_rows=6), tokenizer)
    found = decoding.generate(scheduler, prompts, sampling)
    alone = [in_torch.generate(model, [p], sampling, tokenizer=tokenizer)[0] for p in prompts]
    assert [r.ids for r in found] == [r.ids for r in alone]


def test_decoding_is_the_plain_loop(model: Transformer, tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(TorchEngine(model, slots=2), tokenizer)
    prompts = ["the dog", "", "über den Hund"]
    sampling = Sampling(max_new_tokens=20, seed=4)
    wanted = in_torch.generate(model, prompts, sampling, tokenizer=tokenizer)
    found = decoding.generate(scheduler, prompts, sampling)
    assert [r.text for r in found] == [r.text for r in wanted]
    assert all(r.prefill_seconds > 0 and r.decode_seconds > 0 for r in found)
    pieces = list(decoding.stream(scheduler, prompts[:2], sampling))
    assert ["".join(p.text for p in pieces if p.row == row) for row in range(2)] == [
        r.text for r in wanted[:2]
    ]
    (second,) = [p.result for p in decoding.stream(
        scheduler, prompts[1:2], sampling, first_stream=1
    ) if p.result]  # fmt: skip
    assert second.text == wanted[1].text


# --------------------------------------------------------------------------- who runs when


def test_texts_start_in_the_order_they_came(make_engine: Make) -> None:
    scheduler = Scheduler(make_engine(slots=2))
    short = Sampling(temperature=0, max_new_tokens=3)
    numbers = [scheduler.submit([i + 1], short) for i in range(7)]
    assert (scheduler.waiting, scheduler.running) == (7, 0)
    firsts: list[int] = []
    while scheduler.waiting or scheduler.running:
        for event in scheduler.step():
            if event.row not in firsts:
                firsts.append(event.row)
        assert scheduler.running <= 2
    assert firsts == numbers


def test_a_long_prompt_keeps_nobody_waiting(make_engine: Make, tokenizer: Tokenizer) -> None:
    engine = Watched(make_engine(slots=3, max_rows=64))
    scheduler = Scheduler(engine, tokenizer, rows_beside=8)
    fast = scheduler.submit([1, 2], Sampling(temperature=0, max_new_tokens=20), end_tokens=())
    scheduler.step()
    slow = scheduler.submit(list(range(70)), Sampling(temperature=0, max_new_tokens=2))
    later = scheduler.submit([9], Sampling(temperature=0, max_new_tokens=2), end_tokens=())
    seen: list[list[int]] = []
    for _ in range(11):
        seen.append([event.row for event in scheduler.step()])
    # 70 tokens in pieces of 8: the first text has a token in every step, and the third waits its
    # turn behind the prompt that came before it.
    assert all(fast in rows for rows in seen)
    first = next(i for i, rows in enumerate(seen) if slow in rows)
    assert first == 8
    assert next(i for i, rows in enumerate(seen) if later in rows) == 8
    assert max(len(tokens) for tokens, *_ in engine.calls) == 9


def test_an_idle_engine_reads_a_prompt_in_as_few_calls_as_it_can(make_engine: Make) -> None:
    engine = Watched(make_engine(slots=2, max_rows=32))
    scheduler = Scheduler(engine, rows_beside=4)
    scheduler.submit(list(range(70)), Sampling(max_new_tokens=1))
    finish(scheduler)
    assert [len(tokens) for tokens, *_ in engine.calls] == [32, 32, 6]
    assert [wanted for *_, wanted in engine.calls] == [[], [], [5]]


def test_what_a_slot_has_read_is_not_read_again(
    model: Transformer, make_engine: Make, tokenizer: Tokenizer
) -> None:
    engine = Watched(make_engine(slots=2))
    scheduler = Scheduler(engine, tokenizer)
    sampling = Sampling(temperature=0, max_new_tokens=5)
    prompt = list(range(30, 60))
    (first,) = decoding.generate(scheduler, [prompt], sampling, end_tokens=())
    decoding.generate(scheduler, [[7, 8]], sampling, end_tokens=())
    engine.calls.clear()
    more = [*prompt, *first.ids, 11, 12]
    (second,) = decoding.generate(scheduler, [more], sampling, end_tokens=())
    # The last token of the first text was never fed to the engine.
    assert engine.calls[0][0] == [first.ids[-1], 11, 12]
    assert engine.calls[0][2] == [34, 35, 36]
    assert second.ids == in_torch.generate(model, [more], sampling, end_tokens=())[0].ids
    engine.calls.clear()
    (again,) = decoding.generate(scheduler, [prompt], sampling, end_tokens=())
    assert engine.calls[0][0] == [59]  # its logits are needed once more
    assert again.ids == first.ids


# --------------------------------------------------------------------------- ends


def test_a_cancelled_text_leaves_its_slot_at_once(make_engine: Make) -> None:
    scheduler = Scheduler(make_engine(slots=1))
    long = Sampling(temperature=0, max_new_tokens=50)
    first, second, third = (scheduler.submit([i + 1], long) for i in range(3))
    scheduler.step()
    assert scheduler.cancel(second)
    assert scheduler.cancel(first)
    assert (scheduler.running, scheduler.waiting) == (0, 1)
    assert not scheduler.cancel(first)
    assert not scheduler.cancel(99)
    assert [event.row for event in scheduler.step()] == [third]
    scheduler.cancel(third)
    assert scheduler.step() == []


def test_a_reader_who_stops_gives_the_slot_back(make_engine: Make) -> None:
    scheduler = Scheduler(make_engine(slots=1))
    pieces = decoding.stream(scheduler, [[1], [2]], Sampling(max_new_tokens=50))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    unread = decoding.stream(scheduler, [[1]], Sampling(max_new_tokens=50))
    del unread
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_end_tokens_end_one_text_and_not_another(make_engine: Make, model: Transformer) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=9)
    (free,) = in_torch.generate(model, [[3, 4]], sampling)
    scheduler = Scheduler(make_engine(slots=2))
    ended = scheduler.submit([3, 4], sampling, end_tokens=[free.ids[2]])
    whole = scheduler.submit([3, 4], sampling)
    found = finish(scheduler)
    assert found[ended].ids == free.ids[: free.ids.index(free.ids[2]) + 1]
    assert found[ended].reason == "end"
    assert (found[whole].ids, found[whole].reason) == (free.ids, "length")


def test_an_engine_that_fails_fails_the_texts_of_that_call_alone(make_engine: Make) -> None:
    engine = Watched(make_engine(slots=2))
    scheduler = Scheduler(engine)
    sampling = Sampling(temperature=0, max_new_tokens=4)
    prompt = [1, 2, 3, 4, 5]
    numbers = [scheduler.submit(prompt, sampling) for _ in range(3)]
    scheduler.step()
    engine.error = RuntimeError("no memory")
    failed = scheduler.step()
    assert [(event.row, str(event.error)) for event in failed if isinstance(event, Failure)] == [
        (number, "no memory") for number in numbers[:2]
    ]
    engine.calls.clear()
    assert list(finish(scheduler)) == numbers[2:]
    assert engine.calls[0][0] == prompt  # what the failed call left behind is not trusted


def test_an_interrupt_leaves_no_half_read_slot(make_engine: Make) -> None:
    engine = Watched(make_engine(slots=1))
    scheduler = Scheduler(engine)
    engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        list(decoding.stream(scheduler, [[1, 2, 3]], Sampling(max_new_tokens=3)))
    assert scheduler.running == 0
    engine.calls.clear()
    decoding.generate(scheduler, [[1, 2, 3]], Sampling(max_new_tokens=3))
    assert engine.calls[0][2] == [0, 1, 2]


def test_weights_that_are_not_numbers(
    make_model: Callable[..., Transformer], tokenizer: Tokenizer
) -> None:
    model = make_model()
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight[3, 4] = float("nan")
    scheduler = Scheduler(TorchEngine(model, slots=1), tokenizer)
    with pytest.raises(GenerationError, match="weights are damaged"):
        decoding.generate(scheduler, ["the"], Sampling(max_new_tokens=3))
    assert scheduler.running == scheduler.waiting == 0


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([300], "id 300 at position 0"),
        ([5, -1], "id -1 at position 1"),
        (list(range(96)), "96 tokens"),
        ("word " * 200, "the context holds 96"),
    ],
)
def test_prompts_that_cannot_be(
    prompt: Any, words: str, make_engine: Make, tokenizer: Tokenizer
) -> None:
    scheduler = Scheduler(make_engine(), tokenizer)
    with pytest.raises(GenerationError, match=words):
        scheduler.submit(prompt, Sampling())
    with pytest.raises(GenerationError, match=words):
        decoding.stream(scheduler, ["the", prompt], Sampling())  # at once, and nothing is begun
    assert scheduler.waiting == 0


def test_a_long_prompt_may_lose_its_beginning(make_engine: Make) -> None:
    scheduler = Scheduler(make_engine(capacity=20))
    ids = list(range(50))
    (found,) = decoding.generate(scheduler, [ids], Sampling(max_new_tokens=4), truncate="left")
    assert found.prompt == tuple(ids[-16:])
    assert len(found.ids) == 4


def test_without_a_tokenizer(make_engine: Make) -> None:
    scheduler = Scheduler(make_engine())
    for prompt, sampling in (("text", Sampling()), ([1], Sampling(stop=("x",))), ([], Sampling())):
        with pytest.raises(GenerationError):
            scheduler.submit(prompt, sampling)


def test_engines_and_tokenizers_that_do_not_fit(make_engine: Make) -> None:
    with pytest.raises(InferenceError, match="do not belong together"):
        Scheduler(make_engine(), Tokenizer([], special_tokens=[f"<{i}>" for i in range(50)]))
    with pytest.raises(InferenceError, match="4 slots takes only 3 rows"):
        Scheduler(make_engine(slots=4, max_rows=3))
    for sizes in ({"slots": 0}, {"capacity": 97}, {"capacity": -1}, {"max_rows": 0}):
        with pytest.raises(InferenceError):
            make_engine(**sizes)


@pytest.mark.parametrize(
    ("tokens", "slots", "positions", "wanted", "words"),
    [
        ([300], [0], [0], [0], "token 300"),
        ([-1], [0], [0], [0], "token -1"),
        ([1], [2], [0], [0], "slot 2"),
        ([1], [0], [96], [0], "position 96"),
        ([1], [0], [0], [1], "wanted row 1"),
        ([1], [0], [3], [0], "holds 0 tokens"),
        ([1, 2], [0, 0], [0, 2], [0], "positions"),
        ([1, 2, 3], [0, 1, 0], [0, 0, 1], [0], "follow each other"),
        ([1, 2], [0], [0, 1], [0], "1 slots"),
        ([], [], [], [], "1 to 256 rows"),
        ([1] * 257, [0] * 257, list(range(257)), [0], "1 to 256 rows"),
    ],
)
def test_calls_that_no_engine_takes(
    tokens: list[int],
    slots: list[int],
    positions: list[int],
    wanted: list[int],
    words: str,
    make_engine: Make,
) -> None:
    engine = make_engine(slots=2)
    arrays = [np.array(numbers, np.int32) for numbers in (tokens, slots, positions, wanted)]
    with pytest.raises(InferenceError, match=words):
        engine.forward(*arrays)
