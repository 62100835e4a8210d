"""A ledger that is durable before it is acted on: changes run whole, and a failed saving is the end of everything built on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.core.own_writes import StateWrites
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.kept_ledger import KeptLedger
from replication.dirty_bitmap import Geometry
from replication.errors import ResyncRequired, Retryable
from replication.identifiers import DiskId, GenerationId

DISK = DiskId("22222222-2222-4222-8222-222222222222")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[KeptLedger]:
    ledger = EpochLedger(DISK, GenerationId(1), Geometry(64 * 4096, 4096))
    with ThreadPoolExecutor(1) as executor:
        yield KeptLedger(ledger, EpochJournal(tmp_path), executor, StateWrites(lambda: 0.0))


async def test_whoever_waits_looks_again_after_each_change(kept: KeptLedger) -> None:
    waiting = asyncio.create_task(kept.until(lambda: kept.ledger.serial == 2))
    for _ in range(2):
        async with kept.lock:
            await kept.change(kept.save)
    await waiting


async def test_a_failed_change_ends_every_wait_and_every_later_change(kept: KeptLedger) -> None:
    waiting = asyncio.create_task(kept.until(lambda: False))
    await asyncio.sleep(0)

    def fail() -> None:
        kept.ledger.begin_seeding()
        raise OSError(28, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        await kept.change(fail)
    with pytest.raises(OSError, match="no space"):
        await waiting
    ran = False

    def change() -> None:
        nonlocal ran
        ran = True

    with pytest.raises(OSError, match="no space"):
        await kept.change(change)
    assert not ran


async def test_the_first_failure_counts(kept: KeptLedger) -> None:
    kept.fail(ResyncRequired("cannot go on: first"))
    kept.fail(Retryable("cannot go on: second"))
    kept.end()
    with pytest.raises(ResyncRequired, match="first"):
        kept.require_alive()


async def test_the_end_of_a_session_ends_waits(kept: KeptLedger) -> None:
    waiting = asyncio.create_task(kept.until(lambda: False))
    await asyncio.sleep(0)
    kept.end()
    with pytest.raises(Retryable, match="has ended"):
        await waiting


async def test_a_change_that_was_begun_is_finished_although_its_caller_is_cancelled(kept: KeptLedger) -> None:
    entered, leave = threading.Event(), threading.Event()
    told: list[str] = []

    def change() -> None:
        entered.set()
        assert leave.wait(10)
        kept.save()

    changing = asyncio.create_task(kept.change(change, lambda: told.append("cancelled")))
    await asyncio.to_thread(entered.wait)
    changing.cancel()
    await asyncio.sleep(0.01)
    assert not changing.done()
    assert told == ["cancelled"]
    leave.set()
    await asyncio.wait([changing])
    assert changing.cancelled()
    loaded = kept.journal.load()
    assert loaded is not None
    assert loaded.serial == kept.ledger.serial == 1
    kept.require_alive()


async def test_a_condition_that_holds_already_does_not_hide_a_failure(kept: KeptLedger) -> None:
    kept.fail(Retryable("cannot go on"))
    with pytest.raises(Retryable):
        await kept.until(lambda: True)


async def test_a_change_that_fails_after_its_caller_was_cancelled_ends_the_session_all_the_same(
    kept: KeptLedger,
) -> None:
    """Two disks of a point were in doubt at once: the first one's error cancelled the second one's harvest, whose doubt nobody heard."""
    begun, go_on = threading.Event(), threading.Event()

    def harvest() -> None:
        begun.set()
        assert go_on.wait(20)
        raise ResyncRequired("cannot vouch for tracking", disk=DISK)

    waiting = asyncio.create_task(kept.until(lambda: False))
    changing = asyncio.create_task(kept.change(harvest))
    assert await asyncio.to_thread(begun.wait, 20)
    changing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises((asyncio.CancelledError, ResyncRequired)):
        await changing
    async with asyncio.timeout(20):
        with pytest.raises(ResyncRequired, match="cannot vouch"):
            await waiting
    with pytest.raises(ResyncRequired, match="cannot vouch"):
        kept.require_alive()
