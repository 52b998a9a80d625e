"""From a prompt to its first token, and from a token to the next: where the time goes, measured.

The whole is what `firsthand generate` does for a token: `inference.scheduler` with an engine, the
choice of the token and its text. Its parts are measured beside it, in turns with it, each by
itself; what the whole takes longer than all parts together is shown as the rest. Medians, because
whatever else runs on the machine only makes things slower, now and then.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.latency import Prediction
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.choosing import choose
from firsthand.llm.inference.engine import Engine, Rows
from firsthand.llm.inference.scheduler import Failure, Scheduler
from firsthand.llm.tokenizer import Tokenizer

REST = "rest"
TOKENIZE, PREFILL, SAMPLE, DETOKENIZE = "tokenize", "prefill", "sample", "detokenize"
SCHEDULER = "scheduler"
# Shares of a token's time from which on a spread or a rest is told of.
NOISE = 0.25
# Tokens of a prompt, and of the text behind it that the whole is measured on.
PROMPT, WRITTEN = 128, 24
_SENTENCE = "A text is read before the next word of it is written. "
# Tokens of a round, and the rounds that are taken however long they last.
_TOKENS, _LEAST_ROUNDS = 8, 2

# (token, positions) -> seconds of each stage at each of the positions, by name.
Staged = Callable[[int, Sequence[int]], dict[str, list[float]]]


@dataclass(frozen=True)
class Stage:
    """A part of the time.

    Attributes:
        name: "attention".
        seconds: the median.
        spread: half the distance between the quartiles, as a share of the median.
        predicted: seconds by the machine's limits; None where nothing predicts it.
    """

    name: str
    seconds: float
    spread: float = 0.0
    predicted: float | None = None


@dataclass(frozen=True)
class Waterfall:
    """Where the time of a text goes on one engine.

    Attributes:
        engine: "CPU engine" or "PyTorch".
        dtype: of the weights: "int8", "float32" or "bfloat16".
        device: "cpu" or "cuda".
        threads: that the engine uses; 1 on a GPU.
        prompt: tokens of the prompt.
        depth: tokens before the one whose stages are timed.
        first: the parts up to the first token.
        first_whole: seconds from the text of the prompt to the first token's text, measured.
        token: the parts from a token to the next.
        token_whole: seconds from a token to the next, measured by itself.
        token_spread: of it, as `Stage.spread`.
        predicted_first, predicted_token: of the engine's share, by the machine's limits, or None.
        bound: the prediction is a lower bound: no kernel's rate stands behind it.
    """

    engine: str
    dtype: str
    device: str
    threads: int
    prompt: int
    depth: int
    first: tuple[Stage, ...]
    first_whole: float
    token: tuple[Stage, ...]
    token_whole: float
    token_spread: float
    predicted_first: float | None = None
    predicted_token: float | None = None
    bound: bool = False

    @property
    def name(self) -> str:
        """INT8 on the CPU engine, float32 on PyTorch."""
        dtype = "INT8" if self.dtype == "int8" else self.dtype
        where = ", GPU" if self.device == "cuda" else ""
        return f"{dtype} on {'the ' if self.engine == 'CPU engine' else ''}{self.engine}{where}"

    @property
    def key(self) -> str:
        """Tells waterfalls of one audit apart, and finds its like in another."""
        return f"{self.device} {self.dtype}"

    @property
    def engine_seconds(self) -> float:
        """Of the engine's call for a token: its stages, and what the call takes longer."""
        around = (SAMPLE, DETOKENIZE, SCHEDULER)
        return sum(stage.seconds for stage in self.token if stage.name not in around)

    @property
    def rest(self) -> float:
        """Seconds of a token that are in no part; below 0 where parts took longer by themselves."""
        return self.token_whole - sum(stage.seconds for stage in self.token)

    @property
    def unquiet(self) -> str:
        """That other programs were in the way, in a sentence; "" where little shows it."""
        share = abs(self.rest) / self.token_whole
        if self.token_spread <= NOISE and share <= NOISE:
            return ""
        return (
            f"{self.name}: a token's time has a spread of {self.token_spread:.0%} and a rest of "
            f"{self.rest / self.token_whole:+.0%}; the machine was not quiet, or a token is short."
        )

    @property
    def first_rest(self) -> float:
        """The same of the first token."""
        return self.first_whole - sum(stage.seconds for stage in self.first)

    @property
    def tokens_per_second(self) -> float:
        """Of one text, decoding."""
        return 1 / self.token_whole

    def to_json(self) -> dict[str, Any]:
        """The fields, and the rests."""
        return {**asdict(self), "rest": self.rest, "first_rest": self.first_rest}


def waterfall(
    engine: Engine,
    staged: Staged,
    tokenizer: Tokenizer,
    *,
    facts: tuple[str, str, str, int],
    seconds: float,
    stages: Sequence[str],
    within: str,
) -> Waterfall:
    """Measure an engine on one text.

    Args:
        engine: with a slot for the text.
        staged: times the stages of tokens behind what slot 0 holds.
        tokenizer: of the model.
        facts: the engine, its dtype, its device and its threads, as `Waterfall` has them.
        seconds: to measure for, about; a few rounds are taken however long they last.
        stages: names of the stages in order.
        within: name of what the engine's call takes longer than its stages.
    Raises:
        AuditError: the context is too short for a prompt and some tokens.
    """
    prompt, written = lengths(engine)
    text, ids = prompt_text(tokenizer, prompt)
    depth = len(ids) + written // 2
    scheduler = Scheduler(engine, tokenizer, end_tokens=())
    idle = Scheduler(_Idle(engine), tokenizer, end_tokens=())
    found: dict[str, list[float]] = {}

    def note(name: str, values: Iterable[float]) -> None:
        found.setdefault(name, []).extend(values)

    deadline, rounds = time.monotonic() + seconds, 0
    while rounds <= _LEAST_ROUNDS or time.monotonic() < deadline:
        if rounds == 1:  # the first one compiled what was not compiled yet
            found.clear()
        first, later = _whole(scheduler, text, written)
        note("first", [first])
        note("token", later)
        note(SCHEDULER, _whole(idle, text, written)[1])
        note(PREFILL, [_read_seconds(engine, ids)])
        _read(engine, ids + [ids[-1]] * (depth - len(ids)))
        places = iter(_places(engine, depth))
        note("call", [_token_seconds(engine, ids[-1], next(places)) for _ in range(_TOKENS)])
        note(SAMPLE, _choosing(engine, ids[-1], next(places), tokenizer.vocabulary_size))
        behind = list(itertools.islice(_places(engine, depth), _TOKENS))
        for name, values in staged(ids[-1], behind).items():
            note(name, values)
        note(TOKENIZE, _tokenizing(tokenizer, text))
        note(DETOKENIZE, _detokenizing(tokenizer, ids))
        rounds += 1
    engine_name, dtype, device, threads = facts
    parts = [_stage(name, found[name]) for name in stages]
    call = statistics.median(found["call"]) - sum(part.seconds for part in parts)
    after = [_stage(SAMPLE, found[SAMPLE]), _stage(DETOKENIZE, found[DETOKENIZE])]
    # What the scheduler does with an engine that does nothing has these two in it.
    own = statistics.median(found[SCHEDULER]) - sum(part.seconds for part in after)
    after.append(Stage(SCHEDULER, max(0.0, own), spread(found[SCHEDULER])))
    return Waterfall(
        engine=engine_name,
        dtype=dtype,
        device=device,
        threads=threads,
        prompt=len(ids),
        depth=depth,
        first=(_stage(TOKENIZE, found[TOKENIZE]), _stage(PREFILL, found[PREFILL]), *after),
        first_whole=statistics.median(found["first"]),
        token=(*parts, Stage(within, max(0.0, call), spread(found["call"])), *after),
        token_whole=statistics.median(found["token"]),
        token_spread=spread(found["token"]),
    )


def lengths(engine: Engine) -> tuple[int, int]:
    """Tokens of the prompt and of the text behind it.

    Raises:
        AuditError: a context of fewer than four tokens.
    """
    if engine.capacity < 4:
        raise AuditError(f"a context of {engine.capacity} tokens is too short to time a text in")
    prompt = min(PROMPT, engine.capacity // 2)
    return prompt, min(WRITTEN, engine.capacity - prompt - 1)


def prompt_text(tokenizer: Tokenizer, tokens: int) -> tuple[str, list[int]]:
    """A text of about so many tokens, and exactly its ids."""
    ids = list(tokenizer.encode(_SENTENCE * (tokens // 4 + 1)))[:tokens]
    text = tokenizer.decode(ids)
    return text, list(tokenizer.encode(text))[:tokens]


def with_prediction(
    measured: Waterfall, token: Prediction, first: Prediction, names: dict[str, tuple[str, ...]]
) -> Waterfall:
    """The same with what the machine's limits predict beside the stages.

    Args:
        token: of the engine's call for a token.
        first: of the prompt.
        names: of a stage -> the prediction's parts that it consists of.
    """
    stages = tuple(_predicted(stage, token.parts, names) for stage in measured.token)
    prompt = tuple(
        _with(stage, first.seconds) if stage.name == PREFILL else stage for stage in measured.first
    )
    return replace(
        measured,
        token=stages,
        first=prompt,
        predicted_first=first.seconds,
        predicted_token=token.seconds,
        bound=token.bound,
    )


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    middle = statistics.median(values)
    if len(values) < 2 or not middle:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


# --------------------------------------------------------------------------- measurements


class _Idle:
    """An engine that gives the same logits at once, so that the scheduler's own time is left."""

    def __init__(self, engine: Engine) -> None:
        self.config, self.slots = engine.config, engine.slots
        self.capacity, self.max_rows = engine.capacity, engine.max_rows
        shape = (1, engine.config.vocab_size)
        self._logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def forward(
        self, tokens: Rows, slots: Rows, positions: Rows, wanted: Rows
    ) -> NDArray[np.float32]:
        """As `Engine.forward`."""
        return self._logits[: len(wanted)]

    def close(self) -> None:
        """Nothing."""


def _whole(scheduler: Scheduler, text: str, written: int) -> tuple[float, list[float]]:
    """Seconds from a prompt to its first token, and from each token to the next."""
    last = time.perf_counter()
    scheduler.submit(text, Sampling(temperature=1.0, max_new_tokens=written, seed=0))
    times: list[float] = []
    spent = 0.0
    while True:
        events = scheduler.step()
        now = time.perf_counter()
        spent, last = spent + now - last, now
        for event in events:
            if isinstance(event, Failure):
                raise event.error
        if events:
            times.append(spent)
            spent = 0.0
        if not scheduler.running:
            break
    _forget(scheduler)
    return times[0], times[1:]


def _forget(scheduler: Scheduler) -> None:
    """Else the scheduler would find the prompt in the slot and not read it again."""
    scheduler._held = [()] * scheduler.engine.slots


def _places(engine: Engine, depth: int) -> Iterable[int]:
    """Where tokens are timed: always at one depth, but a ring of keys cannot go back."""
    if engine.config.window:
        return range(depth, engine.capacity)
    return itertools.repeat(depth)


def _read(engine: Engine, ids: Sequence[int]) -> None:
    """A text into slot 0."""
    for start in range(0, len(ids), engine.max_rows):
        part = np.array(ids[start : start + engine.max_rows], np.int32)
        places = np.arange(start, start + len(part), dtype=np.int32)
        last = start + len(part) == len(ids)
        wanted = np.array([len(part) - 1] if last else [], np.int32)
        engine.forward(part, np.zeros_like(part), places, wanted)


def _read_seconds(engine: Engine, ids: Sequence[int]) -> float:
    began = time.perf_counter()
    _read(engine, ids)
    return time.perf_counter() - began


def _token_seconds(engine: Engine, token: int, position: int) -> float:
    nothing = np.zeros(1, np.int32)
    ids, places = np.array([token], np.int32), np.array([position], np.int32)
    began = time.perf_counter()
    engine.forward(ids, nothing, places, nothing)
    return time.perf_counter() - began


def _tokenizing(tokenizer: Tokenizer, text: str) -> list[float]:
    times = []
    for _ in range(_TOKENS):
        began = time.perf_counter()
        tokenizer.encode(text)
        times.append(time.perf_counter() - began)
    return times


def _choosing(engine: Engine, token: int, position: int, vocabulary: int) -> list[float]:
    nothing = np.zeros(1, np.int32)
    logits = engine.forward(
        np.array([token], np.int32), nothing, np.array([position], np.int32), nothing
    )[0][:vocabulary].copy()
    sampling, times = Sampling(temperature=1.0), []
    for number in range(_TOKENS):
        began = time.perf_counter()
        choose(logits, sampling, (number + 0.5) / _TOKENS)
        times.append(time.perf_counter() - began)
    return times


def _detokenizing(tokenizer: Tokenizer, ids: Sequence[int]) -> list[float]:
    decoder = tokenizer.stream_decoder()
    times = []
    for token in ids[:_TOKENS]:
        began = time.perf_counter()
        decoder.push(token)
        times.append(time.perf_counter() - began)
    return times


def _stage(name: str, values: Sequence[float]) -> Stage:
    return Stage(name, statistics.median(values), spread(values))


def _predicted(stage: Stage, parts: dict[str, float], names: dict[str, tuple[str, ...]]) -> Stage:
    known = [parts[part] for part in names.get(stage.name, ()) if part in parts]
    return _with(stage, math.fsum(known)) if known else stage


def _with(stage: Stage, predicted: float) -> Stage:
    return Stage(stage.name, stage.seconds, stage.spread, predicted)
