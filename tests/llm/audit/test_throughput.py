"""How fast a run trained, read from its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firsthand.llm.audit.throughput import measured_throughput
from firsthand.llm.training.presets import run_config
from firsthand.llm.training.report.contents import Contents

CONFIG = run_config("nano")


def contents(*lines: dict[str, Any]) -> Contents:
    common = {"kind": "train", "tokens_per_second": 100.0, "memory_bytes": 5_000_000}
    return Contents(folder=Path("run"), metrics=[{**common, **line} for line in lines])


def test_an_update_takes_what_lies_between_the_lines_of_the_log() -> None:
    run = contents(
        {"step": 1, "seconds": 9.0},
        {"step": 11, "seconds": 14.0},
        {"step": 21, "seconds": 18.0},
        {"step": 31, "seconds": 23.0},
    )
    found, why = measured_throughput(run, CONFIG, "", None)
    assert found is not None
    assert why == ""
    assert found.step_seconds == pytest.approx(0.5)
    assert (found.updates, found.tokens_per_second, found.unit) == (4, 100.0, "tokens")
    assert found.memory == 5_000_000


def test_of_a_single_line_it_is_the_tokens_over_their_speed() -> None:
    found, _ = measured_throughput(contents({"step": 1, "seconds": 9.0}), CONFIG, "", None)
    assert found is not None
    assert found.step_seconds == pytest.approx(CONFIG.tokens_per_step / 100)


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo", "grpo", "reward"])
def test_an_alignment_has_its_unit_and_no_share_of_the_peak(method: str) -> None:
    run = contents({"step": 1, "seconds": 1.0, "unit": "pairs"}, {"step": 2, "seconds": 1.5})
    run.metrics[-1]["unit"] = "pairs"
    found, _ = measured_throughput(run, CONFIG, method, None)
    assert found is not None
    assert found.unit == "pairs"
    assert (found.flops_per_token, found.share) == (0.0, None)
    assert method in found.why


def test_without_metrics_it_says_why() -> None:
    found, why = measured_throughput(Contents(folder=Path("run")), CONFIG, "", None)
    assert found is None
    assert "metrics.jsonl" in why
