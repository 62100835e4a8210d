"""The scan: what it reads, what it says on the way, how it is stopped."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.interface import TrackerState
from mobility_agent.change_tracker.scan import SLICE_BYTES, ScanProgress, ScanTracker
from mobility_agent.interruption import Interruption
from mobility_agent.pace import Pace, Step
from replication.clock import Clock
from replication.dirty_bitmap import Geometry, GranuleRuns
from replication.errors import InvalidInput, ResyncRequired, Retryable

GRANULE = 65536
GEOMETRY = Geometry(3 * SLICE_BYTES + 5 * GRANULE + 4096, GRANULE)


class ZeroDigests:
    """The sink holds zeros everywhere."""

    def __init__(self) -> None:
        self.compared: list[tuple[int, int]] = []
        self.holes: list[tuple[int, int]] = []

    def changed_in(self, first_granule: int, data: memoryview) -> GranuleRuns:
        pieces = [data[at : at + GRANULE] for at in range(0, len(data), GRANULE)]
        self.compared.append((first_granule, len(pieces)))
        return GranuleRuns.of((first_granule + index, 1) for index, piece in enumerate(pieces) if any(piece))

    def changed_in_hole(self, first_granule: int, granule_count: int) -> GranuleRuns:
        self.holes.append((first_granule, granule_count))
        return GranuleRuns.of([])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    with made.open("wb") as stream:
        stream.truncate(GEOMETRY.size_bytes)
    return made


@pytest.fixture
def reader(path: Path) -> Iterator[DiskReader]:
    with DiskReader(path) as opened:
        yield opened


def write(path: Path, offset_bytes: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset_bytes)
        stream.write(data)


def test_data_is_compared_and_holes_are_not_read(path: Path, reader: DiskReader) -> None:
    write(path, 10 * GRANULE + 5, b"x")
    write(path, GEOMETRY.size_bytes - 1, b"y")
    reference = ZeroDigests()
    progress: list[ScanProgress] = []
    harvest = ScanTracker(reader, GEOMETRY, reference, progress=progress.append).begin_harvest()
    assert list(harvest.bitmap.runs()) == [(10, 1), (GEOMETRY.granules - 1, 1)]
    seen = sorted(reference.compared + reference.holes)
    assert seen[0][0] == 0
    assert all(start + count == following for (start, count), (following, _) in itertools.pairwise(seen))
    assert sum(count for _, count in seen) == GEOMETRY.granules
    assert progress[-1].compared_bytes == progress[-1].total_bytes == GEOMETRY.size_bytes
    assert progress[-1].changed_granules == 2
    assert progress[-1].read_bytes < GEOMETRY.size_bytes
    assert [each.compared_bytes for each in progress] == sorted(each.compared_bytes for each in progress)


def test_a_cancelled_scan_stops_between_slices_and_forgets_no_mark(path: Path, reader: DiskReader) -> None:
    write(path, 0, os.urandom(GEOMETRY.size_bytes))
    answers = iter([False, False, True, *[False] * 20])
    reference = ZeroDigests()
    tracker = ScanTracker(reader, GEOMETRY, reference, is_cancelled=lambda: next(answers))
    tracker.mark(GranuleRuns.of([(1, 1)]))
    with pytest.raises(Retryable, match="cancelled"):
        tracker.begin_harvest()
    assert len(reference.compared) == 2
    tracker.commit_harvest()
    write(path, 0, bytes(GEOMETRY.size_bytes))
    assert list(tracker.begin_harvest().bitmap.runs()) == [(1, 1)]


def test_a_disk_that_became_smaller_is_noticed(path: Path, reader: DiskReader) -> None:
    write(path, 0, os.urandom(GEOMETRY.size_bytes))
    tracker = ScanTracker(reader, GEOMETRY, ZeroDigests())
    os.truncate(path, SLICE_BYTES)
    assert tracker.status().state is TrackerState.DEGRADED
    assert "resized" in tracker.status().reason
    with pytest.raises(ResyncRequired, match="became smaller"):
        tracker.begin_harvest()


def test_a_disk_that_shrinks_during_the_scan_is_noticed(path: Path, reader: DiskReader) -> None:
    """Past its new end a file reads as a hole: that must not be taken for zeros."""
    tracker = ScanTracker(reader, GEOMETRY, ZeroDigests(), progress=lambda _: os.truncate(path, SLICE_BYTES))
    with pytest.raises(ResyncRequired):
        tracker.begin_harvest()


def test_a_geometry_larger_than_the_disk_is_refused(reader: DiskReader) -> None:
    with pytest.raises(InvalidInput, match="are expected"):
        ScanTracker(reader, Geometry(GEOMETRY.size_bytes + GRANULE, GRANULE), ZeroDigests())


def test_a_scan_keeps_to_the_pace_and_ends_while_it_waits_for_it(path: Path, reader: DiskReader) -> None:
    """A pace that is used up for days: nothing is read before the wait, and no more than a slice after its end."""
    write(path, 0, bytes(GEOMETRY.size_bytes - GRANULE) + b"x")
    waited: list[float] = []
    interruption = Interruption()

    def sleep(seconds: float) -> None:
        assert not digests.compared
        waited.append(seconds)
        if len(waited) == 3:
            interruption.interrupt()

    pace = Pace(Clock(monotonic_s=lambda: 0.0), lambda: 0.0, sleep)
    pace.set_limits(1_000_000, None)
    pace.read(Step(None, 0), 10**12)
    digests = ZeroDigests()
    tracker = ScanTracker(
        reader,
        GEOMETRY,
        digests,
        is_cancelled=interruption.is_interrupted,
        before_read=lambda length_bytes: pace.wait_in_thread(length_bytes, interruption.is_interrupted),
    )
    with pytest.raises(Retryable, match="cancelled"):
        tracker.begin_harvest()
    assert len(waited) == 3
    assert len(digests.compared) == 1
