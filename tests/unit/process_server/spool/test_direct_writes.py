"""The spool's files past the page cache: whole aligned blocks are written directly, all else and every refusal goes through the cache."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from process_server.spool.files import DirectoryFiles, SpoolFile
from process_server.spool.log import SpoolLog
from process_server.spool.record import RECORD_HEADER_BYTES, RecordHeader, RecordKind, record_bytes
from replication.aligned_memory import BLOCK_BYTES, aligned_memory
from replication.errors import IntegrityError, Retryable

FILE_BYTES = 256 * 1024
_WRITTEN = os.pwritev


def _is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


class Writes:
    """What ``os.pwritev`` was asked for: (directly, offset, bytes); ``refusal`` is what direct writes answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusal: int | None = None) -> None:
        self.refusal = refusal
        self.seen: list[tuple[bool, int, int]] = []
        monkeypatch.setattr(os, "pwritev", self._write)

    def _write(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        direct = _is_direct(descriptor)
        self.seen.append((direct, offset, sum(view.nbytes for view in views)))
        if direct and self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        return _WRITTEN(descriptor, views, offset)


def blocks(count: int, fill: int) -> memoryview:
    memory = aligned_memory(count * BLOCK_BYTES)
    memory[:] = bytes([fill]) * memory.nbytes
    return memory


def made(tmp_path: Path) -> SpoolFile:
    """Skips where the file system refuses direct writes by itself."""
    file = DirectoryFiles(tmp_path).create("a.spool", FILE_BYTES)
    if not getattr(file, "writes_directly", False):
        pytest.skip("this file system does not take O_DIRECT")
    return file


def test_aligned_blocks_go_past_the_page_cache_and_all_else_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, writes = made(tmp_path), Writes(monkeypatch)
    file.write_at(0, [blocks(1, 1)])
    file.write_at(BLOCK_BYTES, [blocks(2, 2), blocks(1, 3)])
    file.write_at(5 * BLOCK_BYTES, [blocks(1, 4)[: BLOCK_BYTES - 1]])
    file.write_at(6 * BLOCK_BYTES + 512, [blocks(1, 5)])
    assert [direct for direct, _, _ in writes.seen] == [True, True, False, False]
    file.sync()
    file.close()
    content = (tmp_path / "a.spool").read_bytes()
    assert content[: 4 * BLOCK_BYTES] == b"".join(bytes([n]) * BLOCK_BYTES for n in (1, 2, 2, 3))
    assert content[5 * BLOCK_BYTES : 6 * BLOCK_BYTES - 1] == bytes([4]) * (BLOCK_BYTES - 1)


def test_what_the_device_refuses_goes_through_the_page_cache_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, writes = made(tmp_path), Writes(monkeypatch, errno.EINVAL)
    file.write_at(0, [blocks(2, 7)])
    file.write_at(2 * BLOCK_BYTES, [blocks(1, 8)])
    assert [direct for direct, _, _ in writes.seen] == [True, False, False]
    buffer = bytearray(3 * BLOCK_BYTES)
    assert file.read_at(0, memoryview(buffer)) == len(buffer)
    assert bytes(buffer) == bytes([7]) * (2 * BLOCK_BYTES) + bytes([8]) * BLOCK_BYTES
    file.close()


def test_a_disk_that_fails_is_not_asked_again_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, writes = made(tmp_path), Writes(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        file.write_at(0, [blocks(1, 1)])
    assert [direct for direct, _, _ in writes.seen] == [True]
    file.close()


def test_a_file_system_that_cannot_open_directly_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def without_direct(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", without_direct)
    writes = Writes(monkeypatch)
    file = DirectoryFiles(tmp_path).create("a.spool", FILE_BYTES)
    file.write_at(0, [blocks(1, 9)])
    assert [direct for direct, _, _ in writes.seen] == [False]
    file.close()
    assert (tmp_path / "a.spool").read_bytes()[:BLOCK_BYTES] == bytes([9]) * BLOCK_BYTES


def test_no_descriptor_is_left_of_a_file_that_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def failing(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags, *rest)

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        with pytest.raises(OSError, match="Too many open files"):
            DirectoryFiles(tmp_path).create("a.spool", FILE_BYTES)
    assert len(os.listdir("/proc/self/fd")) == before
    assert DirectoryFiles(tmp_path).names() == []


def test_the_log_writes_everything_directly_and_reads_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path).close()
    (tmp_path / "a.spool").unlink()
    writes, seeds = Writes(monkeypatch), itertools.count(1)
    log = SpoolLog(DirectoryFiles(tmp_path), file_bytes=FILE_BYTES, new_seed=lambda: next(seeds))
    payloads = [bytes([batch]) * (batch * 3000 + 1) for batch in range(6)]
    places = [log.append(RecordHeader(RecordKind.SEGMENT, 0, 0, 0), memoryview(each)).place for each in payloads]
    log.sync()
    assert writes.seen
    assert all(direct and offset % BLOCK_BYTES == length % BLOCK_BYTES == 0 for direct, offset, length in writes.seen)
    for place, payload in zip(places, payloads, strict=True):
        buffer = bytearray(place.payload_bytes)
        log.read(place, memoryview(buffer))
        assert bytes(buffer) == payload
    log.close()


def test_a_record_whose_direct_write_failed_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path).close()
    (tmp_path / "a.spool").unlink()
    writes = Writes(monkeypatch)
    log = SpoolLog(DirectoryFiles(tmp_path), file_bytes=FILE_BYTES, new_seed=lambda: 1)
    header = RecordHeader(RecordKind.SEGMENT, 0, 0, 0)
    first = log.append(header, memoryview(b"first")).place
    writes.refusal = errno.EIO
    with pytest.raises(Retryable, match="Input/output error"):
        log.append(header, memoryview(b"fails"))
    writes.refusal = None
    second = log.append(header, memoryview(b"second")).place
    assert (second.number, second.offset) == (first.number + 1, first.offset + BLOCK_BYTES)
    log.close()


def test_a_record_is_read_back_past_the_page_cache_and_through_it_where_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path).close()
    (tmp_path / "a.spool").unlink()
    log = SpoolLog(DirectoryFiles(tmp_path), file_bytes=FILE_BYTES, new_seed=lambda: 1)
    payloads = [bytes([batch]) * (batch * 5000 + 1) for batch in range(4)]
    places = [log.append(RecordHeader(RecordKind.SEGMENT, 0, 0, 0), memoryview(each)).place for each in payloads]
    log.sync()
    really, ways = os.preadv, list[bool]()

    def noting(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        ways.append(_is_direct(descriptor))
        if ways[-1] and refused:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", noting)
    for refused in (False, True):
        ways.clear()
        for place, payload in zip(places, payloads, strict=True):
            room = aligned_memory(record_bytes(place.payload_bytes))
            assert log.read_record(place, room).number == place.number
            assert bytes(room[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + len(payload)]) == payload
        assert ways == ([True, False] * 4 if refused else [True] * 4)
    log.close()


def test_a_disk_that_cannot_be_read_directly_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path).close()
    (tmp_path / "a.spool").unlink()
    log = SpoolLog(DirectoryFiles(tmp_path), file_bytes=FILE_BYTES, new_seed=lambda: 1)
    place = log.append(RecordHeader(RecordKind.SEGMENT, 0, 0, 0), memoryview(b"payload")).place
    log.sync()

    def failing(_descriptor: int, _buffers: Sequence[memoryview], _offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(IntegrityError, match="cannot read record"):
        log.read_record(place, aligned_memory(BLOCK_BYTES))
    log.close()
