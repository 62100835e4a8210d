"""The kernel's accounts, read from files laid out as sysfs lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mobility_agent.block_device.kernel_counters import KernelCounters
from replication.errors import NotFound, Unsupported

NUMBER = os.makedev(8, 16)


def make_disk(
    sysfs: Path, *, stat: str = "1 2 3 4 5 6 700 8 9 10 11 12 13 1400 15 16 17\n", diskseq: bool = True
) -> Path:
    disk = sysfs / "devices/sdb"
    (disk / "queue").mkdir(parents=True)
    (disk / "stat").write_text(stat)
    (disk / "inflight").write_text("       2        3\n")
    (disk / "size").write_text("2048\n")
    (disk / "queue/iostats").write_text("1\n")
    if diskseq:
        (disk / "diskseq").write_text("12\n")
    (sysfs / "dev/block").mkdir(parents=True, exist_ok=True)
    (sysfs / "dev/block/8:16").symlink_to(disk)
    return disk


def test_every_count_is_read_anew(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    counters = KernelCounters(NUMBER, tmp_path)
    assert counters.accounted_sectors() == (700, 1400)
    assert counters.writes_in_flight() == 3
    assert counters.size_bytes() == 2048 * 512
    assert counters.incarnation() == 12
    assert counters.statistics_on()
    (disk / "queue/iostats").write_text("0\n")
    assert not counters.statistics_on()
    counters.switch_statistics(on=True)
    assert (disk / "queue/iostats").read_text() == "1"
    counters.close()
    counters.close()


def test_without_a_disk_sequence_number_the_directory_tells_incarnations_apart(tmp_path: Path) -> None:
    make_disk(tmp_path, diskseq=False)
    counters = KernelCounters(NUMBER, tmp_path)
    assert counters.incarnation() >> 63 == 1
    counters.close()


def test_a_partition_has_its_disk_s_queue(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    partition = disk / "sdb1"
    partition.mkdir()
    for file in ("stat", "inflight", "size"):
        (partition / file).write_text((disk / file).read_text())
    (partition / "partition").write_text("1\n")
    (tmp_path / "dev/block/8:17").symlink_to(partition)
    counters = KernelCounters(os.makedev(8, 17), tmp_path)
    assert counters.queue == disk / "queue"
    assert counters.incarnation() == 12
    counters.close()


def test_a_missing_device_and_an_old_kernel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        KernelCounters(NUMBER, tmp_path)
    make_disk(tmp_path, stat="1 2 3 4 5 6 7 8 9 10 11\n")
    with pytest.raises(Unsupported, match="discards"):
        KernelCounters(NUMBER, tmp_path)
