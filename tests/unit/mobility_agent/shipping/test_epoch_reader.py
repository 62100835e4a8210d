"""Reading an attempt: what is left out, what travels as zeros, how batches are filled, and that every granule is looked at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobility_agent.shipping import epoch_reader
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.epoch_reader import EpochReader, FilledBatch, Unfinished
from replication.batch_frame import DataExtent, ZeroExtent
from replication.dirty_bitmap import Geometry, GranuleRuns
from replication.errors import Retryable
from replication.extents import Extent
from replication.identifiers import DiskId, EpochId
from tests.harness.fake_tracker import FakeDisk

STEP = 4096
GRANULES = 40
GEOMETRY = Geometry(GRANULES * STEP - 512, STEP)
DISK = DiskId("22222222-2222-4222-8222-222222222222")
NOTHING: Sequence[GranuleRuns] = ()


@pytest.fixture
def table(tmp_path: Path) -> Iterator[DigestTable]:
    made = DigestTable(tmp_path / "digests", DISK, GEOMETRY, bytes(32))
    yield made
    made.close()


@pytest.fixture
def disk() -> FakeDisk:
    made = FakeDisk(GEOMETRY)
    made.content[:] = os.urandom(GEOMETRY.size_bytes)
    return made


def runs(*pairs: tuple[int, int]) -> GranuleRuns:
    return GranuleRuns.of(pairs)


def read_all(reader: EpochReader, buffer_granules: int = 4) -> list[FilledBatch]:
    """Each batch with a buffer of its own, since its extents are views."""
    batches = []
    while (batch := reader.next_batch(memoryview(bytearray(buffer_granules * STEP)))) is not None:
        assert not isinstance(batch, Unfinished)
        batches.append(batch)
    return batches


def read_in_steps(reader: EpochReader, buffer_granules: int, step_bytes: int) -> list[FilledBatch]:
    """As ``read_all``, under a limit."""
    batches: list[FilledBatch] = []
    buffer = memoryview(bytearray(buffer_granules * STEP))
    while True:
        before = reader.read_bytes
        filled = reader.next_batch(buffer, step_bytes)
        assert reader.read_bytes - before <= max(STEP, step_bytes)
        if filled is None:
            return batches
        if isinstance(filled, FilledBatch):
            batches.append(filled)
            buffer = memoryview(bytearray(buffer_granules * STEP))


def learn(table: DigestTable, disk: FakeDisk, *granules: int) -> None:
    """The sink has these granules as they are now."""
    extents = [GEOMETRY.run_extent(granule, 1) for granule in granules]
    views = [memoryview(disk.content)[extent.offset_bytes : extent.end_bytes] for extent in extents]
    digests = np.array([list(table.digest(view)) for view in views], dtype=np.uint8)
    table.apply(EpochId(1), np.array(granules, dtype=np.int64), digests)


def replayed(batches: list[FilledBatch], onto: bytearray) -> bytearray:
    for batch in batches:
        for item in batch.extents:
            data = item.data if isinstance(item, DataExtent) else bytes(item.extent.length_bytes)
            onto[item.extent.offset_bytes : item.extent.end_bytes] = data
    return onto


def sent(batches: list[FilledBatch]) -> list[int]:
    return [int(granule) for batch in batches for granule in batch.indices]


def test_what_equals_the_table_is_left_out(table: DigestTable, disk: FakeDisk) -> None:
    learn(table, disk, 3, 4, 39)
    batches = read_all(EpochReader(disk, runs((2, 4), (38, 2)), table, NOTHING))
    assert sent(batches) == [2, 5, 38]


def test_what_is_in_another_unconfirmed_epoch_is_sent_although_it_equals_the_table(
    table: DigestTable, disk: FakeDisk
) -> None:
    learn(table, disk, *range(10))
    others = [runs((1, 1), (4, 5)), runs((0, 1), (4, 1))]
    assert sent(read_all(EpochReader(disk, runs((0, 10)), table, others))) == [0, 1, 4, 5, 6, 7, 8]


def test_zeros_travel_without_data_and_are_skipped_like_data(table: DigestTable, disk: FakeDisk) -> None:
    disk.content[5 * STEP : 9 * STEP] = bytes(4 * STEP)
    (batch,) = read_all(EpochReader(disk, runs((4, 6)), table, NOTHING), buffer_granules=8)
    assert [(type(item), item.extent) for item in batch.extents] == [
        (DataExtent, Extent(4 * STEP, STEP)),
        (ZeroExtent, Extent(5 * STEP, 4 * STEP)),
        (DataExtent, Extent(9 * STEP, STEP)),
    ]
    learn(table, disk, 6)
    assert sent(read_all(EpochReader(disk, runs((5, 4)), table, NOTHING))) == [5, 7, 8]


def test_a_batch_ends_with_so_many_extents(table: DigestTable, disk: FakeDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_reader, "MAX_EXTENTS", 3)
    every_other = runs(*((granule, 1) for granule in range(0, 20, 2)))
    batches = read_all(EpochReader(disk, every_other, table, NOTHING), buffer_granules=16)
    assert [len(batch.extents) for batch in batches] == [3, 3, 3, 1]


def test_an_epoch_without_granules_has_no_batch(table: DigestTable, disk: FakeDisk) -> None:
    assert read_all(EpochReader(disk, runs(), table, NOTHING)) == []


def test_an_error_of_the_device_says_where(table: DigestTable) -> None:
    class Broken:
        def read_into(self, buffer: memoryview, extent: Extent) -> None:
            raise Retryable("cannot read", offset_bytes=extent.offset_bytes)

    with pytest.raises(Retryable) as raised:
        read_all(EpochReader(Broken(), runs((7, 1)), table, NOTHING))
    assert raised.value.offset_bytes == 7 * STEP


@settings(max_examples=80, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, GRANULES - 1), st.integers(1, 12)), max_size=12),
    zeros=st.sets(st.integers(0, GRANULES - 1)),
    equal=st.sets(st.integers(0, GRANULES - 1)),
    buffer_granules=st.integers(1, 9),
)
def test_the_sink_has_every_granule_of_the_epoch_as_it_was_read(
    pairs: list[tuple[int, int]],
    zeros: set[int],
    equal: set[int],
    buffer_granules: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    table = DigestTable(tmp_path_factory.mktemp("table") / "digests", DISK, GEOMETRY, bytes(32))
    disk = FakeDisk(GEOMETRY)
    disk.content[:] = os.urandom(GEOMETRY.size_bytes)
    for granule in zeros:
        extent = GEOMETRY.run_extent(granule, 1)
        disk.content[extent.offset_bytes : extent.end_bytes] = bytes(extent.length_bytes)
    learn(table, disk, *sorted(equal))
    chosen = runs(*((start, min(count, GRANULES - start)) for start, count in pairs))
    batches = read_all(EpochReader(disk, chosen, table, NOTHING), buffer_granules)
    wanted = set(chosen.indices().tolist())
    replica = bytearray(os.urandom(GEOMETRY.size_bytes))
    for granule in equal | set(range(GRANULES)) - wanted:
        extent = GEOMETRY.run_extent(granule, 1)
        replica[extent.offset_bytes : extent.end_bytes] = disk.content[extent.offset_bytes : extent.end_bytes]
    assert replayed(batches, replica) == disk.content
    assert sorted(sent(batches)) == sorted(wanted - equal)
    for batch in batches:
        for granule, digest in zip(batch.indices.tolist(), batch.digests, strict=True):
            extent = GEOMETRY.run_extent(granule, 1)
            assert digest.tobytes() == table.digest(memoryview(disk.content)[extent.offset_bytes : extent.end_bytes])
    table.close()


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, GRANULES - 1), st.integers(1, 12)), max_size=12),
    zeros=st.sets(st.integers(0, GRANULES - 1)),
    equal=st.sets(st.integers(0, GRANULES - 1)),
    buffer_granules=st.integers(1, 9),
    step_bytes=st.integers(1, 12 * STEP),
)
def test_under_a_limit_the_batches_have_the_same_granules(
    pairs: list[tuple[int, int]],
    zeros: set[int],
    equal: set[int],
    buffer_granules: int,
    step_bytes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """But for where one ends: a window that is read in parts leaves less of the buffer unused."""
    table = DigestTable(tmp_path_factory.mktemp("table") / "digests", DISK, GEOMETRY, bytes(32))
    disk = FakeDisk(GEOMETRY)
    disk.content[:] = os.urandom(GEOMETRY.size_bytes)
    for granule in zeros:
        extent = GEOMETRY.run_extent(granule, 1)
        disk.content[extent.offset_bytes : extent.end_bytes] = bytes(extent.length_bytes)
    learn(table, disk, *sorted(equal))
    chosen = runs(*((start, min(count, GRANULES - start)) for start, count in pairs))
    reader = EpochReader(disk, chosen, table, NOTHING)
    stepped = read_in_steps(reader, buffer_granules, step_bytes)
    whole = read_all(EpochReader(disk, chosen, table, NOTHING), buffer_granules)
    assert sent(stepped) == sent(whole)
    assert replayed(stepped, bytearray(GEOMETRY.size_bytes)) == replayed(whole, bytearray(GEOMETRY.size_bytes))
    assert reader.read_bytes == chosen.byte_count(GEOMETRY)
    table.close()
