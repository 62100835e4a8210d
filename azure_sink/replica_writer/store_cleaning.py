"""Deleting many blobs, a few at a time: everything under a prefix, or what the sweep finds to be of no use any more.

Called by ``point_requests.py`` (``delete_all``) and ``replica_writer.py`` (``Sweep``). Deleting what is gone already is a success.

Blobs without a generation record are *orphans*. That a record is not known is no proof that there is none: an orphan is deleted only
after all records were read, if a look at the store just before finds no record of its disk, and an hour after it was put. That hour is
the store's: now is the newest ``Last-Modified`` that a sweep has seen, which is never ahead of the store's clock, whatever this machine's
says. In a store where nothing is put any more orphans stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from azure_sink.core.garbage import is_collectable
from azure_sink.core.replica_state import Position
from azure_sink.replica_writer.failures import together
from azure_sink.replica_writer.metrics import WriterMetrics
from replication.blob_client.api import BlobClient, BlobItem
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import BlobConflict, BlobNotFound
from replication.identifiers import BatchKey, DiskId, EpochKey
from replication.store_documents import Receipt
from replication.store_layout import (
    ANSWERS_PREFIX,
    KEYS_PREFIX,
    REPLICATION_CONTAINER,
    REQUESTS_PREFIX,
    parse_epoch_blob_name,
    request_name,
)

LANES: Final = 4
ORPHAN_AGE_S: Final = 3600.0
"""Blobs of a disk without any generation record are collected after this time: a record is put before the first segment."""

_logger = logging.getLogger(__name__)


async def delete_all(client: BlobClient, container: str, prefix: str) -> int:
    """Delete every blob whose name starts with ``prefix``; returns how many there were."""

    return await _delete(client, container, client.list_blobs(container, prefix))


async def _delete(client: BlobClient, container: str, items: AsyncIterator[BlobItem]) -> int:
    """The lanes share one listing; the first failure ends them all.

    If-Match: a delete that arrives late must not hit a new blob of the same name.
    """
    taking = asyncio.Lock()
    count = 0

    async def lane() -> None:
        nonlocal count
        while True:
            async with taking:
                item = await anext(items, None)
            if item is None:
                return
            try:
                await client.delete_blob(container, item.name, if_match=item.properties.etag)
            except BlobNotFound:
                continue
            except BlobConflict as error:
                if error.storage_code == StorageCode.CONDITION_NOT_MET:
                    continue  # it is another blob by now
                raise
            count += 1

    await together(lane() for _ in range(LANES))
    return count


@dataclass(frozen=True, slots=True)
class SweepFacts:
    """What a sweep may rely on, asked for anew at each blob: nothing is collected that is not known to be stale."""

    receipted: Callable[[DiskId], Receipt | None]
    """The newest durable receipt of a disk that this writer holds."""
    may_be_orphan: Callable[[DiskId], bool]
    """Whether all generation records are known, and none is of the disk."""


class Sweep:
    """Collects stale segments, manifests and answers: attempts that lost, what arrived after its epoch, what a crash left."""

    def __init__(self, client: BlobClient, facts: SweepFacts, metrics: WriterMetrics, keep_answers_s: float) -> None:
        self._client = client
        self._facts = facts
        self._metrics = metrics
        self._keep_answers_s = keep_answers_s
        self._store_time_s = 0.0
        """No later than now by the store's clock; Unix time."""

    async def run(self) -> int:
        """List the container once and delete what is stale; returns how many blobs."""
        count = await _delete(self._client, REPLICATION_CONTAINER, self._stale())
        self._metrics.collected_blobs.inc(count)
        return count

    async def _stale(self) -> AsyncIterator[BlobItem]:
        without_record: dict[DiskId, bool] = {}
        async for item in self._client.list_blobs(REPLICATION_CONTAINER, ""):
            self._store_time_s = max(self._store_time_s, item.properties.last_modified.timestamp())
            if item.name.startswith((KEYS_PREFIX, REQUESTS_PREFIX)):
                continue
            if item.name.startswith(ANSWERS_PREFIX):
                if self._age_s(item) > self._keep_answers_s and not await self._is_asked(item):
                    yield item
                continue
            key = parse_epoch_blob_name(item.name)
            if key is None:
                continue
            if self._facts.may_be_orphan(key.disk):
                if self._age_s(item) <= ORPHAN_AGE_S:
                    continue
                if key.disk not in without_record:
                    without_record[key.disk] = await self._has_no_record(key.disk)
                if without_record[key.disk]:
                    yield item
            elif self._is_covered(key):
                yield item

    async def _has_no_record(self, disk: DiskId) -> bool:
        """Asked of the store itself, whatever is known here: also a name that is no record's speaks for the disk."""
        if [item async for item in self._client.list_blobs(REPLICATION_CONTAINER, f"{KEYS_PREFIX}{disk}/")]:
            return False
        _logger.warning("blobs of a disk without a generation record are deleted", extra={"fields": {"disk": disk}})
        return True

    def _is_covered(self, key: EpochKey | BatchKey) -> bool:
        receipt = self._facts.receipted(key.disk)
        if receipt is None:
            return False
        return is_collectable(key, Position(receipt.generation, receipt.epoch), closed=receipt.closed)

    def _age_s(self, item: BlobItem) -> float:
        return self._store_time_s - item.properties.last_modified.timestamp()

    async def _is_asked(self, item: BlobItem) -> bool:
        try:
            await self._client.head_blob(REPLICATION_CONTAINER, request_name(item.name.removeprefix(ANSWERS_PREFIX)))
        except BlobNotFound:
            return False
        return True
