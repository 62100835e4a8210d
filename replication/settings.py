"""Settings: a YAML file → a tree of frozen dataclasses. Unknown keys are refused with their path and the nearest known key.

Called by each daemon's ``config.py``, which declares one frozen dataclass per section with defaults as named constants.
A section validates itself in ``__post_init__`` by raising ``SettingsError`` (without a path; the loader adds it).

Supported field types: str, int, float, bool, Path, nested dataclass, ``X | None``, ``tuple[X, ...]`` and
``Literal["a", "b"]``. Sizes (``*_bytes``) accept ``300 GB``/``64 MiB``; durations (``*_s``) accept ``5 min``, ``250 ms``, ``24 h``;
rates (``*_bits_per_s``) accept ``512 Kbps``, ``100 Mbps``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from replication.errors import SettingsError

MAX_SETTINGS_FILE_BYTES: Final = 1024 * 1024

_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_BYTES: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SECONDS: Final = {"": 1.0, "MS": 0.001, "S": 1.0, "MIN": 60.0, "H": 3600.0, "D": 86400.0}
_BITS: Final = {"": 1, "BPS": 1, "KBPS": 10**3, "MBPS": 10**6, "GBPS": 10**9}

SettingsT = TypeVar("SettingsT")


def load_settings(settings_type: type[SettingsT], path: Path) -> SettingsT:
    """Read and validate the YAML file at ``path``.

    :raises SettingsError: if it cannot be read, is no mapping, or holds an unknown key or an unusable value.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_SETTINGS_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(
            f"cannot read the configuration {path}: {error.strerror}", hint="give an existing file with --config"
        ) from error
    if len(content) > MAX_SETTINGS_FILE_BYTES:
        raise SettingsError(f"cannot use the configuration {path}: larger than {MAX_SETTINGS_FILE_BYTES} bytes")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"cannot parse the configuration {path}: {_one_line(error)}") from error
    try:
        return parse_settings(settings_type, {} if document is None else document)
    except SettingsError as error:
        raise SettingsError(f"{error.message} in {path}", hint=error.hint) from error


def parse_settings(settings_type: type[SettingsT], document: object) -> SettingsT:
    """Validate an already parsed document (a mapping) as ``settings_type``."""
    result = _parse_section(settings_type, document, "")
    return typing.cast("SettingsT", result)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _parse_section(section: type[Any], document: object, path: str) -> object:
    shown = path or "the top level"
    if not isinstance(document, Mapping):
        raise SettingsError(f"cannot use {shown}: a mapping is expected, not {_type_name(document)}")
    hints = typing.get_type_hints(section)
    known = {field.name: field for field in dataclasses.fields(section)}
    values: dict[str, object] = {}
    for key, raw in document.items():
        if not isinstance(key, str) or key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(sorted(known))}"
            raise SettingsError(f"cannot use unknown key {_join(path, str(key))!r}", hint=hint)
        values[key] = _parse_value(hints[key], raw, _join(path, key))
    for name, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise SettingsError(f"cannot do without {_join(path, name)!r}", hint="the key is required")
    try:
        built: object = section(**values)
    except SettingsError as error:
        raise SettingsError(f"cannot use {shown}: {error.message.removeprefix('cannot ')}", hint=error.hint) from error
    return built


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _type_name(value: object) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        int: "a number",
        float: "a number",
        bool: "true/false",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)


def _parse_value(hint: Any, raw: object, path: str) -> object:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        if raw is None:
            return None
        return _parse_value(inner[0], raw, path)
    if origin is tuple:
        if not isinstance(raw, list):
            raise _wrong(path, "a list", raw)
        item_hint = typing.get_args(hint)[0]
        return tuple(_parse_value(item_hint, item, f"{path}[{index}]") for index, item in enumerate(raw))
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if raw not in choices:
            raise SettingsError(f"cannot use {path}: {raw!r} is not one of {', '.join(map(str, choices))}")
        return raw
    if dataclasses.is_dataclass(hint):
        return _parse_section(typing.cast("type[Any]", hint), raw, path)
    parser = _SCALARS.get(hint)
    if parser is None:
        raise TypeError(f"settings field {path} has unsupported type {hint!r}")
    return parser(raw, path)


def _wrong(path: str, expected: str, raw: object) -> SettingsError:
    return SettingsError(f"cannot use {path}: {expected} is expected, not {_type_name(raw)}")


def _parse_str(raw: object, path: str) -> str:
    if not isinstance(raw, str):
        raise _wrong(path, "text", raw)
    return raw


def _parse_bool(raw: object, path: str) -> bool:
    if not isinstance(raw, bool):
        raise _wrong(path, "true or false", raw)
    return raw


def _parse_path(raw: object, path: str) -> Path:
    if not isinstance(raw, str) or not raw:
        raise _wrong(path, "a path", raw)
    return Path(raw)


def _quantity(raw: object, path: str, units: Mapping[str, float], expected: str) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return raw
    match = _QUANTITY.fullmatch(raw) if isinstance(raw, str) else None
    if match is None or match[2].upper() not in units:
        raise _wrong(path, expected, raw)
    return float(match[1]) * units[match[2].upper()]


def _parse_int(raw: object, path: str) -> int:
    if path.endswith("_bytes"):
        value = _quantity(raw, path, _BYTES, "a size such as 300 GB or 64 MiB")
    elif path.endswith("_bits_per_s"):
        value = _quantity(raw, path, _BITS, "a rate such as 512 Kbps or 100 Mbps")
    elif isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    else:
        raise _wrong(path, "a whole number", raw)
    if value != int(value):
        raise _wrong(path, "a whole number", raw)
    return int(value)


def _parse_float(raw: object, path: str) -> float:
    if path.endswith("_s"):
        return float(_quantity(raw, path, _SECONDS, "a duration such as 5 min or 250 ms"))
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    raise _wrong(path, "a number", raw)


_SCALARS: Final[dict[object, Callable[[object, str], object]]] = {
    str: _parse_str,
    bool: _parse_bool,
    int: _parse_int,
    float: _parse_float,
    Path: _parse_path,
}
