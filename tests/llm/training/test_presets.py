"""The presets, files and overrides that make a run's config."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from firsthand.llm.model.config import parameter_counts, preset
from firsthand.llm.model.settings import SettingsError, to_toml
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.presets import config_from, preset_names, run_config


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_named_and_survives_its_own_file(name: str, tmp_path: Path) -> None:
    config = run_config(name)
    assert config.name == name
    assert config_from(tomllib.loads(to_toml(config))) == config
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert run_config(str(file)) == config
    assert config.schedule.warmup < config.training.steps


def test_the_presets_of_the_design_are_there_the_smallest_first() -> None:
    names = preset_names()
    assert [name for name in names if name != "speedrun"] == ["nano", "laptop-10m", "full-100m"]
    sizes = [sum(parameter_counts(run_config(name).model).values()) for name in names]
    assert sizes == sorted(sizes)


def test_overrides_reach_every_table() -> None:
    config = run_config("nano", ["seed=7", "model.n_layers=3", "training.steps=5"])
    assert (config.seed, config.model.n_layers, config.training.steps) == (7, 3, 5)
    assert config.model.d_model == preset("nano").d_model


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modl.n_layers=3", "'model'"),
        ("model.n_layer=3", "'model.n_layers'"),
        ("training.batchsize=3", "'training.batch_size'"),
        ("optimizer.kind=muonn", "'muon'"),
        ("training.steps=0", "at least 1"),
        ("training.steps=1.5", "training.steps"),
        ("training.micro_batch=5", "does not divide"),
        ("training.sequence_length=9999", "model.context"),
        ("optimizer.learning_rate=0", "above 0"),
        ("optimizer.beta2=1.0", "below 1"),
        ("schedule.final=2", "between 0 and 1"),
        ("data.validation_share=0", "between 0 and 1"),
        ("data.source=[]", "source"),
        ("model.preset=nan", "'nano'"),
        ("steps", "section.key=value"),
    ],
)
def test_a_bad_setting_is_named_with_what_would_do(override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        run_config("nano", [override])


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="'laptop-10m'"):
        run_config("laptop-10")
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        run_config("nowhere.toml")


def test_a_config_needs_a_model() -> None:
    with pytest.raises(SettingsError, match="model"):
        config_from({"seed": 3})
    assert isinstance(config_from({"model": {"vocab_size": 9}}), RunConfig)
