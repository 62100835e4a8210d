"""Requests in flight, made to order: the loop device's backing file lies on a file system that the test freezes, so a write
to the loop device is issued and stays in flight until the thaw. What R3 is about, without luck."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mobility_agent.change_tracker.ebpf import bpf_syscall
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind
from tests.harness.loop_disk import LoopDisk, loop_disk, mounted, pin_root, run
from tests.harness.waiting import wait_until

pytestmark = [pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4")]

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
GRANULE = 65536
IN_FLIGHT_GRANULE = 7


@dataclass
class Stage:
    disk: LoopDisk
    mount_point: Path

    def kernel_writes_in_flight(self) -> int:
        return int(Path(f"/sys/block/{self.disk.name}/inflight").read_text().split()[1])

    @contextlib.contextmanager
    def write_in_flight(self) -> Iterator[Callable[[], None]]:
        """A direct write of 4 KiB is in flight; calling the value lets it land and complete."""
        directory = os.open(self.mount_point, os.O_RDONLY)
        target = os.open(self.disk.device, os.O_RDWR | os.O_DIRECT)
        fcntl.ioctl(directory, FIFREEZE, 0)
        frozen = True

        def write() -> None:
            with mmap.mmap(-1, 4096) as memory:
                memory.write(b"x" * 4096)
                os.pwrite(target, memory, IN_FLIGHT_GRANULE * GRANULE)

        writer = threading.Thread(target=write)

        def land() -> None:
            nonlocal frozen
            if frozen:
                frozen = False
                fcntl.ioctl(directory, FITHAW, 0)
            writer.join()

        try:
            writer.start()
            wait_until(lambda: self.kernel_writes_in_flight() == 1)
            yield land
        finally:
            land()
            os.close(directory)
            os.close(target)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with loop_disk(tmp_path / "outer.img", 64 * 2**20) as outer:
        run("mkfs.ext4", "-q", outer.device)
        with (
            mounted(outer.device, tmp_path / "mnt") as mount_point,
            loop_disk(mount_point / "disk.img", 16 * 2**20) as disk,
        ):
            yield Stage(disk, mount_point)


@pytest.fixture
def tracker(stage: Stage) -> Iterator[EbpfTracker]:
    with contextlib.closing(EbpfTracker.attach(stage.disk.device, granularity_bytes=GRANULE)) as attached:
        attached.begin_harvest()
        attached.commit_harvest()
        yield attached


def harvested(tracker: EbpfTracker) -> tuple[list[tuple[int, int]], DoubtKind]:
    harvest = tracker.begin_harvest()
    tracker.commit_harvest()
    return list(harvest.bitmap.runs()), harvest.doubt.kind


def test_a_write_in_flight_at_the_flip_is_in_both_harvests(stage: Stage, tracker: EbpfTracker) -> None:
    with stage.write_in_flight() as land:
        assert harvested(tracker) == ([(IN_FLIGHT_GRANULE, 1)], DoubtKind.NONE)
        assert tracker.wrote_since_flip()
        assert not tracker.is_idle()
        land()
        wait_until(tracker.is_idle)
        assert tracker.wrote_since_flip()
        assert harvested(tracker) == ([(IN_FLIGHT_GRANULE, 1)], DoubtKind.NONE)
        assert not tracker.wrote_since_flip()
        assert harvested(tracker) == ([], DoubtKind.NONE)


def test_a_write_in_flight_whose_completion_is_lost_is_dirty_again(stage: Stage, tracker: EbpfTracker) -> None:
    descriptors = tracker._objects.descriptors
    with stage.write_in_flight() as land:
        assert harvested(tracker) == ([(IN_FLIGHT_GRANULE, 1)], DoubtKind.NONE)
        assert harvested(tracker) == ([], DoubtKind.NONE)
        os.close(descriptors["link_complete"])
        land()
        wait_until(lambda: stage.kernel_writes_in_flight() == 0)
        descriptors["link_complete"] = bpf_syscall.attach_tracing(descriptors["program_complete"])
        assert tracker.wrote_since_flip()
        assert not tracker.is_idle()
        assert harvested(tracker) == ([(IN_FLIGHT_GRANULE, 1)], DoubtKind.REDIRTIED)
        assert tracker.is_idle()
        assert harvested(tracker) == ([], DoubtKind.NONE)


def test_the_suspicion_outlives_the_agent(stage: Stage) -> None:
    """Killed with a request in flight, whose completion is then lost: the next life finds the suspects with the pins."""
    with pin_root() as root:
        first = EbpfTracker.attach(stage.disk.device, granularity_bytes=GRANULE, pin_directory=root / "disk")
        first.begin_harvest()
        first.commit_harvest()
        with stage.write_in_flight() as land:
            assert harvested(first) == ([(IN_FLIGHT_GRANULE, 1)], DoubtKind.NONE)
            first.close()
            link = root / "disk" / "link_complete"
            link.unlink()
            land()
            second_program = bpf_syscall.get_pinned(root / "disk" / "program_complete")
            descriptor = bpf_syscall.attach_tracing(second_program)
            bpf_syscall.pin(descriptor, link)
            os.close(descriptor)
            os.close(second_program)
            second = EbpfTracker.attach(stage.disk.device, granularity_bytes=GRANULE, pin_directory=root / "disk")
            assert second.continued
            assert harvested(second) == ([(IN_FLIGHT_GRANULE, 1)], DoubtKind.REDIRTIED)
            second.discard()


def test_tracking_that_begins_with_a_write_in_flight_finds_its_base_at_the_first_rest(stage: Stage) -> None:
    with (
        stage.write_in_flight() as land,
        contextlib.closing(EbpfTracker.attach(stage.disk.device, granularity_bytes=GRANULE)) as tracker,
    ):
        assert not tracker.is_idle()
        assert harvested(tracker) == ([], DoubtKind.RESYNC)
        land()
        wait_until(lambda: stage.kernel_writes_in_flight() == 0)
        runs, doubt = harvested(tracker)
        assert runs == [(IN_FLIGHT_GRANULE, 1)]
        assert doubt is not DoubtKind.RESYNC
        assert tracker.is_idle()
        assert harvested(tracker) == ([], DoubtKind.NONE)
        assert not tracker.wrote_since_flip()
