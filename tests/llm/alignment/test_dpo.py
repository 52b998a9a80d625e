"""The losses of preference pairs: by hand, by their gradients, and TRL's."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.alignment.dpo import dpo_losses, likelihood_losses
from firsthand.llm.alignment.errors import AlignmentError

PAIRS = 5
MARGINS = st.floats(-40, 40)


def drawn() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (-20 * torch.rand(PAIRS, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(4)
    ]


def of_margins(margins: Tensor, **options: Any) -> Tensor:
    zeros = torch.zeros_like(margins)
    return dpo_losses(margins, zeros, zeros, zeros, **options).losses


def test_by_hand() -> None:
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-4.0])
    found = dpo_losses(chosen, rejected, torch.tensor([-2.0]), torch.tensor([-3.0]), beta=0.5)
    # Δ = (-1 + 2) - (-4 + 3) = 2
    assert found.losses.item() == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert found.chosen_rewards.item() == 0.5
    assert found.rejected_rewards.item() == -0.5
    assert found.sums() == {
        "margin": 1.0,
        "accuracy": 1.0,
        "chosen_reward": 0.5,
        "rejected_reward": -0.5,
    }
    squared = dpo_losses(
        chosen, rejected, torch.tensor([-2.0]), torch.tensor([-3.0]), beta=0.5, kind="ipo"
    )
    assert squared.losses.item() == pytest.approx((2 - 1) ** 2)
    smooth = of_margins(torch.tensor([2.0]), beta=0.5, label_smoothing=0.25)
    expected = 0.75 * math.log(1 + math.exp(-1.0)) + 0.25 * math.log(1 + math.exp(1.0))
    assert smooth.item() == pytest.approx(expected)


def test_the_untrained_policy_pays_ln_2() -> None:
    chosen, rejected, _, _ = drawn()
    found = dpo_losses(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.1)
    torch.testing.assert_close(found.losses, torch.full_like(chosen, math.log(2)))
    assert found.sums()["accuracy"] == 0


@given(margin=MARGINS, beta=st.floats(0.01, 2), smoothing=st.floats(0, 0.49))
def test_relations(margin: float, beta: float, smoothing: float) -> None:
    d = torch.tensor([margin], dtype=torch.float64)
    here, there = of_margins(d, beta=beta), of_margins(-d, beta=beta)
    # -ln σ(x) + ln σ(-x) = -x
    torch.testing.assert_close(here - there, -beta * d)
    smooth = of_margins(d, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(smooth, (1 - smoothing) * here + smoothing * there)
    best = torch.tensor([1 / (2 * beta)], dtype=torch.float64)
    assert of_margins(best, beta=beta, kind="ipo").item() == 0.0
    torch.testing.assert_close(
        of_margins(best + d, beta=beta, kind="ipo"), of_margins(best - d, beta=beta, kind="ipo")
    )


@pytest.mark.parametrize("options", [{}, {"kind": "ipo"}, {"label_smoothing": 0.2}])
def test_gradients_by_central_differences(options: dict[str, Any]) -> None:
    assert torch.autograd.gradcheck(
        lambda *four: dpo_losses(*four, beta=0.3, **options).losses, tuple(drawn())
    )


def test_the_gradient_weighs_pairs_by_how_wrong_they_are() -> None:
    """Rafailov et al., section 4: -β σ(-βΔ) (∇ ln π(y_w) - ∇ ln π(y_l))."""
    chosen, rejected, first, second = drawn()
    found = dpo_losses(chosen, rejected, first.detach(), second.detach(), beta=0.3)
    by_chosen, by_rejected = torch.autograd.grad(found.losses.sum(), (chosen, rejected))
    expected = -0.3 * torch.sigmoid(-found.margins)
    torch.testing.assert_close(by_chosen, expected)
    torch.testing.assert_close(by_rejected, -expected)


def test_far_margins_stay_finite() -> None:
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = of_margins(far, beta=1.0, label_smoothing=0.1)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert far.grad is not None
    torch.testing.assert_close(far.grad, torch.tensor([-0.9, 0.1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta is above 0"),
        ({"beta": float("nan")}, "beta is above 0"),
        ({"beta": 0.1, "label_smoothing": 0.5}, "below 0.5"),
        ({"beta": 0.1, "label_smoothing": -0.1}, "at least 0"),
        ({"beta": 0.1, "kind": "hinge"}, "sigmoid or ipo; not 'hinge'"),
        ({"beta": 0.1, "kind": "ipo", "label_smoothing": 0.1}, "IPO has none"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        of_margins(torch.zeros(2), **options)


def test_shapes_that_differ() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(AlignmentError, match="one shape"):
        dpo_losses(two, two, one, two, beta=0.1)


def trl_loss(
    four: list[Tensor],
    kind: str,
    beta: float,
    smoothing: float = 0.0,
    lengths: tuple[int, int] = (1, 1),
) -> Tensor:
    """TRL's trainer on log-probabilities of answers, of one token where nothing else is said.

    Args:
        lengths: tokens of the chosen answers and of the rejected ones.
    """
    trainer = pytest.importorskip("trl").DPOTrainer
    chosen, rejected, first, second = four
    longest = max(lengths)
    tokens = torch.tensor(lengths).repeat_interleave(len(chosen))[:, None]
    inside = torch.arange(longest) < tokens
    by_token = torch.where(inside, torch.cat([chosen, rejected])[:, None] / tokens, 0.0)
    zeros = torch.zeros_like(by_token)
    outputs = SimpleNamespace(
        log_probs=by_token,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        log_sum_sq_probs=zeros,
    )
    owner = MagicMock()
    owner.aux_loss_enabled = owner.use_weighting = False
    owner.ld_alpha, owner.precompute_ref_logps = None, True
    owner.f_divergence_type, owner.beta, owner.label_smoothing = "reverse_kl", beta, smoothing
    owner.loss_types, owner.loss_weights = [kind], [1.0]
    owner._total_train_tokens = owner._tp_size = 1
    owner.accelerator.device = torch.device("cpu")
    owner.accelerator.gather = owner.accelerator.gather_for_metrics = lambda x: x
    mask = torch.nn.functional.pad(inside.long(), (1, 0))
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": first,
        "ref_rejected_logps": second,
    }
    loss: Tensor = trainer._compute_loss(owner, lambda **_: outputs, inputs, False)
    return loss


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {"kind": "sigmoid"}),
        ({"kind": "ipo"}, {"kind": "ipo"}),
        # For one pair TRL's optimal transport is Mitchell's smoothed loss: nothing is sorted.
        ({"label_smoothing": 0.1}, {"kind": "aot", "smoothing": 0.1}),
    ],
)
def test_against_trl(options: dict[str, Any], theirs: dict[str, Any]) -> None:
    for pair in range(PAIRS):
        four = [
            t[pair : pair + 1].detach().requires_grad_(number < 2)
            for number, t in enumerate(drawn())
        ]
        ours = dpo_losses(*four, beta=0.2, **options).losses.mean()
        right = trl_loss(four, beta=0.2, **theirs)
        torch.testing.assert_close(ours, right)
        got = torch.autograd.grad(ours, four[:2])
        for one, other in zip(got, torch.autograd.grad(right, four[:2]), strict=True):
            torch.testing.assert_close(one, other)


def test_ipo_of_means_is_trls_of_longer_answers() -> None:
    """TRL takes the mean over an answer's tokens where the paper has the whole answer."""
    lengths = torch.tensor([3.0, 2.0])
    four = [t[:1].detach() for t in drawn()]
    means = [t / lengths[number % 2] for number, t in enumerate(four)]
    ours = dpo_losses(*means, beta=0.2, kind="ipo").losses.mean()
    torch.testing.assert_close(ours, trl_loss(four, "ipo", 0.2, lengths=(3, 2)))
    assert not torch.allclose(ours, dpo_losses(*four, beta=0.2, kind="ipo").losses.mean())


def test_the_likelihood_by_hand() -> None:
    chosen = torch.tensor([-6.0, -1.0], dtype=torch.float64, requires_grad=True)
    found = likelihood_losses(chosen, torch.tensor([3, 1]))
    assert found.tolist() == [2.0, 1.0]
    (gradient,) = torch.autograd.grad(found.sum(), chosen)
    assert gradient.tolist() == pytest.approx([-1 / 3, -1.0])


def test_a_batch_against_trl() -> None:
    four = [t.detach() for t in drawn()]
    for kind in ("sigmoid", "ipo"):
        ours = dpo_losses(*four, beta=0.2, kind=kind).losses.mean()  # type: ignore[arg-type]
        torch.testing.assert_close(ours, trl_loss(four, kind, 0.2))
