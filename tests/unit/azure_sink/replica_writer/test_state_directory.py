"""Identity, lease id and lock of a writer's state directory. Called by pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from azure_sink.replica_writer.state_directory import IDENTITY_FILE, INSTANCE_FILE, StateDirectory
from replication.errors import SettingsError


def test_identity_is_made_once_and_private(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "deep" / "state")
    made = directory.load_or_make_identity()
    assert (directory.path / IDENTITY_FILE).stat().st_mode & 0o777 == 0o600
    assert directory.path.stat().st_mode & 0o777 == 0o700
    again = StateDirectory(directory.path)
    assert again.load_or_make_identity().encode() == made.encode()
    assert again.load_identity().public.encode() == made.public.encode()


def test_identity_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="azure-sink init"):
        StateDirectory(tmp_path).load_identity()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"nonsense", b"x" * 100_000])
def test_damaged_identity_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / IDENTITY_FILE).write_bytes(content)
    with pytest.raises(SettingsError, match="damaged"):
        StateDirectory(tmp_path).load_or_make_identity()
    assert (tmp_path / IDENTITY_FILE).read_bytes() == content


def test_lease_id_survives_a_restart(tmp_path: Path) -> None:
    assert StateDirectory(tmp_path).load_or_make_lease_id() == StateDirectory(tmp_path).load_or_make_lease_id()
    (tmp_path / INSTANCE_FILE).write_bytes(b"not a uuid")
    with pytest.raises(SettingsError):
        StateDirectory(tmp_path).load_or_make_lease_id()


def test_directory_is_for_one_writer(tmp_path: Path) -> None:
    with (
        StateDirectory(tmp_path).locked(),
        pytest.raises(SettingsError, match="another replica writer"),
        StateDirectory(tmp_path).locked(),
    ):
        pass
    with StateDirectory(tmp_path).locked():
        pass


def test_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="cannot"):
        StateDirectory(tmp_path / "file" / "state").load_or_make_identity()
