"""GRPO as a task of the training loop; the objective stands in `grpo`."""

from __future__ import annotations

from torch import Tensor

from firsthand.llm.alignment.advantages import group_advantages
from firsthand.llm.alignment.experience import Experience
from firsthand.llm.alignment.grpo import grpo_loss
from firsthand.llm.alignment.logprobs import batch_token_logprobs
from firsthand.llm.alignment.methods import Setup
from firsthand.llm.alignment.policy_task import PolicyTask
from firsthand.llm.alignment.questions import policy_questions
from firsthand.llm.alignment.reward_task import chosen_scores
from firsthand.llm.alignment.rollouts import Rollouts
from firsthand.llm.alignment.settings import GrpoSettings
from firsthand.llm.model.transformer import Transformer


class GrpoTask(PolicyTask):
    """Groups of answers to one question, each compared with the mean of its group."""

    limits: GrpoSettings
    unit = "answers"

    def derived(
        self, rollouts: Rollouts, rewards: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Advantages within the groups; "flat" is the share of groups with equal rewards."""
        groups = rewards.view(-1, self.limits.group)
        found = group_advantages(
            groups, scaled=self.limits.scale, advantages=self.model.parts.relative_advantages
        )
        flat, count = self.world.sums([float(found.flat.sum()), float(len(groups))])
        extras = {"advantages": found.values.flatten(), **self.reference_logprobs(rollouts)}
        return extras, {"flat": flat / count}

    def objective(self, model: Transformer, experience: Experience) -> tuple[Tensor, int, Tensor]:
        """`grpo.grpo_loss` as a mean over answers."""
        rollouts, extras = experience.rollouts, experience.extras
        logprobs = batch_token_logprobs(
            model, rollouts.inputs, rollouts.targets, temperature=self.limits.temperature
        )
        found = grpo_loss(
            logprobs,
            rollouts.sampled,
            extras["advantages"],
            rollouts.answered,
            clip=self.limits.clip,
            reference=extras.get("reference") if self.limits.kl_coefficient else None,
            kl_coefficient=self.limits.kl_coefficient,
            counts=experience.counts,
            objective=model.parts.clipped_objective,
        )
        self.by_token.add({"clipped": found.sums["clipped"], "old_kl": found.sums["old_kl"]}, 0)
        return found.total, experience.answers, logprobs

    def counted(self, experience: Experience) -> int:
        """Answers."""
        return experience.answers

    def learnt_from(self, experience: Experience) -> Experience:
        """Equal answers once; without a penalty, those of no advantage not at all."""
        idle = None if self.limits.kl_coefficient else experience.extras["advantages"] == 0
        return experience.folded(idle)


def grpo_task(setup: Setup) -> GrpoTask:
    """Questions of the settings' files or tasks.

    Raises:
        AlignmentError, SourceError: records without a verifiable answer or too long.
    """
    config, settings, world = setup.config, setup.settings, setup.world
    questions, held_out = policy_questions(settings, setup.tokenizer, config.seed, world)
    return GrpoTask(
        setup.model,
        setup.tokenizer,
        questions,
        config,
        settings.grpo,
        world,
        prompts=settings.grpo.prompts,
        samples=settings.grpo.group,
        format_reward=settings.format_reward,
        held_out=held_out,
        scores=chosen_scores(setup),
    )
