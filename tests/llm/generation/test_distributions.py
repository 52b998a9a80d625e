"""Every option by what it does to the distribution: a silent no-op would not be seen otherwise.

Level: a right implementation fails one of these with probability 1e-4; the seeds are fixed, so it
does so always or never.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from firsthand.llm.generation.choosing import choose
from firsthand.llm.generation.decoding import generate, requests
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import REFERENCE

LEVEL = 1e-4
DRAWS = 20_000
LOGITS = np.array([1.5, -0.4, 2.0, 0.3, 1.1, -1.2, 0.9, -0.1, 1.7, -0.7])
SEEN = np.isin(np.arange(len(LOGITS)), [1, 2, 8])
PEN = np.where(LOGITS > 0, LOGITS / 1.6, LOGITS * 1.6)
OPTIONS: dict[str, dict[str, Any]] = {
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 2.5},
    "top-k": {"top_k": 4},
    "top-1": {"top_k": 1},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.35},
    "repetition": {"repetition_penalty": 1.6},
    # All three cut an end off the same order, so only some of them can matter at once: here the
    # nucleus is that of the top six, and min-p the narrowest.
    "nucleus-of-top-k": {
        "temperature": 1.8,
        "top_k": 6,
        "top_p": 0.6,
        "repetition_penalty": 1.6,
    },
    "hot-min-p": {"temperature": 2.5, "min_p": 0.5, "repetition_penalty": 1.6},
}


def _distribution(
    logits: NDArray[np.float64], seen: NDArray[np.bool_], sampling: Sampling
) -> NDArray[np.float64]:
    """The oracle: probabilities in float64, filtered one after the other and scaled to sum to 1."""
    penalty = sampling.repetition_penalty
    x = np.array(
        [
            (value / penalty if value > 0 else value * penalty) if known else value
            for value, known in zip(logits, seen, strict=True)
        ]
    )
    p = np.exp(x / sampling.temperature)
    p /= p.sum()
    ranked = [int(i) for i in np.argsort(-p)]
    if sampling.top_k:
        p[ranked[sampling.top_k :]] = 0
    p /= p.sum()
    mass = 0.0
    for i in ranked:
        if mass >= sampling.top_p:
            p[i] = 0
        mass += p[i]
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_the_distribution_as_derived(
    name: str, p_value: Callable[..., float]
) -> None:
    sampling = Sampling(**OPTIONS[name])
    numbers = random.Random(name)
    logits = torch.tensor(LOGITS, dtype=torch.float32).expand(DRAWS, -1)
    seen = torch.tensor(SEEN).expand(DRAWS, -1)
    uniforms = [numbers.random() for _ in range(DRAWS)]
    tokens = [c.token for c in choose(REFERENCE, logits, [sampling] * DRAWS, uniforms, seen)]
    assert p_value(tokens, _distribution(LOGITS, SEEN, sampling)) > LEVEL
    assert p_value(tokens, _distribution(LOGITS, SEEN, Sampling())) < 1e-9
    for left_out in OPTIONS[name] if len(OPTIONS[name]) > 1 else ():
        fewer = {key: value for key, value in OPTIONS[name].items() if key != left_out}
        assert p_value(tokens, _distribution(LOGITS, SEEN, Sampling(**fewer))) < 1e-9, left_out


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Transformer]) -> Transformer:
    return make_model(vocab_size=8, n_layers=1, loud=0.3)


@pytest.mark.parametrize("name", ["plain", *OPTIONS])
def test_the_whole_way_from_a_prompt(
    name: str, model: Transformer, p_value: Callable[..., float]
) -> None:
    """The second new token, so that a token generated before counts as seen."""
    sampling = Sampling(**OPTIONS.get(name, {}), max_new_tokens=2, seed=5)
    results = generate(model, requests([[3, 1]], sampling, samples=3000))
    first = max({r.ids[0] for r in results}, key=[r.ids[0] for r in results].count)
    tokens = [r.ids[1] for r in results if r.ids[0] == first]
    with torch.no_grad():
        logits = model(torch.tensor([[3, 1, first]]))[0, -1].numpy()
    expected = _distribution(logits, np.isin(np.arange(8), [3, 1, first]), sampling)
    assert p_value(tokens, expected) > LEVEL


def test_rows_with_settings_of_their_own(p_value: Callable[..., float]) -> None:
    """Rows are grouped by settings inside; each must get its own back."""
    settings = [Sampling(**OPTIONS[name]) for name in OPTIONS] + [Sampling(temperature=0.0)]
    count = 2500
    numbers = random.Random(1)
    rows = [settings[i % len(settings)] for i in range(count * len(settings))]
    logits = torch.tensor(LOGITS, dtype=torch.float32).expand(len(rows), -1)
    seen = torch.tensor(SEEN).expand(len(rows), -1)
    uniforms = [numbers.random() for _ in rows]
    tokens = [c.token for c in choose(REFERENCE, logits, rows, uniforms, seen)]
    for i, sampling in enumerate(settings[:-1]):
        expected = _distribution(LOGITS, SEEN, sampling)
        assert p_value(tokens[i :: len(settings)], expected) > LEVEL
    assert set(tokens[len(settings) - 1 :: len(settings)]) == {2}
