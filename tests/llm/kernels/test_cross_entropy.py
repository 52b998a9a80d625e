"""What the chunked cross-entropy promises beyond the ladder: memory, masking, precision."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from firsthand.llm.kernels.cross_entropy.by_token import token_logprobs
from firsthand.llm.kernels.cross_entropy.with_torch import (
    IGNORED,
    chunked_cross_entropy,
    linear_cross_entropy,
    token_losses,
)

torch.set_num_threads(1)
TOKENS, WIDTH, VOCABULARY, CHUNK = 512, 16, 384, 64


class Ledger(TorchDispatchMode):
    """Every storage that an operation makes: the largest, and the most alive at a time, bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}
        self.largest = self.alive = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.seen or size == 0:
            return
        self.seen[key] = size
        self.largest, self.alive = max(self.largest, size), self.alive + size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self.seen.pop(key, 0)


def _drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64) / 4
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[::7] = IGNORED
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def _recorded(loss: Callable[..., Tensor], **options: int) -> Ledger:
    hidden, weight, targets = _drawn()
    gc.collect()
    with Ledger() as ledger:
        loss(hidden, weight, targets, **options).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return ledger


LOGITS = 4 * TOKENS * VOCABULARY


@pytest.mark.parametrize("loss", [chunked_cross_entropy, token_losses, token_logprobs])
def test_whole_logits_never_exist(loss: Callable[..., Tensor]) -> None:
    ledger = _recorded(loss, chunk=CHUNK)
    chunk_bytes = 4 * CHUNK * VOCABULARY
    gradients = 4 * WIDTH * (TOKENS + VOCABULARY)
    assert ledger.largest <= max(chunk_bytes, gradients) < LOGITS / 2
    assert ledger.peak <= 2 * chunk_bytes + 2 * gradients + 64 * TOKENS < LOGITS


def test_the_ledger_sees_whole_logits_where_they_exist() -> None:
    ledger = _recorded(linear_cross_entropy)
    assert ledger.largest >= LOGITS
    assert ledger.peak >= 2 * LOGITS


@pytest.mark.parametrize("chunk", [1, 63, 64, 1000])
def test_any_chunk_gives_the_same(chunk: int) -> None:
    expected = _loss_and_gradients(linear_cross_entropy)
    for loss in (chunked_cross_entropy, token_losses):
        for got, right in zip(_loss_and_gradients(loss, chunk), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)


def _loss_and_gradients(loss: Callable[..., Tensor], *options: int) -> tuple[Tensor, ...]:
    hidden, weight, targets = _drawn(torch.float64)
    total = loss(hidden, weight, targets, *options).sum()
    return (total.detach(), *torch.autograd.grad(3.0 * total, (hidden, weight)))


def test_token_losses_with_a_cotangent_for_each_token() -> None:
    hidden, weight, targets = _drawn(torch.float64)
    losses = token_losses(hidden, weight, targets, CHUNK)
    assert torch.equal(losses[::7], torch.zeros_like(losses[::7]))
    cotangent = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)
    got = torch.autograd.grad(losses, (hidden, weight), cotangent)
    log_p = torch.log_softmax(hidden @ weight.T, -1)
    picked = -log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0] * (targets >= 0)
    torch.testing.assert_close(losses, picked)
    for one, right in zip(
        got, torch.autograd.grad(picked, (hidden, weight), cotangent), strict=True
    ):
        torch.testing.assert_close(one, right)


def test_only_the_gradients_that_are_needed() -> None:
    hidden, weight, targets = _drawn()
    chunked_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        total = chunked_cross_entropy(hidden, weight, targets)
    assert not total.requires_grad


def test_all_targets_ignored() -> None:
    hidden, weight, targets = _drawn()
    total = chunked_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED))
    total.backward()
    assert total.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_bfloat16_sums_in_float32() -> None:
    hidden, weight, targets = _drawn(torch.bfloat16)
    exact = linear_cross_entropy(hidden.double(), weight.double(), targets)
    total = chunked_cross_entropy(hidden, weight, targets, CHUNK)
    assert total.dtype == torch.float32
    assert abs(total.item() / exact.item() - 1) < 1e-3
    total.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_under_autocast() -> None:
    hidden, weight, targets = _drawn()
    exact = linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = chunked_cross_entropy(hidden, weight, targets, CHUNK)
    total.backward()
    assert abs(total.item() / exact.item() - 1) < 5e-3


def test_differentiated_twice() -> None:
    hidden, weight, targets = _drawn()
    total = chunked_cross_entropy(hidden, weight, targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        total.backward()


@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "chunk", "words"),
    [
        ((4, 3), (5, 2), (4,), 8, "shapes are"),
        ((4, 3), (5, 3), (3,), 8, "targets"),
        ((4, 3), (5, 3), (4,), 0, "at least one"),
    ],
)
def test_bad_arguments(
    hidden: tuple[int, ...],
    weight: tuple[int, ...],
    targets: tuple[int, ...],
    chunk: int,
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        chunked_cross_entropy(
            torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.int64), chunk
        )
