"""Whole runs by name: the TOML files beside this module, with overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from firsthand.llm.model.config import model_config, parameter_counts
from firsthand.llm.model.settings import (
    SettingsError,
    build,
    nearest,
    read_toml,
    to_record,
    with_overrides,
)
from firsthand.llm.training.config import RunConfig

FOLDER = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """The presets, the smallest first."""
    return sorted((path.stem for path in FOLDER.glob("*.toml")), key=_size)


def run_config(name: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The config of a preset or of a TOML file.

    Args:
        name: of a preset, or the path of a file.
        overrides: such as "model.n_layers=8".
    Raises:
        SettingsError: no such preset or file (names the nearest), an unknown key, a bad value.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{name}.toml"
        if not path.is_file():
            close = nearest(name, preset_names())
            hint = f"the nearest is {close!r}" if close else f"valid: {', '.join(preset_names())}"
            raise SettingsError(f"there is no preset {name!r}; {hint}, or a file NAME.toml")
    return config_from(with_overrides(read_toml(path), overrides))


def config_from(record: Mapping[str, Any]) -> RunConfig:
    """The config of a record with the tables of a run.

    Raises:
        SettingsError: as `settings.build`.
    """
    values = dict(record)
    if isinstance(values.get("model"), Mapping):
        values["model"] = to_record(model_config(values["model"]))
    return build(RunConfig, values)


def _size(name: str) -> int:
    return sum(parameter_counts(run_config(name).model).values())
