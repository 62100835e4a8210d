"""What every change tracker keeps (``mobility_agent/change_tracker/interface.py``): ``ebpf``, ``scan`` and the tests' fake.

A *rig* is one implementation on a disk that the test writes to; ``confirm`` does what the agent does when a receipt arrives.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import ChangeTracker, DoubtKind, Harvest, TrackerState
from mobility_agent.change_tracker.scan import ScanTracker
from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from tests.harness.fake_tracker import FakeDisk, FakeTracker
from tests.harness.loop_disk import loop_disk, pin_root

GRANULE = 65536
GEOMETRY = Geometry(40 * GRANULE + 4096, GRANULE)


class Rig(Protocol):
    tracker: ChangeTracker

    def write(self, offset_bytes: int, data: bytes) -> None: ...

    def confirm(self, harvest: Harvest) -> None: ...

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class FakeRig:
    def __init__(self) -> None:
        self.disk = FakeDisk(GEOMETRY)
        self.tracker: ChangeTracker = FakeTracker(self.disk)

    def write(self, offset_bytes: int, data: bytes) -> None:
        self.disk.write(offset_bytes, data)

    def confirm(self, harvest: Harvest) -> None:
        pass

    def reopen(self) -> None:
        self.tracker.close()
        self.tracker = FakeTracker(self.disk)

    def close(self) -> None:
        self.tracker.discard()


class EbpfRig:
    def __init__(self, directory: Path) -> None:
        with contextlib.ExitStack() as opened:
            self.disk = opened.enter_context(loop_disk(directory / "disk.img", GEOMETRY.size_bytes))
            self.pins = opened.enter_context(pin_root()) / "disk"
            self._opened = opened.pop_all()
        self.tracker: ChangeTracker = self._attach()

    def _attach(self) -> EbpfTracker:
        return EbpfTracker.attach(self.disk.device, granularity_bytes=GRANULE, pin_directory=self.pins)

    def write(self, offset_bytes: int, data: bytes) -> None:
        descriptor = os.open(self.disk.device, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, len(data)) as memory:
            memory.write(data)
            os.pwrite(descriptor, memory, offset_bytes)
        os.close(descriptor)

    def confirm(self, harvest: Harvest) -> None:
        pass

    def reopen(self) -> None:
        self.tracker.close()
        self.tracker = self._attach()

    def close(self) -> None:
        self.tracker.discard()
        self._opened.close()


class DictionaryDigests:
    """``ReferenceDigests`` in memory: what a digest table does, without its file."""

    def __init__(self) -> None:
        self.known: dict[int, bytes] = {}

    def digest(self, data: bytes | memoryview) -> bytes:
        return hashlib.blake2b(data, digest_size=16).digest()

    def changed_in(self, first_granule: int, data: memoryview) -> GranuleRuns:
        pieces = [data[at : at + GRANULE] for at in range(0, len(data), GRANULE)]
        return GranuleRuns.of(
            (first_granule + index, 1)
            for index, piece in enumerate(pieces)
            if self.known.get(first_granule + index) != self.digest(piece)
        )

    def changed_in_hole(self, first_granule: int, granule_count: int) -> GranuleRuns:
        return GranuleRuns.of(
            (granule, 1)
            for granule in range(first_granule, first_granule + granule_count)
            if self.known.get(granule) != self.digest(bytes(GEOMETRY.run_extent(granule, 1).length_bytes))
        )


class ScanRig:
    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as stream:
            stream.truncate(GEOMETRY.size_bytes)
        self.reader = DiskReader(path)
        self.reference = DictionaryDigests()
        self.tracker: ChangeTracker = ScanTracker(self.reader, GEOMETRY, self.reference)

    def write(self, offset_bytes: int, data: bytes) -> None:
        with self.path.open("r+b") as stream:
            stream.seek(offset_bytes)
            stream.write(data)

    def confirm(self, harvest: Harvest) -> None:
        with self.path.open("rb") as stream:
            for granule in harvest.bitmap.runs().indices().tolist():
                extent = GEOMETRY.run_extent(granule, 1)
                stream.seek(extent.offset_bytes)
                self.reference.known[granule] = self.reference.digest(stream.read(extent.length_bytes))

    def reopen(self) -> None:
        self.tracker.close()
        self.tracker = ScanTracker(self.reader, GEOMETRY, self.reference)

    def close(self) -> None:
        self.tracker.discard()
        self.reader.close()


@pytest.fixture(
    params=["fake", "scan", pytest.param("ebpf", marks=[pytest.mark.requires("root", "loop", "ebpf")])],
)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig
    match request.param:
        case "fake":
            made = FakeRig()
        case "scan":
            made = ScanRig(tmp_path / "disk.img")
        case _:
            made = EbpfRig(tmp_path)
    with contextlib.closing(made):
        yield made


def harvest_and_commit(rig: Rig) -> Harvest:
    harvest = rig.tracker.begin_harvest()
    rig.confirm(harvest)
    rig.tracker.commit_harvest()
    return harvest


def granules(harvest: Harvest) -> list[int]:
    return [int(granule) for granule in harvest.bitmap.runs().indices()]


def block(seed: int, size_bytes: int = 4096) -> bytes:
    return bytes([seed]) * size_bytes


def test_the_first_harvest_is_in_doubt_unless_tracking_continued(rig: Rig) -> None:
    doubt = harvest_and_commit(rig).doubt
    assert (doubt.kind is DoubtKind.RESYNC) == (not rig.tracker.continued)
    assert harvest_and_commit(rig).doubt.kind is DoubtKind.NONE


def test_every_written_granule_is_harvested_once(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.write(3 * GRANULE - 4096, block(1, 8192))
    rig.write(40 * GRANULE, block(2))
    assert granules(harvest_and_commit(rig)) == [2, 3, 40]
    assert granules(harvest_and_commit(rig)) == []


def test_a_bitmap_has_the_disk_s_granules(rig: Rig) -> None:
    assert rig.tracker.geometry == GEOMETRY
    assert rig.tracker.begin_harvest().bitmap.granules == 41


def test_a_harvest_that_is_not_committed_is_in_the_next_one(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.write(GRANULE, block(1))
    assert granules(rig.tracker.begin_harvest()) == [1]
    rig.write(5 * GRANULE, block(1))
    assert granules(rig.tracker.begin_harvest()) == [1, 5]
    assert granules(harvest_and_commit(rig)) == [1, 5]
    assert granules(harvest_and_commit(rig)) == []


def test_a_doubt_is_repeated_until_it_is_committed(rig: Rig) -> None:
    first = rig.tracker.begin_harvest().doubt
    assert rig.tracker.begin_harvest().doubt == first


def test_a_commit_without_a_harvest_forgets_nothing(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.write(GRANULE, block(1))
    rig.tracker.commit_harvest()
    rig.tracker.commit_harvest()
    assert granules(rig.tracker.begin_harvest()) == [1]


def test_a_write_after_the_flip_survives_the_commit(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.write(GRANULE, block(1))
    harvest = rig.tracker.begin_harvest()
    rig.confirm(harvest)
    rig.write(GRANULE, block(2))
    rig.write(9 * GRANULE, block(2))
    rig.tracker.commit_harvest()
    assert granules(harvest_and_commit(rig)) == [1, 9]


def test_marks_are_in_the_next_harvest_once(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.tracker.mark(GranuleRuns.of([(2, 3), (40, 1)]))
    assert granules(harvest_and_commit(rig)) == [2, 3, 4, 40]
    assert granules(harvest_and_commit(rig)) == []


def test_marks_made_while_a_harvest_is_open_survive_its_commit(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.tracker.mark(GranuleRuns.of([(2, 1)]))
    rig.tracker.begin_harvest()
    rig.tracker.mark(GranuleRuns.of([(7, 2)]))
    rig.tracker.commit_harvest()
    assert granules(harvest_and_commit(rig)) == [7, 8]


def test_a_given_bitmap_is_filled_anew(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.write(GRANULE, block(1))
    reused = DirtyBitmap(GEOMETRY.granules)
    reused.mark_all()
    harvest = rig.tracker.begin_harvest(reused)
    assert harvest.bitmap is reused
    assert granules(harvest) == [1]


def test_quiet_is_claimed_only_if_it_can_be_proved(rig: Rig) -> None:
    assert rig.tracker.wrote_since_flip()
    harvest_and_commit(rig)
    assert rig.tracker.wrote_since_flip() == (not rig.tracker.proves_quiet)
    assert rig.tracker.is_idle() == rig.tracker.proves_quiet
    rig.write(GRANULE, block(1))
    assert rig.tracker.wrote_since_flip()
    harvest_and_commit(rig)
    assert rig.tracker.wrote_since_flip() == (not rig.tracker.proves_quiet)


def test_the_serial_of_the_newest_commit_outlives_the_agent_where_marks_do(rig: Rig) -> None:
    harvest_and_commit(rig)
    assert rig.tracker.journal_serial == 0
    rig.tracker.begin_harvest()
    rig.tracker.commit_harvest(7)
    rig.tracker.begin_harvest()
    rig.tracker.commit_harvest()
    rig.tracker.commit_harvest(8)
    rig.reopen()
    assert rig.tracker.journal_serial == (0 if rig.tracker.kind == "scan" else 7)


def test_nothing_is_lost_between_close_and_the_next_attach(rig: Rig) -> None:
    harvest_and_commit(rig)
    rig.write(GRANULE, block(1))
    rig.tracker.begin_harvest()
    rig.write(2 * GRANULE, block(1))
    rig.tracker.close()
    rig.write(3 * GRANULE, block(1))
    rig.reopen()
    assert rig.tracker.continued
    harvest = harvest_and_commit(rig)
    assert granules(harvest) == [1, 2, 3]
    assert harvest.doubt.kind is DoubtKind.NONE


def test_a_cut_image_is_given_exactly_by_what_captures_order(rig: Rig) -> None:
    assert (rig.tracker.begin_harvest().cut is not None) == rig.tracker.captures_order


def test_a_status_has_a_reason_exactly_if_it_is_not_tracking(rig: Rig) -> None:
    assert rig.tracker.status().state is TrackerState.TRACKING
    assert rig.tracker.status().reason == ""


def test_close_and_discard_may_be_repeated(rig: Rig) -> None:
    rig.tracker.close()
    rig.tracker.close()
    rig.tracker.discard()
    rig.tracker.discard()
