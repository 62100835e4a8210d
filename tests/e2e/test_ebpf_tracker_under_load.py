"""Flips, restarts and losses while the disk is written to as fast as it goes: in the end the replica is the disk."""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.change_tracker.ebpf import bpf_syscall
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind
from tests.harness.loop_disk import LoopDisk, loop_disk, pin_root
from tests.harness.replicating_agent import Replicator
from tests.harness.told_seeds import TellSeeds

pytestmark = [pytest.mark.requires("root", "loop", "ebpf", "fio")]

DISK_BYTES = 128 * 2**20
ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with loop_disk(tmp_path / "disk.img", DISK_BYTES) as made:
        yield made


@pytest.fixture
def pins() -> Iterator[Path]:
    with pin_root() as root:
        yield root / "disk"


@contextlib.contextmanager
def load(disk: LoopDisk, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """fio writing all over the disk until the context is left (or ``--io_size`` is done)."""
    command = [
        "fio", "--name=load", f"--filename={disk.device}", "--allow_file_create=0", "--refill_buffers=1", "--direct=1",
        "--rw=randwrite", "--bsrange=4k-32k", "--ioengine=libaio", "--iodepth=32", "--numjobs=2", "--thread",
        f"--output={disk.backing}.fio", *options,
    ]  # fmt: skip
    kernel = KernelCounters(disk.device.stat().st_rdev)
    before = kernel.accounted_sectors()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and kernel.accounted_sectors() == before:
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait()
        kernel.close()
        disk.wait_until_idle()


def assert_identical(disk: LoopDisk, replica: Path) -> None:
    assert filecmp.cmp(disk.backing, replica, shallow=False), "the replica differs from the disk"


def test_harvests_under_parallel_load_leave_an_identical_replica(disk: LoopDisk, tmp_path: Path) -> None:
    tracker = EbpfTracker.attach(disk.device, granularity_bytes=4096)
    with contextlib.closing(Replicator.open(tracker, disk.device, tmp_path / "replica.img")) as replicator:
        with load(disk, "--time_based", "--runtime=60"):
            kinds = [replicator.replicate_once().doubt.kind for _ in range(25)]
        replicator.replicate_until_clean()
        assert kinds[0] is DoubtKind.RESYNC
        assert DoubtKind.RESYNC not in kinds[1:]
        assert_identical(disk, tmp_path / "replica.img")


def test_a_tracker_killed_at_random_under_load_loses_nothing(
    disk: LoopDisk, pins: Path, tmp_path: Path, tell_seeds: TellSeeds
) -> None:
    seed = random.randrange(2**32)
    tell_seeds("kills of a tracker", seed)
    dice = random.Random(seed)
    command = [
        sys.executable,
        "-m",
        "tests.harness.replicating_agent",
        str(disk.device),
        str(tmp_path / "replica.img"),
        str(pins),
    ]
    with load(disk, "--time_based", "--runtime=120"):
        for life in range(8):
            agent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            assert agent.stdout is not None
            try:
                first = agent.stdout.readline().split()
                assert first[0] == ("True" if life else "False")
                assert first[1] == "none" or first[1] == ("redirtied" if life else "resync")
                for _ in range(dice.randrange(6)):
                    assert agent.stdout.readline().split()[1] != "resync"
            finally:
                agent.send_signal(signal.SIGKILL)
                agent.wait()
                agent.stdout.close()
    tracker = EbpfTracker.attach(disk.device, granularity_bytes=4096, pin_directory=pins)
    with contextlib.closing(Replicator.open(tracker, disk.device, tmp_path / "replica.img")) as replicator:
        assert tracker.continued
        replicator.replicate_until_clean()
        assert_identical(disk, tmp_path / "replica.img")
        tracker.discard()
    assert not pins.exists()


def test_lost_completions_are_noticed_and_all_that_they_can_concern_is_dirty_again(
    disk: LoopDisk, tmp_path: Path
) -> None:
    """The completion program is detached for a while: exactly what a kernel that skips runs looks like."""
    tracker = EbpfTracker.attach(disk.device, granularity_bytes=4096)
    with contextlib.closing(Replicator.open(tracker, disk.device, tmp_path / "replica.img")) as replicator:
        replicator.replicate_once()
        descriptors = tracker._objects.descriptors
        doubts = []
        with load(disk, "--time_based", "--runtime=60", "--iodepth=4", "--rate_iops=2000"):
            for _ in range(4):
                os.close(descriptors["link_complete"])
                doubts.append(replicator.replicate_once().doubt.kind)
                descriptors["link_complete"] = bpf_syscall.attach_tracing(descriptors["program_complete"])
                doubts.append(replicator.replicate_once().doubt.kind)
        replicator.replicate_until_clean()
        assert DoubtKind.REDIRTIED in doubts
        assert DoubtKind.RESYNC not in doubts
        assert tracker.statistics().sectors_lost_completions > 0
        assert_identical(disk, tmp_path / "replica.img")


def test_a_loss_of_both_marks_demands_a_resync(disk: LoopDisk, tmp_path: Path) -> None:
    tracker = EbpfTracker.attach(disk.device, granularity_bytes=4096)
    with contextlib.closing(Replicator.open(tracker, disk.device, tmp_path / "replica.img")) as replicator:
        replicator.replicate_once()
        descriptors = tracker._objects.descriptors
        for name in ("issue", "complete"):
            os.close(descriptors[f"link_{name}"])
        with load(disk, "--io_size=2M") as writer:
            writer.wait()
        for name in ("issue", "complete"):
            descriptors[f"link_{name}"] = bpf_syscall.attach_tracing(descriptors[f"program_{name}"])
        assert tracker.wrote_since_flip()
        assert not tracker.is_idle()
        harvest = replicator.replicate_once()
        assert harvest.doubt.kind is DoubtKind.RESYNC
        replicator.replicate_until_clean()
        assert_identical(disk, tmp_path / "replica.img")


def test_lost_issues_alone_are_no_doubt(disk: LoopDisk, tmp_path: Path) -> None:
    """Their completions marked them after the data had landed."""
    tracker = EbpfTracker.attach(disk.device, granularity_bytes=4096)
    with contextlib.closing(Replicator.open(tracker, disk.device, tmp_path / "replica.img")) as replicator:
        replicator.replicate_once()
        descriptors = tracker._objects.descriptors
        os.close(descriptors["link_issue"])
        with load(disk, "--io_size=2M") as writer:
            writer.wait()
        descriptors["link_issue"] = bpf_syscall.attach_tracing(descriptors["program_issue"])
        assert replicator.replicate_once().doubt.kind in (DoubtKind.NONE, DoubtKind.REDIRTIED)
        replicator.replicate_until_clean()
        assert tracker.statistics().sectors_lost_issues > 0
        assert_identical(disk, tmp_path / "replica.img")
