"""Settings: what is accepted, and that whatever is not names the path inside the file and a way out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from replication.errors import InvalidInput, SettingsError
from replication.settings import MAX_SETTINGS_FILE_BYTES, load_settings, parse_settings


@dataclass(frozen=True)
class Limits:
    spool_bytes: int = 300 * 10**9
    upload_bits_per_s: int | None = None
    timeout_s: float = 30.0
    retention_s: int = 86400
    burst_bits_per_s: float = 0.0

    def __post_init__(self) -> None:
        if self.timeout_s == 13:
            raise SettingsError("cannot wait 13 seconds", hint="12 or 14 will do")
        if self.timeout_s == 14:
            raise InvalidInput("cannot wait 14 seconds")


@dataclass(frozen=True)
class Server:
    name: str
    address: Path | None = None


@dataclass(frozen=True)
class Settings:
    state: Path
    level: Literal["debug", "info"] = "info"
    workers: int = 4
    ratio: float = 0.8
    enabled: bool = True
    names: tuple[str, ...] = ()
    servers: tuple[Server, ...] = ()
    limits: Limits = field(default_factory=Limits)


MINIMAL = {"state": "/var/lib/x"}


def _limits(**values: object) -> Limits:
    return parse_settings(Settings, MINIMAL | {"limits": values}).limits


def test_defaults_stand_where_nothing_is_said() -> None:
    assert parse_settings(Settings, MINIMAL) == Settings(state=Path("/var/lib/x"))


def test_every_supported_type_is_parsed() -> None:
    document = {
        "state": "/s",
        "level": "debug",
        "workers": 8,
        "ratio": 1,
        "enabled": False,
        "names": ["a", "b"],
        "servers": [{"name": "one"}, {"name": "two", "address": "/sock"}],
        "limits": {"upload_bits_per_s": None},
    }
    assert parse_settings(Settings, document) == Settings(
        state=Path("/s"),
        level="debug",
        workers=8,
        ratio=1.0,
        enabled=False,
        names=("a", "b"),
        servers=(Server("one"), Server("two", Path("/sock"))),
        limits=Limits(),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("300 GB", 300 * 10**9),
        ("64 MiB", 64 * 2**20),
        ("64MiB", 64 * 2**20),
        (" 2 tib ", 2 * 2**40),
        ("1.5 KB", 1500),
        ("1.13 KB", 1130),
        ("0.5 KiB", 512),
        (4096.0, 4096),
        (2**63, 2**63),
    ],
)
def test_sizes(text: object, expected: int) -> None:
    assert _limits(spool_bytes=text).spool_bytes == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (512_000, 512_000),
        ("512 Kbps", 512_000),
        ("512 kbps", 512_000),
        ("100 Mbps", 10**8),
        ("1 Gbps", 10**9),
        ("8 bps", 8),
    ],
)
def test_rates(text: object, expected: int) -> None:
    limits = _limits(upload_bits_per_s=text, burst_bits_per_s=text)
    assert (limits.upload_bits_per_s, limits.burst_bits_per_s) == (expected, float(expected))


@pytest.mark.parametrize(
    ("text", "expected"), [(60, 60), ("90 s", 90), ("5 min", 300), ("24 h", 86400), ("2 d", 172800), (0, 0)]
)
def test_durations_in_whole_and_in_broken_seconds(text: object, expected: int) -> None:
    limits = _limits(timeout_s=text, retention_s=text)
    assert (limits.timeout_s, limits.retention_s) == (float(expected), expected)
    assert isinstance(limits.retention_s, int)


def test_duration_below_a_second() -> None:
    assert _limits(timeout_s="250 ms").timeout_s == 0.25
    assert _limits(timeout_s=0.25).timeout_s == 0.25


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"spool_bytes": -1}, "limits.spool_bytes"),
        ({"spool_bytes": "-1 GB"}, "limits.spool_bytes"),
        ({"spool_bytes": "0.3 B"}, "limits.spool_bytes"),
        ({"spool_bytes": 1.5}, "limits.spool_bytes"),
        ({"spool_bytes": float("inf")}, "limits.spool_bytes"),
        ({"spool_bytes": float("nan")}, "limits.spool_bytes"),
        ({"spool_bytes": "12 parsecs"}, "limits.spool_bytes"),
        ({"spool_bytes": "9" * 5000 + " GB"}, "limits.spool_bytes"),
        ({"spool_bytes": True}, "limits.spool_bytes"),
        ({"spool_bytes": None}, "limits.spool_bytes"),
        ({"spool_bytes": [1]}, "limits.spool_bytes"),
        ({"spool_bytes": "٣ GB"}, "limits.spool_bytes"),
        ({"upload_bits_per_s": "100 MBps"}, "limits.upload_bits_per_s"),
        ({"upload_bits_per_s": "100 MB"}, "limits.upload_bits_per_s"),
        ({"upload_bits_per_s": "5 min"}, "limits.upload_bits_per_s"),
        ({"burst_bits_per_s": "5 min"}, "limits.burst_bits_per_s"),
        ({"timeout_s": float("inf")}, "limits.timeout_s"),
        ({"timeout_s": -0.1}, "limits.timeout_s"),
        ({"timeout_s": 10**400}, "limits.timeout_s"),
        ({"retention_s": "250 ms"}, "limits.retention_s"),
        ({"retention_s": "1 GB"}, "limits.retention_s"),
    ],
)
def test_impossible_quantity_is_refused_with_its_path(section: dict[str, object], path: str) -> None:
    with pytest.raises(SettingsError, match=rf"cannot use {path}: .* is expected, not ") as caught:
        _limits(**section)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"state": 5}, "state"),
        ({"state": ""}, "state"),
        (MINIMAL | {"workers": 1.0}, "workers"),
        (MINIMAL | {"workers": "4"}, "workers"),
        (MINIMAL | {"workers": True}, "workers"),
        (MINIMAL | {"ratio": "much"}, "ratio"),
        (MINIMAL | {"ratio": float("nan")}, "ratio"),
        (MINIMAL | {"ratio": False}, "ratio"),
        (MINIMAL | {"enabled": 1}, "enabled"),
        (MINIMAL | {"enabled": "yes"}, "enabled"),
        (MINIMAL | {"names": "a"}, "names"),
        (MINIMAL | {"names": ["a", 1]}, r"names\[1\]"),
        (MINIMAL | {"servers": [{"name": "a"}, {}]}, r"servers\[1\].name"),
        (MINIMAL | {"servers": [{"name": "a", "address": 7}]}, r"servers\[0\].address"),
        (MINIMAL | {"limits": []}, "limits"),
        (MINIMAL | {"limits": None}, "limits"),
        ({}, "state"),
        ([], "the top level"),
        ("text", "the top level"),
        (MINIMAL | {"level": "loud"}, "level"),
        (MINIMAL | {"level": False}, "level"),
        (MINIMAL | {"level": ["info"]}, "level"),
    ],
)
def test_wrong_type_is_refused_with_its_path(document: object, path: str) -> None:
    with pytest.raises(SettingsError, match=rf"cannot (use|do without) '?{path}[': ]") as caught:
        parse_settings(Settings, document)
    assert str(caught.value).startswith("cannot ")


def test_unknown_key_is_refused_with_path_and_nearest_key() -> None:
    with pytest.raises(SettingsError, match=r"unknown key 'limits.timeout'") as caught:
        _limits(timeout=5)
    assert caught.value.hint == "did you mean 'timeout_s'?"


def test_unknown_key_without_a_near_one_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="unknown key 'servers") as caught:
        parse_settings(Settings, MINIMAL | {"servers": [{"name": "a", "zzz": 1}]})
    assert caught.value.hint == "known keys: address, name"


@pytest.mark.parametrize("key", [1, None, 2.5, True, (1, 2)])
def test_key_that_is_no_text_is_unknown(key: object) -> None:
    document: dict[object, object] = {"state": "/s", key: 1}
    with pytest.raises(SettingsError, match="unknown key"):
        parse_settings(Settings, document)


def test_section_that_refuses_itself_says_so_with_path_and_hint() -> None:
    with pytest.raises(SettingsError, match=r"^cannot use limits: cannot wait 13 seconds") as caught:
        _limits(timeout_s=13)
    assert caught.value.hint == "12 or 14 will do"
    with pytest.raises(SettingsError, match=r"^cannot use limits: cannot wait 14 seconds"):
        _limits(timeout_s=14)


@dataclass(frozen=True)
class Unsupported:
    either: int | str = 0
    odd: complex = 0j


@pytest.mark.parametrize("key", ["either", "odd"])
def test_field_type_that_cannot_be_parsed_is_a_programming_error(key: str) -> None:
    with pytest.raises(TypeError, match=f"field {key} has unsupported type"):
        parse_settings(Unsupported, {key: 1})


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str | bytes], Settings]:
    def write_and_load(content: str | bytes) -> Settings:
        path = tmp_path / "settings.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_settings(Settings, path)

    return write_and_load


def test_file_is_parsed(load: Callable[[str], Settings]) -> None:
    settings = load("# a comment\nstate: /s\nlimits:\n  spool_bytes: 1 GB\n")
    assert settings == Settings(state=Path("/s"), limits=Limits(spool_bytes=10**9))


def test_empty_file_is_an_empty_mapping(load: Callable[[str], Settings]) -> None:
    with pytest.raises(SettingsError, match=r"cannot do without 'state' in .*settings\.yaml"):
        load("# nothing yet\n")


@pytest.mark.parametrize(
    "content",
    [
        "state: [",
        "state: /s\nstate: /t",
        "state: /s\nlimits: {timeout_s: 1, timeout_s: 2}",
        "state: !!python/object/apply:os.system ['true']",
        "state: 2001-99-99",
        'workers: !!int ""',
        "enabled: !!bool maybe",
        "ratio: !!float ''",
        "state: !!timestamp never",
        "workers: 0x_",
        "? [a]\n: b",
        "? {a: b}\n: c",
        "a: &x [*x]\n*x : 1",
        "state: /s\n---\nstate: /t",
        "workers: " + "9" * 10_000,
        "[" * 600,
        "\t",
        b"state: \xff\xfe\xfa",
        b"state: \x00",
        b"\x80\x81",
    ],
)
def test_file_that_is_no_usable_yaml_is_refused_with_its_name(
    load: Callable[[str | bytes], Settings], content: str | bytes
) -> None:
    with pytest.raises(SettingsError, match=r"^cannot .*settings\.yaml"):
        load(content)


def test_key_given_twice_is_named_with_its_line(load: Callable[[str], Settings]) -> None:
    with pytest.raises(SettingsError, match=r"the key 'state' is given twice \(line 2, column 1\)"):
        load("state: /s\nstate: /t\n")


def test_same_key_in_two_sections_is_no_repetition(load: Callable[[str], Settings]) -> None:
    assert load("state: /s\nservers: [{name: a}, {name: b}]\n").servers == (Server("a"), Server("b"))


def test_anchors_and_merges_work(load: Callable[[str], Settings]) -> None:
    settings = load("state: /s\nservers:\n  - &one {name: a, address: /sock}\n  - {<<: *one, name: b}\n")
    assert settings.servers[1] == Server("b", Path("/sock"))


def test_message_about_broken_yaml_does_not_show_the_files_content(load: Callable[[str], Settings]) -> None:
    with pytest.raises(SettingsError, match=r"\(line 3, column 1\)") as caught:
        load("state: /s\npassphrase: 'correct horse battery staple\n")
    assert "horse" not in str(caught.value)


def test_missing_file_and_directory_are_refused_with_a_hint(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(SettingsError, match="cannot read the configuration") as caught:
            load_settings(Settings, path)
        assert caught.value.hint == "give an existing file with --config"


def test_file_of_any_size_is_read_up_to_the_limit_only(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(SettingsError, match=f"larger than {MAX_SETTINGS_FILE_BYTES} bytes"):
        load_settings(Settings, path)


def test_expanding_aliases_cost_nothing(load: Callable[[str], Settings]) -> None:
    """The "billion laughs": a list of references to lists of references, each of which a naive parser would expand."""
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(SettingsError, match="unknown key 'a0'"):
        load("a0: &a0 [lol]\n" + levels)
