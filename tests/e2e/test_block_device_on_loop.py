"""Block devices for real: claims against mounts, swap, writers; O_DIRECT reads of a mounted disk; listing with partitions."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mobility_agent.block_device.buffers import BufferPool
from mobility_agent.block_device.claim import Claim
from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.identity import DiskIdentity
from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.block_device.listing import describe_disk, list_disks
from mobility_agent.block_device.machine_facts import MachineFacts
from mobility_agent.block_device.reader import DiskReader
from mobility_agent.block_device.standstill import QUIET
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.core.protectability import DiskKind
from mobility_agent.inventory import locate_disk
from mobility_agent.quiesce.file_systems import file_systems_on
from replication.errors import Conflict, NotFound, Refused, Unsupported
from replication.extents import Extent
from tests.harness.loop_disk import LoopDisk, loop_disk, mounted, run

pytestmark = [pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")]

MACHINE = uuid.UUID("3d1219c7-c4c5-404a-aa1f-6d2a48adfda4")
SIZE = 64 * 2**20
FIRST_PARTITION_SECTOR = 2048


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with loop_disk(tmp_path / "disk.img", SIZE) as made:
        yield made


@pytest.fixture
def partitioned(tmp_path: Path) -> Iterator[tuple[LoopDisk, Path]]:
    """A disk with a DOS table of one partition that fills it."""
    backing = tmp_path / "partitioned.img"
    table = bytearray(512)
    sectors = SIZE // 512 - FIRST_PARTITION_SECTOR
    table[440:444] = os.urandom(4)
    table[446:462] = struct.pack("<B3sB3sII", 0x80, b"\0\0\0", 0x83, b"\0\0\0", FIRST_PARTITION_SECTOR, sectors)
    table[510:512] = b"\x55\xaa"
    with backing.open("wb") as stream:
        stream.write(table)
        stream.truncate(SIZE)
    with loop_disk(backing, SIZE) as made:
        # Told by hand: not every kernel reads partition tables of loop devices.
        run("addpart", made.device, "1", str(FIRST_PARTITION_SECTOR), str(sectors))
        try:
            yield made, Path(f"{made.device}p1")
        finally:
            run("delpart", made.device, "1")


def test_a_claim_keeps_the_disk_from_being_mounted(disk: LoopDisk, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", disk.device)
    target = tmp_path / "mnt"
    target.mkdir()
    with Claim(disk.device):
        refused = subprocess.run(["mount", disk.device, target], capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        with pytest.raises(Conflict, match="another program holds it exclusively"):
            Claim(disk.device)
    with mounted(disk.device, target):
        pass


def test_a_mounted_disk_is_refused_with_its_mount_point(disk: LoopDisk, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", disk.device)
    with mounted(disk.device, tmp_path / "mnt") as target, pytest.raises(Conflict, match=f"mounted on {target}"):
        Claim(disk.device)


@pytest.mark.requires("unshare")
def test_a_disk_mounted_in_another_namespace_only_is_refused_with_the_process_that_keeps_it(
    disk: LoopDisk, tmp_path: Path
) -> None:
    run("mkfs.ext4", "-q", disk.device)
    target = tmp_path / "seen only there"
    target.mkdir()
    script = f"mount {disk.device} '{target}' && echo ready && read line"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == "ready\n"
            with pytest.raises(Conflict) as refused:
                Claim(disk.device)
        finally:
            keeper.terminate()
            keeper.wait()
    assert f"mounted on {target} in the mount namespace of sh (process {keeper.pid})" in str(refused.value)
    with Claim(disk.device):
        pass


def test_a_disk_in_use_as_swap_is_refused(disk: LoopDisk) -> None:
    run("mkswap", disk.device)
    run("swapon", disk.device)
    try:
        with pytest.raises(Conflict, match="in use as swap"):
            Claim(disk.device)
    finally:
        run("swapoff", disk.device)


def test_a_process_that_may_write_is_refused_by_name(disk: LoopDisk) -> None:
    with subprocess.Popen(["sh", "-c", f"exec 3<>{disk.device}; echo ready; read line"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as writer:  # fmt: skip
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(Conflict, match=rf"open for writing by sh \(process {writer.pid}\)"):
            Claim(disk.device)
        writer.terminate()
    with Claim(disk.device):
        pass


def test_a_claim_tells_of_writes_that_pass_it_by(disk: LoopDisk) -> None:
    """Opened after the claim, without O_EXCL, and written: to the medium, and to the page cache only."""
    with Claim(disk.device) as claim, disk.device.open("r+b", buffering=0) as writer:
        for offset in (0, 2**20):
            assert claim.watch() == QUIET
            with DiskReader(disk.device) as reader, BufferPool(1, SIZE).acquire(0) as buffer:
                reader.read_into(buffer.view, Extent(0, SIZE))
            assert claim.look() == QUIET
            os.pwrite(writer.fileno(), b"x" * 4096, offset)
            assert claim.look().state == "written"
        assert claim.watch() == QUIET
        run("blkdiscard", "--force", "--offset", "0", "--length", "4096", disk.device)
        assert claim.look().state == "written", "a discard is a write"
        assert claim.watch() == QUIET
        with mmap.mmap(writer.fileno(), 4096) as mapped:
            mapped[:3] = b"map"
            assert claim.look().state == "written"
            assert claim.watch() == QUIET
            mapped[:3] = b"MAP"
            assert claim.look().state == "written", "the page was clean in between, and mapped all the time"


def test_a_write_in_a_partition_s_own_page_cache_is_told(partitioned: tuple[LoopDisk, Path]) -> None:
    disk, partition = partitioned
    with Claim(disk.device) as claim, partition.open("rb"), partition.open("r+b", buffering=0) as writer:
        assert claim.watch() == QUIET
        writer.write(b"x" * 4096)
        assert claim.look().state == "written"


def test_without_statistics_a_claim_cannot_tell(disk: LoopDisk) -> None:
    statistics = Path(f"/sys/block/{disk.name}/queue/iostats")
    with Claim(disk.device) as claim:
        assert claim.watch() == QUIET
        statistics.write_text("0")
        try:
            assert claim.look().state == "unknown"
            assert "iostats" in claim.watch().reason
        finally:
            statistics.write_text("1")


def test_a_driver_that_does_not_account_for_reads_is_not_believed(
    disk: LoopDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelCounters, "read_sectors", lambda _: 7)
    with Claim(disk.device) as claim:
        assert claim.watch().state == "unknown"
        assert "does not account" in claim.watch().reason


def test_a_mounted_partition_is_found_in_the_way_of_its_disk(
    partitioned: tuple[LoopDisk, Path], tmp_path: Path
) -> None:
    disk, partition = partitioned
    run("mkfs.ext4", "-q", partition)
    with mounted(partition, tmp_path / "mnt") as target:
        with pytest.raises(Conflict, match=f"{partition} is mounted on {target}"):
            Claim(disk.device)
        assert [mount.mount_point for mount in file_systems_on([disk.device])] == [str(target)]
    with Claim(disk.device):
        pass


def test_a_file_behind_a_loop_device_and_a_locked_file_are_refused(disk: LoopDisk, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match=f"it is behind {disk.device}"):
        Claim(disk.backing)
    plain = tmp_path / "plain.img"
    plain.write_bytes(bytes(4096))
    with Claim(plain), pytest.raises(Conflict, match="another process has locked it"):
        Claim(plain)
    with pytest.raises(NotFound):
        Claim(tmp_path / "nothing")


def test_a_mounted_disk_is_read_past_the_page_cache(disk: LoopDisk, tmp_path: Path) -> None:
    """The device's own cache is filled first; then the file system writes: a cached read would be stale."""
    run("mkfs.ext4", "-q", disk.device)
    with mounted(disk.device, tmp_path / "mnt") as target, disk.device.open("rb") as cached:
        while cached.read(2**20):
            pass
        (target / "file").write_bytes(os.urandom(20_000_000))
        os.sync()
        run("fsfreeze", "--freeze", target)
        try:
            with DiskReader(disk.device) as reader, BufferPool(1, SIZE).acquire(0) as buffer:
                assert reader.is_direct
                assert reader.is_block_device
                assert reader.size_bytes == SIZE
                reader.read_into(buffer.view, Extent(0, SIZE))
                assert bytes(buffer.view) == disk.backing.read_bytes()
                assert list(reader.data_extents(Extent(0, SIZE), 65536)) == [Extent(0, SIZE)]
        finally:
            run("fsfreeze", "--unfreeze", target)


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_unaligned_extents_of_a_device_are_read(tmp_path: Path, sector_bytes: int) -> None:
    content = os.urandom(2**20)
    backing = tmp_path / "disk.img"
    backing.write_bytes(content)
    with loop_disk(backing, len(content), sector_bytes=sector_bytes) as disk, DiskReader(disk.device) as reader:
        assert reader.alignment_bytes == sector_bytes
        buffer = bytearray(5120)
        reader.read_into(memoryview(buffer), Extent(1536, 5120))
        assert buffer == content[1536 : 1536 + 5120]


def test_disks_and_partitions_are_listed_with_what_is_on_them(
    partitioned: tuple[LoopDisk, Path], tmp_path: Path
) -> None:
    disk, partition = partitioned
    run("mkfs.ext4", "-q", partition)
    with mounted(partition, tmp_path / "mnt") as target:
        listed = {description.path: description for description in list_disks(MACHINE)}
        whole, part = listed[disk.device], listed[partition]
    assert whole.kind is DiskKind.LOOP
    assert whole.size_bytes == SIZE
    assert whole.contents == ["dos partition table", f"ext on {partition.name}"]
    assert [mount.mount_point for mount in whole.mounts] == [str(target)]
    assert whole.protectability.is_protectable
    assert part.kind is DiskKind.PARTITION
    assert str(disk.device) in part.protectability.remedy
    assert describe_disk(disk.device, MACHINE).disk == whole.disk != part.disk
    with pytest.raises(Unsupported, match="it is a partition"):
        EbpfTracker.attach(partition)


def test_a_loop_disk_keeps_its_id_under_another_name(disk: LoopDisk, tmp_path: Path) -> None:
    before = describe_disk(disk.device, MACHINE).disk
    with loop_disk(tmp_path / "other.img", SIZE) as other:
        run("losetup", "--detach", other.device)
        run("losetup", "--detach", disk.device)
        run("losetup", other.device, disk.backing)
        try:
            assert describe_disk(other.device, MACHINE).disk == before
        finally:
            run("losetup", "--detach", other.device)
            run("losetup", other.device, other.backing)
            run("losetup", disk.device, disk.backing)


def test_a_copy_in_the_place_of_a_known_disk_is_not_taken_for_it(
    partitioned: tuple[LoopDisk, Path], tmp_path: Path
) -> None:
    """The same partition table, the same device name, the same size: another backing file."""
    disk, _ = partitioned
    facts = cast("MachineFacts", SimpleNamespace(machine_id=MACHINE))
    copy = tmp_path / "copy.img"
    shutil.copyfile(disk.backing, copy)
    original = describe_disk(disk.device, MACHINE)
    known = {original.disk: DiskIdentity(original.identifiers, original.size_bytes)}
    with loop_disk(copy, SIZE) as other:
        assert locate_disk(original.disk, facts, [], known).path == disk.device
        run("losetup", "--detach", other.device)
        run("losetup", "--detach", disk.device)
        run("losetup", disk.device, copy)
        try:
            with pytest.raises(Refused, match=f"cannot take {disk.device} for the disk: its backing-file is"):
                locate_disk(original.disk, facts, [], known)
        finally:
            run("losetup", "--detach", disk.device)
            run("losetup", disk.device, disk.backing)
            run("losetup", other.device, copy)


def test_partitions_writes_are_tracked_on_the_whole_disk(partitioned: tuple[LoopDisk, Path]) -> None:
    disk, partition = partitioned
    with contextlib.closing(EbpfTracker.attach(disk.device)) as tracker:
        tracker.begin_harvest()
        tracker.commit_harvest()
        descriptor = os.open(partition, os.O_RDWR)
        os.pwrite(descriptor, b"x" * 4096, 10 * 65536)
        os.fsync(descriptor)
        os.close(descriptor)
        expected = (FIRST_PARTITION_SECTOR * 512 + 10 * 65536) // 65536
        assert list(tracker.begin_harvest().bitmap.runs()) == [(expected, 1)]


def test_the_tree_of_a_partitioned_disk_is_read(partitioned: tuple[LoopDisk, Path]) -> None:
    disk, partition = partitioned
    tree = DeviceTree.read()
    assert [node.name for node in tree.partitions(disk.name)] == [partition.name]
