"""Log-probabilities: exact by token, cheap by chunk, and the model's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.logprobs import (
    batch_token_logprobs,
    sequence_logprobs,
    token_logprobs,
    token_logprobs_and_entropy,
)
from firsthand.llm.kernels.cross_entropy import by_token
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE

torch.set_num_threads(1)
Drawn = tuple[Tensor, Tensor, Tensor]


def drawn(
    tokens: int = 37, width: int = 5, vocabulary: int = 23, dtype: torch.dtype = torch.float64
) -> Drawn:
    generator = torch.Generator().manual_seed(tokens + vocabulary)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[::3] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    real = targets >= 0
    picked = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return picked * real, -(log_p.exp() * log_p).sum(1) * real


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(1, 30),
    chunk=st.sampled_from([0, 1, 2, 7, 100]),
    shift=st.sampled_from([0.0, 50.0]),
)
def test_values_and_gradients_for_any_chunk(
    dtype: torch.dtype, tokens: int, vocabulary: int, chunk: int, shift: float
) -> None:
    hidden, weight, targets = drawn(tokens, 5, vocabulary, dtype)
    with torch.no_grad():
        hidden[:, 0] += shift
        weight[:, 0] = 1.0
    got = token_logprobs_and_entropy(hidden, weight, targets, chunk=chunk)
    alone = token_logprobs(hidden, weight, targets, chunk=chunk)
    expected = plain(hidden, weight, targets)
    tolerance = 1e-10 if dtype == torch.float64 else 3e-5
    generator = torch.Generator().manual_seed(1)
    c, g = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    for one, other in zip((*got, alone), (*expected, expected[0]), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    inputs = (hidden, weight)
    ours = torch.autograd.grad((got[0] * c + got[1] * g).sum(), inputs)
    theirs = torch.autograd.grad((expected[0] * c + expected[1] * g).sum(), inputs)
    # Logits shifted by 50 in float32 keep four digits behind the point.
    loose = tolerance * (100 if shift else 10)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=loose, atol=loose)
    lone = torch.autograd.grad((alone * c).sum(), inputs)
    expected_lone = torch.autograd.grad((plain(hidden, weight, targets)[0] * c).sum(), inputs)
    for one, other in zip(lone, expected_lone, strict=True):
        torch.testing.assert_close(one, other, rtol=loose, atol=loose)


@pytest.mark.parametrize("entropic", [False, True])
def test_gradients_by_central_differences(entropic: bool) -> None:
    hidden, weight, targets = drawn(9, 4, 6)

    def function(h: Tensor, w: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        both = token_logprobs_and_entropy(h, w, targets, chunk=4)
        return both if entropic else token_logprobs(h, w, targets, chunk=4)

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_a_hand_example() -> None:
    found, entropy = token_logprobs_and_entropy(
        torch.ones(2, 1), torch.tensor([[1.0], [3.0]]).log(), torch.tensor([0, 1])
    )
    # p = (1/4, 3/4)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]).log())
    expected = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log())
    torch.testing.assert_close(entropy, expected.expand(2))


def test_ignored_positions_have_no_value_no_gradient_and_no_logits() -> None:
    hidden, weight, targets = drawn()
    found = token_logprobs(hidden, weight, targets)
    assert torch.equal(found[::3], torch.zeros_like(found[::3]))
    (dhidden,) = torch.autograd.grad(found.sum(), hidden)
    assert torch.equal(dhidden[::3], torch.zeros_like(dhidden[::3]))
    assert dhidden[1].abs().sum() > 0
    none = token_logprobs(hidden, weight, torch.full_like(targets, -1))
    dhidden, dweight = torch.autograd.grad(none.sum(), (hidden, weight))
    assert not none.any()
    assert not dhidden.any()
    assert not dweight.any()


class Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == 211:
            self.rows = max(self.rows, result.shape[0])
            self.products += func is torch.ops.aten.mm.out
        return result


def run(function: Callable[..., Tensor], chunk: int) -> Largest:
    hidden, weight, targets = drawn(90, 4, 211, torch.float32)
    with Largest() as seen:
        function(hidden, weight, targets, chunk=chunk).sum().backward()
    return seen


def test_whole_logits_never_exist_and_the_last_chunk_is_made_once() -> None:
    # 60 of 90 positions count.
    seen = run(token_logprobs, 20)
    assert seen.rows == 20
    assert seen.products == 3 + 2
    assert run(token_logprobs, 60).products == 1


def test_a_second_backward_pass_gives_the_same() -> None:
    hidden, weight, targets = drawn()
    found = token_logprobs(hidden, weight, targets, chunk=10)
    first = torch.autograd.grad(found.sum(), (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(found.sum(), (hidden, weight))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_only_the_gradients_that_are_needed() -> None:
    hidden, weight, targets = drawn()
    token_logprobs(hidden, weight.detach(), targets).sum().backward()
    assert hidden.grad is not None
    token_logprobs(hidden.detach(), weight, targets).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not token_logprobs(hidden, weight, targets).requires_grad


def test_bfloat16_hidden_states_keep_float32_results() -> None:
    hidden, weight, targets = drawn(40, 8, 30, torch.bfloat16)
    found = token_logprobs(hidden, weight, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), plain(hidden, weight, targets)[0], rtol=0.02, atol=0.05
    )
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_under_autocast_backward_runs_outside_of_it() -> None:
    hidden, weight, targets = drawn(40, 8, 30, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logprobs(hidden, weight, targets, chunk=9)
    found.sum().backward()
    expected = torch.autograd.grad(plain(hidden, weight, targets)[0].sum(), (hidden, weight))
    for got, right in zip((hidden.grad, weight.grad), expected, strict=True):
        assert got is not None
        assert float((got - right).norm() / right.norm()) < 0.02


def test_nan_reaches_the_result() -> None:
    hidden, weight, targets = drawn(dtype=torch.float32)
    with torch.no_grad():
        hidden[1, 2] = torch.nan
    assert token_logprobs(hidden, weight, targets)[1].isnan()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda h, w, t: (h, w, t + 1000), IndexError),
        (lambda h, w, t: (h[:-1], w, t), ValueError),
        (lambda h, w, t: (h, w[:, :-1], t), ValueError),
    ],
)
def test_what_does_not_fit(change: Callable[..., Drawn], error: type[Exception]) -> None:
    with pytest.raises(error):
        token_logprobs(*change(*drawn(dtype=torch.float32)))
    with pytest.raises(ValueError, match="chunk"):
        token_logprobs(*drawn(), chunk=-1)


def test_the_compiled_rows_are_the_ones_that_run() -> None:
    hidden, weight, targets = drawn(dtype=torch.float32)
    places = (targets >= 0).nonzero().squeeze(1)
    logits = (hidden @ weight.T).detach()[places].contiguous()
    for entropic in (False, True):
        slow, fast = logits.clone(), logits.clone()
        found = [torch.zeros(3, len(places)) for _ in range(2)]
        by_token._read(slow, targets[places], found[0], entropic)
        by_token._read_compiled(fast, targets[places], found[1], entropic)
        for row in (0, 2, *([1] if entropic else [])):
            torch.testing.assert_close(found[0][row], found[1][row])
        cotangents = torch.randn(2, len(places), generator=torch.Generator().manual_seed(0))
        by_token._write(slow, targets[places], found[0], cotangents, entropic)
        by_token._write_compiled(fast, targets[places], found[0], cotangents, entropic)
        torch.testing.assert_close(slow, fast)


# ---------------------------------------------------------------------- of a model

CONFIG = ModelConfig(vocab_size=31, context=16, d_model=12, n_layers=2, n_heads=2, d_ff=20)


@pytest.mark.parametrize("parts", [REFERENCE, FAST])
def test_of_a_model_they_are_those_of_its_logits(parts: object) -> None:
    model = Transformer(CONFIG, parts, seed=3)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(31, (3, 9), generator=generator)
    targets = torch.randint(31, (3, 9), generator=generator)
    targets[:, :4] = -100
    for temperature in (1.0, 0.7):
        log_p = torch.log_softmax(model(tokens) / temperature, -1)
        expected = log_p.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets >= 0)
        found = batch_token_logprobs(model, tokens, targets, temperature=temperature)
        torch.testing.assert_close(found, expected)
    expected = batch_token_logprobs(model, tokens, targets).sum(1)
    torch.testing.assert_close(sequence_logprobs(model, tokens, targets), expected)
    torch.testing.assert_close(
        -expected.sum(), model.loss(tokens, targets).total, rtol=1e-5, atol=1e-5
    )


def test_packing_and_padding_change_nothing() -> None:
    model = Transformer(CONFIG, FAST, seed=3)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(31, (1, n), generator=generator) for n in (5, 7))
    wanted = [torch.randint(31, text.shape, generator=generator) for text in (first, second)]
    alone = [
        batch_token_logprobs(model, text, target)
        for text, target in zip((first, second), wanted, strict=True)
    ]
    documents = torch.tensor([[0] * 5 + [1] * 7])
    packed = batch_token_logprobs(
        model, torch.cat([first, second], 1), torch.cat(wanted, 1), documents=documents
    )
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)
    rows = torch.cat([torch.nn.functional.pad(first, (0, 2)), second])
    targets = torch.cat([torch.nn.functional.pad(wanted[0], (0, 2), value=-1), wanted[1]])
    sums = sequence_logprobs(model, rows, targets)
    torch.testing.assert_close(sums, torch.cat([a.sum(1) for a in alone]), rtol=1e-5, atol=1e-5)


def test_a_batch_that_does_not_fit_is_refused() -> None:
    model = Transformer(CONFIG, FAST)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(AlignmentError, match="one shape"):
        sequence_logprobs(model, tokens, tokens[:, 1:])
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(AlignmentError, match="temperature"):
            batch_token_logprobs(model, tokens, tokens, temperature=temperature)


def test_against_trl() -> None:
    kernel = pytest.importorskip("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    hidden, weight, targets = drawn(41, 6, 29, torch.float32)
    targets = targets.clamp(min=0)
    fields = ("log_probs", "entropy")
    theirs = kernel.apply(hidden, weight, None, targets, 1.0, 16, None, 1.0, fields)
    ours = token_logprobs_and_entropy(hidden, weight, targets, chunk=16)
    for one, other in zip(ours, theirs[:2], strict=True):
        torch.testing.assert_close(one, other)
    cotangent = torch.linspace(-1, 1, 41)
    got = torch.autograd.grad(ours[0], (hidden, weight), cotangent)
    right = torch.autograd.grad(theirs[0], (hidden, weight), cotangent)
    for one, other in zip(got, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
