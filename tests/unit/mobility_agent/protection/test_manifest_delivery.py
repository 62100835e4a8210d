"""Sealed manifests: put in order and once, opened again when segments are lost, adopted when decided, diverged when foreign."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mobility_agent.core.epoch_ledger import Epoch, EpochLedger, EpochState, HistoryDiverged
from mobility_agent.core.own_writes import StateWrites
from mobility_agent.protection import manifest_delivery
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.kept_ledger import KeptLedger
from mobility_agent.protection.manifest_delivery import MAX_IN_VAIN, ManifestDelivery
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_shipper import EpochShipper, ShippingBuffers
from replication.batch_frame import BatchFrame
from replication.data_plane import BatchAcknowledgement, ManifestSuperseded, SegmentsMissing
from replication.dirty_bitmap import DirtyBitmap, Geometry
from replication.epoch_manifest import EpochFlag, EpochManifest, encode_manifest, manifest_hash
from replication.errors import BlockferryError, IntegrityError, PeerUnavailable
from replication.identifiers import AttemptNumber, DiskId, EpochId, EpochKey, GenerationId, GenerationKey

DISK = DiskId("22222222-2222-4222-8222-222222222222")
GEOMETRY = Geometry(64 * 4096, 4096)
KEY = bytes(32)
NO_FLAGS = EpochFlag(0)


class Uplink:
    """A process server that answers manifests as ``answers`` say, in turn, and then takes them; ``stored`` is what the store has."""

    def __init__(self) -> None:
        self.answers: list[BlockferryError] = []
        self.put: list[tuple[int, bytes]] = []
        self.stored: dict[int, bytes] = {}
        self.asked = 0

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        await asyncio.sleep(0)
        if self.answers:
            raise self.answers.pop(0)
        self.put.append((key.epoch, encoded))

    async def stored_manifest(self, key: EpochKey) -> bytes | None:
        self.asked += 1
        return self.stored.get(key.epoch)

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        raise NotImplementedError

    async def receipt(
        self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: bytes | None = None
    ) -> bytes | None:
        raise NotImplementedError


class Rig:
    def __init__(self, directory: Path, executor: ThreadPoolExecutor) -> None:
        self.ledger = EpochLedger(DISK, GenerationId(1), GEOMETRY)
        self.uplink = Uplink()
        self.kept = KeptLedger(self.ledger, EpochJournal(directory), executor, StateWrites(lambda: 0.0))
        shipper = EpochShipper(
            self.uplink, ShippingBuffers(1, 4096), executor, DiskFigures(), window=1, on_peer=lambda _: None
        )
        self.looked = 0
        self.receipt: Epoch | None = None
        """What the receipt says that is there when it is looked for."""
        self.delivery = ManifestDelivery(self.kept, shipper, KEY, self._look)

    async def _look(self) -> None:
        self.looked += 1
        if self.receipt is not None:
            applied, self.receipt = self.receipt, None
            self.ledger.confirm(applied.number, manifest_hash(applied.manifest), 1)

    def manifest(self, number: int, *, flags: EpochFlag = NO_FLAGS) -> bytes:
        epoch = self.ledger.find(EpochId(number))
        assert epoch is not None
        key = EpochKey(DISK, GenerationId(1), EpochId(number))
        manifest = EpochManifest(
            key=key,
            attempt=epoch.attempt,
            flags=flags,
            cut_time_ns=0,
            previous_hash=self.ledger.chain_hash(EpochId(number)),
            segments=(),
            logical_bytes=0,
            cut=None,
        )
        return encode_manifest(manifest, KEY)

    def seal(self, number: int) -> Epoch:
        if self.ledger.find(EpochId(number)) is None:
            bitmap = DirtyBitmap(GEOMETRY.granules)
            bitmap.mark(number, 1)
            self.ledger.absorb(bitmap)
            self.ledger.cut(limit_granules=9, harvest_time_ns=1)
        return self.ledger.seal(EpochId(number), self.manifest(number))

    def state(self, number: int) -> tuple[EpochState, AttemptNumber]:
        epoch = self.ledger.find(EpochId(number))
        assert epoch is not None
        return epoch.state, epoch.attempt

    def is_saved(self) -> bool:
        loaded = self.kept.journal.load()
        return loaded is not None and loaded.epochs == self.ledger.epochs


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(manifest_delivery, "backoff_s", lambda *_: 0.0)
    with ThreadPoolExecutor(1) as executor:
        yield Rig(tmp_path, executor)


SUPERSEDED = ManifestSuperseded("cannot accept: another manifest decided")
MISSING = SegmentsMissing("cannot accept: segments are missing")


async def test_manifests_are_put_in_order_once_and_again_on_demand(rig: Rig) -> None:
    manifests = [rig.seal(number).manifest for number in (1, 2)]
    for again, times in ((False, 1), (False, 1), (True, 2)):
        await rig.delivery.put_all(again=again)
        assert rig.uplink.put == [(1, manifests[0]), (2, manifests[1])] * times


async def test_an_unreachable_process_server_is_waited_for(rig: Rig) -> None:
    epoch = rig.seal(1)
    rig.uplink.answers = [PeerUnavailable("cannot reach", retry_after_s=0.01)] * 3
    assert await rig.delivery.put(epoch)


async def test_lost_segments_open_the_epoch_and_all_later_ones(rig: Rig) -> None:
    first, second = rig.seal(1), rig.seal(2)
    rig.uplink.answers = [MISSING]
    await rig.delivery.put_all()
    assert rig.state(1) == rig.state(2) == (EpochState.OPEN, 2)
    assert rig.is_saved()
    assert not await rig.delivery.put(first), "it does not count any more"
    assert not await rig.delivery.put(second)
    assert rig.uplink.put == []


async def test_segments_that_are_gone_because_their_epoch_is_applied_are_not_sent_again(rig: Rig) -> None:
    """A process server that was restarted knows neither them nor that: the receipt does."""
    first, second = rig.seal(1), rig.seal(2)
    rig.uplink.answers = [MISSING]
    rig.receipt = first
    assert not await rig.delivery.put(first)
    assert rig.ledger.applied_epoch == 1
    assert rig.state(2) == (EpochState.SEALED, AttemptNumber(1))
    assert await rig.delivery.put(second)


async def test_an_earlier_attempt_in_the_store_is_adopted(rig: Rig) -> None:
    early = rig.seal(1)
    rig.ledger.begin_attempt(EpochId(1))
    late = rig.seal(1)
    rig.seal(2)
    rig.uplink.stored = {1: early.manifest}
    rig.uplink.answers = [SUPERSEDED]
    assert not await rig.delivery.put(late)
    adopted = rig.ledger.find(EpochId(1))
    assert adopted is not None
    assert adopted.manifest == early.manifest
    assert rig.state(2) == (EpochState.OPEN, 2)
    assert rig.is_saved()
    assert rig.looked == 1


async def test_a_void_manifest_gives_its_granules_back(rig: Rig) -> None:
    epoch = rig.seal(1)
    rig.uplink.stored = {1: rig.manifest(1, flags=EpochFlag.VOID)}
    rig.uplink.answers = [SUPERSEDED]
    await rig.delivery.put(epoch)
    assert list(rig.ledger.pending.runs()) == [(1, 1)]
    assert rig.is_saved()


async def test_a_manifest_that_was_never_sealed_here_has_diverged_and_ends_the_session(rig: Rig) -> None:
    epoch = rig.seal(1)
    rig.uplink.stored = {1: rig.manifest(1, flags=EpochFlag.SEEDING)}
    rig.uplink.answers = [SUPERSEDED]
    with pytest.raises(HistoryDiverged, match="another agent's manifest"):
        await rig.delivery.put(epoch)
    with pytest.raises(HistoryDiverged):
        rig.kept.require_alive()


async def test_a_stored_manifest_that_is_not_authentic_is_refused(rig: Rig) -> None:
    epoch = rig.seal(1)
    rig.uplink.stored = {1: epoch.manifest[:-1] + bytes([epoch.manifest[-1] ^ 1])}
    rig.uplink.answers = [SUPERSEDED]
    with pytest.raises(IntegrityError):
        await rig.delivery.put(epoch)


async def test_what_is_superseded_although_nothing_decided_is_read_again_and_in_the_end_has_diverged(rig: Rig) -> None:
    for attempt in range(1, MAX_IN_VAIN):
        rig.uplink.answers = [SUPERSEDED]
        assert not await rig.delivery.put(rig.seal(1))
        assert rig.state(1) == (EpochState.OPEN, attempt + 1)
    rig.uplink.answers = [SUPERSEDED]
    with pytest.raises(HistoryDiverged, match="in vain"):
        await rig.delivery.put(rig.seal(1))


async def test_a_receipt_that_was_faster_is_no_failure(rig: Rig) -> None:
    epoch = rig.seal(1)
    rig.uplink.answers = [MISSING]
    putting = asyncio.create_task(rig.delivery.put(epoch))
    await asyncio.sleep(0)
    rig.ledger.confirm(EpochId(1), manifest_hash(epoch.manifest), 0)
    assert not await putting
    assert rig.ledger.epochs == []
    rig.kept.require_alive()
