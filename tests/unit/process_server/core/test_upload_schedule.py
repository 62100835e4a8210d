"""Which segment goes next: fair by bytes, bounded per machine, the oldest epoch first, failed ones again in time."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from process_server.core.backlog import Backlog, SegmentEntry, SegmentState
from process_server.core.places import RecordPlace
from process_server.core.upload_schedule import UploadJob, UploadSchedule
from replication.errors import InvalidInput
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    GenerationId,
    MachineId,
)


class Site:
    """A backlog and its schedule; machines and disks are letters and numbers."""

    def __init__(self, threads: int = 4) -> None:
        self.backlog = Backlog()
        self.schedule = UploadSchedule(self.backlog, threads)
        self.numbers = itertools.count(1)

    def add(self, machine: str, disk: int, epoch: int = 1, *, count: int = 1, size: int = 100, first: int = 0) -> None:
        for batch in range(first, first + count):
            number = next(self.numbers)
            key = BatchKey(
                DiskId(f"{disk:08x}-1111-4111-8111-111111111111"),
                GenerationId(1),
                EpochId(epoch),
                AttemptNumber(1),
                BatchNumber(batch),
            )
            place = RecordPlace(1, number * 64, size, number)
            entry = SegmentEntry(bytes(16), bytes(16), size, SegmentState.WAITING, place, number)
            assert self.backlog.add_segment(key, MachineId(machine), entry)
            self.schedule.added(self.backlog.generations[key.generation_key])

    def next(self, now_s: float = 0) -> UploadJob | None:
        job = self.schedule.peek(now_s)
        return None if job is None else self.schedule.next_job(job)

    def start(self, now_s: float = 0) -> UploadJob:
        job = self.next(now_s)
        assert job is not None
        return job

    def store(self, job: UploadJob) -> None:
        self.schedule.done(job)
        assert self.backlog.finish(job.key, job.entry.place, SegmentState.STORED)


def test_a_machine_has_only_so_many_under_way() -> None:
    site = Site(threads=2)
    site.add("a", 1, count=5)
    site.add("a", 2, count=5)
    jobs = [site.start(), site.start()]
    assert site.next() is None
    site.store(jobs[0])
    site.start()
    assert site.next() is None
    assert site.schedule.in_flight == 2


def test_bytes_are_shared_fairly_between_machines_whatever_their_segments_sizes() -> None:
    site, served = Site(threads=1), Counter[str]()
    site.add("large", 1, count=200, size=8000)
    site.add("small", 2, count=2000, size=500)
    for _ in range(400):
        job = site.start()
        served[job.machine] += job.entry.segment_bytes
        site.store(job)
    assert abs(served["large"] - served["small"]) <= 8000


def test_an_idle_machine_saves_up_no_claim() -> None:
    site = Site(threads=1)
    site.add("busy", 1, count=500)
    for _ in range(300):
        site.store(site.start())
    site.add("new", 2, count=100)
    turn = []
    for _ in range(20):
        job = site.start()
        turn.append(job.machine)
        site.store(job)
    assert 8 <= turn.count(MachineId("busy")) <= 12


def test_within_a_machine_the_oldest_accepted_head_goes_first() -> None:
    site = Site()
    site.add("a", 2, epoch=9)
    site.add("a", 1, epoch=3)
    site.add("a", 2, epoch=8)
    assert [site.start().key.epoch for _ in range(3)] == [3, 8, 9], "an epoch's age is its number within its generation"


def test_a_failed_job_waits_for_its_time_and_does_not_hold_up_others() -> None:
    site = Site(threads=1)
    site.add("a", 1, count=2)
    failed = site.start()
    site.schedule.failed(failed, 30.0)
    assert site.schedule.next_retry_s() == 30.0
    second = site.start(1.0)
    assert second.key.batch == 1
    site.store(second)
    assert site.next(29.9) is None
    assert site.start(30.0).key == failed.key
    assert site.schedule.next_retry_s() is None


def test_a_job_whose_generation_was_discarded_does_not_come_back() -> None:
    site = Site()
    site.add("a", 1)
    failed = site.start()
    site.schedule.failed(failed, 5.0)
    site.backlog.discard_generation(failed.key.generation_key)
    assert site.next(10.0) is None
    assert site.schedule.in_flight == 0


def test_changed_thread_numbers_count_at_once() -> None:
    site = Site(threads=1)
    site.add("a", 1, count=5)
    site.start()
    site.schedule.threads_per_machine = 3
    site.start()
    site.start()
    assert site.next() is None
    for wrong in (0, 33):
        with pytest.raises(InvalidInput, match="1 to 32"):
            site.schedule.threads_per_machine = wrong
    assert site.schedule.threads_per_machine == 3


def test_machines_that_left_are_forgotten_and_those_with_work_are_not() -> None:
    site = Site()
    for machine, disk in (("gone", 1), ("busy", 2), ("parked", 3), ("waiting", 4)):
        site.add(machine, disk)
    jobs = {job.machine: job for job in (site.start() for _ in range(3))}
    assert jobs.keys() == {"busy", "gone", "parked"}
    site.store(jobs[MachineId("gone")])
    site.schedule.failed(jobs[MachineId("parked")], 9.0)
    assert site.schedule.peek(0) is not None
    site.schedule.forget_idle()
    assert site.schedule.machines == {"busy", "parked", "waiting"}
