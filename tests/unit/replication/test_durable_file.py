"""Durable files: whole or not at all, wherever the operation is cut off; modes, leftovers and failing disks."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from replication.durable_file import DurableFile, make_directory_durably, sync_directory
from tests.harness.interruptions import Crash, Interrupter, interrupted


def test_file_never_written_reads_as_none(tmp_path: Path) -> None:
    assert DurableFile(tmp_path / "state").read() is None


@pytest.mark.parametrize("content", [b"", b"one", bytearray(b"two"), memoryview(b"three")])
def test_content_is_what_was_given(tmp_path: Path, content: bytes | bytearray | memoryview) -> None:
    file = DurableFile(tmp_path / "state")
    file.replace(b"before, and longer than anything after it")
    file.replace(content)
    assert file.read() == bytes(content)
    assert os.listdir(tmp_path) == ["state"]


def test_memory_of_wider_items_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes only a part must go on at the right byte, not at the right item."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: real(descriptor, view[:5]))
    content = memoryview(bytes(range(64))).cast("Q")
    file = DurableFile(tmp_path / "state")
    file.replace(content)
    assert file.read() == bytes(range(64))


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_mode_is_the_one_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        DurableFile(tmp_path / "state", mode).replace(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == mode


def test_leftover_of_an_interrupted_call_lends_neither_content_nor_mode(tmp_path: Path) -> None:
    leftover = tmp_path / "state.new"
    leftover.write_bytes(b"half of a longer content")
    leftover.chmod(0o666)
    file = DurableFile(tmp_path / "state")
    assert file.read() is None
    file.replace(b"secret")
    assert file.read() == b"secret"
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert not leftover.exists()


def test_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / "state.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        DurableFile(tmp_path / "state").replace(b"x")
    assert victim.read_bytes() == b"untouched"


def test_full_disk_leaves_the_old_content_and_no_leftover(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "state")
    file.replace(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            file.replace(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert file.read() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_directory_in_the_way_leaves_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "state" / "full").mkdir(parents=True)
    with pytest.raises(OSError):  # noqa: PT011 - EISDIR or ENOTEMPTY, as the kernel pleases
        DurableFile(tmp_path / "state").replace(b"x")
    assert os.listdir(tmp_path) == ["state"]


def test_remove_removes_the_file_and_the_leftover_and_may_be_repeated(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "state")
    file.replace(b"secret")
    (tmp_path / "state.new").write_bytes(b"another secret")
    file.remove()
    file.remove()
    assert os.listdir(tmp_path) == []
    assert file.read() is None


def test_remove_in_a_directory_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    DurableFile(tmp_path / "nowhere" / "state").remove()


# -- every point at which a call can be cut off --------------------------------------------------------------------


def _calls_of_a_replacement(path: Path) -> int:
    file = DurableFile(path)
    file.replace(b"old")
    with interrupted(10**6, crash=True) as counter:
        file.replace(b"new content")
    return len(counter.calls)


def _every_interruption(path: Path, *, crash: bool) -> Iterator[Interrupter]:
    """Interrupts ``replace(b"new content")`` over ``b"old"`` at each of its calls in turn, before and after its effect."""
    for at in range(_calls_of_a_replacement(path)):
        for after_effect in (False, True):
            DurableFile(path).replace(b"old")
            with interrupted(at, crash=crash, after_effect=after_effect) as interrupter:
                if crash:
                    DurableFile(path).replace(b"new content")
                else:
                    with pytest.raises(OSError, match="injected"):
                        DurableFile(path).replace(b"new content")
            assert interrupter.struck
            yield interrupter


def test_crash_at_any_call_leaves_old_or_new_content_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    seen = set()
    for _ in _every_interruption(path, crash=True):
        content = DurableFile(path).read()
        assert content in (b"old", b"new content")
        seen.add(content)
    assert len(seen) == 2, "interruptions before and after the rename were tried"


def test_failure_at_any_call_leaves_old_content_unless_only_the_directory_failed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for interrupter in _every_interruption(path, crash=False):
        renamed = {"rename", "replace"} & set(interrupter.calls[: interrupter.at + interrupter.after_effect])
        assert DurableFile(path).read() == (b"new content" if renamed else b"old")


def test_new_content_is_durable_before_it_is_named_and_its_name_before_return(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with interrupted(10**6, crash=True) as recorder:
        DurableFile(path).replace(b"new")
    order = [name for name in recorder.calls if name in ("write", "fsync", "replace", "rename")]
    assert order in (["write", "fsync", "replace", "fsync"], ["write", "fsync", "rename", "fsync"])


def test_what_is_read_is_made_durable(tmp_path: Path) -> None:
    """A crash between rename and fsync of the directory leaves content that a power loss would take back."""
    DurableFile(tmp_path / "state").replace(b"x")
    with interrupted(10**6, crash=True) as recorder:
        DurableFile(tmp_path / "state").read()
    assert "fsync" in recorder.calls


def test_a_removal_is_durable(tmp_path: Path) -> None:
    """What was removed and comes back when the power fails would be believed."""
    DurableFile(tmp_path / "state").replace(b"x")
    with interrupted(10**6, crash=True) as recorder:
        DurableFile(tmp_path / "state").remove()
    assert "fsync" in recorder.calls[recorder.calls.index("unlink") :]


# -- directories -----------------------------------------------------------------------------------------------------


def test_directories_are_made_with_their_mode_and_may_be_there(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    make_directory_durably(deep)
    make_directory_durably(deep)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (deep, deep.parent, deep.parent.parent)] == [0o700] * 3


def test_every_new_directory_is_made_durable_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    make_directory_durably(tmp_path / "a" / "b")
    assert {str(tmp_path), str(tmp_path / "a")} <= set(synced)

    synced.clear()
    make_directory_durably(tmp_path / "a" / "b")
    assert str(tmp_path / "a") in synced, "it may be the leftover of an interrupted call"


def test_crash_while_directories_are_made_can_be_repeated(tmp_path: Path) -> None:
    for at in range(20):
        with interrupted(at, crash=True) as interrupter:
            make_directory_durably(tmp_path / str(at) / "b" / "c")
        make_directory_durably(tmp_path / str(at) / "b" / "c")
        assert (tmp_path / str(at) / "b" / "c").is_dir()
        if not interrupter.struck:
            return
    raise AssertionError("making three directories takes more calls than expected")


def test_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        make_directory_durably(tmp_path / "a" / "b")


def test_sync_of_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "nowhere")


def test_crash_is_no_exception_that_code_may_catch_as_an_error() -> None:
    assert not issubclass(Crash, Exception)
