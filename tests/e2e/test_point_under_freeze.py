"""Tracker and freeze together: the replica equals the disk at the cut, byte by byte, while writers never stop (R9).

Compared while frozen, since that is the cut. Two writers sync after every few kilobytes; a third one discards.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind
from mobility_agent.quiesce.file_systems import file_systems_on
from mobility_agent.quiesce.freeze_guard import FreezeGuard
from tests.harness.loop_disk import loop_disk, mounted, run
from tests.harness.replicating_agent import Replicator

pytestmark = [pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4", "mkfs.xfs")]

SIZE = 320 * 2**20
BUDGET_S = 60.0


@contextlib.contextmanager
def busy_writers(mount_point: Path) -> Iterator[None]:
    stop = threading.Event()
    rounds = [0, 0, 0]

    def sync_often(seed: int) -> None:
        dice = random.Random(seed)
        with (mount_point / f"file{seed}").open("w+b", buffering=0) as stream:
            while not stop.is_set():
                stream.seek(dice.randrange(2000) * 4096)
                stream.write(dice.randbytes(dice.randint(1, 20000)))
                os.fsync(stream.fileno())
                rounds[seed] += 1

    def create_and_delete() -> None:
        while not stop.is_set():
            path = mount_point / "short-lived"
            path.write_bytes(os.urandom(300_000))
            os.sync()
            path.unlink()
            rounds[2] += 1

    writers = [threading.Thread(target=sync_often, args=(seed,)) for seed in range(2)]
    writers.append(threading.Thread(target=create_and_delete))
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        assert all(rounds), "a writer never wrote"


@pytest.mark.parametrize("make", [("mkfs.ext4", "-q"), ("mkfs.xfs", "-q")], ids=["ext4", "xfs"])
def test_points_equal_the_disk_at_the_cut(tmp_path: Path, make: tuple[str, ...]) -> None:
    replica = tmp_path / "replica.img"
    with contextlib.ExitStack() as opened:
        disk = opened.enter_context(loop_disk(tmp_path / "disk.img", SIZE))
        run(*make, disk.device)
        mount_point = opened.enter_context(mounted(disk.device, tmp_path / "mnt", "discard"))
        guard = opened.enter_context(FreezeGuard())
        tracker = EbpfTracker.attach(disk.device, granularity_bytes=4096)
        replicator = opened.enter_context(contextlib.closing(Replicator.open(tracker, disk.device, replica)))
        mounts = file_systems_on([disk.device])
        points = 0
        with busy_writers(mount_point):
            replicator.replicate_once()
            for _ in range(6):
                for _ in range(3):
                    replicator.replicate_once()
                with guard.frozen(mounts, BUDGET_S) as freeze:
                    harvest = replicator.replicate_once()
                    is_quiet = not tracker.wrote_since_flip()
                    is_identical = filecmp.cmp(disk.backing, replica, shallow=False)
                assert freeze.result is not None
                if freeze.result.is_point and is_quiet and harvest.doubt.kind is not DoubtKind.RESYNC:
                    assert is_identical
                    points += 1
        assert points > 0
