"""Settings as frozen dataclasses: read from TOML, overridden by dotted keys, checked by type.

`build` knows nothing of the dataclass it fills, so every stage of a run uses it for its own
table of the file. TOML has no null: a setting that can be off or automatic uses 0 for that.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = dict[str, Any]
T = TypeVar("T")


class SettingsError(ValueError):
    """A settings file, an override or a value that cannot be used."""


def read_toml(path: Path) -> Record:
    """The tables of a TOML file.

    Raises:
        SettingsError: the file is missing, is not UTF-8 or is not TOML; names file and place.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"there is no settings file {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error


def with_overrides(record: Mapping[str, Any], overrides: Iterable[str]) -> Record:
    """A copy of `record` in which each override, such as "model.n_layers=8", replaces one value.

    The value is read as TOML; what is no TOML value is taken as a string, so that quotes are
    not needed on a command line.

    Raises:
        SettingsError: an override without "=", with an empty key, or that goes through a value
            which is not a table.
    """
    copy: Record = _copy(record)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        names = [name.strip() for name in dotted.split(".")]
        if not equals or not all(names):
            raise SettingsError(f"an override is written section.key=value; this is {override!r}")
        table = copy
        for name in names[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise SettingsError(f"{override!r}: {name!r} is a value, not a table")
        table[names[-1]] = _value(text.strip())
    return copy


def build(kind: type[T], record: Mapping[str, Any], path: str = "") -> T:
    """An instance of the dataclass `kind` from a record; nested dataclasses are nested tables.

    Args:
        kind: a dataclass whose fields are int, float, bool, str, Literal, tuple[X, ...], a union
            of these or another dataclass.
        record: names to values.
        path: the dotted place of this record in the file, for the messages.
    Raises:
        SettingsError: an unknown key (with the nearest valid one), a missing one, a value of the
            wrong type, or what `kind` itself refuses.
    """
    known = {field.name: field for field in fields(kind) if field.init}  # type: ignore[arg-type]
    unknown = [name for name in record if name not in known]
    if unknown:
        raise SettingsError("; ".join(_unknown(_join(path, name), known) for name in unknown))
    missing = [name for name, field in known.items() if name not in record and _required(field)]
    if missing:
        raise SettingsError(f"missing: {', '.join(_join(path, name) for name in missing)}")
    hints = get_type_hints(kind)
    values = {
        name: _converted(hints[name], value, _join(path, name)) for name, value in record.items()
    }
    try:
        return kind(**values)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"{path}: {error}" if path else str(error)) from error


def to_record(settings: Any) -> Record:
    """The fields of a dataclass as plain values, nested dataclasses as nested records."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: _plain(value) for name, value in values.items()}


def to_toml(settings: Any) -> str:
    """TOML text that `read_toml` and `build` turn into the same settings again."""
    return _tables(to_record(settings), ())


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like `name`, or None when none is similar."""
    found = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return found[0] if found else None


def require_choices(settings: Any) -> None:
    """Raise SettingsError for a value outside its Literal."""
    for name, hint in get_type_hints(type(settings)).items():
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        if choices and getattr(settings, name) not in choices:
            raise SettingsError(
                f"{name} is one of {', '.join(choices)}; not {getattr(settings, name)!r}"
            )


def require_at_least(settings: Any, least: int, *names: str) -> None:
    """Raise SettingsError for a field below `least`."""
    for name in names:
        if getattr(settings, name) < least:
            raise SettingsError(f"{name} is at least {least}; not {getattr(settings, name)}")


def _unknown(dotted: str, known: Mapping[str, object]) -> str:
    place, _, name = dotted.rpartition(".")
    close = nearest(name, known)
    if close:
        return f"there is no setting {dotted!r}; the nearest is {_join(place, close)!r}"
    return f"there is no setting {dotted!r}; valid: {', '.join(known)}"


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _converted(hint: Any, value: Any, dotted: str) -> Any:
    """`value` as `hint`; only an int where a float is asked for changes its type."""
    origin = get_origin(hint)
    if origin is Literal:
        if value in get_args(hint) and type(value) in {type(choice) for choice in get_args(hint)}:
            return value
        close = nearest(str(value), map(str, get_args(hint)))
        choices = ", ".join(map(str, get_args(hint)))
        suffix = f"; the nearest is {close!r}" if close else ""
        raise SettingsError(f"{dotted} is one of {choices}; not {value!r}{suffix}")
    if origin in (Union, types.UnionType):
        return _first_fit(get_args(hint), value, dotted)
    if origin is tuple:
        return tuple(_converted(get_args(hint)[0], item, dotted) for item in _list(value, dotted))
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise SettingsError(f"{dotted} is a table; not {value!r}")
        return build(hint, value, dotted)
    if hint is float and type(value) is int:
        return float(value)
    if hint is not Any and type(value) is not hint:
        expected = "nothing" if hint is type(None) else hint.__name__
        raise SettingsError(f"{dotted} is {expected}; not {value!r} ({type(value).__name__})")
    return value


def _first_fit(hints: tuple[Any, ...], value: Any, dotted: str) -> Any:
    problems = []
    for hint in hints:
        try:
            return _converted(hint, value, dotted)
        except SettingsError as error:
            problems.append(str(error))
    raise SettingsError("; or ".join(problems))


def _list(value: Any, dotted: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise SettingsError(f"{dotted} is a list; not {value!r}")
    return list(value)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_record(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _tables(record: Record, path: tuple[str, ...]) -> str:
    plain = {name: value for name, value in record.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(path)}]"] if path and plain else []
    # JSON and TOML write strings, booleans, integers and lists alike; null exists only in JSON.
    lines += [f"{name} = {_scalar(v)}" for name, v in plain.items() if v is not None]
    text = "\n".join(lines) + "\n" if lines else ""
    nested = [_tables(v, (*path, name)) for name, v in record.items() if isinstance(v, dict)]
    return "\n".join(part for part in (text, *nested) if part)


def _scalar(value: Any) -> str:
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
