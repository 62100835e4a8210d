"""Receipts: what they confirm, in which order it becomes known, and which are refused."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mobility_agent.protection.point_coordinator import PointCoordinator
from mobility_agent.shipping.digest_table import Digests, DigestTable, Indices
from replication.documents import WriterIdentity
from replication.epoch_manifest import NO_MANIFEST, EpochFlag
from replication.errors import IntegrityError, PeerProtocolError
from replication.identifiers import CutId, DiskId, EpochId, ItemId
from replication.store_documents import Receipt
from tests.harness.memory_sink import MemorySink
from tests.harness.session_site import GRANULARITY_BYTES, FakeFreezer, SessionSite

ITEM = ItemId("11111111-1111-4111-8111-111111111111")
DISK = DiskId("22222222-2222-4222-8222-222222222222")
OTHER_DISK = DiskId("33333333-3333-4333-8333-333333333333")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SessionSite]:
    site = SessionSite(tmp_path, DISK)
    site.disk.write(0, b"x" * 8 * GRANULARITY_BYTES)
    site.start()
    await site.settle()
    yield site
    await site.crash()


async def test_while_the_table_is_updated_a_point_is_neither_lost_nor_forgotten(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks meanwhile, from another thread, must find it on its way or applied; else it would be cut again."""
    session = site.session
    assert session is not None
    site.sink.applying = False
    site.disk.write(0, b"y" * GRANULARITY_BYTES)
    cut = CutId(str(uuid.uuid4()))
    coordinator = PointCoordinator(FakeFreezer(), memoryview(bytearray(16 * GRANULARITY_BYTES)), lambda _: [])
    outcome = await coordinator.cut(ITEM, {DISK: session}, cut, flags=EpochFlag(0), freeze_budget_s=1.0)
    point = outcome.epochs[DISK]
    known: list[bool] = []
    real = DigestTable.apply

    def apply(table: DigestTable, epoch: EpochId, indices: Indices, digests: Digests) -> None:
        waiting = asyncio.run_coroutine_threadsafe(_looks_lost(), loop)
        known.append(waiting.result(5))
        real(table, epoch, indices, digests)

    async def _looks_lost() -> bool:
        return session.holds_cut(cut) and session.ledger.find(point.number) is not None

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(DigestTable, "apply", apply)
    waiting = asyncio.create_task(session.wait_applied(point))
    await site.sink.apply_ready()
    await waiting
    await site.settle()
    assert known
    assert all(known)
    assert session.has_applied_cut(cut)


async def test_digests_that_were_lost_make_their_granules_unknown(site: SessionSite) -> None:
    session = site.session
    assert session is not None
    site.sink.applying = False
    site.disk.write(3 * GRANULARITY_BYTES, b"y" * GRANULARITY_BYTES)
    while not session.ledger.sealed_epochs:
        await asyncio.sleep(0.001)
    for path in site.directory.glob("digests-*"):
        path.unlink()
    site.sink.applying = True
    await site.sink.apply_ready()
    await site.settle()
    table = session.parts.table
    assert table.known(3) == bytes(16)
    assert table.known(2) != bytes(16)
    assert table.exact_epoch == session.ledger.applied_epoch
    assert site.replica_matches


async def test_what_was_confirmed_is_durable_and_its_digests_are_dropped(site: SessionSite) -> None:
    session = site.session
    assert session is not None
    async with session._kept.lock:  # the newest change is saved
        saved = session.parts.journal.load()
    assert saved is not None
    assert saved.applied_epoch == session.ledger.applied_epoch > 0
    assert not list(site.directory.glob("digests-*"))


async def failure_after(site: SessionSite, receipt: bytes, monkeypatch: pytest.MonkeyPatch) -> BaseException | None:
    """What ends a session of which the sink says this and nothing else."""

    async def answer(*_: object) -> bytes:
        return receipt

    await site.crash()
    monkeypatch.setattr(MemorySink, "receipt", answer)
    site.start()
    assert site._task is not None
    await asyncio.wait([site._task], timeout=10)
    return site._task.exception()


def receipt_for(disk: DiskId, generation: int) -> Receipt:
    return Receipt(disk=disk, generation=generation, epoch=0, manifest_hash=NO_MANIFEST.hex(), cut_time_ns=0)


@pytest.mark.parametrize(("disk", "generation"), [(OTHER_DISK, 1), (DISK, 2)], ids=["disk", "generation"])
async def test_a_receipt_for_another_disk_or_generation_is_refused(
    site: SessionSite, disk: DiskId, generation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await failure_after(site, site.sink.writer.sign(receipt_for(disk, generation)), monkeypatch)
    assert isinstance(error, PeerProtocolError)
    assert "another disk or generation" in str(error)


async def test_a_receipt_that_the_writer_did_not_sign_is_refused(
    site: SessionSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await failure_after(site, WriterIdentity.generate().sign(receipt_for(DISK, 1)), monkeypatch)
    assert isinstance(error, IntegrityError)
