"""The learning rate over a run: pure functions of the step, with values from `final` to 1.

Each takes s = step + 1, how many updates there are with this one: the first update is not lost to
a factor of 0, the warmup ends at exactly 1, and the last update has exactly `final`.
"""

from __future__ import annotations

import math
from typing import Literal

from firsthand.llm.model.parts import Parts
from firsthand.llm.training.config import ScheduleSettings


def constant_schedule(step: int, warmup: int) -> float:
    """1, after a linear rise over the first `warmup` updates.

    Args:
        step: counted from 0.
    """
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def cosine_schedule(step: int, steps: int, warmup: int, final: float) -> float:
    """A linear rise, then half a cosine from 1 down to `final`.

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5, without restarts.

    Args:
        step: counted from 0; from `steps` on the factor stays at `final`.
        steps: updates in all. With no more of them than `warmup` there is only the rise.
        warmup: updates of the rise.
        final: the factor of the last update.
    """
    done = step + 1
    if done <= warmup:
        return done / warmup
    progress = min(1.0, (done - warmup) / max(1, steps - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd_schedule(
    step: int,
    steps: int,
    warmup: int,
    decay: int,
    final: float,
    shape: Literal["linear", "sqrt"] = "linear",
) -> float:
    """Warmup, stable, decay: a linear rise, 1, and a fall over the last `decay` updates.

    The stable part does not depend on `steps`, so a run can be prolonged from any step before the
    fall. Sources: Hu et al. 2024 (MiniCPM), section 4; the falling by 1 - √: Hägele et al. 2024,
    section 4.

    Args:
        step: counted from 0; from `steps` on the factor stays at `final`.
        steps: updates in all.
        warmup: updates of the rise.
        decay: updates of the fall; the rise goes before it.
        final: the factor of the last update.
        shape: "linear", or "sqrt", which falls fastest at first.
    """
    done = step + 1
    if done <= warmup:
        return done / warmup
    start = max(warmup, steps - decay)
    if done <= start:
        return 1.0
    progress = min(1.0, (done - start) / max(1, steps - start))
    return 1.0 - (1.0 - final) * (progress if shape == "linear" else math.sqrt(progress))


def learning_rate_scale(step: int, steps: int, settings: ScheduleSettings, parts: Parts) -> float:
    """The factor on every learning rate at a step, by the schedule of a run.

    Args:
        step: counted from 0.
        steps: updates in all.
        parts: whose schedules.
    """
    if settings.kind == "cosine":
        return parts.cosine_schedule(step, steps, settings.warmup, settings.final)
    if settings.kind == "wsd":
        decay = round(settings.decay_share * steps)
        return parts.wsd_schedule(
            step, steps, settings.warmup, decay, settings.final, settings.decay_shape
        )
    return constant_schedule(step, settings.warmup)
