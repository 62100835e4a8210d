"""Two writers on one store: the living one wins, an expired lease is taken over, whoever lost it cannot write. Called by pytest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, cast

import pytest

from azure_sink.core.replica_metadata import decode_state, encode_state
from azure_sink.core.replica_state import EpochApplied, EpochBegun, Position, advance
from azure_sink.replica_writer.disk_follower import Outcome
from azure_sink.replica_writer.disk_receipts import DiskReceipts
from azure_sink.replica_writer.failures import FenceLost, ReplicaHeld
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from replication.blob_client.api import BlobClient, LeaseState
from replication.clock import Clock
from replication.store_layout import REPLICAS_CONTAINER
from tests.harness.epochs import DiskHistory, new_uuid
from tests.harness.writer_site import HandClock, WriterSite

MINE, THEIRS = new_uuid(Random(1)), new_uuid(Random(2))


async def replica_of(site: WriterSite, disk: DiskHistory, lease_id: str, clock: Clock | None = None) -> ReplicaBlob:
    clock = site.time.clock if clock is None else clock
    return await ReplicaBlob.take_over(site.account, disk.disk, lease_id, 30, clock)


CALLS: Final[dict[str, Callable[[ReplicaBlob], Awaitable[object]]]] = {
    "put": lambda replica: replica.put(0, b"x" * 512),
    "clear": lambda replica: replica.clear(0, 512),
    "record": lambda replica: replica.record(EpochBegun(2)),
    "raise_fence": lambda replica: replica.raise_fence(),
    "snapshot": lambda replica: replica.snapshot(),
    "renew": lambda replica: replica.renew(),
}


async def prepared() -> tuple[WriterSite, DiskHistory]:
    site = await WriterSite.make()
    disk = site.disk()
    await disk.open_generation()
    await disk.put(disk.random_batches(1, 2))
    writer = site.start()
    await writer.settle()
    await writer.close()
    return site, disk


async def test_second_writer_stands_by_while_the_first_is_alive() -> None:
    site, disk = await prepared()
    first, second = site.start(lease_id=MINE), site.start(lease_id=THEIRS)
    await first.settle()
    for _ in range(10):
        assert await second.settle() == {disk.disk: Outcome.STANDBY}
        site.time.advance(15)
        await disk.put(disk.random_batches(1, 1))
        assert await first.settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model


async def test_second_writer_takes_over_when_the_lease_has_expired() -> None:
    site, disk = await prepared()
    first, second = site.start(lease_id=MINE), site.start(lease_id=THEIRS)
    await first.settle()
    await disk.put(disk.random_batches(1, 2))
    assert await second.settle() == {disk.disk: Outcome.STANDBY}
    site.time.advance(31)
    assert await second.settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model
    assert await first.settle() == {disk.disk: Outcome.STANDBY}


async def test_second_writer_takes_over_at_once_when_the_first_stops() -> None:
    site, disk = await prepared()
    first, second = site.start(lease_id=MINE), site.start(lease_id=THEIRS)
    await first.settle()
    await first.close()
    await disk.put(disk.random_batches(1, 2))
    assert await second.settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model


async def test_restarted_writer_has_its_own_lease_back_at_once() -> None:
    site, disk = await prepared()
    await site.start(lease_id=MINE).settle()  # killed: nothing is released
    await disk.put(disk.random_batches(1, 2))
    assert await site.start(lease_id=MINE).settle() == {disk.disk: Outcome.IDLE}
    assert await site.bytes_of(disk) == disk.model


async def test_lease_is_renewed_by_steps() -> None:
    site, disk = await prepared()
    writer = site.start(lease_id=MINE)
    await writer.settle()
    for _ in range(10):
        site.time.advance(12)
        assert await writer.settle() == {disk.disk: Outcome.IDLE}
    assert (await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).lease_state is LeaseState.LEASED


async def test_holder_stops_by_its_own_clock_before_the_lease_ends() -> None:
    site, disk = await prepared()
    replica = await replica_of(site, disk, MINE)
    site.time.advance(23)
    await replica.put(0, b"x" * 512)
    site.time.advance(2)
    with pytest.raises(FenceLost):
        await replica.put(0, b"y" * 512)
    with pytest.raises(FenceLost):
        await replica.clear(0, 512)
    with pytest.raises(FenceLost):
        await replica.raise_fence()
    assert (await site.bytes_of(disk))[:512] == b"x" * 512


@pytest.mark.parametrize("call", CALLS)
async def test_loser_of_a_lease_is_refused_by_the_store(call: str) -> None:
    """Its own clock has stood still, so it is the store that says so."""
    site, disk = await prepared()
    loser = await replica_of(site, disk, MINE, HandClock().clock)
    site.time.advance(31)
    winner = await replica_of(site, disk, THEIRS)
    before = await site.bytes_of(disk)
    metadata = (await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).metadata
    with pytest.raises(FenceLost):
        await CALLS[call](loser)
    assert not loser.usable
    assert await site.bytes_of(disk) == before
    assert (await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).metadata == metadata
    assert await site.snapshots(disk) == []
    await winner.record(EpochBegun(2))


@pytest.mark.parametrize("call", [name for name in CALLS if name != "renew"])
async def test_copied_state_directory_does_not_make_two_writers(call: str) -> None:
    """Both use one lease id, so the lease does not tell them apart: the sequence number and the etag do."""
    site, disk = await prepared()
    loser = await replica_of(site, disk, MINE)
    winner = await replica_of(site, disk, MINE)
    await winner.raise_fence()
    await winner.record(EpochBegun(2))
    await winner.put(0, b"w" * 512)
    with pytest.raises(FenceLost):
        await CALLS[call](loser)
    assert (await site.bytes_of(disk))[:512] == b"w" * 512


async def test_epochs_raise_the_fence_before_their_first_write() -> None:
    """What an epoch before has still on its way is refused, though lease and writer are the same."""
    site, disk = await prepared()
    replica = await replica_of(site, disk, MINE)
    late = replica.sequence_number
    await replica.raise_fence()
    await replica.record(EpochBegun(2))
    with pytest.raises(Exception, match="SequenceNumberConditionNotMet"):
        await site.account.put_pages(
            REPLICAS_CONTAINER, disk.disk, 0, b"l" * 512, lease_id=MINE, if_sequence_number_eq=late
        )


async def test_write_of_somebody_else_is_noticed_before_the_next_step_is_recorded() -> None:
    site, disk = await prepared()
    replica = await replica_of(site, disk, MINE)
    await site.account.put_pages(REPLICAS_CONTAINER, disk.disk, 0, b"?" * 512, lease_id=MINE)
    with pytest.raises(FenceLost):
        await replica.record(EpochBegun(2))


async def test_replica_that_another_writer_holds_is_not_taken() -> None:
    site, disk = await prepared()
    await replica_of(site, disk, MINE)
    with pytest.raises(ReplicaHeld):
        await replica_of(site, disk, THEIRS)
    site.time.advance(31)
    await replica_of(site, disk, THEIRS)


async def test_writer_that_lost_a_replica_puts_no_receipt_over_the_winners() -> None:
    site, disk = await prepared()
    paused = HandClock()
    loser = site.start(lease_id=MINE, clock=paused.clock)
    await loser.settle()
    site.time.advance(31)
    winner = site.start(lease_id=THEIRS)
    await disk.put(disk.random_batches(1, 1))
    await winner.settle()
    newest = await site.receipt(disk)
    await disk.put(disk.random_batches(1, 1))
    assert await loser.settle() == {disk.disk: Outcome.STANDBY}
    assert await site.receipt(disk) == newest


async def test_writer_that_was_stalled_before_it_read_the_receipt_puts_none_over_the_winners() -> None:
    """Found by the simulation: what it read after it woke was the winner's, and its own clock said that the lease is good."""
    site, disk = await prepared()
    paused = HandClock()
    replica = await replica_of(site, disk, MINE, paused.clock)
    receipts = DiskReceipts(disk.disk, site.account, site.identity)
    site.time.advance(31)
    await disk.put(disk.random_batches(1, 1))
    await site.start(lease_id=THEIRS).settle()
    with pytest.raises(FenceLost):
        await receipts.state(replica, None, None)
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert receipt.epoch == 2


class _Overtaken:
    """A client whose first read of a segment takes so long that ``meanwhile`` happens before it."""

    def __init__(self, inner: BlobClient, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._meanwhile = [meanwhile]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get_blob_into(self, *arguments: Any, **named: Any) -> Any:
        while self._meanwhile:
            await self._meanwhile.pop()()
        return await self._inner.get_blob_into(*arguments, **named)


async def test_writer_that_lost_a_replica_inside_an_epoch_states_no_problem_of_it() -> None:
    """Found by the simulation: the segments were gone because another writer had applied them; the receipt fell back to epoch 0."""
    site, disk = await prepared()
    await disk.put(disk.random_batches(1, 1))

    async def another_takes_over() -> None:
        site.time.advance(31)
        await site.start(lease_id=THEIRS).settle()
        with pytest.raises(FenceLost):
            await loser.followers.all[0].renew_lease()

    loser = site.start(cast("BlobClient", _Overtaken(site.account, another_takes_over)), lease_id=MINE)
    assert await loser.settle() == {disk.disk: Outcome.STANDBY}
    receipt = await site.receipt(disk)
    assert receipt is not None
    assert (receipt.epoch, receipt.problem) == (2, None)


async def test_writer_that_was_overtaken_inside_an_epoch_does_not_set_back_what_is_applied() -> None:
    """Both use one lease id. After its puts the loser knows no etag any more: whether the replica is its own is read, not assumed."""
    site, disk = await prepared()
    loser = await replica_of(site, disk, MINE)
    await loser.raise_fence()
    await loser.record(EpochBegun(2))
    await loser.put(0, b"l" * 512)
    winner = await replica_of(site, disk, MINE)
    await winner.record(EpochApplied(2, "2" * 64, 2, None))
    await winner.raise_fence()
    await winner.record(EpochBegun(3))
    await winner.record(EpochApplied(3, "3" * 64, 3, None))
    with pytest.raises(FenceLost):
        await loser.record(EpochApplied(2, "2" * 64, 2, None))
    state = decode_state((await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)).metadata)
    assert (state.applied, state.manifest_hash) == (Position(1, 3), "3" * 64)


@pytest.mark.parametrize("change", ["sequence_number", "metadata"])
async def test_sequence_number_and_metadata_each_tell_that_a_replica_is_another_writers(change: str) -> None:
    site, disk = await prepared()
    loser = await replica_of(site, disk, MINE)
    await loser.put(0, b"l" * 512)
    properties = await site.account.head_blob(REPLICAS_CONTAINER, disk.disk)
    if change == "sequence_number":
        number = (properties.sequence_number or 0) + 1
        await site.account.set_sequence_number(REPLICAS_CONTAINER, disk.disk, number, lease_id=MINE)
    else:
        other = encode_state(advance(loser.state, EpochBegun(2)))
        await site.account.set_metadata(REPLICAS_CONTAINER, disk.disk, other, lease_id=MINE)
    with pytest.raises(FenceLost, match="another writer has changed it"):
        await loser.record(EpochBegun(2))
