"""Run in a child with TRITON_INTERPRET=1: what the Triton rungs promise beyond their numbers.

Each function here is a check that raises; prints one JSON object of what each raised, or null.
"""

import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.autotuner import Autotuner

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.adamw.with_triton import adamw
from firsthand.llm.kernels.attention import with_triton as attention_module
from firsthand.llm.kernels.attention.with_torch import sdpa
from firsthand.llm.kernels.attention.with_triton import attention
from firsthand.llm.kernels.cross_entropy.with_torch import linear_cross_entropy
from firsthand.llm.kernels.cross_entropy.with_triton import chunked_cross_entropy
from firsthand.llm.kernels.ladders import LADDERS
from firsthand.llm.kernels.norms.with_triton import rms_norm
from firsthand.llm.kernels.rope.with_triton import rotate_half, rotate_interleaved
from firsthand.llm.kernels.swiglu.with_triton import swiglu


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


def every_ladder_of_training_has_a_rung() -> None:
    names = ("rms_norm", "rope_half", "rope_interleaved", "swiglu", "cross_entropy", "attention")
    for name in (*names, "adamw"):
        rungs = [rung for rung in LADDERS[name].rungs if rung.name.startswith("triton")]
        assert len(rungs) == 1, name
        assert rungs[0].runs_here
        assert rungs[0].device() == "cpu"


def attention_is_blind_to_the_future() -> None:
    q, k, v = (drawn(1, 2, 40, 16, seed=seed).detach() for seed in range(3))
    before = attention(q, k, v)
    k[:, :, 23:], v[:, :, 23:] = 99.0, -99.0
    after = attention(q, k, v)
    assert torch.equal(before[:, :, :23], after[:, :, :23])
    assert not torch.equal(before[:, :, 23:], after[:, :, 23:])


def attention_has_the_same_gradients_each_time() -> None:
    q, k, v = drawn(1, 4, 40, 16), drawn(1, 2, 40, 16, seed=1), drawn(1, 2, 40, 16, seed=2)
    gradients = [
        torch.autograd.grad(attention(q, k, v), (q, k, v), torch.ones_like(q)) for _ in range(2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def attention_merges_heads_as_a_view() -> None:
    output = attention(*(drawn(2, 3, 9, 16) for _ in range(3)))
    assert output.transpose(1, 2).is_contiguous()


def attention_keeps_no_scores() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    length, width = 160, 16
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(*(drawn(1, 1, length, width, seed=seed) for seed in range(3)))
    assert sum(kept) == 4 * length * width + length


def attention_leaves_the_rest_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(attention_module, "_launch", unreachable)
    plain = [drawn(1, 2, 6, 16, seed=seed) for seed in range(3)]
    bias = torch.zeros(6, 6).masked_fill_(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    assert torch.allclose(attention(*plain, bias), sdpa(*plain), atol=1e-6)
    narrow = [drawn(1, 2, 6, 8, seed=seed) for seed in range(3)]
    assert torch.equal(attention(*narrow), sdpa(*narrow))
    double = [tensor.double() for tensor in plain]
    assert attention(*double).dtype == torch.float64
    one = (plain[0][:, :, -1:], *plain[1:])
    assert torch.equal(attention(*one), sdpa(*one))
    # The check itself works: what fits does reach for a kernel.
    with pytest.raises(AssertionError, match="a kernel was launched"):
        attention(*plain)


def long_rows_take_the_tile_that_was_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With times made up, since nothing can be measured here: the second tile, asked for once."""
    measured: list[int] = []

    def seconds(self: Any, *_: Any, config: Any, **__: Any) -> list[float]:
        measured.append(config.kwargs["M"])
        return [1.0 / config.kwargs["M"]] * 3

    monkeypatch.setattr(Autotuner, "_bench", seconds)
    monkeypatch.setattr(attention_module, "TUNED_FROM", 20)
    monkeypatch.setattr(attention_module, "_best", {})
    choices = [{"M": m, "N": 16, "num_warps": 4, "num_stages": 1} for m in (16, 32)]
    monkeypatch.setattr(attention_module, "_choices", lambda *_: choices)
    q = drawn(1, 1, 24, 16)
    for _ in range(2):
        torch.testing.assert_close(attention(q, q, q), sdpa(q, q, q), rtol=1e-5, atol=1e-5)
    assert measured == [16, 32]
    assert list(attention_module._best.values()) == [choices[1]]
    torch.use_deterministic_algorithms(True)
    try:
        attention(q, q, q)
    finally:
        torch.use_deterministic_algorithms(False)
    assert measured == [16, 32]
    assert list(attention_module._best.values()) == [choices[1], choices[0]]


def autocast_decides_the_type() -> None:
    q, k, v = (drawn(1, 2, 20, 16, seed=seed) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(q, k, v)
    assert output.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(output.sum(), q)
    assert gradient.dtype == torch.float32


def norms_and_angles_of_another_type() -> None:
    x, weight = drawn(5, 24, dtype=torch.bfloat16), drawn(24)
    output = rms_norm(x, weight, 1e-5)
    dx, dweight = torch.autograd.grad(output.float().sum(), (x, weight))
    assert (output.dtype, dx.dtype, dweight.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    wanted = functional.rms_norm(x.float(), (24,), weight, 1e-5)
    assert torch.allclose(output.float(), wanted, rtol=1e-2, atol=1e-2)
    heads, angle = drawn(1, 2, 3, 8, dtype=torch.bfloat16), torch.linspace(0, 3, 12).view(3, 4)
    turned = rotate_half(heads, angle.cos(), angle.sin())
    assert turned.dtype == torch.bfloat16
    assert turned.is_contiguous()


def any_chunk_gives_the_same_loss() -> None:
    hidden, weight = drawn(23, 8), drawn(50, 8, seed=1)
    targets = torch.arange(23) % 50
    targets[::4] = -100
    wanted = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    for chunk in (1, 7, 23, None):
        loss = chunked_cross_entropy(hidden, weight, targets, chunk)
        for got, right in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least one token"):
            chunked_cross_entropy(hidden, weight, targets, bad)
    assert chunked_cross_entropy(hidden, weight, targets.fill_(-1)).item() == 0.0
    assert chunked_cross_entropy(hidden[:0], weight, targets[:0]).item() == 0.0


def a_target_outside_of_the_vocabulary_is_nan() -> None:
    hidden, weight = drawn(3, 8).detach(), drawn(5, 8).detach()
    for target, is_nan in ((4, False), (5, True), (10**9, True)):
        loss = chunked_cross_entropy(hidden, weight, torch.tensor([0, target, 1]))
        assert bool(loss.isnan()) is is_nan
    hidden[1, 1] = torch.nan
    assert chunked_cross_entropy(hidden, weight, torch.tensor([0, 1, 2])).isnan()


def a_loss_is_differentiated_once() -> None:
    hidden, weight = drawn(3, 8), drawn(5, 8)
    loss = chunked_cross_entropy(hidden, weight, torch.tensor([0, 1, 2]))
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="differentiated before"):
        loss.backward()  # type: ignore[no-untyped-call]


def autocast_in_the_loss() -> None:
    hidden, weight = drawn(6, 8), drawn(11, 8, seed=1)
    targets = torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    dhidden, dweight = torch.autograd.grad(loss, (hidden, weight))
    assert dhidden.dtype == dweight.dtype == torch.float32
    right = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    torch.testing.assert_close((dhidden, dweight), right, rtol=0.05, atol=0.05)


def an_update_with_no_tensor_and_with_mixed_types() -> None:
    numbers = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.2}
    adamw([], [], [], [], step=1, **numbers)
    shapes = ((3, 5), (4,))
    dtypes = (torch.bfloat16, torch.float32)
    p = [torch.ones(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    g = [torch.full(shape, 0.5) for shape in shapes]
    m, v = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
    adamw(p, g, m, v, step=1, **numbers)
    # After the first step m̂ / √v̂ is the gradient's sign.
    for parameter in p:
        expected = torch.full_like(parameter, 1.0 - 0.1 * (1.0 + 0.2))
        torch.testing.assert_close(parameter, expected)
    torch.testing.assert_close(m[0], torch.full((3, 5), 0.05))


def compiled_code_takes_pytorch() -> None:
    torch._dynamo.reset()
    x, weight = drawn(1, 2, 6, 16), drawn(16, seed=1)
    angle = torch.linspace(0, 3, 48).view(6, 8)

    def block(x: Tensor) -> Tensor:
        turned = rotate_half(rms_norm(x, weight, 1e-5), angle.cos(), angle.sin())
        turned = rotate_interleaved(turned, angle.cos(), angle.sin())
        return swiglu(attention(turned, turned, turned))

    # In one graph: where a kernel of ours stood, it would break.
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-4)


def what_the_rungs_take() -> None:
    assert triton_support.takes(torch.ones(2), torch.ones(2, dtype=torch.bfloat16))
    assert not triton_support.takes(torch.ones(2, dtype=torch.float64))
    assert not triton_support.takes(torch.ones(2, dtype=torch.int64))
    assert not triton_support.takes(torch.ones(2), torch.ones(2, device="meta"))
    assert [triton_support.power_of_two(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]


CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (
        every_ladder_of_training_has_a_rung,
        attention_is_blind_to_the_future,
        attention_has_the_same_gradients_each_time,
        attention_merges_heads_as_a_view,
        attention_keeps_no_scores,
        attention_leaves_the_rest_to_pytorch,
        long_rows_take_the_tile_that_was_fastest,
        autocast_decides_the_type,
        norms_and_angles_of_another_type,
        any_chunk_gives_the_same_loss,
        a_target_outside_of_the_vocabulary_is_nan,
        a_loss_is_differentiated_once,
        autocast_in_the_loss,
        an_update_with_no_tensor_and_with_mixed_types,
        compiled_code_takes_pytorch,
        what_the_rungs_take,
    )
}


def main() -> None:
    torch.set_num_threads(1)
    raised: dict[str, str | None] = {}
    for name, check in CHECKS.items():
        try:
            if "monkeypatch" in inspect.signature(check).parameters:
                with pytest.MonkeyPatch.context() as patch:
                    check(patch)
            else:
                check()
            raised[name] = None
        except Exception:
            raised[name] = traceback.format_exc()
    json.dump(raised, sys.stdout)


if __name__ == "__main__":
    main()
