"""What the AdamW rungs promise beyond their ladder: lists, threads, layouts and NaN.

`test_ladders` compares their values with the oracle in float64; here the oracle meets torch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.kernels import threads
from firsthand.llm.kernels.adamw import with_numba, with_torch
from firsthand.llm.kernels.adamw.ladder import LADDER, NUMBERS, STEP
from firsthand.llm.kernels.adamw.with_torch import adamw_update, foreach_adamw

torch.set_num_threads(1)

Lists = list[list[Tensor]]
BLOCK = with_numba.BLOCK
MOMENTS = ("exp_avg", "exp_avg_sq")
SIZES = [1, 0, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5, 2]


def _lists(sizes: list[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Lists:
    """Parameters, gradients, first and second moments."""
    generator = torch.Generator().manual_seed(seed)
    lists = [[torch.randn(n, generator=generator, dtype=dtype) for n in sizes] for _ in range(4)]
    return [*lists[:3], [second.square() for second in lists[3]]]


def _one_by_one(lists: Lists, **numbers: Any) -> Lists:
    """The rung "torch" of each quadruple, on copies in float64."""
    copies = [[t.detach().double().contiguous() for t in column] for column in lists]
    copies = [[t.clone() for t in column] for column in copies]
    for tensors in zip(*copies, strict=True):
        adamw_update(*tensors, **{"step": STEP, **NUMBERS, **numbers})
    return copies


def _assert_close(found: Lists, expected: Lists, tolerance: float) -> None:
    for column, right in zip(found, expected, strict=True):
        for one, other in zip(column, right, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_the_oracle_against_torch() -> None:
    """From the state after two of torch's steps, so that the corrections are those of the third."""
    gradients = np.random.default_rng(0).standard_normal((STEP, 5))
    parameter = torch.nn.Parameter(torch.linspace(-2, 2, 5, dtype=torch.float64))
    theirs = torch.optim.AdamW(
        [parameter],
        lr=NUMBERS["learning_rate"],
        betas=(NUMBERS["beta1"], NUMBERS["beta2"]),
        eps=NUMBERS["eps"],
        weight_decay=NUMBERS["weight_decay"],
    )
    for gradient in gradients:
        state = theirs.state[parameter]
        before = [parameter.detach().clone(), *(state[k].clone() for k in MOMENTS if state)]
        parameter.grad = torch.from_numpy(gradient)
        theirs.step()
    expected = [parameter.detach(), *(theirs.state[parameter][k] for k in MOMENTS)]
    p, m, v = (tensor.numpy() for tensor in before)
    for one, other in zip(LADDER.oracle(p, gradients[-1], m, v), expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-12)


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 40) | st.sampled_from([BLOCK - 1, BLOCK, 2 * BLOCK + 3]), max_size=6),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.integers(1, 1000),
)
def test_lists_in_float32(sizes: list[int], weight_decay: float, beta1: float, step: int) -> None:
    numbers = {"weight_decay": weight_decay, "beta1": beta1, "step": step}
    for update in (with_numba.adamw, foreach_adamw):
        lists = _lists(sizes)
        expected = _one_by_one(lists, **numbers)
        update(*lists, **{**NUMBERS, **numbers})
        _assert_close(lists, expected, 2e-6)


@given(st.integers(1, 40), st.sampled_from([0.0, 0.1]), st.floats(0.0, 0.99))
def test_groups_change_nothing(limit: int, weight_decay: float, beta1: float) -> None:
    numbers = {"weight_decay": weight_decay, "beta1": beta1}
    lists = _lists([7, 0, 39, 1, 80, 3], torch.float64)
    expected = _one_by_one(lists, **numbers)
    kept = with_torch.GROUP["cpu"]
    with_torch.GROUP["cpu"] = limit
    try:
        foreach_adamw(*lists, **{"step": STEP, **NUMBERS, **numbers})
    finally:
        with_torch.GROUP["cpu"] = kept
    _assert_close(lists, expected, 1e-12)


@pytest.mark.parametrize("many", [2, 3, 7])
def test_the_same_bits_on_any_number_of_threads(many: int, monkeypatch: Any) -> None:
    alone, together = _lists(SIZES), _lists(SIZES)
    with_numba.adamw(*alone, step=STEP, **NUMBERS)
    monkeypatch.setattr(threads, "LEAST_ELEMENTS", 1)
    monkeypatch.setattr(threads, "usable_threads", lambda: many)
    blocks = sum(-(-size // BLOCK) for size in SIZES)
    assert len(threads.ranges(blocks, sum(SIZES))) == many
    with_numba.adamw(*together, step=STEP, **NUMBERS)
    for column, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(column, other, strict=True))


def test_neighbours_of_a_tensor_are_left_alone() -> None:
    """The loop writes by address: slices of one buffer, with a margin around each."""
    values = (7.0, 5.0, 3.0, 2.0)
    buffers = [torch.full((3 * BLOCK,), value) for value in values]
    lists = [[buffer[5 : 5 + BLOCK + 3], buffer[2 * BLOCK :][:11]] for buffer in buffers]
    with_numba.adamw(*lists, step=STEP, **NUMBERS)
    inside = torch.zeros(3 * BLOCK, dtype=torch.bool)
    inside[5 : 5 + BLOCK + 3] = inside[2 * BLOCK : 2 * BLOCK + 11] = True
    for buffer, value in zip(buffers, values, strict=True):
        assert bool((buffer[~inside] == value).all())
        assert bool((buffer[inside] == value).all()) == (value == 5.0)  # the gradient's
        assert len(buffer[inside].unique()) == 1


Case = Callable[[], Lists]


def _turned() -> Lists:
    lists = _lists([12, 5, 12])
    return [[t.view(3, 4).mT if t.numel() == 12 else t for t in column] for column in lists]


def _one_turned_gradient() -> Lists:
    lists = [[t.view(3, 4)] for (t,) in _lists([12])]
    lists[1][0] = lists[1][0].mT.contiguous().mT
    return lists


def _wide_and_narrow() -> Lists:
    wide, narrow = _lists([6], torch.float64), _lists([9, 2])
    return [[*a, *b] for a, b in zip(narrow, wide, strict=True)]


@pytest.mark.parametrize("case", [_turned, _one_turned_gradient])
@pytest.mark.parametrize("update", [with_numba.adamw, foreach_adamw])
def test_tensors_that_are_not_in_one_piece(update: Callable[..., None], case: Case) -> None:
    lists = case()
    expected = _one_by_one(lists)
    places = [[t.data_ptr() for t in column] for column in lists]
    update(*lists, step=STEP, **NUMBERS)
    _assert_close(lists, expected, 2e-6)
    assert places == [[t.data_ptr() for t in column] for column in lists]


def test_each_tensor_goes_where_its_type_asks(monkeypatch: Any) -> None:
    passed: list[torch.dtype] = []

    def watched(*lists: list[Tensor], **numbers: Any) -> None:
        passed.extend(parameter.dtype for parameter in lists[0])
        foreach_adamw(*lists, **numbers)

    monkeypatch.setattr(with_numba, "foreach_adamw", watched)
    lists = _wide_and_narrow()
    expected = _one_by_one(lists)
    with_numba.adamw(*lists, step=STEP, **NUMBERS)
    assert passed == [torch.float64]
    _assert_close(lists, expected, 2e-6)


def test_many_threads_of_pytorch_are_faster(monkeypatch: Any) -> None:
    calls: list[int] = []
    monkeypatch.setattr(with_numba, "foreach_adamw", lambda *lists, **_: calls.append(len(lists)))
    monkeypatch.setattr(threads, "usable_threads", lambda: 1)
    for of_torch in (threads.WORTH, threads.WORTH + 1):
        monkeypatch.setattr(threads.torch, "get_num_threads", lambda n=of_torch: n)
        with_numba.adamw(*_lists([3]), step=STEP, **NUMBERS)
    assert calls == [4]


class _Elsewhere(Tensor):
    """Stands for a tensor whose memory may be anywhere."""


def test_what_the_loop_does_not_take() -> None:
    fits = [torch.zeros(4) for _ in range(4)]
    assert with_numba._in_memory(fits)
    assert with_numba._in_memory([torch.nn.Parameter(fits[0]), *fits[1:]])
    with torch.inference_mode():
        inference = torch.zeros(4)
    for other in (
        torch.zeros(5),
        torch.zeros(2, 2),
        torch.zeros(8)[::2],
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(4, device="meta"),
        torch.zeros(4).as_subclass(_Elsewhere),
        inference,
    ):
        for place in range(4):
            assert not with_numba._in_memory([*fits[:place], other, *fits[place + 1 :]])


@pytest.mark.parametrize("update", [with_numba.adamw, foreach_adamw])
def test_lists_of_another_length_or_shape(update: Callable[..., None]) -> None:
    parameters, gradients, firsts, seconds = _lists([4, 3])
    with pytest.raises(ValueError, match="shorter"):
        update(parameters, gradients[:1], firsts, seconds, step=STEP, **NUMBERS)
    with pytest.raises(RuntimeError, match="size"):
        update(parameters[:1], gradients[1:], firsts[:1], seconds[:1], step=STEP, **NUMBERS)


@pytest.mark.parametrize("update", [with_numba.adamw, foreach_adamw])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_gradient_stays_in_its_element(update: Callable[..., None], broken: float) -> None:
    lists = _lists([19, 5])
    lists[1][0][13] = broken
    update(*lists, step=STEP, **NUMBERS)
    assert lists[0][0].isnan().nonzero().flatten().tolist() == [13]
    assert not lists[0][1].isnan().any()
    assert not lists[2][0][13].isfinite()
    assert not lists[3][0][13].isfinite()


def test_a_backward_pass_through_changed_weights_is_refused() -> None:
    (parameters, gradients, firsts, seconds) = _lists([6])
    weight = parameters[0].requires_grad_()
    loss = (weight * weight).sum()
    with_numba.adamw([weight.detach()], gradients, firsts, seconds, step=STEP, **NUMBERS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
