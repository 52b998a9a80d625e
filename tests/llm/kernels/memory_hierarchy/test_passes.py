"""Operations over whole arrays: the model against the cache, the lists against PyTorch."""

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from firsthand.llm.kernels.attention import with_numba
from firsthand.llm.kernels.attention.ladder import LADDER
from firsthand.llm.kernels.attention.with_numpy import attention
from firsthand.llm.kernels.int8_matmul.ladder import LADDER as INT8_LADDER
from firsthand.llm.kernels.ladder import Shape
from firsthand.llm.kernels.memory_hierarchy.bounds import attention_bound
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.passes import Use, modelled, simulated, touched
from firsthand.llm.kernels.memory_hierarchy.programs import (
    ATTENTION,
    INT8,
    TILED_ATTENTION,
    attention_program,
    int8_program,
)
from firsthand.llm.kernels.memory_hierarchy.traffic import Traffic

SHAPE: Shape = {
    "batch": 2, "heads": 4, "kv_heads": 2, "queries": 256, "keys": 256, "width": 32
}  # fmt: skip
SIZES = [2**power for power in range(13, 23)]


def level_of(size: int) -> CacheLevel:
    """Fully associative where it is small enough to be run quickly."""
    return CacheLevel("c", size, 64, 16 if size > 2**16 else 0)


def agree(program: Any, size: int, within: float) -> None:
    run = simulated(program, level_of(size))
    assert modelled(program, size).bytes_moved == pytest.approx(run.bytes_moved, rel=within), size


def test_an_array_used_twice_by_hand() -> None:
    program = [(Use("a", 4096),), (Use("b", 4096),), (Use("a", 4096),)]
    assert modelled(program, 8192) == Traffic(8192, 0)
    assert modelled(program, 4096) == Traffic(12288, 0)
    changed = [(Use("a", 4096, True),), (Use("b", 4096),), (Use("a", 4096),)]
    assert modelled(changed, 8192) == Traffic(8192, 4096)
    assert modelled(changed, 4096) == Traffic(12288, 4096)
    assert touched(changed) == 4 * 4096


def test_part_of_an_array_is_still_there() -> None:
    # From a to a copy of it: at the share f, (1 - f) + 2 f of it have been used.
    program = [(Use("a", 65536),), (Use("a", 65536), Use("b", 65536, True))]
    run = simulated(program, CacheLevel("c", 98304))
    assert modelled(program, 98304).read == pytest.approx(2.5 * 65536, rel=0.02)
    assert run.read == pytest.approx(2.5 * 65536, rel=0.02)


def test_a_swept_factor() -> None:
    program = [(Use("x", 8192), Use("w", 32768, parts=2, times=4), Use("y", 8192, True))]
    assert modelled(program, 65536) == Traffic(49152, 8192)
    assert modelled(program, 8192) == Traffic(16384 + 4 * 32768, 8192)
    for size in (65536, 32768, 8192):
        agree(program, size, 0.01)


@settings(max_examples=60, deadline=None)
@given(
    operations=st.lists(
        st.lists(
            st.tuples(st.sampled_from("abcde"), st.booleans()),
            min_size=1,
            max_size=3,
            unique_by=lambda use: use[0],
        ),
        min_size=1,
        max_size=12,
    ),
    arrays=st.integers(0, 11),
)
def test_any_list_of_equal_arrays(operations: list[list[tuple[str, bool]]], arrays: int) -> None:
    each = 64 * 256
    program = [tuple(Use(name, each, written) for name, written in uses) for uses in operations]
    # Half an array beside each whole number of them, where the distances jump.
    size = each * arrays // 2 + each // 4
    run = simulated(program, level_of(size))
    modelled_here = modelled(program, size)
    slack = 0.02 * touched(program)
    assert abs(modelled_here.read - run.read) <= slack
    assert abs(modelled_here.written - run.written) <= slack


@pytest.mark.parametrize("rung", [*ATTENTION])
@pytest.mark.parametrize("change", [{}, {"queries": 96}, {"heads": 2, "batch": 1}], ids=str)
def test_attention_with_whole_scores(rung: str, change: Shape) -> None:
    for size in SIZES:
        agree(attention_program(rung, {**SHAPE, **change}), size, 0.08)


@pytest.mark.parametrize("rung", [*TILED_ATTENTION])
def test_attention_in_tiles(rung: str) -> None:
    # A tile of all heads takes 128 KiB: with caches a little larger, model and run part by 20 %.
    for block in (48, 64):
        program = attention_program(rung, SHAPE, block)
        for size in SIZES:
            agree(program, size * 5 // 4, 0.2)
        agree(program, 2**14, 0.08)
        agree(program, 2**22, 0.08)


@pytest.mark.parametrize("rung", [*INT8])
def test_int8(rung: str) -> None:
    for shape in ((64, 512, 256), (8, 1024, 256), (1, 512, 512)):
        for size in SIZES:
            agree(int8_program(rung, *shape), size * 9 // 8, 0.08)


def test_the_jump_of_a_product_without_blocks() -> None:
    """NumPy's product of integers goes over all of w for each row of x: one of 512 KiB."""
    m, n, k = 64, 512, 256
    program = int8_program("numpy", m, n, k)
    w = 4 * n * k
    for size, times in ((w * 11 // 10, 1), (w * 9 // 10, m)):
        run = simulated(program, level_of(size // 1024 * 1024))
        assert run.read == pytest.approx(modelled(program, size).read, rel=0.05)
        assert times * w < run.read < 4 * times * w
    # At the size itself the model sees nothing stay; a cache of 16 ways keeps most.
    assert modelled(program, w).read > 5 * simulated(program, CacheLevel("c", w, 64, 16)).read


def test_no_rung_goes_below_the_bound() -> None:
    for size in (2**15, 2**18, 2**22):
        for rung in (*ATTENTION, *TILED_ATTENTION):
            run = simulated(attention_program(rung, SHAPE), level_of(size))
            assert run.bytes_moved >= attention_bound(SHAPE, size)


class Recorder(TorchDispatchMode):
    """The sizes of the tensors of each operation, those above `least` bytes."""

    VIEWS = ("view", "slice", "transpose", "expand", "unsqueeze", "permute", "select", "alias", "t")

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.operations = least, list[list[int]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if name in (*self.VIEWS, "_unsafe_view", "empty_like", "new_empty", "detach"):
            return result
        read = [] if name in ("zeros_like", "new_full") else list(args)
        tensors = {x.data_ptr(): x for x in [*read, result] if isinstance(x, Tensor)}
        sizes = sorted(filter(lambda size: size > self.least, map(bytes_under, tensors.values())))
        if sizes:
            self.operations.append(sizes)
            if name == "masked_fill":
                self.operations.append([bytes_under(result)])  # it is a copy, then filled in place
        return result


def bytes_under(x: Tensor) -> int:
    """Of memory: what is expanded counts once."""
    sizes = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return int(np.prod(sizes)) * x.element_size()


@pytest.mark.parametrize("rung", ["torch", "torch-tiled"])
@pytest.mark.parametrize("change", [{}, {"heads": 2}, {"queries": 130, "keys": 200}], ids=str)
def test_the_list_is_what_pytorch_runs(rung: str, change: Shape) -> None:
    shape = {**SHAPE, **change}
    inputs = LADDER.inputs(shape, np.random.default_rng(0))
    ready = LADDER.rung(rung).prepare(inputs)
    # Numbers of a row, masks.
    recorder = Recorder(max(4 * shape["batch"] * shape["heads"] * 256, shape["keys"] ** 2))
    with torch.no_grad(), recorder:
        LADDER.rung(rung).forward(**ready)
    expected = [sorted(use.size for use in uses) for uses in attention_program(rung, shape)]
    if rung == "torch" and shape["heads"] == shape["kv_heads"]:
        # Nothing to repeat, but copied all the same.
        assert recorder.operations[:2] == expected[:2]
    big = [[size for size in sizes if size > recorder.least] for sizes in expected]
    assert recorder.operations == [sizes for sizes in big if sizes]


def test_the_list_is_what_numba_runs() -> None:
    ready = LADDER.rung("numba").prepare(LADDER.inputs(SHAPE, np.random.default_rng(0)))
    recorder = Recorder(4 * SHAPE["batch"] * SHAPE["heads"] * 256)
    with torch.no_grad(), recorder:
        # The rung itself makes way for PyTorch's kernel where operations are recorded.
        with_numba._Attention.forward(SimpleNamespace(save_for_backward=lambda *_: None), **ready)
    program = attention_program("numba", SHAPE)
    # What PyTorch does not see: the softmax, the one operation on scores alone.
    seen = [uses for uses in program if not all(use.array.startswith("a") for use in uses)]
    assert [sum(sizes) for sizes in recorder.operations] == [
        sum(use.size for use in uses) for uses in seen
    ]


def test_the_list_is_what_int8_runs() -> None:
    shape = {"m": 16, "n": 128, "k": 256}
    ready = INT8_LADDER.rung("torch").prepare(INT8_LADDER.inputs(shape, np.random.default_rng(0)))
    recorder = Recorder(4 * 128)
    with torch.no_grad(), recorder:
        INT8_LADDER.rung("torch").forward(**ready)
    program = int8_program("torch", **shape)
    assert recorder.operations == [sorted(use.size for use in uses) for uses in program]


def test_numpy_holds_three_buffers_of_scores() -> None:
    shape = {**SHAPE, "width": 8}
    inputs = LADDER.rung("numpy").prepare(LADDER.inputs(shape, np.random.default_rng(0)))
    tracemalloc.start()
    try:
        attention(**inputs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    names = {use.array for uses in attention_program("numpy", shape) for use in uses}
    assert {"a", "b", "c"} <= names
    scores = 4 * 2 * 4 * 256 * 256
    assert 3 * scores <= peak < 3.3 * scores


def test_requests_that_cannot_be() -> None:
    with pytest.raises(TrafficError, match="the size of a"):
        modelled([(Use("a", 0),)], 1024)
    with pytest.raises(TrafficError, match="cache"):
        modelled([], -1)
    with pytest.raises(TrafficError, match="swept in one way"):
        simulated([(Use("a", 64, times=2), Use("b", 64, times=3))], CacheLevel("c", 64))
    with pytest.raises(TrafficError, match="queries are more than"):
        attention_program("numpy", {**SHAPE, "queries": 512})
    with pytest.raises(TrafficError, match="block"):
        attention_program("numpy-tiled", SHAPE, 0)
    with pytest.raises(TrafficError, match="larger tiles"):
        attention_program("numpy-tiled", {**SHAPE, "queries": 65536, "keys": 65536}, 32)
    with pytest.raises(TrafficError, match="k is at least 1"):
        int8_program("torch", 1, 1, 0)
    with pytest.raises(KeyError):
        attention_program("cuda", SHAPE)
