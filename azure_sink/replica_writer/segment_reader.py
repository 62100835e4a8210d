"""Segments out of the store: fetched into pooled buffers, opened and verified in threads, a bounded number at a time.

Called by ``epoch_application.py``. A *slot* is memory for a segment and, once it is opened, for its frame in the same place: 8 MiB. Each
opening thread has 8 MiB in which a segment lies decrypted. There are ``slots`` slots and ``threads`` threads for the whole writer, so its
memory does not grow with disks or epochs.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from azure_sink.replica_writer.failures import SegmentMissing, patiently
from replication.aligned_memory import aligned_memory
from replication.batch_frame import ParsedBatch, parse_batch
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobNotFound
from replication.clock import Clock
from replication.epoch_manifest import ManifestSegment
from replication.errors import IntegrityError
from replication.identifiers import BatchKey
from replication.sealed_segment import OPENING_ROOM_BYTES, SegmentOpener
from replication.store_layout import REPLICATION_CONTAINER, segment_name
from replication.threads import finished_in

DEFAULT_SLOTS: Final = 5
"""An epoch of so many batches, 40 MiB, is verified whole before its first write."""
DEFAULT_THREADS: Final = 2


class SegmentSlot:
    """Room for one segment on its way from the store to the replica. Its batch's data stays valid until the slot is used again."""

    def __init__(self) -> None:
        self.buffer = aligned_memory(OPENING_ROOM_BYTES)

    def open(self, opener: SegmentOpener, key: BatchKey, named: ManifestSegment, data_key: bytes) -> ParsedBatch:
        """Decrypt, decompress, parse and verify what is in the buffer; its batch takes the segment's place. Runs in a thread.

        :raises PeerProtocolError: (or ``IntegrityError``) if it is not exactly the segment that the manifest names.
        """
        content = self.buffer[: named.segment_bytes].toreadonly()
        frame = opener.open(content, data_key, expected=key, expected_tag=named.tag, room=self.buffer)
        batch = parse_batch(frame, expected=key)
        if batch.digest != named.batch_digest:
            raise IntegrityError(
                "cannot accept a batch: its digest is not the manifest's", disk=key.disk, epoch=key.epoch
            )
        return batch


class SegmentReader:
    """Reads segments for all disks; ``close`` ends its threads."""

    def __init__(
        self, client: BlobClient, clock: Clock, slots: int = DEFAULT_SLOTS, threads: int = DEFAULT_THREADS
    ) -> None:
        self.slot_count = slots
        self._client = client
        self._clock = clock
        self._free = [SegmentSlot() for _ in range(slots)]
        self._waiting: deque[tuple[int, asyncio.Future[list[SegmentSlot]]]] = deque()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="open-segment")
        self._openers = [SegmentOpener() for _ in range(threads)]

    def close(self) -> None:
        self._threads.shutdown()

    async def reserve(self, count: int) -> list[SegmentSlot]:
        """``count`` slots at once, in the order of asking; all or none, so that two who want several cannot block each other.

        The caller gives them back with ``release``.
        """
        if not count:
            return []
        if not self._waiting and len(self._free) >= count:
            return [self._free.pop() for _ in range(count)]
        granted: asyncio.Future[list[SegmentSlot]] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, granted))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(granted.result())
            else:
                self._grant()
            raise

    def release(self, slots: list[SegmentSlot]) -> None:
        """Give slots back; nobody uses them any more."""
        self._free.extend(slots)
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            count, granted = self._waiting[0]
            if granted.cancelled():
                self._waiting.popleft()
            elif len(self._free) >= count:
                self._waiting.popleft()
                granted.set_result([self._free.pop() for _ in range(count)])
            else:
                return

    async def open(self, slot: SegmentSlot, key: BatchKey, named: ManifestSegment, data_key: bytes) -> ParsedBatch:
        """Fetch the segment into ``slot`` and open it. On cancel no thread touches the slot any more.

        :raises SegmentMissing: it is not in the store.
        :raises PeerProtocolError: (or ``IntegrityError``) it is not the one that the manifest names.
        :raises Retryable: the store did not deliver it in several attempts.
        """
        await patiently(lambda: self._fetch(slot, key, named), self._clock)
        return await finished_in(self._threads, functools.partial(self._open_in_thread, slot, key, named, data_key))

    def _open_in_thread(self, slot: SegmentSlot, key: BatchKey, named: ManifestSegment, data_key: bytes) -> ParsedBatch:
        opener = self._openers.pop()  # one is free for each thread
        try:
            return slot.open(opener, key, named, data_key)
        finally:
            self._openers.append(opener)

    async def _fetch(self, slot: SegmentSlot, key: BatchKey, named: ManifestSegment) -> None:
        target = slot.buffer[: named.segment_bytes]
        try:
            properties = await self._client.get_blob_into(REPLICATION_CONTAINER, segment_name(key), target)
        except BlobNotFound as error:
            raise SegmentMissing(
                f"cannot apply an epoch: batch {key.batch} of attempt {key.attempt} is not in the store",
                disk=key.disk,
                epoch=key.epoch,
                hint="if its process server is lost, resynchronize the disk",
            ) from error
        if properties.length_bytes != named.segment_bytes or properties.transferred_bytes != named.segment_bytes:
            raise IntegrityError(
                f"cannot apply an epoch: batch {key.batch} has {properties.length_bytes} bytes, not {named.segment_bytes}",
                disk=key.disk,
                epoch=key.epoch,
            )
