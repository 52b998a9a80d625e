"""What an alignment run is asked to do: one frozen record with a table for each method.

The run's config keeps how long, how much at once and at which rates; this record keeps what is
learnt from and each method's own figures. It stands in run.json under "alignment".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from firsthand.llm.alignment.lora import LoraSettings
from firsthand.llm.data.task_kinds import KINDS, LEVELS
from firsthand.llm.model.settings import (
    SettingsError,
    build,
    require_at_least,
    require_choices,
    to_record,
)


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The generated tasks that are learnt from, or that the model is measured on.

    Attributes:
        kinds: of tasks, in equal shares.
        levels: of difficulty, 1 to 3.
        count: different draws to learn from.
        evaluated: held-out tasks of each split that an evaluation on the way answers; the one at
            the end answers `evaluated_last`.
        evaluated_last: as above.
        max_new_tokens: of an answer.
    """

    kinds: tuple[str, ...] = ("sorting", "unit conversion")
    levels: tuple[int, ...] = (1,)
    count: int = 20_000
    evaluated: int = 150
    evaluated_last: int = 600
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            named = f"not {unknown[0]!r}" if unknown else "at least one is named"
            raise SettingsError(f"kinds are of {', '.join(KINDS)}; {named}")
        if not self.levels or any(level not in LEVELS for level in self.levels):
            raise SettingsError(f"levels are of {LEVELS}; not {self.levels}")
        require_at_least(self, 1, "count", "evaluated", "evaluated_last", "max_new_tokens")


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """Supervised fine-tuning.

    Attributes:
        too_long: what happens to a conversation longer than a row: "error", "drop", or "cut" at
            its end.
        turns: most generated tasks of one conversation. A model that only ever saw one turn fails
            at the second; one that saw more needs more steps.
        validation_share: of the conversations of files, held out for validation.
    """

    too_long: Literal["error", "drop", "cut"] = "error"
    turns: int = 1
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, "turns")
        if not 0.0 < self.validation_share < 1.0:
            raise SettingsError(f"validation_share is between 0 and 1; not {self.validation_share}")


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """The reward model.

    Attributes:
        center: weight of the squared sum of a pair's rewards, which keeps them near 0 (Eisenstein
            et al. 2023); 0 is off.
        validation_share: of the pairs of files, held out for validation.
    """

    center: float = 0.01
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        _require_finite(self, "center")
        if not 0.0 < self.validation_share < 1.0:
            raise SettingsError(f"validation_share is between 0 and 1; not {self.validation_share}")


@dataclass(frozen=True, kw_only=True)
class DpoSettings:
    """Direct preference optimization.

    Attributes:
        beta: how much a log-probability may leave the reference: large stays near.
        kind: "sigmoid" is DPO, "ipo" is IPO with 1 / (2 beta) as the margin.
        label_smoothing: the share of pairs that is taken to be labelled the wrong way round.
        likelihood: weight of -ln π(y_w|x) by token, which keeps the chosen answers probable (Pang
            et al. 2024, "Iterative reasoning preference optimization", equation 1, their α); 0 is
            off.
        reference_batch: pairs of a forward pass of the reference.
        rejected: of generated tasks: "sampled" are mistakes that the base itself makes, "made"
            are right answers spoilt by a program.
        attempts: of "sampled", answers of the base to each task; the first wrong one is taken.
        validation_share: of the pairs of files, held out for validation.
    """

    beta: float = 0.1
    kind: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0
    likelihood: float = 1.0
    reference_batch: int = 16
    rejected: Literal["sampled", "made"] = "sampled"
    attempts: int = 2
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, "reference_batch", "attempts")
        _require_finite(self, "likelihood")
        if not 0.0 < self.beta < math.inf:
            raise SettingsError(f"beta is above 0 and finite; not {self.beta}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise SettingsError(
                f"label_smoothing is at least 0 and below 0.5; not {self.label_smoothing}"
            )
        if not 0.0 < self.validation_share < 1.0:
            raise SettingsError(f"validation_share is between 0 and 1; not {self.validation_share}")


@dataclass(frozen=True, kw_only=True)
class PpoSettings:
    """Proximal policy optimization.

    Attributes:
        rollout_batch: answers between two rounds of updates.
        samples: answers to one question; they read it once, and equal ones are learnt from at
            the cost of one.
        max_new_tokens: of an answer.
        temperature: that answers are sampled at.
        epochs: how often each answer is learnt from.
        minibatch: answers of one update.
        clip: of the probability ratio, ε.
        value_clip: of the value's move; 0 is off.
        gamma: discount of later rewards.
        lam: λ of the generalized advantage estimate.
        kl: "fixed" keeps the coefficient, "adaptive" steers it towards target_kl.
        kl_coefficient: nats of divergence from the reference cost so much reward.
        target_kl: of "adaptive", nats per answer.
        stop_kl: nats per token at which the run stops; 0 is off.
        value_coefficient: of the value's loss.
        entropy_coefficient: of the entropy, which is kept up.
        whiten: advantages have mean 0 and deviation 1 within a rollout batch.
    """

    rollout_batch: int = 512
    samples: int = 8
    max_new_tokens: int = 16
    temperature: float = 1.0
    epochs: int = 1
    minibatch: int = 512
    clip: float = 0.2
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    kl: Literal["fixed", "adaptive"] = "fixed"
    kl_coefficient: float = 0.02
    target_kl: float = 1.0
    stop_kl: float = 5.0
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0
    whiten: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, "rollout_batch", "max_new_tokens", "epochs", "minibatch")
        require_at_least(self, 1, "samples")
        _require_clip(self.clip)
        _require_finite(self, "value_clip", "kl_coefficient", "stop_kl", "value_coefficient")
        _require_finite(self, "entropy_coefficient")
        _require_temperature(self.temperature)
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"{name} is between 0 and 1; not {getattr(self, name)}")
        if not 0.0 < self.target_kl < math.inf:
            raise SettingsError(f"target_kl is above 0 and finite; not {self.target_kl}")
        if self.rollout_batch % self.minibatch:
            raise SettingsError(
                f"rollout_batch {self.rollout_batch} does not divide by minibatch {self.minibatch}"
            )
        if self.rollout_batch % self.samples:
            raise SettingsError(
                f"rollout_batch {self.rollout_batch} does not divide by samples {self.samples}"
            )


@dataclass(frozen=True, kw_only=True)
class GrpoSettings:
    """Group-relative policy optimization.

    Attributes:
        prompts: of one rollout; the answers are prompts x group.
        group: answers to one prompt, compared with each other.
        max_new_tokens: of an answer.
        temperature: that answers are sampled at.
        epochs: how often each answer is learnt from.
        minibatch: answers of one update.
        clip: of the probability ratio, ε.
        kl_coefficient: of the divergence from the reference. 0 leaves the penalty out, as Yu et
            al. 2025 ("DAPO", section 2.3) do, and answers without an advantage cost no gradient.
        stop_kl: nats per token at which the run stops; 0 is off.
        scale: advantages are divided by the deviation of their group.
    """

    prompts: int = 64
    group: int = 8
    max_new_tokens: int = 16
    temperature: float = 1.0
    epochs: int = 1
    minibatch: int = 512
    clip: float = 0.2
    kl_coefficient: float = 0.0
    stop_kl: float = 5.0
    scale: bool = True

    def __post_init__(self) -> None:
        require_at_least(self, 1, "prompts", "max_new_tokens", "epochs", "minibatch")
        require_at_least(self, 2, "group")
        _require_clip(self.clip)
        _require_finite(self, "kl_coefficient", "stop_kl")
        _require_temperature(self.temperature)
        if self.prompts * self.group % self.minibatch:
            raise SettingsError(
                f"prompts x group, {self.prompts * self.group}, does not divide by minibatch "
                f"{self.minibatch}"
            )


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """Everything of an alignment run beside its config.

    Attributes:
        files: JSONL files of records to learn from; none takes generated tasks.
        tasks: the generated tasks.
        lora: train low-rank adapters alone; None trains all weights.
        reward_model: a run of the method "reward", whose rewards PPO and GRPO learn from; "" takes
            those of the program that judges the answers.
        format_reward: of that program, for an answer of the right form; a right one has 1 more.
        sft, reward, dpo, ppo, grpo: of the methods; a run reads its own.
    """

    files: tuple[str, ...] = ()
    tasks: TaskSettings = field(default_factory=TaskSettings)
    lora: LoraSettings | None = None
    reward_model: str = ""
    format_reward: float = 0.1
    sft: SftSettings = field(default_factory=SftSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    dpo: DpoSettings = field(default_factory=DpoSettings)
    ppo: PpoSettings = field(default_factory=PpoSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)

    def __post_init__(self) -> None:
        _require_finite(self, "format_reward")


TABLES = tuple(AlignmentSettings.__dataclass_fields__)


def split_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Overrides of these settings, such as "dpo.beta=0.2", and those of the run's config."""
    of_alignment: list[str] = []
    of_config: list[str] = []
    for override in overrides:
        table = override.partition("=")[0].partition(".")[0].strip()
        (of_alignment if table in TABLES else of_config).append(override)
    return of_alignment, of_config


def read_settings(record: dict[str, Any]) -> AlignmentSettings:
    """The settings of a record with the tables of `AlignmentSettings`.

    Raises:
        SettingsError: as `model.settings.build`.
    """
    return build(AlignmentSettings, record)


def settings_record(settings: AlignmentSettings) -> dict[str, Any]:
    """Plain values; `read_settings` is its inverse."""
    return to_record(settings)


def _require_finite(settings: Any, *names: str) -> None:
    for name in names:
        if not 0.0 <= getattr(settings, name) < math.inf:
            raise SettingsError(f"{name} is at least 0 and finite; not {getattr(settings, name)}")


def _require_clip(clip: float) -> None:
    if not 0.0 < clip < 1.0:
        raise SettingsError(f"clip is between 0 and 1; not {clip}")


def _require_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise SettingsError(
            f"temperature is above 0 and finite, since greedy answers do not differ; not "
            f"{temperature}"
        )
