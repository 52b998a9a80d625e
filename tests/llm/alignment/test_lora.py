"""Adapters: nothing changes at first, merging is undone bit for bit, only A and B learn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.lora import (
    MATRICES,
    LoraLinear,
    LoraSettings,
    add_lora,
    fold_lora,
    has_lora,
    load_lora_state,
    lora_forward,
    lora_layers,
    lora_state,
    merge_lora,
    remove_lora,
    unmerge_lora,
    without_lora,
)
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.settings import SettingsError, build, to_record
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.optimizers.optimizer import Optimizer

torch.set_num_threads(1)
CONFIG = ModelConfig(
    vocab_size=31, context=16, d_model=12, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=20
)
SETTINGS = LoraSettings(rank=2, alpha=6.0)


def tiny(parts: Any = FAST, **changes: Any) -> Transformer:
    record = CONFIG.to_record() | changes
    return Transformer(build(ModelConfig, record), parts, seed=5)


def texts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(31, (2, 9), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def bend(model: Transformer) -> None:
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)


def adapted(**changes: Any) -> Transformer:
    model = tiny(**changes)
    add_lora(model, SETTINGS, seed=1)
    bend(model)
    return model


@pytest.mark.parametrize("parts", [REFERENCE, FAST])
@pytest.mark.parametrize("changes", [{}, {"bias": True}, {"feed_forward": "relu2", "tied": False}])
def test_a_new_adapter_changes_nothing(parts: Any, changes: dict[str, Any]) -> None:
    model = tiny(parts, **changes)
    tokens, targets = texts()
    before, state = model(tokens).detach(), copy.deepcopy(model.state_dict())
    add_lora(model, SETTINGS, seed=1)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-6)
    after = model.state_dict()
    assert set(state) <= set(after)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert set(after) - set(state) == set(lora_state(model))
    assert len(lora_layers(model)) == 2 * len(MATRICES)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(lora_state(model))
    model.loss(tokens, targets).total.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained


def test_the_chosen_matrices_alone() -> None:
    model = tiny()
    add_lora(model, LoraSettings(rank=1, matrices=("attention.qkv",)), seed=1)
    assert list(lora_layers(model)) == ["blocks.0.attention.qkv", "blocks.1.attention.qkv"]
    shapes = {tuple(t.shape) for t in lora_state(model).values()}
    assert shapes == {(1, 12), (CONFIG.n_heads * 4 + 2 * 4, 1)}


def test_the_formula_and_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, a, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 5), (4, 5), (2, 5), (4, 2))
    )
    expected = x @ (weight + 1.5 * b @ a).T
    torch.testing.assert_close(lora_forward(x, weight, a, b, 1.5), expected)
    assert torch.autograd.gradcheck(lambda *t: lora_forward(*t, 1.5), (x, weight, a, b))


def test_a_layer_by_hand() -> None:
    linear = nn.Linear(2, 1, bias=True)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        linear.bias.fill_(10.0)
    layer = LoraLinear(linear, rank=1, alpha=4.0, generator=None)
    with torch.no_grad():
        layer.lora_a.copy_(torch.tensor([[1.0, -1.0]]))
        layer.lora_b.fill_(3.0)
    # 1·3 + 2·5 + 10 + 4 · 3 · (3 - 5)
    assert layer(torch.tensor([3.0, 5.0])).item() == 23.0 - 24.0


@pytest.mark.parametrize("changes", [{}, {"bias": True}])
def test_merging_keeps_the_function_and_unmerging_is_exact(changes: dict[str, Any]) -> None:
    model = adapted(**changes)
    tokens, _ = texts()
    state, before = copy.deepcopy(model.state_dict()), model(tokens).detach()
    assert not torch.allclose(before, tiny(**changes)(tokens), atol=1e-3)
    merge_lora(model)
    merge_lora(model)
    torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-5)
    assert not torch.equal(
        model.get_parameter("blocks.0.attention.qkv.weight"),
        state["blocks.0.attention.qkv.weight"],
    )
    with pytest.raises(AlignmentError, match="merged"):
        model.state_dict()
    with pytest.raises(AlignmentError, match="merged"), without_lora(model):
        pass
    with pytest.raises(AlignmentError, match="merged"):
        load_lora_state(model, {})
    unmerge_lora(model)
    unmerge_lora(model)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in state.items())
    assert torch.equal(model(tokens), before)


def test_folding_leaves_a_plain_model_of_the_same_function() -> None:
    model, tokens = adapted(), texts()[0]
    expected = model(tokens).detach()
    fold_lora(model)
    assert set(model.state_dict()) == set(tiny().state_dict())
    assert all(type(m) is not LoraLinear for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)
    add_lora(model, SETTINGS, seed=2)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)


def test_removing_leaves_the_model_as_it_was() -> None:
    for merged in (False, True):
        model, original = adapted(), tiny()
        if merged:
            merge_lora(model)
        remove_lora(model)
        assert all(p.requires_grad for p in model.parameters())
        for name, tensor in original.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)


@torch.no_grad()
def test_the_reference_inside_is_the_frozen_model() -> None:
    model, tokens = adapted(), texts()[0]
    bent = model(tokens).detach()
    with without_lora(model):
        assert torch.equal(model(tokens), tiny()(tokens))
    with pytest.raises(RuntimeError), without_lora(model):
        raise RuntimeError
    assert torch.equal(model(tokens), bent)


def test_gradients_are_those_of_the_product_written_out() -> None:
    model = adapted().double()
    tokens, targets = texts()
    model.loss(tokens, targets).total.backward()
    plain = copy.deepcopy(model)
    fold_lora(plain)
    plain.loss(tokens, targets).total.backward()
    for name, layer in lora_layers(model).items():
        whole = plain.get_parameter(f"{name}.weight").grad
        assert whole is not None
        # d(W + s B A): dB = s dW Aᵀ, dA = s Bᵀ dW.
        for got, expected in (
            (layer.lora_b.grad, layer.scale * whole @ layer.lora_a.T),
            (layer.lora_a.grad, layer.scale * layer.lora_b.T @ whole),
        ):
            assert got is not None
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_optimizer_keeps_state_of_the_adapters_alone_and_moves_only_them(kind: Any) -> None:
    model = adapted()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = copy.deepcopy(lora_state(model))
    optimizer = Optimizer(model, OptimizerSettings(kind=kind, learning_rate=0.01), FAST)
    kept = {name.partition("/")[2] for name in optimizer.tensors()}
    assert kept == set(before)
    tokens, targets = texts()
    losses = []
    for _ in range(5):
        optimizer.zero_gradients()
        loss = model.loss(tokens, targets).mean
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.equal(model.get_parameter(n), t) for n, t in frozen.items())
    assert all(not torch.equal(model.get_parameter(n), t) for n, t in before.items())


def test_recomputed_blocks_train_adapters_too() -> None:
    found = []
    for recomputed in (False, True):
        model = adapted()
        model.checkpoint_blocks = recomputed
        model.loss(*texts()).total.backward()
        found.append(model.get_parameter("blocks.0.attention.qkv.lora_b").grad)
    assert found[0] is not None
    assert found[1] is not None
    torch.testing.assert_close(found[0], found[1])
    assert found[0].any()


def test_a_state_goes_from_model_to_model() -> None:
    model, other = adapted(), tiny()
    add_lora(other, SETTINGS, seed=9)
    load_lora_state(other, lora_state(model))
    tokens, _ = texts()
    assert torch.equal(other(tokens), model(tokens))
    assert has_lora(model.state_dict())
    assert not has_lora(tiny().state_dict())
    narrow = tiny()
    add_lora(narrow, LoraSettings(rank=1), seed=0)
    with pytest.raises(AlignmentError, match=r"lora_a is \(2, 12\)"):
        load_lora_state(narrow, lora_state(model))
    with pytest.raises(AlignmentError, match="other matrices"):
        load_lora_state(tiny(), lora_state(model))


def test_the_first_values_depend_on_the_seed_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        model = tiny()
        add_lora(model, SETTINGS, seed)
        states.append(torch.cat([t.flatten() for t in lora_state(model).values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"rank": 0}, "rank is at least 1"),
        ({"alpha": 0.0}, "alpha is above 0"),
        ({"alpha": float("nan")}, "alpha is above 0"),
        ({"matrices": ["attention.qvk"]}, "nearest is 'attention.qkv'"),
        ({"matrices": []}, "at least one"),
        ({"matrices": ["feed_forward.up", "feed_forward.up"]}, "each once"),
    ],
)
def test_settings_that_cannot_be(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(LoraSettings, record)


def test_settings_go_to_a_record_and_back() -> None:
    assert build(LoraSettings, to_record(SETTINGS)) == SETTINGS


def test_what_cannot_take_adapters() -> None:
    model = adapted()
    with pytest.raises(AlignmentError, match="has adapters"):
        add_lora(model, SETTINGS, seed=1)
    plain = tiny()
    with pytest.raises(AlignmentError, match="rank 13 is above the 12"):
        add_lora(plain, LoraSettings(rank=13), seed=1)
    assert not lora_layers(plain)
    assert all(p.requires_grad for p in plain.parameters())
