"""The sample configurations hold every key and tell the truth about defaults; the invalid ones fail, and say why as they claim."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import azure_sink.config
import config_server.config
import mobility_agent.config
import process_server.config
from replication.errors import SettingsError
from replication.settings import load_settings
from tests.harness.source_tree import REPOSITORY

CONFIG: Final = REPOSITORY / "deploy" / "config"
SETTINGS: Final[dict[str, type[Any]]] = {
    "agent": mobility_agent.config.AgentSettings,
    "azure-sink": azure_sink.config.Settings,
    "config-server": config_server.config.Settings,
    "process-server": process_server.config.Settings,
}
INVALID: Final = sorted((CONFIG / "invalid").glob("*.yaml"))
ELLIPSIS: Final = " … "
"""In the first line of an invalid sample: something in between."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a settings tree: its path, its default (``MISSING`` if it is required), whether it is a section."""

    path: tuple[str, ...]
    default: object
    is_section: bool

    def __str__(self) -> str:
        return ".".join(self.path)


def _keys(section: type[Any], above: tuple[str, ...] = ()) -> Iterator[Key]:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        path = (*above, field.name)
        inner = _section_of(hints[field.name])
        default: object = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Key(path, default, inner is not None)
        if inner is not None:
            yield from _keys_of_section(inner, path, default)


def _keys_of_section(section: type[Any], path: tuple[str, ...], whole: object) -> Iterator[Key]:
    """The default of a key inside a section is what the section's own default says, if it has one."""
    for key in _keys(section, path):
        if len(key.path) == len(path) + 1 and dataclasses.is_dataclass(whole):
            yield dataclasses.replace(key, default=getattr(whole, key.path[-1]))
        else:
            yield key


def _section_of(hint: Any) -> type[Any] | None:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """Path of each key → the comment on its line."""
    lines = text.splitlines()
    found: dict[tuple[str, ...], str] = {}

    def walk(node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            _, _, comment = lines[key.start_mark.line].partition(" # ")
            found[*path, key.value] = comment.strip()
            walk(value, (*path, key.value))

    walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found


def _value(settings: object, path: tuple[str, ...]) -> object:
    for name in path:
        settings = getattr(settings, name)
    return settings


def _sample(daemon: str) -> Path:
    return CONFIG / f"{daemon}.yaml"


def test_every_daemon_has_a_sample_and_every_sample_a_daemon() -> None:
    assert {path.stem for path in CONFIG.glob("*.yaml")} == SETTINGS.keys()


@pytest.mark.parametrize("daemon", SETTINGS)
def test_sample_holds_exactly_the_keys_of_the_settings(daemon: str) -> None:
    keys = {str(key) for key in _keys(SETTINGS[daemon])}
    assert {".".join(path) for path in _comments(_sample(daemon).read_text())} == keys


@pytest.mark.parametrize("daemon", SETTINGS)
def test_sample_says_of_every_key_what_it_means_and_whether_it_is_the_default(daemon: str) -> None:
    settings = load_settings(SETTINGS[daemon], _sample(daemon))
    comments = _comments(_sample(daemon).read_text())
    for key in _keys(SETTINGS[daemon]):
        if key.is_section:
            continue
        kind, _, meaning = comments[key.path].partition(": ")
        value = _value(settings, key.path)
        assert kind in ("default", "required", "example"), f"{key}: {comments[key.path]!r}"
        assert len(meaning.split()) >= 3, f"{key}: {comments[key.path]!r}"
        assert (kind == "required") == (key.default is dataclasses.MISSING), f"{key} is {kind}"
        assert (kind == "default") == (value == key.default), f"{key} is {value!r}, its default {key.default!r}"


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid_sample_is_refused_as_its_first_line_says(path: Path) -> None:
    first_line = path.read_text().splitlines()[0]
    assert first_line.startswith("# refused with: ")
    daemon = next(name for name in SETTINGS if path.name.startswith(f"{name}-"))
    with pytest.raises(SettingsError) as refused:
        load_settings(SETTINGS[daemon], path)
    said = f"{refused.value.message} {refused.value.hint or ''}"
    parts = first_line.removeprefix("# refused with: ").split(ELLIPSIS)
    assert re.search(".*".join(map(re.escape, parts)), said), said
    assert str(path) in said


@pytest.mark.parametrize("daemon", SETTINGS)
@pytest.mark.parametrize("kind", ["unknown-key", "wrong-type", "out-of-range", "missing-required"])
def test_every_kind_of_mistake_has_an_invalid_sample(daemon: str, kind: str) -> None:
    assert [path for path in INVALID if path.name.startswith(f"{daemon}-") and path.stem.endswith(kind)]


def test_comments_are_found_by_the_path_of_their_key() -> None:
    assert _comments("a:\n  b: 1 # one\nc: '# no'   #  two") == {("a",): "", ("a", "b"): "one", ("c",): "two"}
