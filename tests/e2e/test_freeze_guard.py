"""Freezing real file systems: what is frozen is thawed, whoever dies, and it is a point only if nobody interfered."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobility_agent.quiesce import watchdog
from mobility_agent.quiesce.file_systems import file_systems_on
from mobility_agent.quiesce.freeze_guard import FreezeGuard
from mobility_agent.quiesce.freeze_record import FreezeRecord
from mobility_agent.quiesce.interface import Mount
from mobility_agent.quiesce.locked_memory import LockedBuffer
from replication.errors import Conflict, InvalidInput, NotFound, Refused, Unsupported
from tests.harness.loop_disk import LoopDisk, loop_disk, mounted, run
from tests.harness.memory_group import memory_group
from tests.harness.waiting import has_ended, wait_until

pytestmark = [pytest.mark.requires("root", "loop", "mount", "mkfs.ext4", "mkfs.xfs")]

GENEROUS_S = 60.0
LATENESS_S = 5.0
"""Of a watchdog on a busy machine."""
ROOT = Path(__file__).parents[2]
MAKE = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q")}


@contextlib.contextmanager
def file_system(directory: Path, kind: str, name: str = "disk") -> Iterator[tuple[LoopDisk, Path]]:
    with loop_disk(directory / f"{name}.img", 320 * 2**20) as disk:
        run(*MAKE[kind], disk.device)
        with mounted(disk.device, directory / f"{name}.mnt") as mount_point:
            yield disk, mount_point


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def any_kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[LoopDisk, Path]]:
    with file_system(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[tuple[LoopDisk, Path]]:
    with file_system(tmp_path, "ext4") as made:
        yield made


@pytest.fixture
def guard() -> Iterator[FreezeGuard]:
    with FreezeGuard() as started:
        yield started


class Writer:
    """A thread that writes and syncs one file; ``is_blocked`` when the kernel has put it to sleep over it."""

    def __init__(self, mount_point: Path) -> None:
        self._path = mount_point / "written"
        self._identifier = 0
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()
        wait_until(lambda: self._identifier != 0)

    def _write(self) -> None:
        self._identifier = threading.get_native_id()
        with self._path.open("wb") as stream:
            stream.write(b"x" * 100_000)
            stream.flush()
            os.fsync(stream.fileno())
        self.done.set()

    def is_blocked(self) -> bool:
        state = Path(f"/proc/self/task/{self._identifier}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "D" and not self.done.is_set()


def can_write(mount_point: Path) -> bool:
    return Writer(mount_point).done.wait(20)


def is_frozen(mount_point: Path) -> bool:
    """FIFREEZE says EBUSY; if it does not, the freeze of this very question is undone."""
    descriptor = os.open(mount_point, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, watchdog.FIFREEZE, 0)
    except OSError:
        return True
    else:
        fcntl.ioctl(descriptor, watchdog.FITHAW, 0)
        return False
    finally:
        os.close(descriptor)


def test_a_frozen_file_system_blocks_writers_until_the_thaw(
    any_kind: tuple[LoopDisk, Path], guard: FreezeGuard
) -> None:
    disk, mount_point = any_kind
    mounts = file_systems_on([disk.device])
    assert [mount.mount_point for mount in mounts] == [str(mount_point)]
    with guard.frozen(mounts, GENEROUS_S) as freeze:
        writer = Writer(mount_point)
        wait_until(writer.is_blocked)
        assert 0 < freeze.remaining_s() <= GENEROUS_S
        result_inside = freeze.result
    assert result_inside is None
    assert writer.done.wait(20)
    assert freeze.result is not None
    assert freeze.result.is_point
    assert freeze.result.problem == ""
    assert freeze.result.duration_s > 0


def test_the_watchdog_thaws_at_the_end_of_the_budget(ext4: tuple[LoopDisk, Path], guard: FreezeGuard) -> None:
    disk, mount_point = ext4
    with guard.frozen(file_systems_on([disk.device]), 0.2) as freeze:
        assert can_write(mount_point)
    assert freeze.result is not None
    assert not freeze.result.is_point
    assert "longer than its budget" in freeze.result.problem


def test_a_thaw_by_someone_else_makes_it_no_point(ext4: tuple[LoopDisk, Path], guard: FreezeGuard) -> None:
    disk, mount_point = ext4
    with guard.frozen(file_systems_on([disk.device]), GENEROUS_S) as freeze:
        run("fsfreeze", "--unfreeze", mount_point)
    assert freeze.result is not None
    assert not freeze.result.is_point
    assert str(mount_point) in freeze.result.problem


def test_an_error_inside_thaws(ext4: tuple[LoopDisk, Path], guard: FreezeGuard) -> None:
    disk, mount_point = ext4
    with pytest.raises(ZeroDivisionError), guard.frozen(file_systems_on([disk.device]), GENEROUS_S):
        raise ZeroDivisionError
    assert can_write(mount_point)


FREEZING_AGENT = """
import os
import sys
from pathlib import Path
from mobility_agent.quiesce.file_systems import file_systems_on
from mobility_agent.quiesce.freeze_guard import FreezeGuard
from mobility_agent.quiesce.freeze_record import FreezeRecord
guard = FreezeGuard(FreezeRecord(Path(sys.argv[3])))
guard.start()
with guard.frozen(file_systems_on([Path(sys.argv[1])]), float(sys.argv[2])):
    sys.stdout.write(f"{guard.watchdog_process_id}\\n")
    sys.stdout.flush()
    hoards = sys.stdin.readline() == "hoard\\n"
    hoarded = [os.urandom(2**20) for _ in range(1024) if hoards]
"""


@contextlib.contextmanager
def freezing_agent(disk: LoopDisk, budget_s: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """An agent of its own that holds the file systems of ``disk`` frozen, and its watchdog's process id."""
    agent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            FREEZING_AGENT,
            str(disk.device),
            str(budget_s),
            str(disk.backing.with_suffix(".frozen")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with agent:
        try:
            assert agent.stdout is not None
            yield agent, int(agent.stdout.readline())
        finally:
            agent.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_agent_killed_while_frozen_leaves_nothing_frozen(
    ext4: tuple[LoopDisk, Path], number: signal.Signals
) -> None:
    disk, mount_point = ext4
    with freezing_agent(disk, GENEROUS_S) as (agent, process_id):
        assert is_frozen(mount_point)
        agent.send_signal(number)
        agent.wait()
    wait_until(lambda: not is_frozen(mount_point))
    wait_until(lambda: not Path(f"/proc/{process_id}").exists())


@pytest.mark.requires("memory-group")
def test_an_agent_killed_for_its_memory_while_frozen_leaves_nothing_frozen(ext4: tuple[LoopDisk, Path]) -> None:
    """As with ``MemoryMax=`` on the unit: the watchdog is in the group that has no memory left, and thaws."""
    disk, mount_point = ext4
    with memory_group(128 * 2**20) as members, freezing_agent(disk, GENEROUS_S) as (agent, watchdog_id):
        for process_id in (agent.pid, watchdog_id):
            members.write_text(str(process_id))
        assert is_frozen(mount_point)
        assert agent.stdin is not None
        agent.stdin.write("hoard\n")
        agent.stdin.flush()
        assert agent.wait(GENEROUS_S) == -signal.SIGKILL
        wait_until(lambda: not is_frozen(mount_point))
        wait_until(lambda: not Path(f"/proc/{watchdog_id}").exists())


def test_a_stopped_agent_is_frozen_no_longer_than_its_budget(ext4: tuple[LoopDisk, Path]) -> None:
    """It neither runs nor dies: only the watchdog is left to thaw."""
    disk, mount_point = ext4
    with freezing_agent(disk, 1.5) as (agent, process_id):
        agent.send_signal(signal.SIGSTOP)
        started_s = time.monotonic()
        assert can_write(mount_point)
        assert time.monotonic() - started_s < 1.5 + LATENESS_S
        assert Path(f"/proc/{process_id}").exists()


def test_a_watchdog_killed_while_frozen_is_noticed_and_the_agent_thaws(
    ext4: tuple[LoopDisk, Path], guard: FreezeGuard
) -> None:
    disk, mount_point = ext4
    first = guard.watchdog_process_id
    assert first is not None
    with guard.frozen(file_systems_on([disk.device]), GENEROUS_S) as freeze:
        os.kill(first, signal.SIGKILL)
    assert freeze.result is not None
    assert freeze.result.is_point
    assert not is_frozen(mount_point)
    with guard.frozen(file_systems_on([disk.device]), GENEROUS_S) as freeze:
        assert guard.watchdog_process_id not in (None, first)
    assert freeze.result is not None
    assert freeze.result.is_point


def test_a_watchdog_killed_before_is_replaced_before_anything_is_frozen(
    ext4: tuple[LoopDisk, Path], guard: FreezeGuard
) -> None:
    disk, mount_point = ext4
    first = guard.watchdog_process_id
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: has_ended(first))
    with guard.frozen(file_systems_on([disk.device]), 0.2) as freeze:
        assert can_write(mount_point), "the new watchdog thaws"
    assert freeze.result is not None
    assert not freeze.result.is_point


def test_once_the_watchdog_is_gone_no_time_is_left_and_it_is_no_point(
    ext4: tuple[LoopDisk, Path], guard: FreezeGuard
) -> None:
    disk, mount_point = ext4
    process_id = guard.watchdog_process_id
    assert process_id is not None
    with guard.frozen(file_systems_on([disk.device]), GENEROUS_S) as freeze:
        assert freeze.remaining_s() > 0
        os.kill(process_id, signal.SIGKILL)
        wait_until(lambda: freeze.remaining_s() <= 0)
    assert not is_frozen(mount_point)
    assert freeze.result is not None
    assert not freeze.result.is_point
    assert freeze.result.problem == "the freeze watchdog was gone: thawed at once"
    assert freeze.result.duration_s < GENEROUS_S


def test_what_a_killed_agent_and_its_killed_watchdog_left_frozen_is_thawed_by_the_next_start_once(
    ext4: tuple[LoopDisk, Path], tmp_path: Path
) -> None:
    disk, mount_point = ext4
    record = disk.backing.with_suffix(".frozen")
    with freezing_agent(disk, 1.0) as (agent, process_id):
        os.kill(process_id, signal.SIGKILL)
        agent.kill()
        agent.wait()
        wait_until(lambda: has_ended(process_id))
    assert is_frozen(mount_point)
    assert FreezeGuard(FreezeRecord(tmp_path / "of another agent")).thaw_left() == []
    assert is_frozen(mount_point)
    assert FreezeGuard(FreezeRecord(record)).thaw_left() == [str(mount_point)]
    assert not is_frozen(mount_point)
    assert_left_to_others(mount_point, record)


def assert_left_to_others(mount_point: Path, record: Path) -> None:
    """What somebody else freezes now is not thawed by an agent's start."""
    run("fsfreeze", "--freeze", mount_point)
    try:
        assert FreezeGuard(FreezeRecord(record)).thaw_left() == []
        assert is_frozen(mount_point)
    finally:
        run("fsfreeze", "--unfreeze", mount_point)


def test_the_watchdog_leaves_nothing_to_the_next_start(ext4: tuple[LoopDisk, Path]) -> None:
    disk, mount_point = ext4
    with freezing_agent(disk, GENEROUS_S) as (agent, process_id):
        agent.kill()
        agent.wait()
        wait_until(lambda: has_ended(process_id))
    assert not is_frozen(mount_point)
    assert_left_to_others(mount_point, disk.backing.with_suffix(".frozen"))


def test_an_agent_that_ended_well_leaves_nothing_to_the_next_start(ext4: tuple[LoopDisk, Path], tmp_path: Path) -> None:
    disk, mount_point = ext4
    record = tmp_path / "record"
    with FreezeGuard(FreezeRecord(record)) as guard:
        with guard.frozen(file_systems_on([disk.device]), GENEROUS_S):
            assert [mount.mount_point for mount in FreezeRecord(record).left()] == [str(mount_point)]
        assert_left_to_others(mount_point, record)
    assert not record.exists()


def test_what_cannot_be_recorded_is_not_frozen(ext4: tuple[LoopDisk, Path], tmp_path: Path) -> None:
    disk, mount_point = ext4
    nowhere = FreezeRecord(tmp_path / "none" / "none" / "record")
    with (
        FreezeGuard(nowhere) as guard,
        pytest.raises(Refused, match="no record of it can be kept"),
        guard.frozen(file_systems_on([disk.device]), GENEROUS_S),
    ):
        pytest.fail("it was entered")
    assert not is_frozen(mount_point)


def test_what_someone_else_has_frozen_is_left_frozen_and_the_rest_thawed(tmp_path: Path, guard: FreezeGuard) -> None:
    with (
        file_system(tmp_path, "ext4", "one") as (one, one_mount),
        file_system(tmp_path, "xfs", "two") as (two, two_mount),
    ):
        mounts = sorted(file_systems_on([one.device, two.device]), key=lambda mount: mount.mount_point)
        run("fsfreeze", "--freeze", two_mount)
        try:
            with pytest.raises(Conflict, match="frozen by someone else"), guard.frozen(mounts, GENEROUS_S):
                pytest.fail("it was entered")
            assert is_frozen(two_mount)
            assert not is_frozen(one_mount)
        finally:
            run("fsfreeze", "--unfreeze", two_mount)


def test_what_cannot_be_frozen_is_named_and_the_rest_thawed(
    ext4: tuple[LoopDisk, Path], guard: FreezeGuard, tmp_path: Path
) -> None:
    disk, mount_point = ext4
    memory = tmp_path / "memory"
    memory.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", memory)
    try:
        number = memory.stat().st_dev
        other = Mount(str(memory), "tmpfs", "tmpfs", (os.major(number), os.minor(number)))
        with (
            pytest.raises(Unsupported, match="tmpfs on"),
            guard.frozen([*file_systems_on([disk.device]), other], GENEROUS_S),
        ):
            pytest.fail("it was entered")
        assert not is_frozen(mount_point)
    finally:
        run("umount", memory)


def test_a_file_system_inside_another_one_is_frozen_first(tmp_path: Path, guard: FreezeGuard) -> None:
    with file_system(tmp_path, "ext4", "outer") as (outer, outer_mount):
        inner_image = outer_mount / "inner.img"
        with loop_disk(inner_image, 64 * 2**20) as inner:
            run("mkfs.ext4", "-q", inner.device)
            with mounted(inner.device, tmp_path / "inner.mnt") as inner_mount:
                (inner_mount / "file").write_bytes(b"y" * 10_000_000)
                mounts = file_systems_on([outer.device, inner.device])
                assert [mount.mount_point for mount in mounts] == [str(inner_mount), str(outer_mount)]
                with guard.frozen(mounts, GENEROUS_S) as freeze:
                    pass
    assert freeze.result is not None
    assert freeze.result.is_point


def test_a_mount_point_that_shows_another_file_system_is_refused(tmp_path: Path, guard: FreezeGuard) -> None:
    with file_system(tmp_path, "ext4", "lower") as (lower, mount_point), loop_disk(tmp_path / "u.img", 2**26) as upper:
        run("mkfs.ext4", "-q", upper.device)
        with (
            mounted(upper.device, mount_point),
            pytest.raises(Conflict, match="mounted over"),
            guard.frozen(file_systems_on([lower.device]), GENEROUS_S),
        ):
            pytest.fail("it was entered")


def test_a_mount_that_is_gone_and_a_budget_that_is_none_are_refused(guard: FreezeGuard, tmp_path: Path) -> None:
    gone = Mount(str(tmp_path / "gone"), "ext4", "/dev/none", (1, 1))
    with pytest.raises(NotFound), guard.frozen([gone], 1.0):
        pytest.fail("it was entered")
    with pytest.raises(InvalidInput), guard.frozen([], 0.0):
        pytest.fail("it was entered")
    with guard.frozen([], 1.0) as freeze:
        pass
    assert freeze.result is not None
    assert freeze.result.is_point


def test_disks_without_file_systems_have_nothing_to_freeze(tmp_path: Path) -> None:
    with loop_disk(tmp_path / "raw.img", 2**24) as disk:
        assert file_systems_on([disk.device]) == []


def test_a_locked_buffer_is_locked_while_it_is_open() -> None:
    def locked_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmLck:")[1].split()[0])

    before = locked_kib()
    with LockedBuffer(2**20) as buffer:
        assert locked_kib() == before + 1024
        buffer.view[:4] = b"abcd"
        assert len(buffer.view) == 2**20
    assert locked_kib() == before
    with pytest.raises(InvalidInput):
        LockedBuffer(1000)
