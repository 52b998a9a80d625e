from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.model.config import (
    PRESETS,
    ModelConfig,
    model_config,
    parameter_counts,
    preset,
    resized,
)
from firsthand.llm.model.settings import (
    SettingsError,
    build,
    read_toml,
    to_record,
    to_toml,
    with_overrides,
)
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import REFERENCE

torch.set_num_threads(1)


@dataclass(frozen=True)
class Rates:
    peak: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)


@dataclass(frozen=True)
class Run:
    model: ModelConfig
    name: str = "run"
    stage: Literal["pretrain", "finetune"] = "pretrain"
    limit: int | str = 0
    rates: Rates = field(default_factory=Rates)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("nano", 0.9e6, 1.2e6), ("laptop-10m", 9.5e6, 10.5e6), ("speedrun", 0.78e6, 0.82e6)],
)
def test_sizes_of_the_presets(name: str, least: float, most: float) -> None:
    assert least < sum(parameter_counts(preset(name)).values()) < most


def test_full_100m_is_the_shape_of_the_benchmarks() -> None:
    config = preset("full-100m")
    assert (config.d_model, config.n_layers, config.n_heads, config.hidden_width) == (
        768,
        12,
        12,
        2048,
    )
    assert (config.vocab_size, config.tied, config.kv_heads) == (16384, True, 12)
    per_layer = 4 * 768 * 768 + 3 * 768 * 2048 + 2 * 768
    assert sum(parameter_counts(config).values()) == 12 * per_layer + 768 + 16384 * 768


VARIANTS: list[dict[str, Any]] = [
    {},
    {"tied": False, "bias": True, "norm": "layer", "positions": "learned"},
    {"n_kv_heads": 2, "d_head": 12, "qk_norm": True, "neighbours": 3},
    {"norm_placement": "post", "feed_forward": "gelu", "bias": True},
    {"norm": "layer", "feed_forward": "relu2", "positions": "sinusoidal", "n_kv_heads": 1},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_counts_are_those_of_the_model(changes: dict[str, Any]) -> None:
    config = ModelConfig(vocab_size=50, context=20, d_model=24, n_layers=3, n_heads=4, **changes)
    model = Transformer(config, REFERENCE)
    counts = parameter_counts(config)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    found = dict.fromkeys(counts, 0)
    for name, parameter in model.named_parameters():
        found[_component(name)] += parameter.numel()
    assert counts == found


def _component(name: str) -> str:
    if "norm." in name:
        return "norms"
    if name.startswith("blocks."):
        return name.split(".")[2]
    return {"position_embedding": "positions"}.get(name.split(".")[0], name.split(".")[0])


def test_automatic_widths() -> None:
    config = ModelConfig(vocab_size=9, d_model=96, n_heads=6, n_layers=1)
    assert (config.head_width, config.kv_heads, config.hidden_width) == (16, 6, 256)
    assert replace(config, feed_forward="gelu").hidden_width == 384
    assert replace(config, n_kv_heads=2, d_head=10).qkv_rows == (60, 20, 20)
    # 8/3 of 100 is 266.7, rounded up to the next multiple of 32.
    assert replace(config, d_model=100, n_heads=5).hidden_width == 288
    assert resized(config, 12).vocab_size == 12


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"preset": "nanoo"}, "no preset 'nanoo'; the nearest is 'nano'"),
        ({"preset": "nano", "n_layer": 3}, "'model.n_layer'; the nearest is 'model.n_layers'"),
        ({"preset": "nano", "zzz": 3}, "valid: vocab_size, context"),
        ({"preset": "nano", "n_heads": 3}, "d_model 128 does not divide by n_heads 3; 129 would"),
        ({"preset": "nano", "n_kv_heads": 3}, "n_heads 4 does not divide by n_kv_heads 3; 1, 2, 4"),
        ({"preset": "nano", "d_head": 7}, "width 7 is odd"),
        ({"preset": "nano", "norm": "rmss"}, "one of rms, layer; not 'rmss'; the nearest is 'rms'"),
        ({"preset": "nano", "n_layers": "4"}, "model.n_layers is int; not '4' .str."),
        ({"preset": "nano", "n_layers": True}, "model.n_layers is int; not True"),
        ({"preset": "nano", "tied": 1}, "model.tied is bool; not 1"),
        ({"preset": "nano", "n_layers": 0}, "n_layers is at least 1; not 0"),
        ({"preset": "nano", "window": -1}, "window is at least 0"),
        ({"preset": "nano", "norm_eps": 0}, "norm_eps is above 0"),
        ({}, "missing: model.vocab_size"),
    ],
)
def test_bad_models(record: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        model_config(record)


def test_choices_hold_without_a_file_too() -> None:
    with pytest.raises(SettingsError, match="positions is one of"):
        ModelConfig(vocab_size=9, positions="rotary")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="d_model 33 is odd"):
        ModelConfig(vocab_size=9, d_model=33, n_heads=3, positions="sinusoidal")


def test_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "first"\n[model]\nvocab_size = 300\nn_layers = 2\n', encoding="utf-8")
    overrides = [
        "model.n_layers=8",
        "model.norm_eps=1",
        "rates.betas=[0.8, 1]",
        "stage=finetune",
        "name = two words",
        "limit=all",
        "model.tied=false",
    ]
    run = build(Run, with_overrides(read_toml(path), overrides))
    assert run.model == ModelConfig(vocab_size=300, n_layers=8, norm_eps=1.0, tied=False)
    assert (run.name, run.stage, run.limit) == ("two words", "finetune", "all")
    assert run.rates == Rates(betas=(0.8, 1.0))


def test_overrides_leave_the_record_alone() -> None:
    record = {"model": {"n_layers": 2}}
    assert with_overrides(record, ["model.n_layers=3"]) == {"model": {"n_layers": 3}}
    assert record == {"model": {"n_layers": 2}}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.n_layers", "section.key=value"),
        ("=3", "section.key=value"),
        ("model..n=3", "section.key=value"),
        ("name.x=3", "'name' is a value"),
    ],
)
def test_bad_overrides(override: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        with_overrides({"name": "x"}, [override])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"model": 3}, "model is a table; not 3"),
        (
            {"model": {"vocab_size": 9, "n_head": 2}},
            "'model.n_head'; the nearest is",
        ),
        ({"model": {"vocab_size": 9}, "mdoel": {}}, "'mdoel'; the nearest is 'model'"),
        ({"model": {"vocab_size": 9}, "rates": {"betas": 3}}, "rates.betas is a list"),
        ({"model": {"vocab_size": 9}, "limit": 1.5}, "limit is int; not 1.5.*or limit is str"),
        ({"model": {"vocab_size": 0}}, "vocab_size is at least 1"),
    ],
)
def test_bad_records(record: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build(Run, record)


@pytest.mark.parametrize("text", ["x = = 3", 'x = "\\q"'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"broken\.toml.*line 1"):
        read_toml(path)
    with pytest.raises(SettingsError, match=r"no settings file .*absent\.toml"):
        read_toml(tmp_path / "absent.toml")
    path.write_bytes(b"x = '\xff'")
    with pytest.raises(SettingsError, match=r"broken\.toml.*utf-8"):
        read_toml(path)


@given(
    st.sampled_from(sorted(PRESETS)),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.floats(allow_nan=False),
)
def test_toml_round_trip(name: str, text: str, number: float) -> None:
    import tomllib

    run = Run(model=preset(name), name=text, rates=Rates(peak=number))
    record = tomllib.loads(to_toml(run))
    assert build(Run, record) == run
    assert build(Run, to_record(run)) == run
    assert model_config(preset(name).to_record()) == preset(name)
