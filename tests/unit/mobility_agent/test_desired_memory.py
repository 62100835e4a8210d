"""The remembered desired state: survives, is asked again when damaged, and never destroys on the word of a server that went back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from mobility_agent.desired_memory import DesiredMemory
from replication.control_plane import AgentDesired
from tests.harness.interruptions import interrupted


def test_before_anything_is_known_there_is_no_wish_and_nothing_may_be_destroyed(tmp_path: Path) -> None:
    memory = DesiredMemory(tmp_path / "desired.json")
    assert (memory.desired, memory.revision, memory.may_destroy) == (None, 0, False)


def test_the_newest_wish_survives(tmp_path: Path) -> None:
    DesiredMemory(tmp_path / "desired.json").take(AgentDesired(revision=7, item=None))
    memory = DesiredMemory(tmp_path / "desired.json")
    assert (memory.desired, memory.revision) == (AgentDesired(revision=7, item=None), 7)
    assert memory.may_destroy


def test_a_revision_that_went_back_is_obeyed_and_may_not_destroy_also_after_a_restart(tmp_path: Path) -> None:
    memory = DesiredMemory(tmp_path / "desired.json")
    memory.take(AgentDesired(revision=7, item=None))
    memory.take(AgentDesired(revision=3, item=None))
    for seen in (memory, DesiredMemory(tmp_path / "desired.json")):
        assert (seen.revision, seen.may_destroy) == (3, False)
    memory.take(AgentDesired(revision=8, item=None))
    assert memory.may_destroy


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    for content in (b"", b"{", b'{"desired": 3}', b"\xff\xfe"):
        path.write_bytes(content)
        assert DesiredMemory(path).desired is None


def test_a_wish_that_cannot_be_written_is_in_force_all_the_same(tmp_path: Path) -> None:
    memory = DesiredMemory(tmp_path / "none" / "desired.json")
    with pytest.raises(OSError, match="No such file"):
        memory.take(AgentDesired(revision=7, item=None))
    assert memory.revision == 7


@pytest.mark.parametrize("crash", [False, True], ids=["fails", "crashes"])
def test_the_file_holds_the_old_or_the_new_wish(tmp_path: Path, crash: bool) -> None:
    at = 0
    while True:
        path = tmp_path / f"desired-{at}.json"
        DesiredMemory(path).take(AgentDesired(revision=1, item=None))
        memory = DesiredMemory(path)
        with interrupted(at, crash=crash) as interrupter, contextlib.suppress(OSError):
            memory.take(AgentDesired(revision=2, item=None))
        assert DesiredMemory(path).revision in (1, 2)
        if not interrupter.struck:
            assert DesiredMemory(path).revision == 2
            return
        at += 1
