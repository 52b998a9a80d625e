"""Which parameter is updated how, what a resume needs, and that both kinds train."""

import pytest
import torch
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.optimizers.optimizer import Optimizer

torch.set_num_threads(1)

CONFIG = ModelConfig(
    vocab_size=19, context=8, d_model=12, n_layers=2, n_heads=6, n_kv_heads=3, d_ff=20, tied=False
)
KINDS = ["adamw", "muon"]


def _model(**changes) -> Transformer:
    return Transformer(ModelConfig(**{**CONFIG.to_record(), **changes}), FAST, seed=1)


def _train(model: Transformer, optimizer: Optimizer, steps: range, scale: float = 1.0) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 19, (3, 9), generator=generator)
        model.loss(tokens[:, :-1], tokens[:, 1:]).mean.backward()
        optimizer.step(scale)
        optimizer.zero_gradients()


def _weights(model: Transformer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_adamw_in_groups_against_pytorch() -> None:
    settings = OptimizerSettings(learning_rate=0.01, weight_decay=0.3, embedding_rate=0.5)
    ours, theirs = _model(bias=True), _model(bias=True)
    groups = {
        name: {
            "params": [p],
            "weight_decay": 0.3 if theirs.role(name) == "matrix" else 0.0,
            "lr": 0.01 * (0.5 if theirs.role(name) in ("embedding", "output") else 1.0) * 0.7,
        }
        for name, p in theirs.named_parameters()
    }
    assert {g["weight_decay"] for g in groups.values()} == {0.0, 0.3}
    peer = torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.95), eps=1e-8, foreach=False)
    optimizer = Optimizer(ours, settings, REFERENCE)
    for step in range(4):
        _train(ours, optimizer, range(step, step + 1), 0.7)
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 19, (3, 9), generator=generator)
        peer.zero_grad()
        theirs.loss(tokens[:, :-1], tokens[:, 1:]).mean.backward()
        peer.step()
    for name, weight in _weights(ours).items():
        torch.testing.assert_close(weight, _weights(theirs)[name], rtol=1e-4, atol=1e-5)


def test_embeddings_decay_when_the_settings_say_so() -> None:
    for decays in (False, True):
        model = _model()
        optimizer = Optimizer(model, OptimizerSettings(decay_embeddings=decays), FAST)
        decay = {
            optimizer.adamw_names[n]: group.weight_decay
            for group in optimizer.groups
            for n in group.numbers
        }
        assert decay["embedding.weight"] == decay["output.weight"] == (0.1 if decays else 0.0)
        assert decay["final_norm.weight"] == 0.0
        assert decay["blocks.1.feed_forward.down.weight"] == 0.1


def test_muon_takes_the_matrices_and_nothing_else() -> None:
    model = _model()
    optimizer = Optimizer(model, OptimizerSettings(kind="muon"), FAST)
    assert set(optimizer.muon_names) == {
        f"blocks.{n}.{name}.weight"
        for n in range(2)
        for name in ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down")
    }
    # 12 query rows, 2 · 6 key and value rows, an output; 2 · 20 rows up and 20 columns down.
    counts = {shape: len(parts) for shape, parts in optimizer._muon.shapes.items()}
    assert counts == {(12, 12): 4, (6, 12): 4, (12, 20): 6}
    assert not set(optimizer.adamw_names) & set(optimizer.muon_names)
    parameters = dict(model.named_parameters())
    assert len(optimizer.adamw_names) + len(optimizer.muon_names) == len(parameters)
    muon = sum(parameters[name].numel() for name in optimizer.muon_names)
    rest = sum(parameters[name].numel() for name in optimizer.adamw_names)
    assert optimizer.nbytes == 4 * (muon + 2 * rest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [REFERENCE, FAST])
def test_a_text_is_learnt_by_heart(kind: str, parts: Parts) -> None:
    model = _model()
    settings = OptimizerSettings(kind=kind, learning_rate=0.02, weight_decay=0.0)
    optimizer = Optimizer(model, settings, parts)
    tokens = torch.arange(18).view(2, 9)
    for _ in range(60):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]).mean
        loss.backward()
        optimizer.step()
        optimizer.zero_gradients()
    assert loss.item() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_agree(kind: str) -> None:
    results = []
    for parts in (REFERENCE, FAST):
        model = _model()
        _train(model, Optimizer(model, OptimizerSettings(kind=kind), parts), range(3))
        results.append(_weights(model))
    for name, weight in results[0].items():
        torch.testing.assert_close(results[1][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_goes_on_bit_for_bit(kind: str) -> None:
    settings = OptimizerSettings(kind=kind)
    model = _model()
    optimizer = Optimizer(model, settings, FAST)
    _train(model, optimizer, range(3))
    weights = _weights(model)
    state = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    _train(model, optimizer, range(3, 6))
    again = _model()
    other = Optimizer(again, settings, FAST)
    live = other.tensors()
    again.load_state_dict(weights)
    other.load(state, 3)
    _train(again, other, range(3, 6))
    assert other.steps == optimizer.steps == 6
    for name, weight in _weights(model).items():
        assert torch.equal(weight, dict(again.named_parameters())[name])
    for name, tensor in optimizer.tensors().items():
        assert torch.equal(tensor, live[name])


def test_what_is_loaded_has_to_fit() -> None:
    model = _model()
    optimizer = Optimizer(model, OptimizerSettings(), FAST)
    _train(model, optimizer, range(1))
    before = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    fitting = {name: tensor + 1 for name, tensor in before.items()}
    name = "first_moment/final_norm.weight"
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({k: v for k, v in fitting.items() if k != name}, f"no {name}"),
        ({**fitting, "momentum/x": torch.zeros(1)}, "an unknown momentum/x"),
        ({**fitting, name: torch.zeros(3)}, r"has shape \(3,\), the model's is \(12,\)"),
        ({**fitting, name: torch.zeros(12).double()}, "dtype torch.float64"),
        ({}, "and 27 more"),
    ]
    for tensors, message in wrong:
        with pytest.raises(TrainingError, match=message):
            optimizer.load(tensors, 9)
        assert optimizer.steps == 1
        assert all(torch.equal(t, before[n]) for n, t in optimizer.tensors().items())


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gradient_nothing_moves(kind: str) -> None:
    model = _model()
    model.blocks[0].requires_grad_(False)
    optimizer = Optimizer(model, OptimizerSettings(kind=kind), FAST)
    assert not any("blocks.0" in name for name in optimizer.tensors())
    before = _weights(model)
    optimizer.step()
    generator = torch.Generator().manual_seed(0)
    for name in ("final_norm.weight", "blocks.1.attention.qkv.weight"):
        parameter = model.get_parameter(name)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    moved = {name for name, weight in _weights(model).items() if not weight.equal(before[name])}
    assert moved == {"final_norm.weight", "blocks.1.attention.qkv.weight"}
    optimizer.zero_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
