"""Whatever a configuration file holds, loading it ends in settings or in a ``SettingsError``; quantities are exact."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from replication.errors import SettingsError
from replication.settings import load_settings, parse_settings


@dataclass(frozen=True)
class Inner:
    size_bytes: int = 0
    wait_s: float = 0.0
    keep_s: int = 0
    rate_bits_per_s: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str = ""
    path: Path = Path("/")
    level: Literal["a", "b"] = "a"
    count: int = 0
    ratio: float = 0.0
    on: bool = False
    inner: Inner = field(default_factory=Inner)
    inners: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["1 GB", "5 min", "10 Mbps", "a", "-1", "1e400"]),
)
KEYS = ["name", "path", "level", "count", "ratio", "on", "inner", "inners", "words", "size_bytes", "wait_s", "keep_s"]
keys = st.one_of(st.sampled_from([*KEYS, "rate_bits_per_s"]), st.text(max_size=4), st.integers(), st.none())
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=12,
)


@given(documents)
def test_any_document_becomes_settings_or_a_settings_error(document: object) -> None:
    with contextlib.suppress(SettingsError):
        assert isinstance(parse_settings(Outer, document), Outer)


yaml_like = st.text(alphabet=st.sampled_from(":-?[]{}&*!|>'\"%@,#<=~. \n\tabn019_xe+\x00é"), max_size=40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "settings.yaml"


@hypothesis.settings(max_examples=400)
@given(st.one_of(st.binary(max_size=60), yaml_like.map(str.encode), documents.map(yaml.safe_dump).map(str.encode)))
def test_any_file_becomes_settings_or_a_settings_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(SettingsError):
        assert isinstance(load_settings(Outer, path), Outer)


@given(st.integers(0, 10**12), st.integers(0, 999), st.sampled_from(["KB", "MB", "GB", "TB"]))
def test_decimal_sizes_are_exact(whole: int, thousandths: int, unit: str) -> None:
    expected = Decimal(f"{whole}.{thousandths:03}") * 1000 ** ("KMGT".index(unit[0]) + 1)
    parsed = parse_settings(Inner, {"size_bytes": f"{whole}.{thousandths:03} {unit}"})
    assert parsed.size_bytes == expected


@given(st.integers(0, 2**63), st.sampled_from(["", "B", "KiB", "MiB", "GiB", "TiB"]))
def test_binary_sizes_are_exact(number: int, unit: str) -> None:
    power = 0 if unit in ("", "B") else "KMGT".index(unit[0]) + 1
    assert parse_settings(Inner, {"size_bytes": f"{number} {unit}"}).size_bytes == number * 1024**power
