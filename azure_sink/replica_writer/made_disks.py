"""Disks made for test and real migrations: copied from a recovery point's snapshots, deleted, hashed.

Called by ``request_handlers.py``. A made disk is a page blob in container ``disks`` with the metadata ``disk``, ``cut`` and
``sizebytes``, and ``made`` once its copy is complete; the same name for the same cut again is a success, for anything else a conflict.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from azure_sink.core.replica_metadata import SIZE_METADATA
from azure_sink.replica_writer.point_ledger import PointLedger
from azure_sink.replica_writer.request_desk import RequestWork
from azure_sink.vhd import FOOTER_BYTES
from replication.blob_client.api import BlobClient, BlobProperties
from replication.blob_client.failures import BlobConflict, BlobNotFound
from replication.errors import Conflict, InvalidInput, NotFound, Retryable
from replication.failpoint import reached
from replication.identifiers import CutId, ItemId
from replication.store_documents import (
    DeleteDisks,
    HashDisk,
    MadeDisk,
    MakeDisks,
    RecoveryPointDisk,
    WriterAnswer,
)
from replication.store_layout import DISKS_CONTAINER, REPLICAS_CONTAINER

HASH_CHUNK_BYTES: Final = 4 * 2**20
_ZERO_CHUNK: Final = bytes(HASH_CHUNK_BYTES)
_ZEROS_AT_ONCE: Final = 64 * HASH_CHUNK_BYTES
_MADE: Final = "made"
_PENDING_COPY: Final = "PendingCopyOperation"


@dataclass(frozen=True, slots=True)
class _Wanted:
    name: str
    part: RecoveryPointDisk
    metadata: dict[str, str]

    def is_same(self, properties: BlobProperties) -> bool:
        known = _lower(properties)
        return all(known.get(name) == value for name, value in self.metadata.items())

    @property
    def made(self) -> MadeDisk:
        return MadeDisk(disk=self.part.disk, container=DISKS_CONTAINER, name=self.name, size_bytes=self.part.size_bytes)


def _lower(properties: BlobProperties) -> dict[str, str]:
    return {name.lower(): value for name, value in properties.metadata.items()}


class DiskMaker:
    """Handles ``make-disks``, ``delete-disks`` and ``hash-disk``."""

    def __init__(self, client: BlobClient, ledger: PointLedger) -> None:
        self._client = client
        self._ledger = ledger

    async def make(self, request: MakeDisks, work: RequestWork) -> WriterAnswer:
        """Copy every disk; nothing is copied if one of the names is taken by something else.

        :raises NotFound: no such recovery point, or a disk is not in it.
        :raises Conflict: a name is taken.
        """
        point = await self._ledger.read(ItemId(request.item), CutId(request.cut))
        if point is None:
            raise NotFound(f"cannot make disks: there is no recovery point {request.cut} of item {request.item}")
        parts = {part.disk: part for part in point.disks}
        wanted: list[_Wanted] = []
        for each in request.disks:
            part = parts.get(each.disk)
            if part is None:
                raise NotFound(f"cannot make disk {each.name}: disk {each.disk} is not in recovery point {point.cut}")
            metadata = {"disk": part.disk, "cut": point.cut, SIZE_METADATA: str(part.size_bytes)}
            wanted.append(_Wanted(each.name, part, metadata))
        for each_wanted in wanted:
            await self._present(each_wanted)
        total_bytes = sum(each.part.size_bytes for each in wanted)
        done: list[MadeDisk] = []
        for each_wanted in wanted:
            await work.report(sum(disk.size_bytes for disk in done), total_bytes, done, now=True)
            await self._make(each_wanted)
            done.append(each_wanted.made)
        return WriterAnswer(
            request=request.request, state="succeeded", done_bytes=total_bytes, total_bytes=total_bytes, disks=done
        )

    async def _present(self, wanted: _Wanted) -> BlobProperties | None:
        """What is there under the wanted name.

        :raises Conflict: it is something else.
        """
        try:
            present = await self._client.head_blob(DISKS_CONTAINER, wanted.name)
        except BlobNotFound:
            return None
        if not wanted.is_same(present):
            raise Conflict(
                f"cannot make disk {wanted.name}: the name is taken by another disk or cut",
                hint="delete that disk (clean up the test migration) or choose another name",
            )
        return present

    async def _make(self, wanted: _Wanted) -> None:
        present = await self._present(wanted)
        if present is not None and _MADE in _lower(present):
            return
        if present is not None:
            await self._delete_interrupted(wanted, present)
        try:
            await self._client.copy_from_snapshot(
                REPLICAS_CONTAINER,
                wanted.part.disk,
                wanted.part.snapshot,
                DISKS_CONTAINER,
                wanted.name,
                metadata=wanted.metadata,
            )
        except BlobNotFound as error:
            raise NotFound(
                f"cannot make disk {wanted.name}: the recovery point's snapshot is gone", disk=wanted.part.disk
            ) from error
        reached("sink.disk.copied")
        copied = await self._client.head_blob(DISKS_CONTAINER, wanted.name)
        await self._client.set_metadata(
            DISKS_CONTAINER, wanted.name, {**wanted.metadata, _MADE: "1"}, if_match=copied.etag
        )
        reached("sink.disk.made")

    async def _delete_interrupted(self, wanted: _Wanted, present: BlobProperties) -> None:
        """A copy that was interrupted is deleted and not copied over: a copy that arrives late would undo what a machine wrote since."""
        try:
            await self._client.delete_blob(DISKS_CONTAINER, wanted.name, if_match=present.etag)
        except BlobConflict as error:
            if error.storage_code == _PENDING_COPY:
                raise Retryable(
                    f"cannot make disk {wanted.name} yet: an earlier copy is still under way", retry_after_s=5.0
                ) from error
            raise

    async def delete(self, request: DeleteDisks) -> WriterAnswer:
        """Delete the disks; one that is gone already is a success.

        :raises BlobConflict: one of them is written or leased right now.
        """
        for name in request.names:
            try:
                present = await self._client.head_blob(DISKS_CONTAINER, name)
                # If-Match: a delete that arrives late must not hit the next disk of this name.
                await self._client.delete_blob(DISKS_CONTAINER, name, with_snapshots=True, if_match=present.etag)
            except BlobNotFound:
                continue
        return WriterAnswer(request=request.request, state="succeeded")

    async def hash(self, request: HashDisk, work: RequestWork) -> WriterAnswer:
        """SHA-256 over exactly ``size_bytes`` of a made disk, which must not change meanwhile (P6).

        :raises NotFound: no such disk.
        :raises InvalidInput: it is not of that size.
        :raises Conflict: it changed while it was read.
        """
        try:
            properties = await self._client.head_blob(DISKS_CONTAINER, request.name)
        except BlobNotFound as error:
            raise NotFound(f"cannot hash disk {request.name}: there is none") from error
        known = _lower(properties).get(SIZE_METADATA)
        if properties.length_bytes - FOOTER_BYTES < request.size_bytes or known != str(request.size_bytes):
            raise InvalidInput(
                f"cannot hash {request.size_bytes} bytes of disk {request.name}: it was made with {known} bytes"
            )
        digest = await DiskHash(self._client, DISKS_CONTAINER, request.name, request.size_bytes, properties).run(work)
        return WriterAnswer(
            request=request.request,
            state="succeeded",
            done_bytes=request.size_bytes,
            total_bytes=request.size_bytes,
            sha256=digest,
        )


class DiskHash:
    """SHA-256 of the start of a page blob: reads what holds data, two chunks of 4 MiB in memory."""

    def __init__(
        self, client: BlobClient, container: str, name: str, size_bytes: int, properties: BlobProperties
    ) -> None:
        self._client = client
        self._container = container
        self._name = name
        self._size_bytes = size_bytes
        self._etag = properties.etag
        self._sha256 = hashlib.sha256()

    async def run(self, work: RequestWork) -> str:
        """The digest in hex.

        :raises Conflict: the blob changed while it was read.
        """
        buffers = [np.empty(HASH_CHUNK_BYTES, dtype=np.uint8).data for _ in range(2)]
        hashing: asyncio.Future[None] | None = None
        done_bytes = 0
        try:
            async for offset, length, holds_data in self._chunks():
                buffers.reverse()
                if holds_data:
                    await self._client.get_blob_into(
                        self._container, self._name, buffers[0], offset=offset, length=length, if_match=self._etag
                    )
                if hashing is not None:
                    await asyncio.shield(hashing)
                content = buffers[0][:length] if holds_data else None
                hashing = asyncio.ensure_future(asyncio.to_thread(self._update, content, length))
                done_bytes = offset
                await work.report(done_bytes, self._size_bytes)
        finally:
            if hashing is not None:
                await asyncio.wait([hashing])
        after = await self._client.head_blob(self._container, self._name)
        if after.etag != self._etag:
            raise Conflict(f"cannot hash disk {self._name}: it changed while it was read")
        return self._sha256.hexdigest()

    def _update(self, content: memoryview | None, length: int) -> None:
        if content is not None:
            self._sha256.update(content)
            return
        while length:
            size = min(length, HASH_CHUNK_BYTES)
            self._sha256.update(memoryview(_ZERO_CHUNK)[:size])
            length -= size

    async def _chunks(self) -> AsyncIterator[tuple[int, int, bool]]:
        """(offset, length, holds data), contiguous from 0 to the size."""
        position = 0
        async for offset, length in self._client.get_page_ranges(self._container, self._name):
            start, end = min(offset, self._size_bytes), min(offset + length, self._size_bytes)
            for gap in range(position, start, _ZEROS_AT_ONCE):
                yield gap, min(_ZEROS_AT_ONCE, start - gap), False
            for chunk in range(start, end, HASH_CHUNK_BYTES):
                yield chunk, min(HASH_CHUNK_BYTES, end - chunk), True
            position = max(position, end)
        for gap in range(position, self._size_bytes, _ZEROS_AT_ONCE):
            yield gap, min(_ZEROS_AT_ONCE, self._size_bytes - gap), False
