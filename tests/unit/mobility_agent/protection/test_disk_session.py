"""A disk session over a fake disk and an in-memory sink: what reaches the replica, what a crash or a lost spool costs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mobility_agent.change_tracker.interface import Harvest
from mobility_agent.core import epoch_sizes
from mobility_agent.core.epoch_ledger import EpochLedger, HistoryDiverged
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.ledger_opening import settle_attach
from mobility_agent.protection.point_coordinator import PointCoordinator
from mobility_agent.quiesce.interface import Mount
from replication.batch_frame import BatchFrame
from replication.data_plane import BatchAcknowledgement
from replication.dirty_bitmap import DirtyBitmap
from replication.epoch_manifest import EpochFlag, decode_manifest
from replication.errors import ResyncRequired, Retryable
from replication.identifiers import CutId, DiskId, EpochId, EpochKey, ItemId
from tests.harness.fake_tracker import FakeTracker
from tests.harness.memory_sink import MemorySink
from tests.harness.session_site import GRANULARITY_BYTES, FakeFreezer, SessionSite

ITEM = ItemId("11111111-1111-4111-8111-111111111111")
DISK = DiskId("22222222-2222-4222-8222-222222222222")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SessionSite]:
    site = SessionSite(tmp_path, DISK)
    yield site
    await site.crash()


def _fill(site: SessionSite, start: int, count: int, byte: int) -> None:
    length = min(count * GRANULARITY_BYTES, site.geometry.size_bytes - start * GRANULARITY_BYTES)
    site.disk.write(start * GRANULARITY_BYTES, bytes([byte]) * length)


async def ended(site: SessionSite) -> None:
    """Until the session has ended; raises what ended it."""
    assert site._task is not None
    async with asyncio.timeout(20):
        await site._task


async def test_initial_replication_makes_the_replica_identical(site: SessionSite) -> None:
    _fill(site, 0, 64, 7)
    site.start()
    await site.settle()
    assert site.replica_matches


async def test_the_last_epochs_of_initial_replication_are_smaller_and_those_of_changes_are_not(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_sizes, "SMALLEST_BYTES", 2 * GRANULARITY_BYTES)
    _fill(site, 0, 64, 7)
    site.start()
    await site.settle()
    seeded = len(site.sink.manifests)
    assert [logical // GRANULARITY_BYTES for logical in _shipped(site)] == [16, 16, 16, 8, 4, 2, 1]  # the last is short
    _fill(site, 0, 12, 8)
    await site.settle()
    assert [logical // GRANULARITY_BYTES for logical in _shipped(site)[seeded:]] == [12]
    assert site.replica_matches


def _shipped(site: SessionSite) -> list[int]:
    """Bytes of each epoch that was shipped."""
    generation, key = site.sink.generation, site.sink.manifest_key
    keys = {epoch: EpochKey(generation.disk, generation.generation, EpochId(epoch)) for epoch in site.sink.manifests}
    return [
        decode_manifest(encoded, key, expected=keys[epoch]).logical_bytes
        for epoch, encoded in sorted(site.sink.manifests.items())
    ]


async def test_zero_granules_are_never_sent_as_data(site: SessionSite) -> None:
    _fill(site, 10, 2, 9)
    site.start()
    await site.settle()
    assert site.replica_matches
    assert site.sink.received_data_bytes == 2 * GRANULARITY_BYTES


async def test_writes_after_seeding_reach_the_replica_and_equal_rewrites_do_not_travel(site: SessionSite) -> None:
    _fill(site, 0, 8, 1)
    site.start()
    await site.settle()
    before = site.sink.received_data_bytes
    _fill(site, 3, 1, 2)
    _fill(site, 5, 1, 1)
    await site.settle()
    assert site.replica_matches
    assert site.sink.received_data_bytes - before == GRANULARITY_BYTES


async def test_a_granule_that_reverts_while_its_change_is_unconfirmed_is_sent_again(site: SessionSite) -> None:
    _fill(site, 0, 4, 1)
    session = site.start()
    await site.settle()
    site.sink.applying = False
    _fill(site, 2, 1, 5)
    while not session.ledger.sealed_epochs:
        await asyncio.sleep(0.001)
    _fill(site, 2, 1, 1)
    while len(session.ledger.sealed_epochs) < 2:
        await asyncio.sleep(0.001)
    site.sink.applying = True
    await site.sink.apply_ready()
    await site.settle()
    assert site.replica_matches


async def test_a_crash_resumes_where_it_was(site: SessionSite) -> None:
    _fill(site, 0, 64, 3)
    session = site.start()
    while session.ledger.applied_epoch < 2:
        await asyncio.sleep(0.001)
    await site.crash()
    sent_before = site.sink.received_data_bytes
    site.start()
    await site.settle()
    assert site.replica_matches
    in_flight_at_most = 4 * site.epoch_bytes
    assert (
        site.sink.received_data_bytes - sent_before
        <= site.geometry.size_bytes - 2 * site.epoch_bytes + in_flight_at_most
    )


async def test_a_lost_spool_costs_a_new_attempt_and_no_resync(site: SessionSite) -> None:
    _fill(site, 0, 4, 1)
    session = site.start()
    await site.settle()
    site.sink.applying = False
    _fill(site, 1, 2, 8)
    while not session.ledger.sealed_epochs:
        await asyncio.sleep(0.001)
    site.sink.lose_spool()
    site.sink.applying = True
    await site.crash()
    session = site.start()
    await site.settle()
    assert site.replica_matches
    assert not site.doubts


async def test_an_unreachable_process_server_is_waited_for(site: SessionSite) -> None:
    _fill(site, 0, 64, 4)
    site.sink.failures = 20
    site.start()
    await site.settle()
    assert site.replica_matches


async def test_lost_marks_demand_a_resync_and_the_duty_is_persisted_first(site: SessionSite) -> None:
    site.start()
    await site.settle()
    site.disk.lost_marks = "an overflow"
    with pytest.raises(ResyncRequired):
        await ended(site)
    assert site.doubts == ["an overflow"]


async def test_a_scan_is_put_off_if_an_epoch_was_cut_while_it_waited_for_the_gap(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulation: a granule that had its confirmed content again, while a point carried another, was called unchanged."""
    session = site.start()
    await site.settle()
    session.harvest_reads_disk = True
    on_their_way: list[int] = []
    begin_harvest = FakeTracker.begin_harvest

    def counted(tracker: FakeTracker, into: DirtyBitmap | None = None) -> Harvest:
        on_their_way.append(len(session.ledger.epochs))
        return begin_harvest(tracker, into)

    monkeypatch.setattr(FakeTracker, "begin_harvest", counted)
    site.sink.applying = False
    async with session.gap:
        await asyncio.sleep(0.01)
        _fill(site, 3, 1, 7)
        await session.ship_next()
        assert session.ledger.sealed_epochs
    await asyncio.sleep(0.05)
    assert set(on_their_way) == {0}
    site.sink.applying = True
    await site.sink.apply_ready()
    await site.settle()
    assert site.replica_matches


async def test_a_copy_of_the_state_from_before_a_doubt_shows_that_it_is_older(
    site: SessionSite, tmp_path: Path
) -> None:
    """Found by the simulation: the duty to resynchronize was durable, the doubt forgotten, and the state restored from a backup."""
    site.start()
    await site.settle()
    backup = (tmp_path / "ledger").read_bytes()
    site.disk.lost_marks = "an overflow"
    with pytest.raises(ResyncRequired, match="an overflow"):
        await ended(site)
    await site.crash()
    (tmp_path / "ledger").write_bytes(backup)
    restored, tracker = EpochJournal(tmp_path).load(), FakeTracker(site.disk)
    assert restored is not None
    with pytest.raises(HistoryDiverged):
        settle_attach(tracker, restored)


async def test_a_sink_that_is_ahead_demands_a_resync(site: SessionSite) -> None:
    _fill(site, 0, 4, 1)
    site.start()
    await site.settle()
    await site.crash()
    (site.directory / "ledger").unlink()
    site.start()
    with pytest.raises(ResyncRequired):
        await ended(site)


def _coordinator(freezer: FakeFreezer) -> PointCoordinator:
    return PointCoordinator(
        freezer, memoryview(bytearray(16 * GRANULARITY_BYTES)), lambda _: [Mount("/m", "ext4", "/d", (7, 0))]
    )


async def test_a_point_equals_the_disk_at_its_cut_although_writes_go_on(site: SessionSite) -> None:
    _fill(site, 0, 64, 1)
    session = site.start()
    await site.settle()
    _fill(site, 4, 3, 2)
    cut = CutId(str(uuid.uuid4()))
    outcome = await _coordinator(FakeFreezer()).cut(ITEM, {DISK: session}, cut, flags=EpochFlag(0), freeze_budget_s=1.0)
    assert outcome.made
    at_cut = bytes(site.disk.content)
    _fill(site, 5, 3, 3)
    await site.settle()
    assert site.sink.points[cut] == at_cut
    assert site.replica_matches


async def test_a_freeze_that_was_thawed_by_somebody_else_makes_no_point_and_loses_nothing(site: SessionSite) -> None:
    _fill(site, 0, 8, 1)
    session = site.start()
    await site.settle()
    freezer = FakeFreezer()
    freezer.problem = "the watchdog thawed"
    _fill(site, 2, 1, 6)
    outcome = await _coordinator(freezer).cut(
        ITEM, {DISK: session}, CutId(str(uuid.uuid4())), flags=EpochFlag(0), freeze_budget_s=1.0
    )
    assert not outcome.made
    assert outcome.reason == "the watchdog thawed"
    await site.settle()
    assert not site.sink.points
    assert site.replica_matches


async def test_a_write_in_flight_at_the_flip_makes_no_point(site: SessionSite) -> None:
    session = site.start()
    await site.settle()
    in_flight = site.disk.issue(0, bytes([9]) * GRANULARITY_BYTES)
    outcome = await _coordinator(FakeFreezer()).cut(
        ITEM, {DISK: session}, CutId(str(uuid.uuid4())), flags=EpochFlag(0), freeze_budget_s=1.0
    )
    assert not outcome.made
    in_flight.complete()
    await site.settle()
    assert site.replica_matches


async def test_a_point_that_has_to_be_read_again_is_no_point_any_more(site: SessionSite) -> None:
    session = site.start()
    await site.settle()
    _fill(site, 1, 1, 4)
    site.sink.failures = 10**9
    cutting = asyncio.create_task(
        _coordinator(FakeFreezer()).cut(
            ITEM, {DISK: session}, CutId(str(uuid.uuid4())), flags=EpochFlag(0), freeze_budget_s=1.0
        )
    )
    while not session.ledger.epochs:
        await asyncio.sleep(0.001)
    cutting.cancel()
    await asyncio.wait([cutting])
    await site.crash()
    site.sink.failures = 0
    site.start()
    await site.settle()
    assert not site.sink.points
    assert site.replica_matches


async def test_a_point_that_is_being_read_when_its_session_ends_reads_nothing_that_is_closed(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = site.start()
    await site.settle()
    put_batch = MemorySink.put_batch

    async def end_session_first(sink: MemorySink, frame: BatchFrame) -> BatchAcknowledgement:
        monkeypatch.undo()
        assert site._task is not None
        assert site._parts is not None
        site._task.cancel()
        await asyncio.wait([site._task])
        site._parts.table.close()
        return await put_batch(sink, frame)

    async with session.gap:  # as a point does
        monkeypatch.setattr(MemorySink, "put_batch", end_session_first)
        _fill(site, 0, 16, 3)
        with pytest.raises(Retryable, match="session has ended"):
            await session.ship_next()


async def test_a_point_whose_cut_was_cancelled_before_anything_of_it_was_read_is_never_shipped_as_one(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session lives on: its epoch is in the journal with its cut, its image is gone, and no attempt of it was begun (R4, R9)."""
    _fill(site, 0, 16, 1)
    session = site.start()
    await site.settle()
    loop, commit_harvest = asyncio.get_running_loop(), FakeTracker.commit_harvest

    def cancelled_here(tracker: FakeTracker, journal_serial: int = 0) -> None:
        commit_harvest(tracker, journal_serial)
        if any(epoch.cut is not None for epoch in session.ledger.epochs):
            loop.call_soon_threadsafe(cutting.cancel)
            _fill(site, 7, 1, 3)
            monkeypatch.undo()

    monkeypatch.setattr(FakeTracker, "commit_harvest", cancelled_here)
    freezer = FakeFreezer(when_frozen=lambda: _fill(site, 7, 1, 2))
    cut = CutId(str(uuid.uuid4()))
    cutting = asyncio.create_task(
        _coordinator(freezer).cut(ITEM, {DISK: session}, cut, flags=EpochFlag(0), freeze_budget_s=1.0)
    )
    await asyncio.wait([cutting])
    assert cutting.cancelled()
    await site.settle()
    assert cut not in site.sink.points
    assert site.replica_matches


async def test_what_was_harvested_while_frozen_is_durable_before_the_tracker_forgets_it(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent dies as soon as the tracker has forgotten: what it starts with again is the journal alone (R2)."""
    _fill(site, 0, 16, 1)
    session = site.start()
    await site.settle()
    commit_harvest = FakeTracker.commit_harvest

    def dies_after_it(tracker: FakeTracker, journal_serial: int = 0) -> None:
        commit_harvest(tracker, journal_serial)
        if freezer.count:
            monkeypatch.setattr(EpochJournal, "save", dead)
            raise RuntimeError("died here")

    def dead(_journal: EpochJournal, _ledger: EpochLedger) -> None:
        raise OSError("who is dead writes nothing")

    freezer = FakeFreezer(when_frozen=lambda: _fill(site, 7, 1, 2))
    monkeypatch.setattr(FakeTracker, "commit_harvest", dies_after_it)
    with pytest.raises(RuntimeError, match="died here"):
        await _coordinator(freezer).cut(
            ITEM, {DISK: session}, CutId(str(uuid.uuid4())), flags=EpochFlag(0), freeze_budget_s=1.0
        )
    await site.crash()
    monkeypatch.undo()
    site.start()
    await site.settle()
    assert site.replica_matches
