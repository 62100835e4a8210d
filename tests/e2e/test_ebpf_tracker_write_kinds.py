"""Every kind of write that reaches a disk is marked: the bitmap held against a byte-by-byte comparison of the backing file.

Each kind runs on a fresh baseline; the harvest must hold every granule that differs, and the account with the kernel must be
exact afterwards, so that a loss could not have hidden behind an unlucky comparison.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind, TrackerState
from tests.harness.loop_disk import LoopDisk, changed_granules, copy_file, loop_disk, mounted, run

pytestmark = [pytest.mark.requires("root", "loop", "mount", "ebpf")]

DISK_BYTES = 320 * 2**20
FILLED_BYTES = 128 * 2**20


@dataclass
class Scene:
    disk: LoopDisk
    directory: Path
    random: random.Random
    granularity_bytes: int
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def mount(self, options: str = "defaults") -> Path:
        return self.opened.enter_context(mounted(self.disk.device, self.directory / "mnt", options))


Prepare = Callable[[Scene], None]
Write = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    pass


def fill_device(scene: Scene) -> None:
    with scene.disk.device.open("r+b") as stream:
        for _ in range(FILLED_BYTES // 2**20):
            stream.write(scene.random.randbytes(2**20))
        os.fsync(stream.fileno())


def make_ext4(scene: Scene) -> None:
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", scene.disk.device)


def make_xfs(scene: Scene) -> None:
    run("mkfs.xfs", "-q", "-f", scene.disk.device)


def make_btrfs(scene: Scene) -> None:
    run("mkfs.btrfs", "-q", "-f", scene.disk.device)


def mounted_ext4(scene: Scene) -> None:
    make_ext4(scene)
    scene.mount()


def mounted_ext4_with_files(scene: Scene) -> None:
    make_ext4(scene)
    write_files(scene, scene.mount("discard"))


def mounted_xfs_with_files(scene: Scene) -> None:
    make_xfs(scene)
    write_files(scene, scene.mount("discard"))


def mounted_btrfs(scene: Scene) -> None:
    make_btrfs(scene)
    scene.mount()


def write_files(scene: Scene, root: Path, count: int = 60) -> None:
    for number in range(count):
        (root / f"file{number}").write_bytes(scene.random.randbytes(scene.random.randint(1, 600_000)))
    os.sync()


def direct_writes(scene: Scene) -> None:
    descriptor = os.open(scene.disk.device, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 2**20) as memory, memoryview(memory) as view:
        for _ in range(300):
            length = scene.random.choice([512, 1024, 4096, 65536, 2**20])
            view[:length] = scene.random.randbytes(length)
            os.pwrite(descriptor, view[:length], scene.random.randrange(DISK_BYTES - length) // 512 * 512)
    os.close(descriptor)


def buffered_writes(scene: Scene) -> None:
    descriptor = os.open(scene.disk.device, os.O_RDWR)
    for _ in range(300):
        data = scene.random.randbytes(scene.random.randint(1, 200_000))
        os.pwrite(descriptor, data, scene.random.randrange(DISK_BYTES - len(data)))
    os.fsync(descriptor)
    os.close(descriptor)


def synchronous_writes(scene: Scene) -> None:
    descriptor = os.open(scene.disk.device, os.O_RDWR | os.O_DSYNC)
    for _ in range(100):
        os.pwrite(descriptor, scene.random.randbytes(5000), scene.random.randrange(DISK_BYTES - 5000))
    os.close(descriptor)


def discards(scene: Scene) -> None:
    run("blkdiscard", "-o", str(5 * 2**20 + 4096), "-l", str(100 * 2**20), scene.disk.device)
    for _ in range(20):
        run(
            "blkdiscard",
            "-o",
            str(scene.random.randrange(DISK_BYTES // 4096 - 10) * 4096),
            "-l",
            "8192",
            scene.disk.device,
        )


def discard_of_everything(scene: Scene) -> None:
    run("blkdiscard", scene.disk.device)


def write_zeroes(scene: Scene) -> None:
    run("blkdiscard", "-z", "-o", str(7 * 4096), "-l", str(90 * 2**20), scene.disk.device)
    run("fallocate", "-z", "-o", str(100 * 2**20 + 8192), "-l", "1048576", scene.disk.device)
    run("fallocate", "-p", "-o", str(120 * 2**20), "-l", "1048576", scene.disk.device)


def file_writes(scene: Scene) -> None:
    write_files(scene, scene.directory / "mnt", 80)


def memory_mapped_writes(scene: Scene) -> None:
    path = scene.directory / "mnt" / "mapped"
    with path.open("w+b") as stream:
        stream.truncate(64 * 2**20)
        with mmap.mmap(stream.fileno(), 0) as memory:
            for _ in range(400):
                at = scene.random.randrange(len(memory) - 100)
                memory[at : at + 100] = scene.random.randbytes(100)
            memory.flush()
    os.sync()


def unlink_with_online_discard(scene: Scene) -> None:
    for number in range(0, 60, 2):
        (scene.directory / "mnt" / f"file{number}").unlink()
    os.sync()


def unlink_and_trim(scene: Scene) -> None:
    for number in range(1, 60, 2):
        (scene.directory / "mnt" / f"file{number}").unlink()
    os.sync()
    run("fstrim", scene.directory / "mnt")


def database_transactions(scene: Scene) -> None:
    with contextlib.closing(sqlite3.connect(scene.directory / "mnt" / "ledger.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE ledger (id INTEGER PRIMARY KEY, payload BLOB)")
        for _ in range(200):
            with database:
                database.execute("INSERT INTO ledger (payload) VALUES (?)", (scene.random.randbytes(700),))
    os.sync()


def fio(scene: Scene, *options: str) -> None:
    run("fio", "--name=job", f"--filename={scene.disk.device}", "--allow_file_create=0", "--refill_buffers=1",
        f"--randseed={scene.random.randrange(2**31)}", *options)  # fmt: skip


def parallel_random_writes(scene: Scene) -> None:
    fio(scene, "--rw=randwrite", "--bsrange=4k-64k", "--ioengine=libaio", "--iodepth=32", "--direct=1", "--numjobs=3",
        "--io_size=60M")  # fmt: skip


def merged_sequential_writes(scene: Scene) -> None:
    """Small sequential bios under one plug: the driver sees far fewer, merged requests."""
    before = int(Path(f"/sys/block/{scene.disk.name}/stat").read_text().split()[5])
    fio(scene, "--rw=write", "--bs=4k", "--ioengine=libaio", "--iodepth=64", "--iodepth_batch_submit=64",
        "--iodepth_batch_complete_min=64", "--direct=1", "--io_size=128M")  # fmt: skip
    merges = int(Path(f"/sys/block/{scene.disk.name}/stat").read_text().split()[5]) - before
    assert merges > 1000, f"the writes were to be merged, {merges} were"


def buffered_sequential_writes(scene: Scene) -> None:
    fio(scene, "--rw=write", "--bs=128k", "--ioengine=psync", "--numjobs=2", "--end_fsync=1", "--io_size=100M")


KINDS: list[tuple[str, Prepare, Write]] = [
    ("direct writes", nothing, direct_writes),
    ("buffered writes", nothing, buffered_writes),
    ("synchronous writes", nothing, synchronous_writes),
    ("discards", fill_device, discards),
    ("discard of everything", fill_device, discard_of_everything),
    ("write zeroes", fill_device, write_zeroes),
    ("mkfs.ext4", fill_device, make_ext4),
    ("mkfs.xfs", fill_device, make_xfs),
    ("mkfs.btrfs", nothing, make_btrfs),
    ("files on ext4", mounted_ext4, file_writes),
    ("files on xfs", mounted_xfs_with_files, file_writes),
    ("files on btrfs", mounted_btrfs, file_writes),
    ("memory-mapped file", mounted_ext4, memory_mapped_writes),
    ("unlink with online discard on ext4", mounted_ext4_with_files, unlink_with_online_discard),
    ("unlink with online discard on xfs", mounted_xfs_with_files, unlink_with_online_discard),
    ("unlink and fstrim", mounted_ext4_with_files, unlink_and_trim),
    ("database transactions", mounted_ext4, database_transactions),
    ("parallel random writes", nothing, parallel_random_writes),
    ("merged sequential writes", nothing, merged_sequential_writes),
    ("buffered sequential writes", nothing, buffered_sequential_writes),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with loop_disk(tmp_path / "disk.img", DISK_BYTES) as made:
        yield made


@pytest.mark.requires("fio", "mkfs.xfs", "mkfs.btrfs", "fstrim")
@pytest.mark.parametrize(
    ("prepare", "write", "granularity_bytes"),
    [pytest.param(*kind[1:], 4096, id=kind[0]) for kind in KINDS]
    + [pytest.param(*kind[1:], 65536, id=f"{kind[0]}, 64 KiB granules") for kind in KINDS[:6]],
)
def test_every_changed_granule_is_in_the_harvest(
    prepare: Prepare, write: Write, granularity_bytes: int, disk: LoopDisk, tmp_path: Path
) -> None:
    scene = Scene(disk, tmp_path, random.Random(granularity_bytes), granularity_bytes)
    with (
        scene.opened,
        contextlib.closing(EbpfTracker.attach(disk.device, granularity_bytes=granularity_bytes)) as tracker,
    ):
        prepare(scene)
        os.sync()
        disk.wait_until_idle()
        tracker.begin_harvest()
        tracker.commit_harvest()
        copy_file(disk.backing, tmp_path / "before.img")

        write(scene)
        os.sync()
        disk.wait_until_idle()

        harvest = tracker.begin_harvest()
        changed = changed_granules(tmp_path / "before.img", disk.backing, tracker.geometry)
        missed = [granule for granule in changed.tolist() if granule not in harvest.bitmap]
        assert missed == []
        assert len(changed) > 0
        assert harvest.doubt.kind is not DoubtKind.RESYNC
        assert tracker.status().state is TrackerState.TRACKING
        assert np.any(harvest.bitmap.words)
    (tmp_path / "before.img").unlink()
    disk.backing.unlink()
