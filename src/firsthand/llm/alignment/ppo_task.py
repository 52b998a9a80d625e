"""PPO as a task of the training loop; the objective stands in `ppo`.

The value function is a head on the policy's own last hidden states, so one forward pass gives both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from firsthand.llm.alignment.advantages import whiten
from firsthand.llm.alignment.experience import Experience
from firsthand.llm.alignment.held_out import HeldOut
from firsthand.llm.alignment.kl import AdaptiveController, Controller, FixedController
from firsthand.llm.alignment.logprobs import token_logprobs_and_entropy
from firsthand.llm.alignment.methods import Setup
from firsthand.llm.alignment.policy_task import PolicyTask, Scores
from firsthand.llm.alignment.ppo import explained_variance, penalized_rewards, ppo_loss
from firsthand.llm.alignment.questions import policy_questions
from firsthand.llm.alignment.reward_model import VALUE_HEAD, add_head, head_of
from firsthand.llm.alignment.reward_task import chosen_scores
from firsthand.llm.alignment.rewards import Question
from firsthand.llm.alignment.rollouts import Rollouts
from firsthand.llm.alignment.settings import PpoSettings
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World

# Answers over which a constant error moves the adaptive coefficient by a fifth (Ziegler et al.
# 2019 took 10,000, for runs of a million).
HORIZON = 1000.0


class PpoTask(PolicyTask):
    """Answers to questions, a value at each of their tokens, and their advantages.

    Arguments and errors: as `PolicyTask`.
    """

    limits: PpoSettings

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        questions: list[Question],
        config: RunConfig,
        settings: PpoSettings,
        world: World,
        *,
        format_reward: float = 0.1,
        held_out: HeldOut | None = None,
        scores: Scores | None = None,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            questions,
            config,
            settings,
            world,
            prompts=settings.rollout_batch // settings.samples,
            samples=settings.samples,
            format_reward=format_reward,
            held_out=held_out,
            scores=scores,
        )
        add_head(model, VALUE_HEAD)
        self.controller: Controller = (
            AdaptiveController(settings.kl_coefficient, settings.target_kl, HORIZON)
            if settings.kl == "adaptive"
            else FixedController(settings.kl_coefficient)
        )

    def derived(
        self, rollouts: Rollouts, rewards: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Values, advantages and returns; the reward of a token is less its share of the KL.

        "flat" is 1 where all answers of the round have the same reward, which leaves the penalty
        and the value's errors alone to learn from.
        """
        extras = self.reference_logprobs(rollouts)
        mask = rollouts.answered
        values = self.by_micro_batch(rollouts, self._values)
        coefficient = self.controller.coefficient
        token_rewards = penalized_rewards(
            rewards,
            rollouts.sampled,
            extras.get("reference", rollouts.sampled),
            mask,
            coefficient=coefficient,
        )
        advantages, returns = self.model.parts.gae(
            token_rewards, values, mask, gamma=self.limits.gamma, lam=self.limits.lam
        )
        spread = self.world.sums([float(rewards.amax() > rewards.amin())])[0]
        figures = {
            "flat": float(spread == 0),
            "kl_coefficient": coefficient,
            "explained_variance": explained_variance(values, returns, mask),
        }
        if "reference" in extras:
            penalty = (rollouts.sampled - extras["reference"]).masked_fill(~mask, 0.0)
            total, count = self.world.sums([float(penalty.sum()), float(len(rewards))])
            figures["kl_per_answer"] = total / count
            self.controller.update(total / count, int(count))
        if self.limits.whiten:
            advantages = whiten(advantages, mask)
        extras |= {"values": values, "advantages": advantages, "returns": returns}
        return extras, figures

    def objective(self, model: Transformer, experience: Experience) -> tuple[Tensor, int, Tensor]:
        """`ppo.ppo_loss` as a mean over tokens."""
        rollouts, extras, limits = experience.rollouts, experience.extras, self.limits
        hidden = model.hidden(rollouts.inputs)
        flat, targets = hidden.flatten(end_dim=1), rollouts.targets.flatten()
        if limits.temperature != 1:
            flat = flat / limits.temperature
        entropies = None
        if limits.entropy_coefficient:
            found, spread = token_logprobs_and_entropy(flat, model.output_weight, targets)
            entropies = spread.view_as(rollouts.targets)
        else:
            found = model.parts.token_logprobs(flat, model.output_weight, targets)
        logprobs = found.view_as(rollouts.targets)
        loss = ppo_loss(
            logprobs,
            rollouts.sampled,
            extras["advantages"],
            rollouts.answered,
            clip=limits.clip,
            values=head_of(model, VALUE_HEAD)(hidden),
            old_values=extras["values"],
            returns=extras["returns"],
            value_clip=limits.value_clip,
            value_coefficient=limits.value_coefficient,
            entropies=entropies,
            entropy_coefficient=limits.entropy_coefficient,
            counts=experience.counts,
            objective=model.parts.clipped_objective,
        )
        self.by_token.add(loss.sums, 0)
        return loss.total, loss.tokens, logprobs

    def state(self) -> dict[str, Any]:
        """As `PolicyTask`, and the weight of the penalty."""
        return {**super().state(), "controller": self.controller.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state. Errors: as `PolicyTask`."""
        super().restore(state)
        self.controller.restore(state["controller"])

    def _values(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return head_of(self.model, VALUE_HEAD)(self.model.hidden(inputs))  # type: ignore[no-any-return]


def ppo_task(setup: Setup) -> PpoTask:
    """Questions of the settings' files or tasks.

    Raises:
        AlignmentError, SourceError: records without a verifiable answer or too long.
    """
    config, settings, world = setup.config, setup.settings, setup.world
    questions, held_out = policy_questions(settings, setup.tokenizer, config.seed, world)
    return PpoTask(
        setup.model,
        setup.tokenizer,
        questions,
        config,
        settings.ppo,
        world,
        format_reward=settings.format_reward,
        held_out=held_out,
        scores=chosen_scores(setup),
    )
