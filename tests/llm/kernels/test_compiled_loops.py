"""What the compiled rungs promise beyond their ladders: accuracy, threads, and when they step back.

`test_ladders` compares their values and gradients with the oracles.
"""

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from firsthand.llm.kernels import team, threads
from firsthand.llm.kernels.attention import with_numba as attention
from firsthand.llm.kernels.attention.with_torch import sdpa
from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.cross_entropy import with_numba as cross_entropy
from firsthand.llm.kernels.cross_entropy import with_torch as torch_cross_entropy
from firsthand.llm.kernels.exponential import exp32
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.norms.with_numba import rms_norm
from firsthand.llm.kernels.norms.with_torch import fused_rms_norm
from firsthand.llm.kernels.rope import with_numba as rope
from firsthand.llm.kernels.rope import with_torch as torch_rope
from firsthand.llm.kernels.swiglu.with_numba import swiglu
from firsthand.llm.kernels.swiglu.with_torch import fused_swiglu

torch.set_num_threads(1)


@compiled
def _exponentials(x: AnyArray, output: AnyArray) -> None:
    for i in range(x.size):
        output[i] = exp32(x[i])


def _exp(x: AnyArray) -> AnyArray:
    output = np.empty_like(x)
    _exponentials(x, output)
    return output


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_exponential_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87.0, 88.0, 1_000_003).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(_exp(x) - exact) / unit) < 2.0


def test_exponential_at_its_ends() -> None:
    x = np.array([0.0, -0.0, -1e4, -np.inf, 1e4, np.nan], np.float32)
    zero, minus_zero, low, lowest, high, nan = _exp(x)
    assert zero == minus_zero == 1.0
    assert low == lowest == np.float32(_exp(np.full(1, -87.0, np.float32))[0])
    assert np.isfinite(high)
    assert np.isnan(nan)


Call = Callable[..., Tensor]
CALLS: dict[str, tuple[Call, Call, list[Tensor]]] = {
    "swiglu": (swiglu, fused_swiglu, [3.0 * _x(700, 2 * 111)]),
    "rms_norm": (rms_norm, fused_rms_norm, [_x(700, 321), _x(321, seed=1)]),
    "rotate_half": (
        rope.rotate_half,
        torch_rope.fused_rotate_half,
        [_x(3, 70, 5, 130).transpose(1, 2), _x(70, 65, seed=1), _x(70, 65, seed=2)],
    ),
    "rotate_interleaved": (
        rope.rotate_interleaved,
        torch_rope.complex_rotate_interleaved,
        [_x(3, 70, 5, 130).transpose(1, 2), _x(70, 65, seed=1), _x(70, 65, seed=2)],
    ),
    "attention": (
        attention.attention,
        sdpa,
        [_x(3, 4, 300, 16), _x(3, 2, 310, 16, seed=1), _x(3, 2, 310, 16, seed=2)],
    ),
    "cross_entropy": (
        cross_entropy.chunked_cross_entropy,
        torch_cross_entropy.chunked_cross_entropy,
        [_x(600, 8), _x(517, 8, seed=1), torch.arange(600) % 517 - 3],
    ),
}


def _value_and_gradients(call: Call, arguments: list[Tensor]) -> list[Tensor]:
    leaves = [a.detach().requires_grad_() if a.is_floating_point() else a for a in arguments]
    if "rotate" in call.__name__:
        leaves[1:] = arguments[1:]
    value = call(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, wanted, _x(*value.shape, seed=5))]


@pytest.mark.parametrize("name", CALLS)
def test_close_to_the_torch_rung_in_float32(name: str) -> None:
    fast, plain, arguments = CALLS[name]
    for one, other in zip(
        _value_and_gradients(fast, arguments), _value_and_gradients(plain, arguments), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_on_any_number_of_threads(name: str, monkeypatch: Any) -> None:
    """The loops' part of a bit-exact resume; the products of PyTorch are kept on one thread."""
    fast, _, arguments = CALLS[name]
    alone = _value_and_gradients(fast, arguments)
    monkeypatch.setattr(threads, "LEAST_ELEMENTS", 1)
    monkeypatch.setattr(team, "run", lambda *_: False)
    names: set[str] = set()
    _record_threads(monkeypatch, names)
    monkeypatch.setattr(threads, "usable_threads", lambda: 3)
    together = _value_and_gradients(fast, arguments)
    assert len(names) > 1
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not team.available(), reason="this PyTorch brings no libgomp")
@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_on_the_team_of_pytorch(name: str, monkeypatch: Any) -> None:
    fast, _, arguments = CALLS[name]
    alone = _value_and_gradients(fast, arguments)
    monkeypatch.setattr(threads, "LEAST_ELEMENTS", 1)
    monkeypatch.setattr(threads, "usable_threads", lambda: 3)
    run, done = team.run, []

    def watched(*arguments: Any) -> bool:
        done.append(run(*arguments))
        return done[-1]

    monkeypatch.setattr(team, "run", watched)
    together = _value_and_gradients(fast, arguments)
    assert len(done) > 1
    assert all(done)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@compiled
def _note_ranges(first: int, last: int, firsts: AnyArray) -> None:
    for row in range(first, last):
        firsts[row] += first + 1


@pytest.mark.skipif(not team.available(), reason="this PyTorch brings no libgomp")
def test_the_team_shares_the_rows_between_its_threads() -> None:
    firsts = np.zeros(7, np.float32)
    assert team.run(_note_ranges, 3, 7, (firsts,))
    assert firsts.tolist() == [1, 1, 3, 3, 5, 5, 5]


def test_a_tensor_stays_resizable() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 4))
    seen = threads.array(weight)
    assert seen.shape == (3, 4)
    seen[1, 2] = 5.0
    assert weight[1, 2] == 5.0
    del seen
    weight.untyped_storage().resize_(0)
    assert threads.memory(torch.zeros(0, 4)).shape == (0, 4)


def _record_threads(monkeypatch: Any, names: set[str]) -> None:
    pool = threads._workers()
    submit = pool.submit

    def watched(kernel: Any, *arguments: Any) -> Any:
        names.add(threading.current_thread().name)

        def call() -> None:
            names.add(threading.current_thread().name)
            kernel(*arguments)

        return submit(call)

    monkeypatch.setattr(pool, "submit", watched)


def test_ranges_cover_the_rows_once() -> None:
    torch.set_num_threads(1)
    assert threads.ranges(7, 1 << 30) == [(0, 7)]
    assert threads.ranges(0, 0) == [(0, 0)]


@pytest.mark.parametrize(
    ("cores", "of_torch", "expected"), [(2, 2, 1), (2, 1, 1), (8, 4, 4), (8, 6, 3), (16, 16, 1)]
)
def test_threads_stay_off_spinning_cores(
    cores: int, of_torch: int, expected: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(team, "available", lambda: False)
    monkeypatch.setattr(threads, "_cores", lambda: cores)
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: of_torch)
    assert threads.usable_threads() == expected
    # With sixteen threads against one the rungs of PyTorch win.
    assert threads.compiles(torch.zeros(1)) == (of_torch <= threads.WORTH * expected)


@pytest.mark.parametrize("name", CALLS)
def test_float64_goes_to_the_torch_rung(name: str) -> None:
    fast, plain, arguments = CALLS[name]
    wide = [a.double() if a.is_floating_point() else a for a in arguments]
    assert torch.equal(fast(*wide), plain(*wide))


def test_a_token_without_a_gradient_goes_to_the_torch_rung() -> None:
    few, many = torch.zeros(1, 8), torch.zeros(threads.LEAST_ELEMENTS)
    assert threads.compiles(few)
    with torch.no_grad():
        assert not threads.compiles(few)
        assert threads.compiles(many)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not threads.compiles(many)
    assert not threads.compiles(many, few.double())


def test_nan_reaches_every_result_it_should() -> None:
    x = _x(4, 6)
    x[1, 2] = float("nan")
    assert swiglu(x.requires_grad_()).isnan().sum() == 1
    assert rms_norm(x, torch.ones(6)).isnan().sum() == 6
    q, k, v = _x(1, 1, 5, 4), _x(1, 1, 5, 4, seed=1), _x(1, 1, 5, 4, seed=2)
    k[0, 0, 2] = float("nan")
    broken = attention.attention(q.requires_grad_(), k, v).isnan().any(dim=-1)[0, 0]
    assert broken.tolist() == [False, False, True, True, True]
    hidden = _x(3, 4)
    hidden[1] = float("nan")
    loss = cross_entropy.chunked_cross_entropy(
        hidden.requires_grad_(), _x(5, 4), torch.tensor([0, 1, 2])
    )
    assert loss.isnan()


def test_a_target_outside_the_vocabulary() -> None:
    with pytest.raises(IndexError, match="target 5 of a vocabulary of 5"):
        cross_entropy.chunked_cross_entropy(
            _x(2, 4).requires_grad_(), _x(5, 4), torch.tensor([1, 5])
        )


def test_attention_keeps_no_view_of_the_projection() -> None:
    """A saved view of the values would keep queries and keys alive beside their turned copies."""
    both = _x(1, 6, 3, 8).requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    q, k, v = both.transpose(1, 2).split(1, dim=1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention.attention(q, k, v)
    assert max(kept) == 6 * 8


FORKED = """
import os, sys, torch
from firsthand.llm.kernels import team, threads
from firsthand.llm.kernels.swiglu.with_numba import swiglu
threads.LEAST_ELEMENTS = 1
threads.usable_threads = lambda: 2
torch.set_num_threads(2)
if sys.argv[1] == "pool":
    team.run = lambda *_: False
x = torch.arange(4096.0).view(64, 64) / 1e3
expected = swiglu(x.requires_grad_()).detach()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(swiglu(x).detach(), expected) and not team.available() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(swiglu(x).detach(), expected)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("threads_of", ["pool", "team"])
def test_a_forked_child_makes_threads_of_its_own(threads_of: str) -> None:
    subprocess.run([sys.executable, "-c", FORKED, threads_of], check=True, timeout=60)
