"""A replica writer on an in-memory account under a clock that only tests move: start it, kill it, start another, look at what it left.

Called by tests of the replica writer. ``start`` gives a new process's writer; those on the same ``lease_id`` are the same
instance restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final

from prometheus_client import CollectorRegistry

from azure_sink.replica_writer.doorbells import Doorbells
from azure_sink.replica_writer.metrics import WriterMetrics
from azure_sink.replica_writer.replica_writer import ReplicaWriter
from azure_sink.replica_writer.settings import WriterSettings
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobNotFound
from replication.blob_client.settings import BlobEndpointSettings
from replication.clock import Clock
from replication.documents import DocumentT, WriterIdentity
from replication.identifiers import CutId, DiskId, GenerationId, GenerationKey, ItemId
from replication.service.health import HealthBoard
from replication.store_documents import Receipt, RecoveryPoint, WriterAnswer, WriterRequest
from replication.store_layout import (
    RECOVERY_POINTS_CONTAINER,
    REPLICAS_CONTAINER,
    REPLICATION_CONTAINER,
    answer_name,
    receipt_name,
    recovery_point_name,
    request_name,
)
from tests.harness.epochs import DiskHistory, make_containers, new_uuid
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.process_memory import begin_run

MIB: Final = 2**20
_SETTINGS: Final = WriterSettings(
    store=BlobEndpointSettings("https://127.0.0.1:10000/account", "account", Path("unused")), state_dir=Path("unused")
)


class HandClock:
    """Time that stands still until a test moves it; whoever sleeps moves it too."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)
        self._start = self.moment

    def now(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    def _elapsed_s(self) -> float:
        return (self.moment - self._start).total_seconds()

    async def _sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(
            monotonic_s=self._elapsed_s,
            unix_ns=lambda: int(self.moment.timestamp() * 1e9),
            sleep=self._sleep,
        )


@dataclass(slots=True)
class WriterSite:
    """One account and the writers on it. ``await WriterSite.make(seed)``."""

    random: Random
    time: HandClock
    account: BlobClient
    identity: WriterIdentity
    lease_id: str
    settings: WriterSettings = _SETTINGS
    health: HealthBoard = field(default_factory=HealthBoard)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    @classmethod
    async def make(cls, seed: int = 0, **settings: int) -> WriterSite:
        """On an account in memory; ``settings`` are the writer's."""
        time = HandClock()
        return await cls.on(MemoryBlobClient(time.now), time, seed, **settings)

    @classmethod
    async def on(cls, account: BlobClient, time: HandClock, seed: int = 0, **settings: int) -> WriterSite:
        """On any account whose leases follow ``time``."""
        begin_run()
        random = Random(seed)
        await make_containers(account)
        changed = replace(_SETTINGS, **settings)  # type: ignore[arg-type]
        return cls(random, time, account, WriterIdentity.generate(), new_uuid(random), changed)

    def start(
        self,
        client: BlobClient | None = None,
        *,
        lease_id: str | None = None,
        clock: Clock | None = None,
        doorbells: Doorbells | None = None,
    ) -> ReplicaWriter:
        """A writer process; without ``client`` it talks to the account itself, without ``clock`` it has the site's."""
        self.registry = CollectorRegistry()
        return ReplicaWriter(
            self.account if client is None else client,
            self.identity,
            self.lease_id if lease_id is None else lease_id,
            self.settings,
            WriterMetrics(self.registry),
            self.health,
            self.time.clock if clock is None else clock,
            doorbells,
        )

    def disk(self, size_bytes: int = MIB, item: ItemId | None = None) -> DiskHistory:
        item = ItemId(new_uuid(self.random)) if item is None else item
        return DiskHistory(self.account, self.identity.public, self.random, size_bytes, item=item)

    # -- what the store says ----------------------------------------------------------------------------------

    async def bytes_of(
        self, disk: DiskHistory | DiskId, snapshot: str | None = None, size_bytes: int | None = None
    ) -> bytes:
        """The replica's (or a snapshot's) bytes over the source's size."""
        if isinstance(disk, DiskHistory):
            size_bytes = disk.size_bytes if size_bytes is None else size_bytes
            disk = disk.disk
        return (await self.blob_bytes(REPLICAS_CONTAINER, disk, snapshot))[:size_bytes]

    async def blob_bytes(self, container: str, name: str, snapshot: str | None = None) -> bytes:
        properties = await self.account.head_blob(container, name, snapshot=snapshot)
        buffer = bytearray(properties.length_bytes)
        await self.account.get_blob_into(container, name, buffer, snapshot=snapshot)
        return bytes(buffer)

    async def receipt(self, disk: DiskHistory, generation: int | None = None) -> Receipt | None:
        number = disk.generation if generation is None else generation
        key = GenerationKey(disk.disk, GenerationId(number))
        return await self._signed(Receipt, REPLICATION_CONTAINER, receipt_name(key))

    async def point(self, item: ItemId, cut: str) -> RecoveryPoint | None:
        return await self._signed(RecoveryPoint, RECOVERY_POINTS_CONTAINER, recovery_point_name(item, CutId(cut)))

    async def point_bytes(self, item: ItemId, cut: str, disk: DiskId) -> bytes:
        point = await self.point(item, cut)
        assert point is not None, f"no recovery point {cut}"
        part = next(part for part in point.disks if part.disk == disk)
        return await self.bytes_of(disk, part.snapshot, part.size_bytes)

    async def snapshots(self, disk: DiskHistory) -> list[str]:
        return [
            item.snapshot
            async for item in self.account.list_blobs(REPLICAS_CONTAINER, disk.disk, include_snapshots=True)
            if item.snapshot is not None
        ]

    async def names(self, container: str, prefix: str = "") -> list[str]:
        return [item.name async for item in self.account.list_blobs(container, prefix)]

    async def _signed(self, kind: type[DocumentT], container: str, name: str) -> DocumentT | None:
        try:
            found = await self.account.get_blob(container, name, max_bytes=2**20)
        except BlobNotFound:
            return None
        assert found is not None
        return self.identity.public.open_signed(kind, found.content)

    # -- asking -----------------------------------------------------------------------------------------------

    async def ask(self, request: WriterRequest) -> None:
        await self.account.put_blob(
            REPLICATION_CONTAINER, request_name(request.request), request.encode(), if_none_match_any=True
        )

    async def answer(self, request: WriterRequest) -> WriterAnswer | None:
        return await self._signed(WriterAnswer, REPLICATION_CONTAINER, answer_name(request.request))

    async def asked(self, writer: ReplicaWriter, request: WriterRequest) -> WriterAnswer:
        """Ask, let ``writer`` settle, return the answer; the request must be gone."""
        await self.ask(request)
        await writer.settle()
        answer = await self.answer(request)
        assert answer is not None
        assert answer.state != "in-progress"
        assert request_name(request.request) not in await self.names(REPLICATION_CONTAINER, "requests/")
        return answer


def cuts_of(disks: Sequence[DiskHistory]) -> set[str]:
    return {cut for disk in disks for cut in disk.cuts}
