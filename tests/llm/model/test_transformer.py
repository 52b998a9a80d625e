import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from firsthand.llm.model.config import PRESETS, ModelConfig
from firsthand.llm.model.initialization import expected_first_loss, initial_deviation
from firsthand.llm.model.transformer import Loss, Transformer
from firsthand.llm.parts import FAST, REFERENCE

torch.set_num_threads(1)
SMALL = ModelConfig(vocab_size=31, context=24, d_model=24, n_layers=2, n_heads=4, d_ff=20)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rope_pairing": "interleaved", "n_kv_heads": 2, "qk_norm": True},
    {"positions": "alibi", "window": 5, "feed_forward": "relu2"},
    {"positions": "learned", "norm": "layer", "bias": True, "feed_forward": "gelu", "tied": False},
    {"positions": "sinusoidal", "norm_placement": "post", "d_head": 10},
]


def _tokens(config: ModelConfig, batch: int, seq: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, seq), generator=generator)


def _gradients(model: Transformer, tokens: Tensor, targets: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model.loss(tokens, targets).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("changes", VARIANTS)
def test_fast_parts_give_the_reference_loss_and_gradients(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    plain, fast = Transformer(config, REFERENCE).double(), Transformer(config, FAST).double()
    tokens, targets = _tokens(config, 3, 17), _tokens(config, 3, 17, seed=1)
    targets[0, :5] = -1
    torch.testing.assert_close(fast(tokens), plain(tokens), rtol=0, atol=1e-12)
    expected = _gradients(plain, tokens, targets)
    got = _gradients(fast, tokens, targets)
    assert set(got) == set(expected) == {name for name, _ in plain.named_parameters()}
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["nano", "speedrun"])
def test_first_loss_of_a_preset(name: str) -> None:
    config = PRESETS[name]
    model = Transformer(config, FAST)
    tokens, targets = _tokens(config, 8, 64), _tokens(config, 8, 64, seed=1)
    with torch.no_grad():
        loss = model.loss(tokens, targets).mean.item()
    assert abs(loss - math.log(config.vocab_size)) < 0.2
    assert loss == pytest.approx(expected_first_loss(config), abs=0.05)


def test_first_loss_follows_the_derivation() -> None:
    """A wide embedding is where ln V and the derivation part."""
    config = ModelConfig(
        vocab_size=4000, d_model=128, n_layers=1, n_heads=2, tied=False, embedding_std=0.08
    )
    tokens, targets = _tokens(config, 8, 64), _tokens(config, 8, 64, seed=1)
    with torch.no_grad():
        loss = Transformer(config, FAST).loss(tokens, targets).mean.item()
    assert expected_first_loss(config) - math.log(4000) > 0.4
    assert loss == pytest.approx(expected_first_loss(config), abs=0.1)


def test_deviations_of_the_first_weights() -> None:
    config = ModelConfig(vocab_size=500, d_model=96, n_layers=3, n_heads=4, d_ff=256, tied=False)
    state = Transformer(config, FAST).state_dict()
    deviations = {
        "embedding.weight": 0.02,
        "output.weight": 0.02,
        "blocks.1.attention.qkv.weight": 1 / math.sqrt(96),
        "blocks.1.attention.output.weight": 1 / math.sqrt(96 * 6),
        "blocks.2.feed_forward.up.weight": 1 / math.sqrt(96),
        "blocks.2.feed_forward.down.weight": 1 / math.sqrt(256 * 6),
    }
    for name, deviation in deviations.items():
        assert state[name].std().item() == pytest.approx(deviation, rel=0.03), name
    assert torch.equal(state["final_norm.weight"], torch.ones(96))
    assert initial_deviation(64) == 1 / 8


def test_stated_deviation_and_zero_projections() -> None:
    config = ModelConfig(vocab_size=9, d_model=96, n_layers=2, n_heads=4, init_std=0.01, bias=True)
    state = Transformer(config, FAST).state_dict()
    assert state["blocks.0.attention.qkv.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert state["blocks.0.feed_forward.down.weight"].std().item() == pytest.approx(0.005, rel=0.05)
    assert not state["blocks.0.attention.qkv.bias"].any()
    zero = Transformer(replace(config, zero_init_projections=True), FAST)
    tokens = _tokens(config, 2, 5)
    embedded = zero.embedding(tokens)
    assert zero.final_norm is not None
    torch.testing.assert_close(zero.hidden(tokens), zero.final_norm(embedded))


def test_an_untied_output_starts_at_zero_with_the_projections() -> None:
    config = replace(SMALL, tied=False, zero_init_projections=True, embedding_std=1.0)
    tokens = _tokens(config, 2, 5)
    loss = Transformer(config, FAST).loss(tokens, tokens)
    assert loss.mean.item() == pytest.approx(math.log(31))
    assert expected_first_loss(config) == math.log(31)


def test_neighbours_start_as_if_they_were_not_there() -> None:
    tokens = _tokens(SMALL, 2, 9)
    plain = Transformer(SMALL, FAST)
    mixed = Transformer(replace(SMALL, neighbours=2), FAST)
    assert torch.equal(mixed(tokens), plain(tokens))
    assert mixed.role("neighbours.weight") == "vector"


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (Transformer(SMALL, FAST, seed=seed) for seed in (1, 1, 2))
    weights = [
        model.state_dict()["blocks.0.attention.qkv.weight"] for model in (first, again, other)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_loss_is_a_sum_over_real_tokens() -> None:
    model = Transformer(SMALL, FAST).double()
    tokens, targets = _tokens(SMALL, 2, 10), _tokens(SMALL, 2, 10, seed=1)
    targets[1, 3:] = -100
    whole = model.loss(tokens, targets)
    rows = [model.loss(tokens[i : i + 1], targets[i : i + 1]) for i in range(2)]
    assert whole.tokens.item() == 13
    total = sum(row.total.item() for row in rows)
    assert whole.total.item() == pytest.approx(total)
    assert whole.mean.item() == pytest.approx(total / 13)
    assert Loss(torch.tensor(0.0), torch.tensor(0)).mean.item() == 0.0


def test_no_token_sees_the_future() -> None:
    model = Transformer(SMALL, FAST).double()
    tokens = _tokens(SMALL, 1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 31
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize(
    "changes",
    [{"positions": "rope"}, {"positions": "alibi"}, {"positions": "none"}, {"neighbours": 3}],
)
def test_packed_documents_do_not_see_each_other(changes: dict[str, Any]) -> None:
    model = Transformer(replace(SMALL, **changes), FAST).double()
    if model.neighbours is not None:
        torch.nn.init.normal_(model.neighbours.weight)
    first, second = _tokens(SMALL, 1, 6), _tokens(SMALL, 1, 9, seed=1)
    packed = torch.cat([first, second], dim=1)
    documents = torch.tensor([[0] * 6 + [1] * 9])
    logits = model(packed, documents=documents)
    torch.testing.assert_close(logits[:, :6], model(first))
    torch.testing.assert_close(logits[:, 6:], model(second))
    assert not torch.allclose(model(packed)[:, 6:], model(second))


def test_a_window_hides_what_lies_further_back() -> None:
    config = replace(SMALL, window=3, n_layers=1)
    model = Transformer(config, FAST).double()
    tokens = _tokens(config, 1, 8)
    changed = tokens.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 31
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert difference[2:5].min() > 1e-6
    assert difference[5:].max() < 1e-12


def test_checkpointing_changes_no_gradient() -> None:
    model = Transformer(SMALL, FAST).double()
    tokens, targets = _tokens(SMALL, 2, 10), _tokens(SMALL, 2, 10, seed=1)
    expected = _gradients(model, tokens, targets)
    model.checkpoint_blocks = True
    for name, gradient in _gradients(model, tokens, targets).items():
        torch.testing.assert_close(gradient, expected[name])


def test_checkpointing_keeps_less() -> None:
    model = Transformer(SMALL, FAST)
    tokens, targets = _tokens(SMALL, 4, 24), _tokens(SMALL, 4, 24, seed=1)

    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(tokens, targets).total.backward()
        return sum(sizes.values())

    everything = kept()
    model.checkpoint_blocks = True
    assert kept() < everything / 2


def test_fast_parts_keep_less_than_the_reference() -> None:
    config = replace(SMALL, rope_pairing="half")
    tokens, targets = _tokens(config, 4, 24), _tokens(config, 4, 24, seed=1)

    def kept(model: Transformer) -> int:
        sizes: dict[int, int] = {}
        keep: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            keep.append(tensor)
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(tokens, targets)
        return sum(sizes.values())

    assert kept(Transformer(config, FAST)) < 0.75 * kept(Transformer(config, REFERENCE))


def test_roles_and_rows() -> None:
    config = replace(SMALL, tied=False, bias=True, norm="layer", positions="learned")
    model = Transformer(config, FAST)
    roles = {name: model.role(name) for name, _ in model.named_parameters()}
    assert roles["embedding.weight"] == roles["position_embedding.weight"] == "embedding"
    assert roles["output.weight"] == "output"
    assert roles["blocks.0.attention.qkv.weight"] == "matrix"
    assert roles["blocks.0.attention.qkv.bias"] == roles["final_norm.weight"] == "vector"
    assert model.matrix_rows("blocks.0.attention.qkv.weight") == (24, 24, 24)
    assert model.matrix_rows("blocks.1.feed_forward.up.weight") == (20, 20)
    assert model.matrix_rows("blocks.1.feed_forward.down.weight") == (24,)


def test_a_learners_part_is_the_one_that_runs() -> None:
    seen: list[torch.Size] = []

    def mine(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        seen.append(x.shape)
        return weight * x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps)

    model = Transformer(SMALL, replace(FAST, rms_norm=mine)).double()
    tokens = _tokens(SMALL, 2, 5)
    torch.testing.assert_close(model(tokens), Transformer(SMALL, FAST).double()(tokens))
    assert len(seen) == 2 * SMALL.n_layers + 1


def test_bfloat16_and_autocast() -> None:
    model = Transformer(replace(SMALL, rope_pairing="interleaved"), FAST)
    tokens, targets = _tokens(SMALL, 2, 10), _tokens(SMALL, 2, 10, seed=1)
    exact = model.loss(tokens, targets).mean.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.loss(tokens, targets)
    mixed.total.backward()
    assert mixed.mean.item() == pytest.approx(exact, rel=1e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    low = model.to(torch.bfloat16).loss(tokens, targets).mean.item()
    assert low == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 25), "longer than the context of 24"), ((2, 0), "seq at least 1"), ((5,), "batch, seq")],
)
def test_bad_tokens(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Transformer(SMALL, FAST)(torch.zeros(shape, dtype=torch.int64))


def test_bad_combinations() -> None:
    model, tokens = Transformer(SMALL, FAST), _tokens(SMALL, 1, 5)
    with pytest.raises(ValueError, match="no cache"):
        model(tokens, documents=tokens, cache=model.new_cache(1))
    with pytest.raises(ValueError, match="shape of the tokens"):
        model(tokens, documents=tokens[:, :4])
    cache = model.new_cache(1)
    model(_tokens(SMALL, 1, 24), cache=cache)
    with pytest.raises(ValueError, match="25 tokens are longer"):
        model(tokens[:, :1], cache=cache)
    with pytest.raises(IndexError):
        model(torch.full((1, 3), 31))
