"""Reading a disk: every byte, at any alignment, and honest errors. Block devices are read in tests/e2e."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobility_agent.block_device.buffers import BufferPool
from mobility_agent.block_device.reader import DiskReader
from replication.errors import InvalidInput, NotFound, Overloaded, Refused, ResyncRequired, Retryable, Unsupported
from replication.extents import Extent

SIZE = 3 * 2**20 + 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(random.Random(1).randbytes(SIZE))
    return made


def read(reader: DiskReader, extent: Extent) -> bytes:
    buffer = bytearray(extent.length_bytes)
    reader.read_into(memoryview(buffer), extent)
    return bytes(buffer)


def blocks(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low // 512, high // 512).map(lambda block: block * 512)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_extent_is_read_into_any_buffer(path: Path, data: st.DataObject) -> None:
    offset = data.draw(blocks(0, SIZE - 512))
    length = data.draw(blocks(512, SIZE - offset))
    expected = path.read_bytes()[offset : offset + length]
    with DiskReader(path) as reader, BufferPool(1, 2**22).acquire(0) as buffer:
        assert read(reader, Extent(offset, length)) == expected
        reader.read_into(buffer.view[:length], Extent(offset, length))
        assert bytes(buffer.view[:length]) == expected


def test_a_file_system_without_direct_reads_is_read_through_the_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refusing(name: os.PathLike[str], flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(name, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    with DiskReader(path) as reader:
        assert not reader.is_direct
        assert reader.alignment_bytes == 1
        assert read(reader, Extent(512, 1024)) == path.read_bytes()[512:1536]


def test_a_disk_that_ends_too_early_needs_a_resync(path: Path) -> None:
    with DiskReader(path) as reader:
        os.truncate(path, 2**20)
        assert reader.current_size_bytes() == 2**20
        assert reader.size_bytes == SIZE
        with pytest.raises(ResyncRequired, match="it ends after 1048576 bytes") as caught:
            read(reader, Extent(2**20 - 4096, 8192))
        assert caught.value.offset_bytes == 2**20


def test_a_device_error_names_its_offset(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_preadv = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= 2**20:
            raise OSError(5, "Input/output error")
        return real_preadv(descriptor, [buffers[0][:65536]], offset)

    with DiskReader(path) as reader, BufferPool(1, 2**22).acquire(0) as buffer:
        monkeypatch.setattr(os, "preadv", failing)
        with pytest.raises(Retryable, match="Input/output error") as caught:
            reader.read_into(buffer.view[: 2**21], Extent(0, 2**21))
        assert caught.value.offset_bytes == 2**20


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real_preadv(fd, [buffers[0][:4096]], offset))
    with DiskReader(path) as reader, BufferPool(1, 2**22).acquire(0) as buffer:
        reader.read_into(buffer.view[: 2**20], Extent(4096, 2**20))
        assert bytes(buffer.view[: 2**20]) == path.read_bytes()[4096 : 4096 + 2**20]


def test_a_buffer_of_another_size_is_refused(path: Path) -> None:
    with DiskReader(path) as reader, pytest.raises(InvalidInput):
        reader.read_into(memoryview(bytearray(1024)), Extent(0, 512))


@pytest.mark.parametrize("flaw", ["missing", "directory", "fifo"])
def test_what_is_no_disk_is_refused(tmp_path: Path, flaw: str) -> None:
    path = tmp_path / "it"
    if flaw == "directory":
        path.mkdir()
    elif flaw == "fifo":
        os.mkfifo(path)
    expected = NotFound if flaw == "missing" else Unsupported
    with pytest.raises(expected):
        DiskReader(path)


def test_a_file_without_permission_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(Refused, match="Permission denied"):
        DiskReader(path)


def test_close_may_be_repeated(path: Path) -> None:
    reader = DiskReader(path)
    reader.close()
    reader.close()


def extents(reader: DiskReader, granularity: int, within: Extent | None = None) -> list[tuple[int, int]]:
    found = reader.data_extents(within or Extent(0, reader.size_bytes), granularity)
    return [(extent.offset_bytes, extent.length_bytes) for extent in found]


def test_data_of_a_sparse_file_is_found_rounded_outward(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as stream:
        stream.truncate(16 * 2**20)
        for offset in (2**20 + 100, 8 * 2**20 - 1, 8 * 2**20 + 70000):
            stream.seek(offset)
            stream.write(b"data")
    with DiskReader(path) as reader:
        assert extents(reader, 65536) == [(2**20, 65536), (8 * 2**20 - 65536, 3 * 65536)]
        assert extents(reader, 2**20) == [(2**20, 2**20), (7 * 2**20, 2 * 2**20)]
        assert extents(reader, 65536, Extent(2**20, 8192)) == [(2**20, 8192)]
        assert extents(reader, 65536, Extent(12 * 2**20, 2**20)) == []


def test_an_empty_sparse_file_has_no_data_and_a_full_one_nothing_else(tmp_path: Path, path: Path) -> None:
    empty = tmp_path / "empty.img"
    with empty.open("wb") as stream:
        stream.truncate(2**20)
    with DiskReader(empty) as reader:
        assert extents(reader, 65536) == []
    with DiskReader(path) as reader:
        assert extents(reader, 65536) == [(0, SIZE)]


def test_a_pool_hands_out_no_more_than_it_has() -> None:
    pool = BufferPool(2, 8192)
    first, second = pool.acquire(0), pool.acquire(None)
    with pytest.raises(Overloaded):
        pool.acquire(0)
    first.release()
    third = pool.acquire(0)
    assert third is first
    assert len(second.view) == 8192
    with pytest.raises(InvalidInput):
        BufferPool(0, 8192)
    with pytest.raises(InvalidInput):
        BufferPool(1, 1000)


def test_every_byte_read_is_noted(path: Path) -> None:
    noted: list[int] = []
    with DiskReader(path, noted.append) as reader, BufferPool(1, 2**22).acquire(0) as buffer:
        reader.read_into(buffer.view[: 2**20], Extent(2**20, 2**20))
        assert sum(noted) == 2**20
        read(reader, Extent(0, 512))
    assert sum(noted) >= 2**20 + 512
