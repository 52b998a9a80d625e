"""Drawing in NumPy against the filters and the draw of PyTorch."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from firsthand.llm.generation import choosing as in_torch
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.choosing import CLASSES_PER_NAT, choose, draw, filtered
from firsthand.llm.parts import FAST

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.8, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 17, 10_000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.8]),
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits, some of them equal, flat or far apart, and which tokens were seen."""
    size = draw(st.sampled_from([2, 31, 128, 129, 1000]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 0.01, 1.0, 5.0, 40.0]))
    logits = random.standard_normal(size) * scale + draw(st.sampled_from([0.0, -50.0, 300.0]))
    if draw(st.booleans()):
        logits = np.round(logits, 1)
    return logits.astype(np.float32), random.random(size) < 0.2


def expected(logits: np.ndarray, sampling: Sampling, seen: np.ndarray) -> np.ndarray:
    """PyTorch's filtered distribution, in float64."""
    left = in_torch.filtered(FAST, torch.tensor(logits)[None], sampling, torch.tensor(seen)[None])
    return torch.softmax(left.double(), dim=-1)[0].numpy()


def on_edge(logits: np.ndarray, sampling: Sampling, seen: np.ndarray) -> bool:
    """Whether the rounding of a sum or a logit decides about a token."""
    before_p = Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
    )
    p = expected(logits, before_p, seen)
    ends = np.sort(p)[::-1].cumsum()
    close = np.abs(ends - sampling.top_p).min() < 1e-6
    if sampling.min_p:
        with np.errstate(divide="ignore"):
            close |= bool(np.abs(np.log(p / p.max()) - math.log(sampling.min_p)).min() < 1e-4)
    return bool(close) and not sampling.min_p == sampling.top_p == 1


@settings(max_examples=300)
@given(row=rows(), sampling=samplings)
def test_the_distribution_is_that_of_pytorch(
    row: tuple[np.ndarray, np.ndarray], sampling: Sampling
) -> None:
    logits, seen = row
    assume(not on_edge(logits, sampling, seen))
    weights = filtered(logits, sampling, seen).astype(np.float64)
    wanted = expected(logits, sampling, seen)
    # What float32 cannot tell from 0 beside the greatest may be either.
    visible = wanted > 1e-30
    assert np.array_equal(weights[visible] > 0, np.ones(visible.sum(), bool))
    assert not weights[wanted == 0].any()
    np.testing.assert_allclose(weights / weights.sum(), wanted, rtol=2e-4, atol=1e-9)


@settings(max_examples=200)
@given(row=rows(), sampling=samplings, uniform=st.floats(0, 1, exclude_max=True))
def test_equal_numbers_draw_equal_tokens(
    row: tuple[np.ndarray, np.ndarray], sampling: Sampling, uniform: float
) -> None:
    logits, seen = row
    assume(not on_edge(logits, sampling, seen))
    ends = expected(logits, sampling, seen).cumsum()
    assume(np.abs(ends[:-1] - uniform).min() > 1e-5)
    (wanted,) = in_torch.choose(
        FAST, torch.tensor(logits)[None], [sampling], [uniform], torch.tensor(seen)[None]
    )
    assert choose(logits, sampling, uniform, seen).token == wanted.token


@given(row=rows(), sampling=samplings, greedy=st.booleans(), top=st.integers(0, 5))
def test_log_probabilities_are_those_of_pytorch(
    row: tuple[np.ndarray, np.ndarray], sampling: Sampling, greedy: bool, top: int
) -> None:
    from dataclasses import replace

    logits, seen = row
    logits += np.linspace(0, 0.01, len(logits), dtype=np.float32)  # a tie may go either way
    recording = replace(
        sampling,
        temperature=0.0 if greedy else sampling.temperature,
        logprobs=True,
        top_logprobs=top,
    )
    assume(not on_edge(logits, sampling, seen))
    (wanted,) = in_torch.choose(
        FAST, torch.tensor(logits)[None], [recording], [0.43], torch.tensor(seen)[None]
    )
    found = choose(logits, recording, 0.43, seen)
    assume(found.token == wanted.token)
    assert found.logprob == pytest.approx(wanted.logprob, abs=1e-4)
    assert found.sampled_logprob == pytest.approx(wanted.sampled_logprob, abs=2e-4)
    assert [p for _, p in found.top] == pytest.approx([p for _, p in wanted.top], abs=1e-4)
    assert len({token for token, _ in found.top}) == min(top, len(logits))
    assert all(logits[token] - logits[found.top[0][0]] <= 0 for token, _ in found.top)


def test_a_draw_finds_every_token_and_none_of_weight_zero() -> None:
    weights = np.zeros(300, np.float32)
    weights[[0, 127, 128, 299]] = [1, 2, 3, 2]
    numbers = (np.arange(8000) + 0.5) / 8000
    counts = np.bincount([draw(weights, u) for u in numbers], minlength=300)
    assert counts[[0, 127, 128, 299]].tolist() == [1000, 2000, 3000, 2000]
    assert counts.sum() == 8000
    assert draw(weights, 0.0) == 0
    assert draw(weights, math.nextafter(1.0, 0.0)) == 299


def test_a_draw_starts_behind_zeros() -> None:
    weights = np.zeros(500, np.float32)
    weights[433] = 1e-38
    assert draw(weights, 0.0) == draw(weights, math.nextafter(1.0, 0.0)) == 433


def test_the_nucleus_may_end_inside_and_between_classes() -> None:
    # Ten equal tokens are one class; a nucleus of 0.35 takes the first four.
    assert np.flatnonzero(filtered(np.zeros(10, np.float32), Sampling(top_p=0.35))).tolist() == [
        0,
        1,
        2,
        3,
    ]
    apart = np.log(np.array([0.1, 0.5, 0.25, 0.15])).astype(np.float32)
    assert np.flatnonzero(filtered(apart, Sampling(top_p=0.74))).tolist() == [1, 2]
    assert np.flatnonzero(filtered(apart, Sampling(top_p=0.76))).tolist() == [1, 2, 3]
    # Two logits in one class, not in order.
    close = np.array([-0.3 / CLASSES_PER_NAT, 0.0, -20.0], np.float32)
    assert np.flatnonzero(filtered(close, Sampling(top_p=0.4))).tolist() == [1]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(wrong: float, temperature: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[3] = wrong
    with pytest.raises(GenerationError, match="weights are damaged"):
        choose(logits, Sampling(temperature=temperature), 0.5)


def test_greedy_takes_the_first_of_equals_and_sees_the_penalty() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.9], np.float32)
    assert choose(logits, Sampling(temperature=0), 0.9).token == 1
    seen = np.array([False, True, False, False])
    penalized = Sampling(temperature=0, repetition_penalty=1.5)
    assert choose(logits, penalized, 0.0, seen).token == 2


TORCH_FREE = (
    "firsthand.llm.generation.rows",
    "firsthand.llm.generation.prompts",
    "firsthand.llm.generation.stopping",
    "firsthand.llm.inference.choosing",
    "firsthand.llm.inference.conversation",
    "firsthand.llm.inference.decoding",
    "firsthand.llm.inference.opening",
    "firsthand.llm.inference.server.app",
    "firsthand.llm.inference.service",
)


def test_an_engine_starts_without_pytorch() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; print([m for m in sys.modules if m == 'torch'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
