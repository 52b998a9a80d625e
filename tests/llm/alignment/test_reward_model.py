"""The scalar head and the loss of pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.lora import LoraSettings, add_lora
from firsthand.llm.alignment.reward_model import (
    VALUE_HEAD,
    add_head,
    head_of,
    last_positions,
    remove_head,
    reward_losses,
    sequence_rewards,
)
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.optimizers.optimizer import Optimizer

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=31, context=16, d_model=12, n_layers=2, n_heads=2, d_ff=20)


def rewarding(seed: int = 4) -> Transformer:
    model = Transformer(CONFIG, FAST, seed=seed)
    head = add_head(model)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, 12))
        head.bias.fill_(0.25)
    return model


def test_the_reward_is_read_at_the_last_real_token() -> None:
    model = rewarding()
    text = torch.tensor([[3, 1, 4, 1, 5]])
    head = head_of(model)
    expected = model.hidden(text)[0, -1] @ head.weight + head.bias
    rows = torch.tensor([[3, 1, 4, 1, 5, 9, 9], [3, 1, 4, 9, 9, 9, 9], [2] * 7])
    mask = torch.arange(7) < torch.tensor([[5], [3], [7]])
    found = sequence_rewards(model, rows, mask)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1:2], sequence_rewards(model, text[:, :3], mask[1:2, :3]))
    assert found[0] != found[1]


def test_last_positions() -> None:
    mask = torch.tensor([[True, False, False], [False, True, False], [True, True, True]])
    assert last_positions(mask).tolist() == [0, 1, 2]
    with pytest.raises(AlignmentError, match="without tokens"):
        last_positions(torch.tensor([[True], [False]]))


def test_the_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])
    found = reward_losses(chosen, rejected)
    expected = [math.log(1 + math.exp(-d)) for d in (1.0, -1.0, 0.0)]
    assert found.losses.tolist() == pytest.approx(expected)
    assert found.accurate.tolist() == [True, False, False]


def test_gradients_by_central_differences_and_a_common_shift_that_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [
        torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    ]
    assert torch.autograd.gradcheck(lambda c, r: reward_losses(c, r).losses, pair)
    shifted = reward_losses(pair[0] + 3, pair[1] + 3).losses
    torch.testing.assert_close(shifted, reward_losses(*pair).losses)


def test_against_pytorch() -> None:
    """TRL's reward trainer computes this expression in place; it has no function of its own."""
    c, r = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reward_losses(c, r).losses, -functional.logsigmoid(c - r))


def test_a_new_head_gives_zero_and_travels_with_the_state() -> None:
    model = Transformer(CONFIG, FAST, seed=4)
    tokens = torch.ones(2, 3, dtype=torch.long)
    head = add_head(model)
    assert not sequence_rewards(model, tokens, tokens > 0).any()
    assert add_head(model) is head
    assert {"reward_head.weight", "reward_head.bias"} <= set(model.state_dict())
    assert {model.role("reward_head.weight"), model.role("reward_head.bias")} == {"vector"}
    other = Transformer(CONFIG, FAST, seed=5)
    add_head(other)
    trained = rewarding()
    other.load_state_dict(trained.state_dict())
    torch.testing.assert_close(
        sequence_rewards(other, tokens, tokens > 0), sequence_rewards(trained, tokens, tokens > 0)
    )
    before = Transformer(CONFIG, FAST, seed=4)(tokens)
    assert torch.equal(model(tokens), before)
    remove_head(model)
    remove_head(model)
    assert set(model.state_dict()) == set(Transformer(CONFIG, FAST).state_dict())


def test_a_reward_head_and_a_value_head_beside_each_other() -> None:
    model = rewarding()
    value = add_head(model, VALUE_HEAD)
    assert value is not head_of(model)
    assert value(torch.ones(2, 5, 12)).shape == (2, 5)


def test_missing_and_unknown_heads() -> None:
    model = Transformer(CONFIG, FAST)
    tokens = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(AlignmentError, match="no reward_head"):
        sequence_rewards(model, tokens, tokens > 0)
    with pytest.raises(AlignmentError, match="reward_head or value_head; not 'embedding'"):
        add_head(model, "embedding")


def pairs(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """A chosen text has more of token 7 than the rejected one."""
    generator = torch.Generator().manual_seed(seed)
    rejected = torch.randint(8, 31, (count, 6), generator=generator)
    chosen = rejected.clone()
    places = torch.randint(6, (count,), generator=generator)
    chosen[torch.arange(count), places] = 7
    return chosen, rejected


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_a_preference_that_holds_for_new_pairs(lora: bool) -> None:
    model = Transformer(CONFIG, FAST, seed=4)
    if lora:
        add_lora(model, LoraSettings(rank=2), seed=0)
    add_head(model)
    optimizer = Optimizer(model, OptimizerSettings(kind="adamw", learning_rate=0.02), FAST)
    for step in range(40):
        chosen, rejected = pairs(step, 16)
        rows = torch.cat([chosen, rejected])
        rewards = sequence_rewards(model, rows, torch.ones_like(rows, dtype=torch.bool))
        optimizer.zero_gradients()
        reward_losses(*rewards.chunk(2)).losses.mean().backward()
        optimizer.step()
    rows = torch.cat(pairs(1000, 64))
    with torch.no_grad():
        rewards = sequence_rewards(model, rows, torch.ones_like(rows, dtype=torch.bool))
    assert reward_losses(*rewards.chunk(2)).accurate.float().mean() > 0.9
