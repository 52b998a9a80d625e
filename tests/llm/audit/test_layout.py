"""The tracer: modules whose bytes can be counted by hand, PyTorch's own record, the real model."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.layout import Layout, trace, trace_step
from firsthand.llm.audit.operands import Operand
from firsthand.llm.kernels import threads
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.training.config import DataSettings, RunConfig, TrainingSettings

torch.set_num_threads(1)
MODEL = ModelConfig(
    vocab_size=61, context=24, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=40
)
CONFIG = RunConfig(
    model=MODEL, name="small", training=TrainingSettings(batch_size=2, sequence_length=12)
)


class Turned(nn.Module):
    """x w, turned and laid out anew, times itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        y = (x @ self.weight).T.contiguous()
        return (y * y).sum()


def _of(layout: Layout, kind: str, phase: str = "forward") -> list[Any]:
    return [e for e in layout.events if e.traffic.kind == kind and e.phase == phase]


# ---------------------------------------------------------------------- by hand


def test_a_transpose_that_is_laid_out_anew_costs_each_byte_twice() -> None:
    module, x = Turned(), torch.randn(3, 5)
    layout = trace(module, lambda: module(x))
    (copy,) = _of(layout, "copy")
    assert (copy.operation, copy.traffic.read, copy.traffic.written) == ("aten.clone", 84, 84)
    assert copy.traffic.inputs[0].stride == (1, 7)
    assert copy.traffic.outputs[0].stride == (3, 1)
    assert copy.place.source == "y = (x @ self.weight).T.contiguous()"
    assert copy.place.function == "Turned.forward"
    (group,) = [g for g in layout.groups("copy") if g.phase == "forward"]
    assert (group.reason, group.count, group.nbytes) == ("laid out anew", 1, 168)
    (product,) = _of(layout, "product")
    assert product.traffic.read == 4 * (15 + 35)
    assert product.traffic.written == 84
    # The square: y is both factors, and read once.
    square, total = _of(layout, "arithmetic")
    assert (square.traffic.read, square.traffic.written) == (84, 84)
    assert (total.traffic.read, total.traffic.written) == (84, 4)


def test_the_backward_pass_is_told_by_the_forward_operation() -> None:
    module, x = Turned(), torch.randn(3, 5)
    layout = trace(module, lambda: module(x))
    products = _of(layout, "product", "backward")
    assert [event.node for event in products] == ["MmBackward0"]
    assert products[0].place.source == "y = (x @ self.weight).T.contiguous()"
    # The engine adds both factors' gradients.
    assert any(event.operation == "aten.add" for event in _of(layout, "arithmetic", "backward"))
    kept = [event for event in layout.events if event.node == "AccumulateGrad"]
    assert {event.place.module for event in kept} == {"weight"}


def test_a_reshape_is_a_view_where_the_strides_allow_and_else_a_copy() -> None:
    weight = nn.Parameter(torch.randn(4, 6))
    module = nn.Module()
    module.weight = weight
    other = torch.randn(2, 12)  # without it the gradient is one number, repeated
    views = trace(module, lambda: (weight.reshape(2, 12) * other).sum())
    copies = trace(module, lambda: (weight.T.reshape(2, 12) * other).sum())
    assert views.share("copy") == 0.0
    assert not _of(views, "copy")
    (copy,) = _of(copies, "copy")
    assert (copy.traffic.read, copy.traffic.written) == (96, 96)
    assert len(_of(views, "view")) >= 1
    assert all(event.traffic.read == event.traffic.written == 0 for event in _of(views, "view"))


def test_what_is_repeated_is_read_once_and_written_out_whole() -> None:
    weight = nn.Parameter(torch.randn(3, 1))
    module = nn.Module()
    module.weight = weight
    layout = trace(module, lambda: weight.expand(3, 8).contiguous().sum())
    (copy,) = _of(layout, "copy")
    assert (copy.traffic.read, copy.traffic.written) == (12, 96)
    assert [g.reason for g in layout.groups("copy")] == ["repeats written out"]


def test_a_batched_product_writes_out_what_it_repeats() -> None:
    weight = nn.Parameter(torch.randn(2, 1, 5, 4))
    module, x = nn.Module(), torch.randn(2, 3, 3, 5)
    module.weight = weight
    layout = trace(module, lambda: torch.matmul(x, weight).sum())
    copies = [g for g in layout.groups("copy") if g.phase == "forward"]
    assert [(g.reason, g.read, g.written) for g in copies] == [("repeats written out", 160, 480)]
    # One matrix for all is a stride of 0 over the whole batch, and no copy.
    module.weight = single = nn.Parameter(torch.randn(5, 4))
    single_layout = trace(module, lambda: torch.matmul(x, single.expand(2, 3, 5, 4)).sum())
    assert not _of(single_layout, "copy")


def test_broadcasts_and_strided_operands_are_listed() -> None:
    module, rows = nn.Module(), torch.randn(8, 6)
    module.weight = weight = nn.Parameter(torch.randn(6))
    layout = trace(module, lambda: (rows * weight).sum())
    (item,) = [b for b in layout.broadcasts() if b.example == "float32 (6):(1)"]
    assert (item.stored, item.seen) == (24, 192)
    wide = torch.randn(8, 12)
    module.matrix = matrix = nn.Parameter(torch.randn(6, 3))

    def strided(left: Tensor) -> list[tuple[str, int, int]]:
        other = torch.randn(8, 3)  # without it the gradient is one number, repeated
        layout = trace(module, lambda: ((left @ matrix) * other).sum())
        return [(item.example, item.count, item.stored) for item in layout.strided_operands()]

    # In the forward pass, and turned in the product that gives the weight's gradient.
    gaps = [("float32 (8, 6):(12, 2)", 1, 192), ("float32 (6, 8):(2, 12)", 1, 192)]
    assert strided(wide[:, ::2]) == gaps
    assert strided(rows) == []
    assert strided(wide[:, :6]) == []
    assert strided(rows.T.contiguous().T) == []


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_an_operand_is_what_pytorch_says_it_is(shape: list[int], random: Any) -> None:
    tensor = torch.zeros(shape)
    order = list(range(len(shape)))
    random.shuffle(order)
    turned = tensor.permute(order)
    if random.random() < 0.5:
        turned = turned.unsqueeze(0).expand(3, *turned.shape)
    operand = Operand.of(turned)
    assert operand.contiguous == turned.is_contiguous()
    assert operand.nbytes == tensor.nbytes
    assert operand.elements == turned.numel()
    assert operand.span == (0, tensor.nbytes)


def test_a_slice_spans_its_own_bytes() -> None:
    tensor = torch.zeros(6, 5)
    assert Operand.of(tensor[2:4]).span == (40, 80)
    assert Operand.of(tensor[:, 1]).span == (4, 4 + 4 * 26)
    assert Operand.of(tensor[:0]).span[0] == Operand.of(tensor[:0]).span[1]


# ---------------------------------------------------------------------- casts


def test_each_cast_of_autocast_is_found_with_its_bytes() -> None:
    module, x = nn.Linear(7, 11, bias=False), torch.randn(3, 7)
    other = torch.randn(3, 11)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (module(x).float() * other).sum()

    layout = trace(module, loss)
    casts = [
        (e.phase, e.place.module, e.traffic.read, e.traffic.written)
        for e in layout.events
        if e.traffic.kind == "cast"
    ]
    assert sorted(casts) == sorted(
        [
            ("forward", "", 4 * 21, 2 * 21),  # x
            ("forward", "", 4 * 77, 2 * 77),  # the weight
            ("forward", "", 2 * 33, 4 * 33),  # .float()
            ("backward", "", 4 * 33, 2 * 33),
            ("backward", "", 2 * 77, 4 * 77),  # its gradient
        ]
    )
    reasons = {group.reason for group in layout.groups("cast")}
    assert reasons == {"float32 -> bfloat16", "bfloat16 -> float32"}


def test_half_precision_casts_and_float32_does_not() -> None:
    single, half = (trace_step(CONFIG, FAST, precision=p) for p in ("float32", "bfloat16"))
    assert "cast" not in single.totals()
    assert single.share("cast") == 0.0
    modules = {group.module for group in half.groups("cast") if group.phase == "forward"}
    assert {"blocks.*.attention.qkv", "blocks.*.feed_forward.up"} <= modules
    # Each matrix is cast once a pass, and its gradient back.
    size = sum(MODEL.qkv_rows) * MODEL.d_model
    for phase, read, written in (("forward", 4, 2), ("backward", 2, 4)):
        weights = [
            e
            for e in half.events
            if e.traffic.kind == "cast"
            and e.phase == phase
            and e.place.module.endswith("attention.qkv")
            and e.traffic.read == read * size
        ]
        assert [e.traffic.written for e in weights] == [written * size] * MODEL.n_layers


# ---------------------------------------------------------------------- against PyTorch


def _profiled_bytes(call: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(max(0, event.nbytes()) for event in events if event.name() == "[memory]")


def test_allocations_are_those_of_the_profiler() -> None:
    module = nn.Sequential(nn.Linear(48, 64, bias=False), nn.GELU(), nn.Linear(64, 32, bias=False))
    x = torch.randn(4, 10, 48)

    def loss() -> Tensor:
        y = module(x).view(4, 10, 8, 4).transpose(1, 2).reshape(4, 8, 40)
        return torch.cat([y[:, 4:].tanh(), y[:, :4].exp()], dim=1).sum()

    def step() -> None:
        torch.autograd.backward([loss()])
        for parameter in module.parameters():
            parameter.grad = None

    step()
    layout = trace(module, loss)
    sums = sum(event.traffic.allocated for event in layout.events if event.sums)
    assert sums > 0
    assert layout.allocated - sums == _profiled_bytes(step)
    assert layout.allocated - sums > sum(p.nbytes for p in module.parameters())


def test_the_real_model_allocates_what_the_profiler_says() -> None:
    from firsthand.llm.model.transformer import Transformer

    model = Transformer(MODEL, REFERENCE)
    tokens = torch.randint(61, (2, 12))

    def loss() -> Tensor:
        return model.loss(tokens, tokens).total

    def step() -> None:
        torch.autograd.backward([loss()])
        for parameter in model.parameters():
            parameter.grad = None

    layout = trace(model, loss)
    measured = _profiled_bytes(step)
    # Autograd's sums need between nothing and all of theirs; scalars inside of operations a few.
    sums = sum(event.traffic.allocated for event in layout.events if event.sums)
    assert layout.allocated - sums <= measured <= layout.allocated + 1000
    assert 0 < sums < 0.1 * measured


# ---------------------------------------------------------------------- compiled loops


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output = x.new_empty(x.shape)
        threads.memory(output)[:] = 2 * threads.memory(x)
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        gradient = cotangent.contiguous()
        if gradient is cotangent:
            gradient = cotangent.clone()
        values = threads.memory(gradient)
        values *= 2
        return gradient


def test_what_compiled_code_reads_and_writes_is_told_by_its_values() -> None:
    module = nn.Module()
    module.weight = weight = nn.Parameter(torch.randn(5, 3))
    layout = trace(module, lambda: (_Doubled.apply(weight) * torch.randn(5, 3)).sum())
    forward = _of(layout, "compiled")
    assert sorted((e.traffic.read, e.traffic.written) for e in forward) == [(0, 60), (60, 0)]
    assert {e.operation for e in forward} == {"compiled loops of _Doubled.forward"}
    # In place: read and written.
    (inside,) = _of(layout, "compiled", "backward")
    assert (inside.traffic.read, inside.traffic.written) == (60, 60)
    assert inside.node == "_DoubledBackward"


def test_a_tensor_that_must_be_copied_for_compiled_code_is_a_copy() -> None:
    module = nn.Module()
    module.weight = weight = nn.Parameter(torch.randn(5, 3))
    layout = trace(module, lambda: (_Doubled.apply(weight.T) * torch.randn(3, 5)).sum())
    assert any(e.traffic.written == 60 for e in _of(layout, "copy"))
    assert sum(e.traffic.read for e in _of(layout, "compiled")) == 60


def test_memory_that_nobody_seems_to_write_was_written_by_a_kernel() -> None:
    module = nn.Module()
    module.weight = weight = nn.Parameter(torch.ones(4))
    layout = trace(module, lambda: (torch.empty(4).view(4) * weight).sum())
    (unseen,) = _of(layout, "compiled")
    assert (unseen.operation, unseen.traffic.written) == ("a kernel before", 16)
    filled = trace(module, lambda: (torch.empty(4).fill_(1) * weight).sum())
    assert not _of(filled, "compiled")


# ---------------------------------------------------------------------- the real model


def test_layers_are_joined_and_each_has_its_share() -> None:
    layout = trace_step(CONFIG, FAST)
    joined = [g for g in layout.groups("product") if g.module == "blocks.*.attention.output"]
    assert [g.count for g in joined if g.phase == "forward"] == [MODEL.n_layers]
    assert [g.count for g in joined if g.phase == "backward"] == [2 * MODEL.n_layers]
    assert sum(group.nbytes for group in layout.groups()) == layout.nbytes
    assert sum(total.nbytes for total in layout.totals().values()) == layout.nbytes
    phases = ("forward", "backward")
    assert layout.totals("recomputed") == {}
    by_phase = sum(total.nbytes for p in phases for total in layout.totals(p).values())
    assert by_phase == layout.nbytes
    shares = [layout.share(kind) for kind in layout.totals()]
    assert sum(shares) == pytest.approx(1.0)


def test_the_fast_parts_move_less_than_the_plain_ones() -> None:
    fast, plain = (trace_step(CONFIG, parts) for parts in (FAST, REFERENCE))
    assert fast.nbytes < plain.nbytes
    assert "compiled" in fast.totals()
    assert "compiled" not in plain.totals()
    # Plain attention writes out the shared heads and the turned halves; the fast one neither.
    copied = [x.totals("forward")["copy"].nbytes for x in (fast, plain)]
    assert copied[0] < copied[1]


def test_checkpointed_blocks_run_again_in_the_backward_pass() -> None:
    training = replace(CONFIG.training, checkpoint_blocks=True)
    once, again = trace_step(CONFIG, FAST), trace_step(replace(CONFIG, training=training), FAST)
    assert once.totals("backward")["product"] == again.totals("backward")["product"]
    repeated = again.totals("recomputed")["product"]
    assert 0 < repeated.nbytes < again.totals("forward")["product"].nbytes
    # The last matrix of a block gives nothing that the backward pass needs, and stays out.
    names = {g.module for g in again.groups("product") if g.phase == "recomputed"}
    assert "blocks.*.attention.qkv" in names


def test_rows_scale_what_depends_on_rows() -> None:
    one, three = (trace_step(CONFIG, FAST, rows=rows) for rows in (1, 3))
    single = {(g.phase, g.operation, g.reason, g.module, g.where): g for g in one.groups("copy")}
    for group in three.groups("copy"):
        before = single[group.phase, group.operation, group.reason, group.module, group.where]
        assert group.nbytes == 3 * before.nbytes


def test_documents_bring_their_mask() -> None:
    layout = trace_step(replace(CONFIG, data=DataSettings(documents=True)), FAST)
    assert any("visibility.py" in group.where for group in layout.groups())


def test_gradients_and_hooks_are_left_as_they_were() -> None:
    module, x = Turned(), torch.randn(3, 5)
    module.weight.grad = kept = torch.ones(5, 7)
    trace(module, lambda: module(x))
    assert module.weight.grad is kept
    assert torch.equal(kept, torch.ones(5, 7))
    registered = torch.nn.modules.module
    assert not registered._global_forward_hooks
    assert not registered._global_forward_pre_hooks
    with pytest.raises(ZeroDivisionError):
        trace(module, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert module.weight.grad is kept


def test_the_record_is_plain_json() -> None:
    layout = trace_step(CONFIG, FAST, precision="bfloat16")
    record = json.loads(json.dumps(layout.to_json()))
    assert record["facts"]["precision"] == "bfloat16"
    assert record["facts"]["rows"] == 2
    assert record["bytes"] == layout.nbytes
    assert sum(group["read"] + group["written"] for group in record["groups"]) == layout.nbytes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rows": -1}, "at least 1 row"),
        ({"length": 25}, "1 to 24 tokens"),
        ({"length": -3}, "1 to 24 tokens"),
    ],
)
def test_what_cannot_be_is_said(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(AuditError, match=said):
        trace_step(CONFIG, FAST, **arguments)  # type: ignore[arg-type]


def test_a_loss_is_one_number() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(AuditError, match="one number"):
        trace(module, lambda: module(torch.ones(1, 2)))
    with pytest.raises(AuditError, match="one number"):
        trace(module, lambda: torch.ones(()))
