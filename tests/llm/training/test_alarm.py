"""Infinity and NaN planted in one place: the alarm names that place."""

import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.alarm import NonFiniteError, all_finite, find_first_nonfinite
from firsthand.llm.training.errors import TrainingError

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=31, context=12, d_model=16, n_layers=3, n_heads=2, d_ff=20)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(31, (2, 9), generator=generator) for _ in range(2))  # type: ignore[return-value]


def _find(model: Transformer, scale: float = 1.0, **options: Any) -> NonFiniteError | None:
    return find_first_nonfinite(
        model, lambda: model.loss(*_batch()).total * scale, step=12, **options
    )


class _Backward(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * math.nan


class _Counted:
    """A part that does something else at its n-th call; a block calls a norm twice."""

    def __init__(self, part: Any, call: int, change: Any) -> None:
        self.part, self.call, self.change, self.calls = part, call, change, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        result = self.part(*arguments)
        return self.change(result) if self.calls == self.call else result


def test_nothing_to_find() -> None:
    model = Transformer(CONFIG, FAST)
    assert _find(model) is None
    assert all_finite(2.0, 0.3)
    assert not all_finite(2.0, math.nan)
    assert not all_finite(math.inf, 1.0)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    "name", ["embedding.weight", "blocks.1.attention.qkv.weight", "final_norm.weight"]
)
def test_a_weight(name: str, checkpoint: bool) -> None:
    model = Transformer(CONFIG, FAST)
    model.checkpoint_blocks = checkpoint
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = math.nan
        model.blocks[2].feed_forward.down.weight[0, 0] = math.inf  # type: ignore[union-attr, index, operator]
    found = _find(model)
    assert found is not None
    first = name if name != "final_norm.weight" else "blocks.2.feed_forward.down.weight"
    assert (found.layer, found.kind, found.step) == (first, "weight", 12)
    assert "1 more parameters" in str(found)
    assert isinstance(found, TrainingError)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_output_that_overflows(checkpoint: bool) -> None:
    """Finite weights, but their product is beyond float32."""
    model = Transformer(CONFIG, FAST)
    model.checkpoint_blocks = checkpoint
    with torch.no_grad():
        model.get_parameter("blocks.1.attention.qkv.weight").fill_(1e30)
        model.get_parameter("blocks.1.attention_norm.weight").fill_(1e30)
    found = _find(model)
    assert found is not None
    assert (found.layer, found.kind) == ("blocks.1.attention.qkv", "activation")
    assert "its inputs reach" in found.place


def test_float16_ends_at_65504() -> None:
    model = Transformer(CONFIG, FAST)
    with torch.no_grad():
        model.get_parameter("blocks.2.feed_forward.up.weight").fill_(8000.0)
        model.get_parameter("blocks.2.feed_forward_norm.weight").fill_(50.0)
    assert _find(model, backward=False) is None
    with torch.autocast("cpu", dtype=torch.float16):
        found = _find(model)
    assert found is not None
    assert (found.layer, found.kind) == ("blocks.2.feed_forward.up", "activation")


def test_code_between_two_modules() -> None:
    """A part is no module: its module and the neighbours are named."""
    swiglu = _Counted(FAST.swiglu, 2, lambda x: x / 0)
    model = Transformer(CONFIG, replace(FAST, swiglu=swiglu))
    found = _find(model)
    assert found is not None
    assert (found.layer, found.kind) == ("blocks.1.feed_forward", "activation")
    assert "between blocks.1.feed_forward.up and blocks.1.feed_forward.down" in found.place


def test_the_loss_alone() -> None:
    cross_entropy = _Counted(FAST.cross_entropy, 1, lambda x: x * math.inf)
    model = Transformer(CONFIG, replace(FAST, cross_entropy=cross_entropy))
    found = _find(model)
    assert found is not None
    assert (found.layer, found.kind) == ("the loss", "activation")
    assert "final_norm" in found.place


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    ("part", "call", "layer"),
    [
        ("swiglu", 2, "blocks.1.feed_forward"),
        ("attention", 3, "blocks.2.attention"),
        ("rms_norm", 3, "blocks.1.attention_norm"),
        ("rms_norm", 2, "blocks.0.feed_forward_norm"),
        ("rms_norm", 7, "final_norm"),
        ("embed", 1, "embedding"),
    ],
)
def test_the_backward_pass_alone(part: str, call: int, layer: str, checkpoint: bool) -> None:
    counted = _Counted(getattr(FAST, part), call, _Backward.apply)
    model = Transformer(CONFIG, replace(FAST, **{part: counted}))
    model.checkpoint_blocks = checkpoint
    found = _find(model)
    assert found is not None
    assert (found.layer, found.kind) == (layer, "gradient")


def test_a_scale_that_overflows_float16_gradients() -> None:
    model = Transformer(CONFIG, FAST)
    with torch.autocast("cpu", dtype=torch.float16):
        assert _find(model) is None
        found = _find(model, scale=1e9)
    assert found is not None
    assert found.kind == "gradient"


def test_the_step_can_go_on_afterwards() -> None:
    """Weights, gradients, hooks and the random state are as they were."""
    model = Transformer(CONFIG, FAST)
    model.loss(*_batch()).total.backward()
    gradients = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in gradients if g is not None]
    state = torch.get_rng_state()

    def noisy() -> Tensor:
        return model.loss(*_batch()).total + torch.rand(()) * math.nan

    found = find_first_nonfinite(model, noisy, step=3)
    assert found is not None
    assert found.layer == "the loss"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, c) for g, c in zip(gradients, copies, strict=True) if g is not None)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0


def test_it_travels_between_processes() -> None:
    error = NonFiniteError("blocks.1", "gradient", 4, "its output")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.layer, copy.kind, copy.step, copy.place) == (
        "blocks.1",
        "gradient",
        4,
        "its output",
    )
    assert str(copy) == str(error)


def test_the_message_says_step_layer_and_count() -> None:
    model = Transformer(CONFIG, FAST)
    with torch.no_grad():
        model.get_parameter("blocks.0.attention.output.weight")[0, :2] = math.inf
    assert str(_find(model)) == (
        "step 12: the first weight that is not finite is in blocks.0.attention.output.weight: "
        "0 NaN and 2 infinite of 256 values"
    )
