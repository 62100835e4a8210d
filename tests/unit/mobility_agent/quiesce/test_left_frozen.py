"""Records that agents left: they go with the directory, unless an agent runs that keeps one; what is not a record stays."""

from __future__ import annotations

import uuid
from pathlib import Path

from mobility_agent.quiesce.freeze_record import FreezeRecord, record_of
from mobility_agent.quiesce.left_frozen import thaw_all_left
from mobility_agent.sole_agent import hold_machine


def test_records_go_and_the_directory_with_the_last_of_them(tmp_path: Path) -> None:
    directory, runs, gone = tmp_path / "run", str(uuid.uuid4()), str(uuid.uuid4())
    directory.mkdir()
    for machine in (runs, gone):
        FreezeRecord(record_of(machine, directory)).note([])
    with hold_machine(runs):
        assert thaw_all_left(directory) == []
    assert list(directory.iterdir()) == [record_of(runs, directory)]
    (directory / "agent-somebody's.frozen").touch()
    assert thaw_all_left(directory) == []
    assert [path.name for path in directory.iterdir()] == ["agent-somebody's.frozen"]
    (directory / "agent-somebody's.frozen").unlink()
    assert thaw_all_left(directory) == []
    assert not directory.exists()
    assert thaw_all_left(directory) == []
