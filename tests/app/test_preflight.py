"""The comparison before a run: it accepts what is equal and sees what is not, for every part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from firsthand.app.preflight import find_difference
from firsthand.llm.model.cache import KVCache
from firsthand.llm.model.parts import Parts
from firsthand.llm.parts import FAST, REFERENCE

NAMES = [field.name for field in fields(Parts)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _spoilt(value: Any) -> Any:
    """Five hundredths too much, or the next whole number."""
    if isinstance(value, tuple):
        return tuple(_spoilt(item) for item in value)
    if (isinstance(value, Tensor) and value.is_floating_point()) or isinstance(value, float):
        return value * 1.05
    return value + 1


class SpoiltCache(KVCache):
    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().append(layer, keys, values)
        return keys, _spoilt(values)


def spoilt(name: str) -> Callable[..., Any]:
    """The reference with its result, or what it changes in place, a little off."""
    if name == "kv_cache":
        return SpoiltCache
    part = getattr(REFERENCE, name)

    def call(*arguments: Any, **named: Any) -> Any:
        result = part(*arguments, **named)
        if result is None:
            arguments[0][-1].mul_(1.05)
            return None
        return _spoilt(result)

    return call


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_compared(name: str) -> None:
    assert find_difference(name, getattr(REFERENCE, name)) is None
    assert find_difference(name, getattr(FAST, name)) is None
    found = find_difference(name, spoilt(name))
    assert found is not None
    assert "off by" in found


def unscaled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return REFERENCE.attention(q * math.sqrt(q.shape[-1]), k, v, bias)


def blind_to_groups(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Key heads in turn instead of a group of query heads for each."""
    group = q.shape[1] // k.shape[1]
    return REFERENCE.attention(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1), bias)


def aligned_at_the_start(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Right for a whole text, wrong for the newest tokens behind a cache."""
    if bias is None:
        hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
        bias = torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)
    return REFERENCE.attention(q, k, v, bias)


def detached(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return REFERENCE.attention(q, k.detach(), v, bias)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (unscaled, "the loss"),
        (blind_to_groups, "the loss"),
        (aligned_at_the_start, "with a cache"),
        (detached, "the gradient of"),
    ],
)
def test_what_is_wrong_is_said(wrong: Callable[..., Any], says: str) -> None:
    found = find_difference("attention", wrong)
    assert found is not None
    assert says in found


def test_nan_and_another_shape_are_differences() -> None:
    assert "off by nan" in str(find_difference("rms_norm", lambda x, w, eps: x * math.nan))
    assert "off by inf" in str(find_difference("cosine_schedule", lambda *_: torch.ones(2)))
    assert "off by inf" in str(find_difference("draw", lambda p, u: u * math.nan))


def test_a_called_part_that_passes_no_gradient_on() -> None:
    def detached_loss(*given: Any) -> Tensor:
        return REFERENCE.dpo_loss(*given).detach()

    def half(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return REFERENCE.token_logprobs(hidden, weight.detach(), targets)

    assert "off by" in str(find_difference("dpo_loss", detached_loss))
    assert "off by" in str(find_difference("token_logprobs", half))


def test_a_step_without_bias_correction() -> None:
    def uncorrected(*lists: Any, step: int, beta1: float, beta2: float, **named: Any) -> None:
        for p, g, m, v in zip(*lists, strict=True):
            m.mul_(beta1).add_((1 - beta1) * g)
            v.mul_(beta2).add_((1 - beta2) * g * g)
            decay = named["weight_decay"] * p
            p.sub_(named["learning_rate"] * (m / (v.sqrt() + named["eps"]) + decay))

    assert find_difference("adamw", uncorrected) is not None


def test_a_cache_that_knows_no_neighbours_serves_the_rest() -> None:
    class Plain(KVCache):
        def __init__(
            self,
            *,
            layers: int,
            batch: int,
            kv_heads: int,
            capacity: int,
            width: int,
            window: int = 0,
            dtype: torch.dtype = torch.float32,
            device: Any = None,
        ) -> None:
            super().__init__(
                layers=layers,
                batch=batch,
                kv_heads=kv_heads,
                capacity=capacity,
                width=width,
                window=window,
                dtype=dtype,
                device=device,
            )

    assert find_difference("kv_cache", Plain) is None


def test_a_part_that_nothing_is_known_of() -> None:
    with pytest.raises(ValueError, match="no comparison for the part telepathy"):
        find_difference("telepathy", torch.relu)
