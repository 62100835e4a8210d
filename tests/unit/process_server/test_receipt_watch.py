"""Receipts: who waits hears of news at once, the store is asked no more than needed, nothing is taken for a receipt that is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from process_server.core.epoch_chain import NOTHING_APPLIED, ReceiptFacts
from process_server.receipt_watch import FORGET_AFTER_S, SLOWEST_S, ReceiptWatch, read_receipt
from replication.data_plane import SinkBehind, receipt_digest
from replication.errors import PeerProtocolError, PeerUnavailable
from replication.identifiers import EpochId, GenerationId, GenerationKey, MachineId
from replication.store_layout import REPLICATION_CONTAINER, generation_record_name, receipt_name
from tests.harness.epochs import new_uuid
from tests.harness.process_site import LabWriter, ShippedDisk
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock
from tests.harness.unreliable_store import UnreliableStore

RANDOM = Random(31)


class Rig:
    """A watch over one disk's receipt."""

    def __init__(self) -> None:
        self.store = UnreliableStore()
        self.writer = LabWriter(self.store)
        self.disk = ShippedDisk(RANDOM, MachineId(new_uuid(RANDOM)))
        self.told: list[ReceiptFacts] = []
        self.stepped_back: list[ReceiptFacts] = []
        self.outages: list[GenerationKey] = []
        self.over = False
        self.asked = 0
        self.watch = ReceiptWatch(
            self.store,
            virtual_clock(),
            lambda _key, facts: self.told.append(facts),
            lambda _key, facts: self.stepped_back.append(facts),
            self.outages.append,
            self.is_over,
        )

    async def is_over(self, _key: GenerationKey) -> bool:
        self.asked += 1
        return self.over

    async def delete(self, *names: str) -> None:
        for name in names:
            await self.store.delete_blob(REPLICATION_CONTAINER, name)

    async def have_record(self) -> None:
        """As it is before anybody is given the generation."""
        await self.writer.have_record(self.disk)

    async def apply(self, epoch: int, *, closed: bool = False) -> bytes:
        return await self.writer.apply(self.disk, epoch, bytes([epoch]) * 32, closed=closed)

    async def news(self, after: int, wait_s: float = 0.0, seen: bytes | None = None) -> bytes | None:
        digest = None if seen is None else receipt_digest(seen)
        found = await self.watch.wait_for_news(self.disk.key, after, wait_s, digest)
        return None if found is None else found.content


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.have_record()
    task = asyncio.create_task(rig.watch.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@in_virtual_time
async def test_who_waits_hears_of_a_higher_epoch_within_two_seconds() -> None:
    async with running() as rig:
        first = await rig.apply(1)
        assert await rig.news(0, 30) == first
        waiting = asyncio.create_task(rig.news(1, 30))
        await asyncio.sleep(20)
        second = await rig.apply(2)
        assert await waiting == second
        assert now_s() <= 20 + 2 * SLOWEST_S


@in_virtual_time
async def test_another_receipt_of_the_same_epoch_is_news_to_who_names_the_one_it_has_seen() -> None:
    async with running() as rig:
        first = await rig.apply(4)
        assert await rig.news(3, 30) == first
        named, unnamed = asyncio.create_task(rig.news(4, 30, first)), asyncio.create_task(rig.news(4, 30))
        await asyncio.sleep(5)
        assert not named.done()
        closed = await rig.apply(4, closed=True)
        assert await named == closed
        assert now_s() <= 5 + 2 * SLOWEST_S
        assert await unnamed is None
        assert [facts.closed for facts in rig.told] == [False, True]


@in_virtual_time
async def test_who_knows_more_than_the_store_is_told_that_it_was_put_back_and_so_is_the_daemon() -> None:
    async with running() as rig:
        seen = await rig.apply(5)
        assert await rig.news(0, 30) == seen
        waiting = asyncio.create_task(rig.news(5, 30, seen))
        await asyncio.sleep(4)
        older = await rig.apply(3)
        with pytest.raises(SinkBehind, match="its receipt says epoch 3") as raised:
            await waiting
        assert raised.value.epoch == 3
        assert now_s() <= 4 + 2 * SLOWEST_S
        assert await rig.news(0) == older
        assert [facts.epoch for facts in rig.told] == [5]
        assert [facts.epoch for facts in rig.stepped_back] == [3]


@in_virtual_time
@pytest.mark.parametrize("over", [True, False], ids=["stopped", "put-back"])
async def test_what_an_operator_stopped_is_no_step_back(over: bool) -> None:
    async with running() as rig:
        await rig.apply(60)
        await rig.watch.read_now(rig.disk.key)
        rig.watch.expect(rig.disk.key, EpochId(61))
        await rig.delete(generation_record_name(rig.disk.key), receipt_name(rig.disk.key))
        rig.over = over
        await asyncio.sleep(10 * SLOWEST_S)
        assert rig.asked == 1
        assert rig.stepped_back == ([] if over else [NOTHING_APPLIED])
        assert rig.watch.newest(rig.disk.key) is None


@in_virtual_time
async def test_a_receipt_that_is_gone_while_its_record_is_there_was_not_deleted_on_purpose() -> None:
    async with running() as rig:
        await rig.apply(60)
        await rig.watch.read_now(rig.disk.key)
        await rig.delete(receipt_name(rig.disk.key))
        rig.over = True
        await rig.watch.read_now(rig.disk.key)
        assert (rig.asked, rig.stepped_back) == (0, [NOTHING_APPLIED])


@in_virtual_time
async def test_what_is_remembered_here_proves_nothing_about_the_store() -> None:
    """The agent has its newest receipt from another process server; this one has not looked for long."""
    async with running() as rig:
        old = await rig.apply(3)
        assert await rig.news(0, 30) == old
        await asyncio.sleep(FORGET_AFTER_S / 2)
        await rig.apply(7)
        assert await rig.news(7, 0.0) is None, "without a look at the store nothing is said"
        assert await rig.news(7, 10) is None, "it was read, and is not behind"
        assert not rig.stepped_back


@in_virtual_time
async def test_a_read_that_began_before_somebody_asked_says_nothing_to_him() -> None:
    """Its answer may have been on its way for as long as it likes."""
    rig = Rig()
    await rig.have_record()
    await rig.apply(3)
    held, real = asyncio.Event(), rig.store.get_blob

    async def get_blob(*args: Any, **named: Any) -> Any:
        found = await real(*args, **named)
        await held.wait()
        return found

    rig.store.get_blob = get_blob  # type: ignore[method-assign]
    reading = asyncio.create_task(rig.watch.read_now(rig.disk.key))
    await asyncio.sleep(1)
    newest = await rig.apply(7)
    asking = asyncio.create_task(rig.news(7, 5))
    await asyncio.sleep(1)
    held.set()
    await reading
    assert await asking is None
    await rig.watch.read_now(rig.disk.key)
    assert await rig.news(6) == newest
    assert not rig.stepped_back


@in_virtual_time
async def test_a_store_that_was_emptied_is_behind_whoever_knows_of_a_receipt() -> None:
    async with running() as rig:
        seen = await rig.apply(5)
        assert await rig.news(0, 30) == seen
        await rig.store.delete_blob(REPLICATION_CONTAINER, receipt_name(rig.disk.key))
        with pytest.raises(SinkBehind, match="no receipt"):
            await rig.news(5, 30, seen)
        assert rig.stepped_back == [NOTHING_APPLIED]
        assert await rig.news(0, 10) is None, "nothing applied yet is no reversion to who knows of nothing applied"
        await rig.store.delete_blob(REPLICATION_CONTAINER, generation_record_name(rig.disk.key))
        with pytest.raises(SinkBehind, match="no record of this generation"):
            await rig.news(0, 10)
        again = await rig.apply(1)
        assert await rig.news(0, 10) == again


@in_virtual_time
async def test_another_manifest_under_the_same_epoch_is_another_history() -> None:
    async with running() as rig:
        await rig.apply(5)
        await rig.watch.read_now(rig.disk.key)
        await rig.writer.apply(rig.disk, 5, b"x" * 32)
        await rig.watch.read_now(rig.disk.key)
        assert [facts.manifest_hash for facts in rig.stepped_back] == [b"x" * 32]


@in_virtual_time
async def test_without_a_receipt_the_wait_ends_when_it_was_said_to() -> None:
    async with running() as rig:
        assert await rig.news(-1, 7) is None
        assert now_s() == 7


@in_virtual_time
async def test_many_that_wait_for_one_disk_cost_one_question_at_a_time() -> None:
    async with running() as rig:
        waiting = [asyncio.create_task(rig.news(0, 30)) for _ in range(50)]
        await asyncio.sleep(27)
        questions = rig.store.calls["get_blob"]
        assert questions <= 27 / SLOWEST_S + 12
        content = await rig.apply(1)
        assert await asyncio.gather(*waiting) == [content] * 50


@in_virtual_time
async def test_nobody_asks_the_store_once_nobody_waits_and_nothing_is_expected() -> None:
    async with running() as rig:
        await rig.apply(1)
        await rig.news(0, 30)
        rig.watch.expect(rig.disk.key, EpochId(2))
        await asyncio.sleep(100)
        before = rig.store.calls["get_blob"]
        await asyncio.sleep(100)
        assert rig.store.calls["get_blob"] > before + 40, "a manifest waits for its receipt"
        await rig.apply(2)
        await asyncio.sleep(FORGET_AFTER_S + 10)
        before = rig.store.calls["get_blob"]
        await asyncio.sleep(3600)
        assert rig.store.calls["get_blob"] == before
        assert rig.watch.newest(rig.disk.key) is None, "it is forgotten"


@in_virtual_time
async def test_a_store_that_fails_and_comes_back_costs_only_time() -> None:
    async with running() as rig:
        rig.store.failing = PeerUnavailable("cannot reach the store")
        waiting = asyncio.create_task(rig.news(0, 30))
        await asyncio.sleep(20)
        assert rig.outages, "what answers next may be an older store"
        rig.store.failing = None
        content = await rig.apply(1)
        assert await waiting == content
        assert now_s() <= 20 + 2 * SLOWEST_S


@in_virtual_time
async def test_what_is_no_receipt_is_left_alone_until_there_is_one() -> None:
    async with running() as rig:
        await rig.apply(1)
        name = receipt_name(rig.disk.key)
        await rig.store.put_blob(REPLICATION_CONTAINER, name, b"{")
        waiting = asyncio.create_task(rig.news(0, 30))
        await asyncio.sleep(10)
        assert not waiting.done()
        content = await rig.apply(1)
        assert await waiting == content


@in_virtual_time
async def test_a_stop_releases_who_waits() -> None:
    async with running() as rig:
        waiting = asyncio.create_task(rig.news(0, 30))
        await asyncio.sleep(1)
        rig.watch.release_waiters()
        assert await waiting is None
        assert now_s() == 1
        assert await rig.news(0, 30) is None


@in_virtual_time
async def test_a_generation_that_is_over_is_forgotten_unless_somebody_waits() -> None:
    async with running() as rig:
        await rig.apply(1)
        await rig.news(0, 30)
        rig.watch.forget(rig.disk.key)
        assert rig.watch.newest(rig.disk.key) is None
        waiting = asyncio.create_task(rig.news(1, 30))
        await asyncio.sleep(1)
        rig.watch.forget(rig.disk.key)
        content = await rig.apply(2)
        assert await waiting == content


@in_virtual_time
async def test_a_receipt_can_be_read_at_once() -> None:
    rig = Rig()
    await rig.apply(3)
    await rig.watch.read_now(rig.disk.key)
    assert rig.told == [ReceiptFacts(EpochId(3), b"\3" * 32, closed=False)]
    rig.store.failing = PeerUnavailable("cannot reach the store")
    with pytest.raises(PeerUnavailable):
        await rig.watch.read_now(rig.disk.key)


@in_virtual_time
async def test_a_receipt_of_another_disk_another_kind_or_no_document_is_refused() -> None:
    rig = Rig()
    content = await rig.apply(1)
    key = rig.disk.key
    document = json.loads(content)
    for broken in (
        b"", b"null", b"[]", b"{}", content[:-1], b"\xff" * 10,
        json.dumps(document | {"context": "blockferry answer v1"}).encode(),
        json.dumps(document | {"payload": 7}).encode(),
        json.dumps(document | {"payload": "{}"}).encode(),
    ):  # fmt: skip
        with pytest.raises(PeerProtocolError, match="cannot"):
            read_receipt(broken, key)
    with pytest.raises(PeerProtocolError, match="another disk or generation"):
        read_receipt(content, GenerationKey(key.disk, GenerationId(2)))
