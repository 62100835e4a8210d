"""The spool's directory on a real file system: one process at a time, allocated files, an inventory that changes nothing."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from process_server.spool.directory_lock import locked
from process_server.spool.files import DirectoryFiles
from process_server.spool.inventory import take_inventory
from process_server.spool.log import SpoolLog
from process_server.spool.record import RecordHeader, RecordKind, encode_marks
from replication.errors import SettingsError
from replication.identifiers import DiskId, MachineId

DISK = DiskId("11111111-1111-4111-8111-111111111111")
MACHINE = MachineId("22222222-2222-4222-8222-222222222222")


def test_a_second_process_is_refused_and_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(SettingsError, match="another process server uses it"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_new_file_has_its_blocks_and_its_size(tmp_path: Path) -> None:
    file = DirectoryFiles(tmp_path).create("a.spool", 1 << 20)
    assert file.size_bytes() == 1 << 20
    assert os.stat(tmp_path / "a.spool").st_blocks * 512 >= 1 << 20
    assert os.stat(tmp_path / "a.spool").st_mode & 0o777 == 0o600
    file.write_at(5, [memoryview(b"abc"), memoryview(b""), memoryview(b"def")])
    file.sync()
    file.forget_cache()
    buffer = bytearray(8)
    assert file.read_at(4, memoryview(buffer)) == 8
    assert bytes(buffer) == b"\0abcdef\0"
    file.truncate(6)
    assert file.read_at(4, memoryview(buffer)) == 2
    file.close()


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        DirectoryFiles(tmp_path).create("a.spool", 1 << 20)
    assert DirectoryFiles(tmp_path).names() == []


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, written = DirectoryFiles(tmp_path).create("a.spool", 100), os.pwritev

    def short(descriptor: int, views: list[memoryview], offset: int) -> int:
        return written(descriptor, [views[0][:3]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    file.write_at(0, [memoryview(b"0123456789"), memoryview(b"abcd")])
    file.close()
    assert (tmp_path / "a.spool").read_bytes()[:14] == b"0123456789abcd"


def test_only_files_count_and_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    files = DirectoryFiles(tmp_path)
    assert files.names() == ["a", "b"]
    space = files.space()
    assert 0 < space.available_bytes <= space.total_bytes


def test_the_inventory_says_what_waits_and_changes_nothing(tmp_path: Path) -> None:
    seeds = itertools.count(1)
    log = SpoolLog(DirectoryFiles(tmp_path), file_bytes=64 * 1024, new_seed=lambda: next(seeds))

    def append(kind: RecordKind, epoch: int, batch: int, size: int, at_ns: int) -> int:
        header = RecordHeader(kind, 0, 0, 0, at_ns, MACHINE, DISK, 1, epoch, 1, batch)
        return log.append(header, memoryview(bytes(size))).place.number

    first = append(RecordKind.SEGMENT, 1, 0, 1000, 50)
    append(RecordKind.SEGMENT, 1, 1, 2000, 60)
    append(RecordKind.MANIFEST, 1, 0, 300, 70)
    append(RecordKind.SEGMENT, 2, 0, 4000, 80)
    log.append(RecordHeader(RecordKind.UPLOADED, 0, 0, 0), memoryview(encode_marks([first])))
    log.sync()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = take_inventory(DirectoryFiles(tmp_path))
    assert (found.waiting_segments, found.waiting_bytes, found.waiting_manifests) == (2, 6000, 1)
    (generation,) = found.generations.values()
    assert (generation.machine, generation.segments, len(generation.epochs)) == (MACHINE, 2, 2)
    assert found.oldest_accepted_unix_ns == 60
    assert not found.damages
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    log.close()


def test_an_empty_spool_has_no_age(tmp_path: Path) -> None:
    found = take_inventory(DirectoryFiles(tmp_path))
    assert (found.files, found.oldest_age_s) == (0, None)
