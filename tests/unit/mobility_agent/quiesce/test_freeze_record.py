"""The record of what is frozen: read back as written; one of another boot, a torn one, an emptied one stand for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobility_agent.quiesce import freeze_record
from mobility_agent.quiesce.freeze_record import FreezeRecord
from mobility_agent.quiesce.interface import Mount

MOUNTS = [Mount("/", "ext4", "/dev/sda1", (8, 1)), Mount("/srv/a b", "xfs", "/dev/sdb", (8, 16))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.frozen"


def test_what_is_noted_is_what_is_left_until_it_is_cleared(path: Path) -> None:
    record = FreezeRecord(path)
    assert record.left() == []
    record.note(MOUNTS)
    assert FreezeRecord(path).left() == MOUNTS
    record.note(MOUNTS[:1])
    assert FreezeRecord(path).left() == MOUNTS[:1]
    record.clear()
    assert FreezeRecord(path).left() == []
    record.close()
    record.close()
    assert not path.exists()


def test_a_record_of_another_boot_stands_for_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FreezeRecord(path).note(MOUNTS)
    monkeypatch.setattr(freeze_record, "_boot", lambda: "another")
    assert FreezeRecord(path).left() == []


def test_a_torn_record_stands_for_nothing(path: Path) -> None:
    FreezeRecord(path).note(MOUNTS)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert FreezeRecord(path).left() == []
    for other in (b"[]", b"7", b'{"boot": 1}'):
        path.write_bytes(other)
        assert FreezeRecord(path).left() == []
