"""Schedules: bounds, pieces, ends, and that the shape does not depend on the number of steps."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.model.settings import SettingsError
from firsthand.llm.parts import REFERENCE
from firsthand.llm.training.config import ScheduleSettings
from firsthand.llm.training.schedules import (
    constant_schedule,
    cosine_schedule,
    learning_rate_scale,
    wsd_schedule,
)

STEPS = st.integers(1, 300)
WARMUP = st.integers(0, 320)
FINAL = st.floats(0.0, 1.0)


def test_by_hand() -> None:
    # 2 updates of rise, then a half cosine over 4: 1 + cos(π k / 4) for k = 1 to 4.
    values = [cosine_schedule(step, 6, 2, 0.2) for step in range(6)]
    root = math.sqrt(0.5)
    expected = [0.5, 1.0, 0.2 + 0.4 * (1 + root), 0.6, 0.2 + 0.4 * (1 - root), 0.2]
    assert values == pytest.approx(expected)
    assert [wsd_schedule(step, 6, 2, 2, 0.0) for step in range(6)] == [0.5, 1, 1, 1, 0.5, 0]
    falling = [wsd_schedule(step, 6, 0, 4, 0.1, "sqrt") for step in range(2, 6)]
    assert falling == pytest.approx([1 - 0.9 * math.sqrt(k / 4) for k in range(1, 5)])
    assert [constant_schedule(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@given(STEPS, WARMUP, FINAL, st.integers(0, 320), st.sampled_from(["linear", "sqrt"]))
def test_bounds_pieces_and_ends(steps: int, warmup: int, final: float, decay: int, shape) -> None:
    cosine = [cosine_schedule(step, steps, warmup, final) for step in range(steps + 3)]
    wsd = [wsd_schedule(step, steps, warmup, decay, final, shape) for step in range(steps + 3)]
    for values in (cosine, wsd):
        assert all(0.0 <= value <= 1.0 for value in values)
        assert values[0] > 0.0 or final == 0.0
        top = min(warmup, steps)
        assert values[:top] == [(step + 1) / warmup for step in range(top)]
        after = values[top:]
        if warmup <= steps:
            assert all(one >= other - 1e-12 for one, other in itertools.pairwise(after))
            assert all(value >= final - 1e-12 for value in after)
    if warmup < steps:
        assert cosine[steps - 1 :] == pytest.approx([final] * 4)
        if decay:
            assert wsd[steps - 1 :] == pytest.approx([final] * 4)
        stable = wsd[warmup : max(warmup, steps - decay)]
        assert stable == [1.0] * len(stable)


@given(st.integers(20, 300), st.integers(0, 9), FINAL, st.integers(5, 300))
def test_no_jumps(steps: int, warmup: int, final: float, decay: int) -> None:
    length = max(1, steps - warmup)
    cosine = [cosine_schedule(step, steps, warmup, final) for step in range(warmup, steps)]
    most = (1 - final) * math.pi / 2 / length
    assert all(abs(b - a) <= most + 1e-12 for a, b in itertools.pairwise(cosine))
    wsd = [wsd_schedule(step, steps, warmup, decay, final) for step in range(warmup, steps)]
    most = (1 - final) / min(decay, length)
    assert all(abs(b - a) <= most + 1e-12 for a, b in itertools.pairwise(wsd))


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 50))
def test_the_stable_part_does_not_know_the_end(one: int, more: int, warmup: int) -> None:
    decay = one // 4
    for step in range(max(0, one - decay)):
        short = wsd_schedule(step, one, warmup, decay, 0.1)
        assert short == wsd_schedule(step, one + more, warmup, decay, 0.1)


def test_the_settings_choose() -> None:
    def scales(**settings) -> list[float]:
        chosen = ScheduleSettings(**settings)
        return [learning_rate_scale(step, 10, chosen, REFERENCE) for step in range(10)]

    assert scales(kind="cosine", warmup=3, final=0.2) == [
        cosine_schedule(step, 10, 3, 0.2) for step in range(10)
    ]
    wsd = scales(kind="wsd", warmup=1, final=0.0, decay_share=0.4, decay_shape="sqrt")
    assert wsd == [wsd_schedule(step, 10, 1, 4, 0.0, "sqrt") for step in range(10)]
    assert wsd != scales(kind="wsd", warmup=1, final=0.0, decay_share=0.4)
    assert scales(kind="constant", warmup=2) == [0.5] + [1.0] * 9
    with pytest.raises(SettingsError, match="decay_shape"):
        ScheduleSettings(decay_shape="cubic")  # type: ignore[arg-type]
