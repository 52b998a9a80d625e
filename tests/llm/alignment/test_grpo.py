"""The group-relative loss: by hand, by its gradients, and TRL's."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.grpo import grpo_loss
from firsthand.llm.alignment.ppo import ppo_loss

MASK = torch.tensor(
    [[True, True, True, False, False], [True] * 5, [True, False, False, False, False]]
)


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ln π, ln π_old, ln π_ref by token; advantages of answers."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old, reference = (
        -torch.rand(3, 5, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return logprobs.requires_grad_(), old, reference, torch.tensor([1.2, -0.7, -0.5]).double()


def test_by_hand() -> None:
    logprobs = torch.tensor([[1.5, 1.0], [0.5, 1.0]]).log()
    old = torch.zeros(2, 2)
    mask = torch.tensor([[True, True], [True, False]])
    advantages = torch.tensor([1.0, -1.0])
    found = grpo_loss(logprobs, old, advantages, mask, clip=0.2)
    # (-1.2 - 1.0) / 2 and 0.8
    assert found.total.item() == pytest.approx(-1.1 + 0.8)
    assert (found.count, found.tokens) == (2, 3)
    assert found.sums["clipped"] == 2
    by_token = grpo_loss(logprobs, old, advantages, mask, clip=0.2, mean="token")
    assert by_token.total.item() == pytest.approx(-2.2 + 0.8)
    assert by_token.count == 3
    reference = logprobs - math.log(2)
    held = grpo_loss(
        logprobs, old, advantages, mask, clip=0.2, reference=reference, kl_coefficient=0.1
    )
    k3 = 0.5 - 1 + math.log(2)
    assert held.total.item() == pytest.approx(-1.1 + 0.8 + 2 * 0.1 * k3)
    assert held.sums["kl"] == pytest.approx(3 * k3)


@pytest.mark.parametrize("mean", ["answer", "token"])
def test_a_row_that_stands_for_many_counts_as_many(mean: Any) -> None:
    logprobs, old, reference, advantages = drawn()
    counts = torch.tensor([3, 1, 2])
    options: dict[str, Any] = {"clip": 0.2, "kl_coefficient": 0.1, "mean": mean}
    once = grpo_loss(
        logprobs, old, advantages, MASK, reference=reference, counts=counts.double(), **options
    )
    rows = torch.arange(3).repeat_interleave(counts)
    each = grpo_loss(
        logprobs[rows],
        old[rows],
        advantages[rows],
        MASK[rows],
        reference=reference[rows],
        **options,
    )
    torch.testing.assert_close(once.total, each.total)
    assert (once.count, once.tokens) == (each.count, each.tokens)
    assert once.sums == pytest.approx(each.sums)


@pytest.mark.parametrize("mean", ["answer", "token"])
def test_gradients_by_central_differences(mean: Any) -> None:
    logprobs, old, reference, advantages = drawn()
    assert torch.autograd.gradcheck(
        lambda x: (
            grpo_loss(
                x,
                old,
                advantages,
                MASK,
                clip=0.2,
                reference=reference,
                kl_coefficient=0.3,
                mean=mean,
            ).total
        ),
        (logprobs,),
    )


def test_over_tokens_without_a_reference_it_is_ppo() -> None:
    logprobs, old, _, advantages = drawn()
    ours = grpo_loss(logprobs, old, advantages, MASK, clip=0.2, mean="token")
    theirs = ppo_loss(logprobs, old, advantages[:, None].expand(3, 5), MASK, clip=0.2)
    torch.testing.assert_close(ours.total, theirs.total)
    assert ours.sums == pytest.approx({k: theirs.sums[k] for k in ours.sums})


def test_on_policy_the_gradient_is_the_advantage() -> None:
    logprobs, _, _, advantages = drawn()
    found = grpo_loss(logprobs, logprobs.detach(), advantages, MASK, clip=0.2)
    (gradient,) = torch.autograd.grad(found.total, logprobs)
    expected = -advantages[:, None] / MASK.sum(1, keepdim=True) * MASK
    torch.testing.assert_close(gradient, expected)


def test_advantages_of_zero_give_no_gradient_without_a_penalty() -> None:
    logprobs, old, _, _ = drawn()
    found = grpo_loss(logprobs, old, torch.zeros(3).double(), MASK, clip=0.2)
    (gradient,) = torch.autograd.grad(found.total, logprobs)
    assert not gradient.any()


def test_the_padding_counts_not_whatever_it_holds() -> None:
    logprobs, old, reference, advantages = drawn()
    options: dict[str, Any] = {"clip": 0.2, "kl_coefficient": 0.1}
    expected = grpo_loss(logprobs, old, advantages, MASK, reference=reference, **options)
    spoilt = [t.detach().masked_fill(~MASK, torch.nan) for t in (logprobs, old, reference)]
    found = grpo_loss(*spoilt[:2], advantages, MASK, reference=spoilt[2], **options)
    torch.testing.assert_close(found.total, expected.total.detach())
    assert found.sums == pytest.approx(expected.sums)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "batch"}, "answer or token"),
        ({"kl_coefficient": 0.1}, "needs the log-probabilities of the reference"),
        ({"kl_coefficient": -1.0}, "at least 0"),
        ({"clip": 0.0}, "clip is above 0"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    logprobs, old, _, advantages = drawn()
    with pytest.raises(AlignmentError, match=message):
        grpo_loss(logprobs, old, advantages, MASK, **{"clip": 0.2, **options})


def test_an_answer_without_tokens() -> None:
    logprobs, old, _, advantages = drawn()
    with pytest.raises(AlignmentError, match="without tokens"):
        grpo_loss(logprobs, old, advantages, MASK & (advantages > 0)[:, None], clip=0.2)


def trl_loss(loss_type: str, beta: float, high: float) -> Tensor:
    trainer = pytest.importorskip("trl").GRPOTrainer
    logprobs, old, reference, advantages = drawn()
    owner = MagicMock()
    owner._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, -logprobs, None)
    owner.top_entropy_quantile, owner.off_policy_mask_threshold = 1.0, None
    owner.importance_sampling_level, owner.loss_type, owner.beta = "token", loss_type, beta
    owner.epsilon_low, owner.epsilon_high, owner.args.delta = 0.2, high, None
    owner.args.use_bias_correction_kl = owner.use_vllm = owner.aux_loss_enabled = False
    owner._entropy_bonus_enabled = False
    owner.current_gradient_accumulation_steps = 1
    owner.accelerator.gather = owner.accelerator.gather_for_metrics = lambda x: x
    owner.accelerator.reduce = lambda x, reduction: x
    mask = MASK.long()
    inputs = {
        "prompt_ids": torch.zeros(3, 2, dtype=torch.long),
        "prompt_mask": torch.ones(3, 2, dtype=torch.long),
        "completion_ids": torch.zeros(3, 5, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = trainer._compute_loss(owner, None, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return torch.cat([loss.detach()[None], gradient.flatten()])


@pytest.mark.parametrize(("mean", "theirs"), [("answer", "grpo"), ("token", "bnpo")])
@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_against_trl(mean: Any, theirs: str, high: float, beta: float) -> None:
    expected = trl_loss(theirs, beta, high)
    logprobs, old, reference, advantages = drawn()
    found = grpo_loss(
        logprobs,
        old,
        advantages,
        MASK,
        clip=0.2,
        clip_high=high,
        reference=reference,
        kl_coefficient=beta,
        mean=mean,
    )
    loss = found.total / found.count
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(torch.cat([loss.detach()[None], gradient.flatten()]), expected)
