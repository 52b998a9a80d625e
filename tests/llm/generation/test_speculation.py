"""Speculative decoding changes the time, never the distribution."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from firsthand.llm.generation.choosing import filtered
from firsthand.llm.generation.decoding import generate, requests
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.generation.speculation import accept_drafted
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST

Made = Callable[..., Transformer]
LEVEL = 1e-4
P = [[0.1, 0.5, 0.25, 0.15], [0.4, 0.3, 0.2, 0.1], [0.25, 0.05, 0.4, 0.3]]
Q = [[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]]


def test_the_rule_gives_the_targets_distribution(p_value: Callable[..., float]) -> None:
    """Distributions that do not depend on the text, so each place must be distributed as P."""
    numbers = random.Random(4)
    target, draft = (torch.tensor(x, dtype=torch.float64) for x in (P, Q))
    places: list[list[int]] = [[], [], []]
    accepted_first = 0
    rounds = 3000
    for _ in range(rounds):
        drafted = [numbers.choices(range(4), q)[0] for q in Q]
        count, token = accept_drafted(target, draft, drafted, [numbers.random() for _ in range(3)])
        for place, value in enumerate([*drafted[:count], token]):
            places[place].append(value)
        accepted_first += count > 0
    for place, tokens in enumerate(places):
        assert p_value(tokens, P[place]) > LEVEL
    assert p_value(places[0], Q[0]) < 1e-9
    # Leviathan et al., theorem 3.5: a token is accepted with the overlap of p and q.
    overlap = float(np.minimum(P[0], Q[0]).sum())
    assert abs(accepted_first / rounds - overlap) < 4 * (overlap * (1 - overlap) / rounds) ** 0.5


def test_the_rule_at_its_edges() -> None:
    p, q = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert accept_drafted(p, q, [0], [0.0, 0.9]) == (0, 1)
    assert accept_drafted(p, torch.tensor([[0.0, 1.0]]), [1], [0.999, 0.9]) == (1, 0)
    assert accept_drafted(p[:1], q[:0], [], [0.3]) == (0, 1)
    # p = q up to rounding and yet refused: there is no rest to draw from.
    half = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    assert accept_drafted(half, half[:1] + 1e-7, [1], [0.9999999, 0.7]) == (0, 1)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned": {"positions": "learned"},
    "alibi": {"positions": "alibi"},
    "window": {"window": 5},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("draft_tokens", [1, 5])
def test_greedy_texts_are_the_same(name: str, draft_tokens: int, make_model: Made) -> None:
    """Up to the end of the context, which the draft model's is shorter than."""
    model = make_model(**VARIANTS[name])
    near = make_model(**VARIANTS[name], loud=0.19)
    far = make_model(n_layers=1, seed=8, context=30)
    sampling = Sampling(temperature=0.0, max_new_tokens=99, repetition_penalty=1.4)
    prompts = [[1], [2, 3, 4, 5, 6]]
    plain = generate(model, prompts, sampling)
    for draft in (near, far, model):
        results = generate(model, prompts, sampling, draft=draft, draft_tokens=draft_tokens)
        assert [r.ids for r in results] == [r.ids for r in plain]
        assert [len(r.ids) for r in results] == [39, 35]
        if draft is model:
            assert all(r.acceptance_rate == 1.0 and r.drafted > 0 for r in results)
        else:
            assert all(0 <= r.accepted < r.drafted for r in results)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5, "top_p": 0.8, "repetition_penalty": 1.5},
    {"temperature": 0.7, "top_k": 2},
    {"min_p": 0.2},
]


def _every_text(model: Transformer, prompt: int, sampling: Sampling) -> np.ndarray[Any, Any]:
    """The probability of each text of three tokens, from the model without a cache."""
    size = model.config.vocab_size
    texts = torch.cartesian_prod(*[torch.arange(size)] * 3)
    whole = torch.cat([torch.full((len(texts), 1), prompt), texts], dim=1)
    total = torch.zeros(len(texts), dtype=torch.float64)
    with torch.no_grad():
        logits = model(whole)
    for place in range(3):
        known = torch.zeros(len(texts), size, dtype=torch.bool)
        known.scatter_(1, whole[:, : place + 1], True)
        left = filtered(model.parts, logits[:, place], sampling, known)
        total += torch.log_softmax(left, -1).gather(1, texts[:, place : place + 1])[:, 0]
    return total.exp().numpy()


def _texts_have_the_targets_distribution(
    options: dict[str, Any], samples: int, make_model: Made, p_value: Callable[..., float]
) -> None:
    small = {"vocab_size": 3, "n_layers": 1, "d_model": 8, "n_heads": 2, "d_ff": 8, "loud": 0.6}
    model, draft = make_model(**small), make_model(**small, seed=9)
    sampling = Sampling(max_new_tokens=3, **options, logprobs=True)
    expected = _every_text(model, 2, sampling)
    assert expected.sum() == pytest.approx(1)
    asked = requests([[2]], sampling, samples=samples)
    results = generate(model, asked, draft=draft, draft_tokens=2)
    drawn = [int(np.dot(r.ids, [9, 3, 1])) for r in results]
    assert p_value(drawn, expected) > LEVEL
    assert p_value(drawn, _every_text(draft, 2, sampling)) < 1e-6
    assert 0 < sum(r.accepted for r in results) < sum(r.drafted for r in results)
    for text, result in zip(drawn, results, strict=True):
        assert np.exp(sum(result.sampled_logprobs)) == pytest.approx(expected[text], rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_whole_texts_have_the_targets_distribution(
    options: dict[str, Any], make_model: Made, p_value: Callable[..., float]
) -> None:
    _texts_have_the_targets_distribution(options, 250, make_model, p_value)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_many_whole_texts(
    options: dict[str, Any], make_model: Made, p_value: Callable[..., float]
) -> None:
    _texts_have_the_targets_distribution(options, 1000, make_model, p_value)


def test_logprobs_and_ends(make_model: Made) -> None:
    model, draft = make_model(), make_model(n_layers=1, seed=5)
    sampling = Sampling(max_new_tokens=25, top_logprobs=2, temperature=0.8)
    results = generate(model, [[1, 2]] * 8, sampling, draft=draft, end_tokens=[7, 11, 13])
    assert {r.reason for r in results} == {"end", "length"}
    for result in results:
        assert not {7, 11, 13} & set(result.ids[:-1])
        assert len(result.top_logprobs) == len(result.ids) == len(result.sampled_logprobs)
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([result.prompt + result.ids]))[0], -1)
        for i, token in enumerate(result.ids):
            assert result.logprobs[i] == pytest.approx(logprobs[1 + i, token].item(), abs=1e-9)
            best = logprobs[1 + i].topk(2)
            assert [t for t, _ in result.top_logprobs[i]] == best.indices.tolist()


@pytest.mark.parametrize("attempt", ["vocabulary", "tokens", "cache"])
def test_what_is_refused(attempt: str, make_model: Made) -> None:
    class Forgetful:
        def __init__(self, **sizes: Any) -> None:
            self.length = 0

    model = make_model()
    arguments: dict[str, Any] = {"draft": make_model(vocab_size=32), "draft_tokens": 2}
    if attempt == "tokens":
        arguments = {"draft": model, "draft_tokens": 0}
    if attempt == "cache":
        arguments = {"draft": make_model(parts=replace(FAST, kv_cache=Forgetful))}
    message = {"vocabulary": "32 tokens", "tokens": "at least 1", "cache": "rewind"}[attempt]
    with pytest.raises(GenerationError, match=message):
        generate(model, [[1]], **arguments)
