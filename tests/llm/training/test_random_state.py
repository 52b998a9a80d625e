"""Random generators go on with the very next bit, after a way through JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.random_state import (
    random_state,
    restore_random_state,
    seed_random,
)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    """Other tests keep the generators that they had."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(pytorch)


def draws(generator: torch.Generator) -> list[Any]:
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(3).tolist(),  # noqa: NPY002
        torch.randn(5).tolist(),
        torch.randn(17, generator=generator).tolist(),
    ]


def scatter(seed: int, before: int) -> torch.Generator:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(before):
        # Odd numbers of normal draws leave the second one of a pair in the generator.
        random.gauss(0, 1)
        np.random.standard_normal()  # noqa: NPY002
        torch.randn(1)
        torch.randn(1, generator=generator)
    return generator


@given(seed=st.integers(0, 2**32 - 1), before=st.integers(0, 700))
def test_all_generators_go_on_bit_for_bit(seed: int, before: int) -> None:
    generator = scatter(seed, before)
    text = json.dumps(random_state({"samples": generator}), allow_nan=False)
    expected = draws(generator)
    other = scatter(seed ^ 1, before // 2)
    assert draws(other) != expected
    restore_random_state(json.loads(text), {"samples": other})
    assert draws(other) == expected


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_seed_begins_all_global_generators(seed: int) -> None:
    generator = torch.Generator()
    seed_random(seed)
    expected = draws(generator.manual_seed(1))
    assert draws(generator.manual_seed(1)) != expected
    seed_random(seed)
    assert draws(generator.manual_seed(1)) == expected
    seed_random(seed - 1 if seed else 1)
    other = draws(generator.manual_seed(1))
    assert all(a != b for a, b in zip(other[:4], expected[:4], strict=True))


def test_reading_the_state_draws_nothing() -> None:
    generator = scatter(3, 5)
    first = random_state({"samples": generator})
    assert random_state({"samples": generator}) == first


def test_a_state_of_other_generators_or_no_state_is_refused() -> None:
    saved = random_state({"samples": torch.Generator()})
    with pytest.raises(TrainingError, match=r"\['samples'\] were saved, this run has \[\]"):
        restore_random_state(saved)
    good = random_state()
    for bad in (
        {},
        {**good, "torch": "AAAA"},
        {**good, "torch": "?"},
        {**good, "python": {**good["python"], "words": "AAAAAA=="}},
        {**good, "numpy": {**good["numpy"], "kind": "none"}},
    ):
        with pytest.raises(TrainingError, match="cannot be restored"):
            restore_random_state(bad)
    restore_random_state(good)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_goes_on_bit_for_bit() -> None:
    torch.randn(3, device="cuda")
    saved = json.loads(json.dumps(random_state()))
    expected = torch.randn(9, device="cuda")
    restore_random_state(saved)
    assert torch.equal(torch.randn(9, device="cuda"), expected)


def test_a_state_from_cuda_restores_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    saved = {**random_state(), "cuda": "AAAAAAAAAAAAAAAAAAAAAA=="}
    expected = torch.randn(4)
    restore_random_state(saved)
    assert torch.equal(torch.randn(4), expected)
