"""Attach, pins, identity, refusals: what an eBPF tracker does when the world around it changes."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobility_agent.change_tracker.ebpf import bpf_syscall
from mobility_agent.change_tracker.ebpf.btf import function_types
from mobility_agent.change_tracker.ebpf.halves import Halves
from mobility_agent.change_tracker.ebpf.layout import CONTROL_BYTES, COUNTER_WORDS, BitmapLayout, ControlRecord
from mobility_agent.change_tracker.ebpf.programs import marking_probe
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind, TrackerState
from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.errors import Conflict, NotFound, Refused, Unsupported
from tests.harness.loop_disk import LoopDisk, loop_disk, pin_root, run

pytestmark = [pytest.mark.requires("root", "loop", "ebpf")]

DISK_BYTES = 16 * 2**20
GRANULE = 65536


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with loop_disk(tmp_path / "disk.img", DISK_BYTES) as made:
        yield made


@pytest.fixture
def pins() -> Iterator[Path]:
    with pin_root() as root:
        yield root / "disk"


def write_block(device: Path, granule: int, size_bytes: int = 4096) -> None:
    descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, size_bytes) as memory:
        memory.write(os.urandom(size_bytes))
        os.pwrite(descriptor, memory, granule * GRANULE)
    os.close(descriptor)


def settled(tracker: EbpfTracker) -> list[tuple[int, int]]:
    harvest = tracker.begin_harvest()
    tracker.commit_harvest()
    return list(harvest.bitmap.runs())


def test_pins_outlive_the_tracker_and_go_on_tracking(disk: LoopDisk, pins: Path) -> None:
    first = EbpfTracker.attach(disk.device, pin_directory=pins)
    assert not first.continued
    settled(first)
    first.close()
    first.close()
    write_block(disk.device, 3)
    second = EbpfTracker.attach(disk.device, pin_directory=pins)
    assert second.continued
    harvest = second.begin_harvest()
    assert list(harvest.bitmap.runs()) == [(3, 1)]
    assert harvest.doubt.kind is DoubtKind.NONE
    second.discard()
    second.discard()
    assert not pins.exists()


def test_a_harvest_that_was_not_committed_comes_again_after_a_restart(disk: LoopDisk, pins: Path) -> None:
    first = EbpfTracker.attach(disk.device, pin_directory=pins)
    settled(first)
    write_block(disk.device, 3)
    first.begin_harvest()
    write_block(disk.device, 5)
    first.mark(GranuleRuns.of([(9, 2)]))
    first.close()
    second = EbpfTracker.attach(disk.device, pin_directory=pins)
    assert settled(second) == [(3, 1), (5, 1), (9, 2)]
    assert settled(second) == []
    second.discard()


def test_a_resync_doubt_that_was_not_committed_comes_again_after_a_restart(disk: LoopDisk, pins: Path) -> None:
    first = EbpfTracker.attach(disk.device, pin_directory=pins)
    assert first.begin_harvest().doubt.kind is DoubtKind.RESYNC
    first.close()
    second = EbpfTracker.attach(disk.device, pin_directory=pins)
    assert second.begin_harvest().doubt.kind is DoubtKind.RESYNC
    second.commit_harvest()
    assert second.begin_harvest().doubt.kind is DoubtKind.NONE
    second.discard()


def test_two_trackers_cannot_share_pins(disk: LoopDisk, pins: Path) -> None:
    first = EbpfTracker.attach(disk.device, pin_directory=pins)
    with pytest.raises(Conflict, match="another process tracks this disk"):
        EbpfTracker.attach(disk.device, pin_directory=pins)
    first.discard()


def test_another_disk_under_the_same_number_is_refused(disk: LoopDisk, pins: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    with other.open("wb") as stream:
        stream.truncate(DISK_BYTES)
    tracker = EbpfTracker.attach(disk.device, pin_directory=pins)
    settled(tracker)
    run("losetup", "--detach", disk.device)
    run("losetup", disk.device, other)
    assert tracker.status().state is TrackerState.BLIND
    with pytest.raises(Refused, match="another disk has taken its place"):
        tracker.begin_harvest()
    tracker.close()
    anew = EbpfTracker.attach(disk.device, pin_directory=pins)
    assert not anew.continued
    assert anew.status().state is TrackerState.DEGRADED
    doubt = anew.begin_harvest().doubt
    assert doubt.kind is DoubtKind.RESYNC
    assert "another device" in doubt.reason
    anew.commit_harvest()
    assert anew.status().state is TrackerState.TRACKING
    anew.discard()


def test_pins_of_another_granularity_are_not_taken_over(disk: LoopDisk, pins: Path) -> None:
    EbpfTracker.attach(disk.device, pin_directory=pins).close()
    anew = EbpfTracker.attach(disk.device, pin_directory=pins, granularity_bytes=4096)
    assert not anew.continued
    anew.discard()


def test_incomplete_pins_are_not_taken_over(disk: LoopDisk, pins: Path) -> None:
    EbpfTracker.attach(disk.device, pin_directory=pins).close()
    (pins / "link_complete").unlink()
    anew = EbpfTracker.attach(disk.device, pin_directory=pins)
    assert not anew.continued
    anew.discard()


def test_a_grown_disk_is_reported_and_its_old_part_tracked(disk: LoopDisk) -> None:
    with contextlib.closing(EbpfTracker.attach(disk.device)) as tracker:
        settled(tracker)
        os.truncate(disk.backing, 2 * DISK_BYTES)
        run("losetup", "--set-capacity", disk.device)
        write_block(disk.device, DISK_BYTES // GRANULE - 1)
        write_block(disk.device, DISK_BYTES // GRANULE + 5)
        assert tracker.status().state is TrackerState.DEGRADED
        assert "resized" in tracker.status().reason
        assert settled(tracker) == [(DISK_BYTES // GRANULE - 1, 1)]


def test_statistics_that_are_switched_off_put_the_disk_in_doubt_and_are_switched_on(disk: LoopDisk) -> None:
    iostats = Path(f"/sys/block/{disk.name}/queue/iostats")
    with contextlib.closing(EbpfTracker.attach(disk.device)) as tracker:
        settled(tracker)
        iostats.write_text("0")
        assert tracker.status().state is TrackerState.DEGRADED
        assert tracker.wrote_since_flip()
        assert not tracker.is_idle()
        write_block(disk.device, 1)
        harvest = tracker.begin_harvest()
        assert harvest.doubt.kind is DoubtKind.RESYNC
        assert iostats.read_text().strip() == "1"
        tracker.commit_harvest()
        write_block(disk.device, 2)
        harvest = tracker.begin_harvest()
        assert harvest.doubt.kind is not DoubtKind.RESYNC
        assert 2 in harvest.bitmap
        tracker.commit_harvest()
        assert tracker.is_idle()
        assert settled(tracker) == []


def test_statistics_that_stood_still_between_two_harvests_are_noticed(disk: LoopDisk) -> None:
    iostats = Path(f"/sys/block/{disk.name}/queue/iostats")
    with contextlib.closing(EbpfTracker.attach(disk.device)) as tracker:
        settled(tracker)
        iostats.write_text("0")
        write_block(disk.device, 1)
        iostats.write_text("1")
        assert not tracker.is_idle()
        doubts = []
        for _ in range(3):
            doubts.append(tracker.begin_harvest().doubt.kind)
            tracker.commit_harvest()
        assert DoubtKind.RESYNC in doubts
        assert tracker.is_idle()


def test_statistics_are_left_as_they_were_found(disk: LoopDisk) -> None:
    iostats = Path(f"/sys/block/{disk.name}/queue/iostats")
    iostats.write_text("0")
    tracker = EbpfTracker.attach(disk.device)
    assert iostats.read_text().strip() == "1"
    tracker.discard()
    assert iostats.read_text().strip() == "0"
    iostats.write_text("1")


def test_flushes_and_reads_are_no_writes(disk: LoopDisk) -> None:
    with contextlib.closing(EbpfTracker.attach(disk.device)) as tracker:
        settled(tracker)
        descriptor = os.open(disk.device, os.O_RDWR)
        os.pread(descriptor, 2**20, 0)
        os.fsync(descriptor)
        os.close(descriptor)
        assert not tracker.wrote_since_flip()
        assert tracker.is_idle()
        write_block(disk.device, 0)
        assert tracker.wrote_since_flip()


def test_what_makes_no_block_requests_is_unsupported(disk: LoopDisk, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="not a block device"):
        EbpfTracker.attach(disk.backing)
    with pytest.raises(NotFound):
        EbpfTracker.attach(tmp_path / "nothing")
    if Path("/dev/zram0").exists():
        with pytest.raises(Unsupported, match="makes no block requests"):
            EbpfTracker.attach(Path("/dev/zram0"))


def test_a_disk_of_64_tib_is_tracked_to_its_last_granule() -> None:
    """On tmpfs, whose files may be that long; 512 MiB of kernel memory for the maps while it lasts."""
    backing = Path(f"/dev/shm/blockferry-test-{os.getpid()}.img")
    try:
        with (
            loop_disk(backing, 64 * 2**40) as disk,
            contextlib.closing(EbpfTracker.attach(disk.device)) as tracker,
        ):
            settled(tracker)
            last = tracker.geometry.granules - 1
            write_block(disk.device, last)
            write_block(disk.device, last // 2, 2**20)
            run("blkdiscard", "--offset", str(2**40), "--length", str(5 * 2**30), disk.device)
            assert settled(tracker) == [(2**24, 5 * 2**14), (last // 2, 16), (last, 1)]
    finally:
        backing.unlink(missing_ok=True)


class Probe:
    """The in-kernel ``mark``, called directly with ranges of our choice, over a map of its own."""

    def __init__(self, geometry: Geometry) -> None:
        self.layout = BitmapLayout(geometry)
        self._maps = {
            "control": bpf_syscall.create_array("control", CONTROL_BYTES, 1),
            "counters": bpf_syscall.create_array("counters", COUNTER_WORDS * 8, 1),
            "bitmap": bpf_syscall.create_array("bitmap", 8, self.layout.total_words),
        }
        types = bpf_syscall.load_btf(function_types())
        program = marking_probe(self.layout)
        self._program = bpf_syscall.load_program(
            "probe",
            program.text.assemble(self._maps),
            program_type=bpf_syscall.PROG_TYPE_RAW_TRACEPOINT,
            btf_descriptor=types,
            functions=program.functions,
        )
        os.close(types)
        self.words = np.frombuffer(mmap.mmap(self._maps["bitmap"], self.layout.total_words * 8), dtype=np.uint64)
        self.control = ControlRecord.from_buffer(mmap.mmap(self._maps["control"], CONTROL_BYTES))

    def mark(self, first: int, last: int) -> int:
        return bpf_syscall.test_run(self._program, struct.pack("<QQ", first, last))

    def marked(self, half: int) -> set[int]:
        self.control.active_word = 0 if half else self.layout.half_words
        bitmap = DirtyBitmap(self.layout.geometry.granules)
        Halves(self.words, self.control, self.layout, lambda: None, lambda: None).collect(bitmap)
        return set(bitmap.runs().indices().tolist())

    def close(self) -> None:
        for descriptor in (*self._maps.values(), self._program):
            os.close(descriptor)


@pytest.fixture(scope="module", params=[64 * 700 * 64 + 11, 100, 64, 1])
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    with contextlib.closing(Probe(Geometry(request.param * 4096, 4096))) as made:
        yield made


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), half=st.integers(0, 1))
def test_the_kernel_marks_exactly_the_granules_of_a_range(probe: Probe, data: st.DataObject, half: int) -> None:
    granules = probe.layout.geometry.granules
    edges = st.integers(0, granules - 1) | st.integers(0, granules // 64).map(lambda w: min(w * 64, granules - 1))
    ranges = data.draw(st.lists(st.tuples(edges, edges).map(sorted), min_size=1, max_size=5))
    probe.words[:] = 0
    probe.control.active_word = half * probe.layout.half_words
    expected: set[int] = set()
    for first, last in ranges:
        last = min(last, first + 2**17 - 1)
        assert probe.mark(first, last) == 0
        expected |= set(range(first, last + 1))
    assert probe.marked(half) == expected
    assert probe.marked(1 - half) == set()


def test_a_range_longer_than_any_request_is_reported_not_cut() -> None:
    with contextlib.closing(Probe(Geometry(2**40, 4096))) as probe:
        assert probe.mark(5, 5 + 2**20 - 1) == 0
        assert probe.mark(0, probe.layout.geometry.granules - 1) == 1


def test_a_disk_that_is_gone_is_never_quiet_and_can_be_discarded(disk: LoopDisk, pins: Path) -> None:
    tracker = EbpfTracker.attach(disk.device, pin_directory=pins)
    settled(tracker)
    run("losetup", "--detach", disk.device)
    try:
        assert tracker.status().state in (TrackerState.BLIND, TrackerState.DEGRADED)
        tracker.discard()
        assert not pins.exists()
        assert tracker.wrote_since_flip()
        assert not tracker.is_idle()
    finally:
        run("losetup", disk.device, disk.backing)
