"""Settings: a YAML file → a tree of frozen dataclasses. Unknown keys are refused with their path and the nearest known key.

Called by each daemon's ``config.py``, which declares one frozen dataclass per section with defaults as named constants.
A section validates itself in ``__post_init__`` by raising ``SettingsError`` (without a path; the loader adds it).

Supported field types: str, int, float, bool, Path, nested dataclass, ``X | None``, ``tuple[X, ...]`` and
``Literal["a", "b"]``. Sizes (``*_bytes``) accept ``300 GB``/``64 MiB``; durations (``*_s``) accept ``5 min``, ``250 ms``, ``24 h``;
rates (``*_bits_per_s``) accept ``512 Kbps``, ``100 Mbps``, those in bytes (``*_bytes_per_s``) ``100 MB/s``, ``16 MiB/s``. These four
are never negative, whichever way they are written.
A key given twice is refused: YAML would take the last in silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

import yaml

from replication.errors import InvalidInput, SettingsError

MAX_SETTINGS_FILE_BYTES: Final = 1024 * 1024

_QUANTITY: Final = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*(?:/s)?)\s*")


@dataclasses.dataclass(frozen=True, slots=True)
class _Units:
    """The units that fields with a certain suffix accept, as multiples of the field's own unit."""

    multiples: Mapping[str, Fraction]
    expected: str
    spelling: re.Pattern[str]


def _fractions(**multiples: str) -> dict[str, Fraction]:
    return {unit: Fraction(multiple) for unit, multiple in multiples.items()}


_UNITS: Final[Mapping[str, _Units]] = {
    "_bytes": _Units(
        {"": Fraction(1), "B": Fraction(1)}
        | {f"{prefix}B": Fraction(1000**power) for power, prefix in enumerate("KMGT", 1)}
        | {f"{prefix}IB": Fraction(1024**power) for power, prefix in enumerate("KMGT", 1)},
        "a size such as 300 GB or 64 MiB",
        re.compile(r"[A-Za-z]*"),
    ),
    # a small b: 100 MBps would be eight times as much as 100 Mbps
    "_bits_per_s": _Units(
        {"": Fraction(1), "BPS": Fraction(1)}
        | {f"{prefix}BPS": Fraction(1000**n) for n, prefix in enumerate("KMG", 1)},
        "a rate such as 512 Kbps or 100 Mbps",
        re.compile(r"|[KkMmGg]?bps"),
    ),
    "_bytes_per_s": _Units(
        {"": Fraction(1), "B/S": Fraction(1)}
        | {f"{prefix}B/S": Fraction(1000**power) for power, prefix in enumerate("KMGT", 1)}
        | {f"{prefix}IB/S": Fraction(1024**power) for power, prefix in enumerate("KMGT", 1)},
        "a rate such as 100 MB/s or 16 MiB/s",
        # a large B: 100 Mb/s would be an eighth of 100 MB/s
        re.compile(r"|(?:[KkMmGgTt]i?)?B/s"),
    ),
    "_s": _Units(
        {"": Fraction(1)} | _fractions(MS="0.001", S="1", MIN="60", H="3600", D="86400"),
        "a duration such as 5 min or 250 ms",
        re.compile(r"[A-Za-z]*"),
    ),
}
"""By the suffix of the field's name; the first that fits counts."""

SettingsT = TypeVar("SettingsT")
_Number = TypeVar("_Number", int, float)


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
        # S506: the loader is PyYAML's safe one, made stricter
        document = yaml.load(content, Loader=_StrictLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        raise SettingsError(f"cannot parse the configuration {path}: {_without_content(error)}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML lets its constructors' own errors through: 2001-99-99, !!int "", !!bool maybe
        raise SettingsError(f"cannot parse the configuration {path}: it is no valid YAML") from error
    try:
        return parse_settings(settings_type, {} if document is None else document)
    except SettingsError as error:
        raise SettingsError(f"{error.message} in {path}", hint=error.hint) from error


def parse_settings(settings_type: type[SettingsT], document: object) -> SettingsT:
    """Validate an already parsed document (a mapping) as ``settings_type``."""
    result = _parse_section(settings_type, document, "")
    return typing.cast("SettingsT", result)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key given twice in one mapping.

    It takes ``18:00`` for text, as YAML 1.2 does; YAML 1.1 says 1080.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if kind is yaml.ScalarNode and ":" in value and tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            return "tag:yaml.org,2002:str"
        return tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value[:64]!r} is given twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def _without_content(error: yaml.MarkedYAMLError) -> str:
    """What is wrong and where, without the excerpt that PyYAML shows: a configuration may hold a secret."""
    parts = [text for text in (error.context, error.problem) if text]
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return " ".join(" ".join(parts).split())[:500] + where


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
    except InvalidInput as error:
        # The message of the whole file's own check names the key already.
        message = error.message if not path else f"cannot use {shown}: {error.message}"
        raise SettingsError(message, hint=error.hint) from error
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
        if len(inner) != 1:
            raise TypeError(f"settings field {path} has unsupported type {hint!r}")
        return None if raw is None else _parse_value(inner[0], raw, path)
    if origin is tuple:
        if not isinstance(raw, list):
            raise _wrong(path, "a list", raw)
        item_hint = typing.get_args(hint)[0]
        return tuple(_parse_value(item_hint, item, f"{path}[{index}]") for index, item in enumerate(raw))
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if not any(raw == choice and type(raw) is type(choice) for choice in choices):
            raise SettingsError(f"cannot use {path}: {_shown(raw)} is not one of {', '.join(map(str, choices))}")
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


def _quantity(raw: object, path: str) -> int | float | Fraction | None:
    """The value in the field's own unit if the field's name asks for a size, a duration or a rate; None if it does not."""
    units = next((units for suffix, units in _UNITS.items() if path.endswith(suffix)), None)
    if units is None:
        return None
    if _is_number(raw) and raw >= 0:
        return raw
    match = _QUANTITY.fullmatch(raw) if isinstance(raw, str) else None
    if match is None or match[2].upper() not in units.multiples or not units.spelling.fullmatch(match[2]):
        raise SettingsError(f"cannot use {path}: {units.expected} is expected, not {_shown(raw)}")
    return Fraction(match[1]) * units.multiples[match[2].upper()]


def _is_number(raw: object) -> TypeGuard[int | float]:
    return (isinstance(raw, int) and not isinstance(raw, bool)) or (isinstance(raw, float) and math.isfinite(raw))


def _shown(raw: object) -> str:
    is_short_scalar = isinstance(raw, str | int | float) and len(repr(raw)) <= 40
    return repr(raw) if is_short_scalar else _type_name(raw)


def _parse_int(raw: object, path: str) -> int:
    value = _quantity(raw, path)
    if value is None:
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise _wrong(path, "a whole number", raw)
        return raw
    if value != int(value):
        raise SettingsError(f"cannot use {path}: a whole number is expected, not {_shown(raw)}")
    return int(value)


def parse_duration(text: str, option: str) -> float:
    """Seconds of a duration such as ``250 ms``, ``5 min`` or ``5 d``, for command lines; ``option`` is where it was given.

    :raises SettingsError: if it is none.
    """
    return _parsed(_parse_float, text, "duration_s", option, "250 ms, 30 s, 5 min, 12 h, 5 d")


def parse_rate(text: str, option: str) -> int:
    """Bits per second of a rate such as ``512 Kbps``, for command lines; ``option`` is where it was given.

    :raises SettingsError: if it is none.
    """
    return _parsed(_parse_int, text, "rate_bits_per_s", option, "512 Kbps, 100 Mbps, 1 Gbps")


def parse_byte_rate(text: str, option: str) -> int:
    """Bytes per second of a rate such as ``100 MB/s``, for command lines; ``option`` is where it was given.

    :raises SettingsError: if it is none.
    """
    return _parsed(_parse_int, text, "rate_bytes_per_s", option, "100 MB/s or 16 MiB/s")


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as ``256 MiB``, for command lines; ``option`` is where it was given.

    :raises SettingsError: if it is none.
    """
    return _parsed(_parse_int, text, "size_bytes", option, "256 MiB or 1 GB")


def _parsed(parse: Callable[[object, str], _Number], text: str, path: str, option: str, examples: str) -> _Number:
    """``path`` ends in the unit, as a setting's name does."""
    try:
        return parse(text, path)
    except SettingsError as error:
        raise SettingsError(
            f"cannot use {text[:64]!r} for {option}", hint=f"a number with its unit, such as {examples}"
        ) from error


def _parse_float(raw: object, path: str) -> float:
    value = _quantity(raw, path)
    if value is None:
        if not _is_number(raw):
            raise _wrong(path, "a number", raw)
        value = raw
    try:
        return float(value)
    except OverflowError:
        raise _wrong(path, "a number", raw) from None


_SCALARS: Final[dict[object, Callable[[object, str], object]]] = {
    str: _parse_str,
    bool: _parse_bool,
    int: _parse_int,
    float: _parse_float,
    Path: _parse_path,
}
