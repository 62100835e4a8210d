"""The spool under power cuts: whatever was acknowledged is there byte for byte, whatever comes back was once appended.

A machine appends, syncs, releases, removes, damages nothing, loses power at any file operation, recovers and goes on, several times over.
Syncs and writes may fail; the disk may be full. The model knows what was acknowledged and not released.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

from hypothesis import given, note, settings
from hypothesis import strategies as st

from process_server.core.places import RecordPlace
from process_server.spool.log import SpoolLog, Written
from process_server.spool.record import RecordHeader, RecordKind, encode_marks
from process_server.spool.recovery import RecoveredMarks, RecoveredRecord, Recovery
from replication.errors import BlockferryError
from tests.harness.simulated_disk import PowerCut, SimulatedDisk

FILE_BYTES = 16 * 1024
_EXAMPLES = 5 * (settings.default.max_examples if settings.default else 100)

OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 9000)),
    st.tuples(st.just("sync"), st.just(0)),
    st.tuples(st.just("release"), st.integers(0, 100)),
    st.tuples(st.just("remove"), st.just(0)),
    st.tuples(st.just("sync that fails"), st.just(0)),
    st.tuples(st.just("failing write"), st.just(1)),
    st.tuples(st.just("capacity"), st.integers(1, 8)),
)
Life = tuple[list[tuple[str, int]], int | None, bool]
"""What a process does, after how many file operations it dies, and whether the machine's power goes with it."""

LIVES = st.lists(
    st.tuples(st.lists(OPERATIONS, max_size=40), st.one_of(st.none(), st.integers(0, 60)), st.booleans()),
    min_size=1,
    max_size=5,
)


class Machine:
    """One spool through several lives, and what it has promised."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.disk = SimulatedDisk(random=random)
        self.serial = itertools.count()
        self.seeds = itertools.count(1)
        self.appended: dict[int, bytes] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.given_up: set[int] = set()
        self.places: dict[int, RecordPlace] = {}
        self.written: list[tuple[int, Written]] = []
        self.log = self.recovered()

    def recovered(self) -> SpoolLog:
        """Start on what the disk holds; every promise is checked here."""
        recovery = Recovery(self.disk, repair=True)
        found: dict[int, RecoveredRecord] = {}
        marked: set[int] = set()
        for item in recovery.records():
            if isinstance(item, RecoveredMarks):
                marked.update(item.numbers)
            else:
                serial = item.header.epoch
                found[serial] = item
        report = recovery.report
        assert not [damage for damage in report.damages if damage.acknowledged], report.damages
        log = SpoolLog(
            self.disk,
            file_bytes=FILE_BYTES,
            new_seed=lambda: next(self.seeds),
            found=report.files,
            next_number=report.last_number + 1,
        )
        self.places = {}
        for serial, item in found.items():
            assert item.header.content_id == serial.to_bytes(32, "little")
            buffer = bytearray(item.place.payload_bytes)
            log.read(item.place, memoryview(buffer))
            assert bytes(buffer) == self.appended[serial], "what comes back is what was appended"
            if item.header.number in marked:
                assert serial in self.given_up, "only what was given up is marked"
                continue
            log.hold(item.place)
            self.places[serial] = item.place
        missing = self.acknowledged.keys() - found.keys() - self.given_up
        assert not missing, f"acknowledged and lost: {sorted(missing)}"
        self.acknowledged |= {serial: self.appended[serial] for serial in self.places}
        self.written = []
        return log

    def append(self, size: int) -> None:
        serial = next(self.serial)
        payload = self.random.randbytes(size)
        self.appended[serial] = payload
        draft = RecordHeader(RecordKind.SEGMENT, 0, 0, 0, epoch=serial, content_id=serial.to_bytes(32, "little"))
        self.written.append((serial, self.log.append(draft, memoryview(payload))))

    def sync(self, _argument: int = 0) -> None:
        pending, self.written = self.written, []
        durable = self.log.sync()
        for serial, written in pending:
            if written.incarnation == durable.incarnation and written.place.number <= durable.through:
                self.acknowledged[serial] = self.appended[serial]
                self.places[serial] = written.place

    def release(self, which: int) -> None:
        if not self.places:
            return
        serial = sorted(self.places)[which % len(self.places)]
        place = self.places.pop(serial)
        self.given_up.add(serial)
        self.log.release(place)
        self.log.append(RecordHeader(RecordKind.UPLOADED, 0, 0, 0), memoryview(encode_marks([place.number])))

    def remove(self, _argument: int) -> None:
        for number in self.log.removable():
            try:
                self.log.remove(number)
            except OSError as error:  # as ``Spool`` does: another time
                note(f"remove: {error}")

    def live(self, operations: list[tuple[str, int]], dies_after: int | None, power_cut: bool) -> None:
        self.disk.capacity_bytes = 2**40
        self.disk.cut_power_after(dies_after)
        try:
            for name, argument in operations:
                self.step(name, argument)
        except PowerCut:
            note("died in the middle")
        self.disk.cut_power_after(None)
        self.disk.failing_syncs = self.disk.failing_writes = 0
        if power_cut:
            self.disk = self.disk.after_power_cut()
        self.log = self.recovered()

    def step(self, name: str, argument: int) -> None:
        match name:
            case "sync that fails":
                self.disk.failing_syncs = 1
                name = "sync"
            case "failing write":
                self.disk.failing_writes = argument
                return
            case "capacity":
                self.disk.capacity_bytes = self.disk.used_bytes + argument * 4096
                return
        actions: dict[str, Callable[[int], None]] = {
            "append": self.append, "sync": self.sync, "release": self.release, "remove": self.remove,
        }  # fmt: skip
        try:
            actions[name](argument)
        except BlockferryError as error:
            note(f"{name}: {error}")


@settings(max_examples=_EXAMPLES)
@given(lives=LIVES, seed=st.integers(0, 2**32))
def test_what_was_acknowledged_survives_every_kill_and_power_cut(lives: list[Life], seed: int) -> None:
    machine = Machine(Random(seed))
    for operations, dies_after, power_cut in lives:
        machine.live(operations, dies_after, power_cut)


@settings(max_examples=_EXAMPLES // 2)
@given(sizes=st.lists(st.integers(0, 9000), min_size=2, max_size=20), data=st.data())
def test_damage_anywhere_costs_only_the_records_it_touches(sizes: list[int], data: st.DataObject) -> None:
    machine = Machine(Random(1))
    for size in sizes:
        machine.append(size)
    machine.sync()
    machine.log.append(RecordHeader(RecordKind.UPLOADED, 0, 0, 0), memoryview(b""))
    machine.log.close()
    victim = data.draw(st.sampled_from(sorted(machine.places)))
    place = machine.places[victim]
    name = next(name for name in machine.disk.names() if int(name[:16], 16) == place.file)
    machine.disk.damage(name, place.offset + data.draw(st.integers(0, 151 + place.payload_bytes)))
    recovery = Recovery(machine.disk, repair=True)
    found = {item.header.epoch: item for item in recovery.records() if isinstance(item, RecoveredRecord)}
    assert found.keys() >= machine.places.keys() - {victim}
    if victim not in found:
        (damage,) = recovery.report.damages
        if place.file != 1 or any(other.file == 1 for other in machine.places.values() if other != place):
            assert list(damage.lost) == [place.number]
            assert damage.acknowledged
        else:
            assert not damage.lost, "nothing in the first file could be read: how much is lost is unknown"
