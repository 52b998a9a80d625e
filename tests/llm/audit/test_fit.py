"""Plans within a budget of memory: what is chosen, why, and what is said when nothing fits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firsthand.llm.audit.budget import (
    GB,
    MB,
    RESERVES,
    BudgetError,
    budget,
    candidate,
    parsed_amount,
)
from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.fit import fit
from firsthand.llm.audit.latency import predicted_step
from firsthand.llm.audit.ledger import StepSettings, training_ledger
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.settings import to_toml
from firsthand.llm.training.config import RunConfig, TrainingSettings
from firsthand.llm.training.presets import run_config

RESERVE = 5 * MB + 1
SMALL = ModelConfig(vocab_size=64, context=32, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2)


def small_run(batch: int = 12, **training: Any) -> RunConfig:
    return RunConfig(model=SMALL, training=TrainingSettings(batch_size=batch, **training))


def test_a_hundred_million_parameters_fit_16_gb_at_1024_tokens() -> None:
    plan = fit(run_config("full-100m"), budget("cuda", 16 * GB))
    assert plan.parameters > 97e6
    assert plan.config.sequence_length == 1024
    assert plan.total <= 16 * GB
    assert plan.config.training.device == "cuda"
    assert plan.tokens_per_second is None
    assert plan.total_flops > 6 * plan.parameters * plan.tokens


def test_ten_million_parameters_fit_8_gb_of_ram(ceilings: MachineCeilings) -> None:
    plan = fit(run_config("laptop-10m"), budget("cpu", 8 * GB), ceilings.cpu)
    assert plan.total <= 8 * GB
    assert plan.config.training.device == "cpu"
    assert plan.tokens == 20 * plan.parameters
    assert plan.tokens_per_second is not None
    assert plan.hours == pytest.approx(plan.tokens / plan.tokens_per_second / 3600)


def test_the_ledger_is_that_of_the_planned_run() -> None:
    plan = fit(run_config("nano"), budget("cpu", 4 * GB))
    again = training_ledger(plan.config.model, StepSettings.of(plan.config, "cpu"))
    assert plan.chosen.ledger == again
    assert plan.total == again.total + RESERVES["cpu"][0]


@settings(max_examples=15, deadline=None)
@given(
    batch=st.sampled_from([1, 6, 8]),
    layers=st.integers(1, 3),
    length=st.integers(2, 32),
    device=st.sampled_from(["cpu", "cuda"]),
    pinned=st.sampled_from([(), ("micro_batch",), ("precision", "checkpoint_blocks")]),
)
def test_the_smallest_budget_that_is_named_is_the_smallest(
    batch: int, layers: int, length: int, device: Any, pinned: tuple[str, ...]
) -> None:
    config = RunConfig(
        model=replace(SMALL, n_layers=layers),
        training=TrainingSettings(batch_size=batch, sequence_length=length),
    )
    with pytest.raises(BudgetError) as nothing:
        fit(config, budget(device, 1, RESERVE), pinned=pinned)
    smallest = nothing.value.smallest
    assert smallest % MB == 0
    assert f"{smallest // MB} MB" in str(nothing.value)
    assert fit(config, budget(device, smallest, RESERVE), pinned=pinned).total <= smallest
    with pytest.raises(BudgetError):
        fit(config, budget(device, smallest - MB, RESERVE), pinned=pinned)


@settings(max_examples=10, deadline=None)
@given(megabytes=st.integers(1, 40))
def test_of_all_that_fits_none_is_faster_beyond_what_can_be_told(megabytes: int) -> None:
    from tests.llm.audit.conftest import cpu_ceilings

    config, cpu = small_run(), cpu_ceilings()
    given_ = budget("cpu", megabytes * MB, 0)
    fitting = []
    for rows, kept in product((1, 2, 3, 4, 6, 12), (False, True)):
        changed = replace(
            config,
            training=replace(
                config.training, micro_batch=rows, checkpoint_blocks=kept, device="cpu"
            ),
        )
        found = training_ledger(SMALL, StepSettings.of(changed, "cpu"))
        if found.total <= given_.usable:
            fitting.append((predicted_step(changed, cpu).seconds, found.total))
    if not fitting:
        with pytest.raises(BudgetError):
            fit(config, given_, cpu)
        return
    plan = fit(config, given_, cpu)
    assert plan.chosen.prediction is not None
    fastest = min(seconds for seconds, _ in fitting)
    assert plan.chosen.prediction.seconds <= 1.02 * fastest
    near = [total for seconds, total in fitting if seconds <= 1.02 * fastest]
    assert plan.chosen.ledger.total == min(near)


def test_a_tighter_budget_takes_fewer_rows_and_then_computes_blocks_twice() -> None:
    config = run_config("full-100m")
    loose, tight, least = (
        fit(config, budget("cuda", memory)).config.training for memory in (16 * GB, 6 * GB, 3 * GB)
    )
    assert not loose.checkpoint_blocks
    assert tight.micro_batch < loose.micro_batch
    assert least.micro_batch <= tight.micro_batch
    assert {loose.batch_size, tight.batch_size, least.batch_size} == {512}


def test_what_is_pinned_stays() -> None:
    config = small_run(micro_batch=3, checkpoint_blocks=True, steps=7)
    names = ("micro_batch", "checkpoint_blocks", "steps")
    plan = fit(config, budget("cpu", 4 * GB), pinned=names)
    training = plan.config.training
    assert (training.micro_batch, training.checkpoint_blocks, training.steps) == (3, True, 7)
    assert plan.tokens == 7 * 12 * 32


def test_the_steps_reach_the_tokens() -> None:
    config = small_run()
    plan = fit(config, budget("cpu", 4 * GB), tokens=12 * 32 * 10 + 1)
    assert plan.config.training.steps == 11


def test_the_plan_is_a_file_that_train_takes(tmp_path: Path) -> None:
    plan = fit(run_config("full-100m", ["seed=5"]), budget("cuda", 16 * GB))
    path = tmp_path / "plan.toml"
    path.write_text(to_toml(plan.config), encoding="utf-8")
    assert run_config(str(path)) == plan.config
    assert run_config(str(path), ["training.steps=3"]).training.steps == 3


def test_every_choice_has_a_reason_with_figures(ceilings: MachineCeilings) -> None:
    for device, limits in (("cuda", None), ("cpu", ceilings.cpu)):
        plan = fit(run_config("laptop-10m"), budget(device, 8 * GB), limits)  # type: ignore[arg-type]
        names = [choice.name for choice in plan.choices]
        assert names == ["micro_batch", "accumulation", "checkpoint_blocks", "chunk", "precision"]
        chosen = {choice.name: choice for choice in plan.choices}
        training = plan.config.training
        assert chosen["micro_batch"].value == str(training.micro_batch)
        times = training.batch_size // training.micro_batch
        assert chosen["accumulation"].value == str(times)
        assert any(letter.isdigit() for letter in chosen["checkpoint_blocks"].reason)
        assert plan.to_json()["reasons"]["chunk"] == chosen["chunk"].reason


def test_the_saving_of_checkpointing_is_the_difference_of_two_ledgers() -> None:
    plan = fit(run_config("nano"), budget("cpu", 4 * GB))
    training = replace(plan.config.training, checkpoint_blocks=True)
    other = candidate(replace(plan.config, training=training), "cpu", None)
    saved = plan.chosen.ledger.total - other.ledger.total
    (reason,) = [c.reason for c in plan.choices if c.name == "checkpoint_blocks"]
    assert f"save {saved / MB:,.1f} MB" in reason


def test_what_breaks_first_stands_first() -> None:
    plan = fit(run_config("full-100m"), budget("cuda", 16 * GB))
    totals = [raised.total for raised in plan.raised]
    assert totals == sorted(totals, reverse=True)
    rows = {raised.name: raised for raised in plan.raised}["training.micro_batch"]
    assert rows.total > 16 * GB
    changed = replace(
        plan.config, training=replace(plan.config.training, micro_batch=int(rows.after))
    )
    ledger = training_ledger(changed.model, StepSettings.of(changed, "cuda"))
    assert rows.total == ledger.total + plan.budget.reserve


def test_a_model_bigger_than_the_budget_is_said_to_be() -> None:
    with pytest.raises(BudgetError, match=r"The model alone is bigger: 97\.5M weights"):
        fit(run_config("full-100m"), budget("cuda", GB))
    with pytest.raises(BudgetError) as nothing:
        fit(run_config("full-100m"), budget("cuda", 2 * GB + 700 * MB))
    assert "bigger" not in str(nothing.value)


def test_half_precision_is_chosen_only_where_it_is_measured_to_be_faster(
    ceilings_with_gpu: MachineCeilings,
) -> None:
    gpu, cpu = ceilings_with_gpu.gpu, ceilings_with_gpu.cpu
    assert gpu is not None
    config = run_config("laptop-10m")
    fast = fit(config, budget("cuda", 8 * GB), gpu)
    assert fast.config.training.precision == "bfloat16"
    assert fast.chosen.prediction is not None
    assert fast.chosen.prediction.bound
    assert fit(config, budget("cpu", 8 * GB), cpu).config.training.precision == "float32"
    slow = replace(gpu, flop_rates={"float32": 20e12, "bfloat16": 1e12})
    assert fit(config, budget("cuda", 8 * GB), slow).config.training.precision == "float32"


def test_what_cannot_be_planned_is_said(ceilings: MachineCeilings) -> None:
    with pytest.raises(AuditError, match="the plan is for cuda"):
        fit(run_config("nano"), budget("cuda", GB), ceilings.cpu)
    with pytest.raises(AuditError, match="at least 1, or 0"):
        fit(run_config("nano"), budget("cpu", GB), tokens=-1)
    with pytest.raises(AuditError, match="cpu or cuda; not 'tpu'"):
        budget("tpu", GB)  # type: ignore[arg-type]
    with pytest.raises(AuditError, match="above 0"):
        budget("cpu", 0)


@pytest.mark.parametrize(
    ("text", "count"),
    [("16GB", 16 * GB), ("1.5 GiB", 3 * 2**29), ("500mb", 500 * MB), ("2TB", 2000 * GB)],
)
def test_memory_is_read_as_it_is_written(text: str, count: int) -> None:
    assert parsed_amount(text) == count


@pytest.mark.parametrize("text", ["", "16", "GB", "-1GB", "0GB", "1,5GB", "16 gigs", "1e3GB"])
def test_other_ways_to_write_memory_are_named_in_the_error(text: str) -> None:
    with pytest.raises(AuditError, match=r"16GB|above 0"):
        parsed_amount(text)
