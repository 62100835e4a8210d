"""``BlobStore``: the blob store's one door. Every mutation is durable when its call returns, and atomic with its conditions.

Called by the HTTP service, by tests, and in process by adapters. All methods are for the event loop's thread. Cancelling a mutation leaves
it undecided: it happens whole or not at all. Refusals are ``StorageFault``; a full file system is ``StoreFull``, a failed device
``Retryable`` or ``Permanent``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from azure_sink.blob_store import blob_rows, blobs, block_blobs, containers, listing, page_blobs, recovery
from azure_sink.blob_store.arenas import DEFAULT_ARENA_BYTES, DEFAULT_RESERVE_BYTES, ArenaFigures, ArenaSet
from azure_sink.blob_store.blobs import NO_GUARD, Address, CopyRequest, Guard, LeaseAction, SnapshotsToo
from azure_sink.blob_store.block_blobs import BlockChoice, BlockLists, NewBlob
from azure_sink.blob_store.body_buffers import BodyBuffers
from azure_sink.blob_store.body_writer import MAX_BODIES, BodyWriter, Digest
from azure_sink.blob_store.committer import Committer
from azure_sink.blob_store.freed_space import FreedSpace
from azure_sink.blob_store.listing import ListQuery
from azure_sink.blob_store.page_blobs import SequenceAction
from azure_sink.blob_store.readers import BlobReading, Readers, plan
from azure_sink.blob_store.schema import close_unfolded, open_for_writing
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import BlobRecord, ContainerRecord, ContentHeaders, Listed
from azure_sink.core import lease as leases
from azure_sink.core.conditions import (
    NO_CONDITIONS,
    NO_SEQUENCE_CONDITIONS,
    Conditions,
    SequenceConditions,
    check_read,
)
from azure_sink.core.page_map import Piece
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import BlobType
from replication.blob_client.codes import StorageCode
from replication.errors import SettingsError
from replication.state_directory import make_state_directory, state_directory_usable

WRITER_THREADS: Final = 4
STALE_BLOCK_S: Final = 7 * 24 * 3600
_STALE_BLOCKS_AT_ONCE: Final = 1000
_LOCK_NAME: Final = "lock"
_ARENAS_NAME: Final = "arenas"

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """``clock`` gives seconds since the epoch: leases and times follow it. ``on_group`` is told each commit group's size, ``on_put``
    container and name of each block blob that was put whole and is durable, on the event loop.
    """

    arena_bytes: int = DEFAULT_ARENA_BYTES
    reserve_bytes: int = DEFAULT_RESERVE_BYTES
    clock: Callable[[], float] = time.time
    on_group: Callable[[int], None] = lambda _size: None
    on_put: Callable[[str, str], None] = lambda _container, _name: None


@dataclass(frozen=True, slots=True)
class PageMapPage:
    """A part of a page map: pieces, and how far they are complete."""

    record: BlobRecord
    now: list[Piece]
    before: list[Piece]
    reached: int


class BlobStore:
    """One store in one directory. Make it with ``open``; ``close`` ends its threads."""

    def __init__(self, directory: Path, options: StoreOptions) -> None:
        make_state_directory(directory)
        self._directory = directory
        with state_directory_usable(directory):
            self._lock = _lock_directory(directory)
        self._clock = options.clock
        self._on_put = options.on_put
        self._arenas = ArenaSet(
            directory / _ARENAS_NAME, arena_bytes=options.arena_bytes, reserve_bytes=options.reserve_bytes
        )
        self._connection = open_for_writing(directory)
        recovery.check_arenas_present(self._connection, self._arenas)
        self._freed_space = FreedSpace(self._arenas)
        self._readers = Readers(directory)
        self._executor = ThreadPoolExecutor(WRITER_THREADS, thread_name_prefix="blob-arena")
        self._committer = Committer(self._connection, self._arenas, self._freed_space, options.clock, options.on_group)
        self._bodies = asyncio.Semaphore(MAX_BODIES)
        self.body_buffers: Final = BodyBuffers()
        self._is_closing = False
        self._leftovers: Future[None] = self._readers.submit(self._give_back_leftovers)

    @classmethod
    def open(cls, directory: Path, options: StoreOptions | None = None) -> BlobStore:
        """Open or make the store. Blocks for a moment; call it before serving.

        :raises SettingsError: another process has it open.
        :raises Permanent: it is damaged or of another version.
        """
        return cls(directory, options or StoreOptions())

    def close(self) -> None:
        """Commit what was begun, end all threads. Blocks; nothing may be called afterwards."""
        self._is_closing = True
        self._committer.close()
        self._executor.shutdown()
        self._readers.close()
        self._freed_space.close()
        if self.failure is None:
            self._connection.close()
        else:
            close_unfolded(self._connection, self._directory)
        self._arenas.close()
        os.close(self._lock)

    @property
    def failure(self) -> str | None:
        """Why nothing can be changed any more until a restart; None while all is well."""
        return self._committer.failure

    def now(self) -> float:
        """The store's clock: seconds since the epoch."""
        return self._clock()

    def has_room(self) -> bool:
        """Whether a body of some size would be accepted."""
        return self._arenas.has_room()

    def figures(self) -> ArenaFigures:
        """Space on disk, for metrics. Looks at each arena's inode."""
        return self._arenas.figures()

    def wait_until_quiet(self, timeout_s: float) -> bool:
        """Wait until everything deleted is reclaimed and punched; False if that took too long. Blocks (tests)."""
        self._leftovers.result(timeout_s)
        if not self._committer.wait_until_quiet(timeout_s):
            return False
        self._freed_space.settle()
        return True

    def _give_back_leftovers(self, connection: sqlite3.Connection) -> None:
        for freed in recovery.leftovers(connection, self._arenas):
            if self._is_closing:
                return
            if freed:
                self._freed_space.release_found(freed)

    # -- plumbing ---------------------------------------------------------------------------------------------

    async def _commit(self, mutate: Callable[[Transaction], ResultT], body: BodyWriter | None = None) -> ResultT:
        bodies = () if body is None else body.hand_over()
        return await asyncio.wrap_future(self._committer.submit(mutate, bodies))

    @contextlib.asynccontextmanager
    async def receive(
        self, length: int, digest: Digest | None = None, *, direct: bool = False
    ) -> AsyncIterator[BodyWriter]:
        """Room for a body of ``length`` bytes; what no mutation took over on leaving is given back.

        :param direct: as ``BodyWriter`` has it.
        """
        async with self._bodies:
            writer = BodyWriter(self._arenas, self._executor, length, digest, direct=direct)
            try:
                yield writer
            finally:
                writer.discard()

    # -- containers -------------------------------------------------------------------------------------------

    async def create_container(self, name: str, metadata: Mapping[str, str] | None = None) -> ContainerRecord:
        return await self._commit(lambda t: containers.create(t, name, metadata or {}))

    async def delete_container(self, name: str, conditions: Conditions = NO_CONDITIONS) -> None:
        await self._commit(lambda t: containers.delete(t, name, conditions))

    async def get_container(self, name: str) -> ContainerRecord:
        return await self._readers.run(lambda c: blob_rows.find_container(c, name))

    async def set_container_metadata(
        self, name: str, metadata: Mapping[str, str], conditions: Conditions = NO_CONDITIONS
    ) -> ContainerRecord:
        return await self._commit(lambda t: containers.set_metadata(t, name, metadata, conditions))

    async def list_containers(self, prefix: str, marker: str, limit: int) -> tuple[list[ContainerRecord], str]:
        return await self._readers.run(lambda c: containers.list_page(c, prefix, marker, limit))

    async def list_blobs(self, container: str, query: ListQuery) -> Listed:
        return await self._readers.run(lambda c: listing.list_page(c, container, query))

    # -- any blob ---------------------------------------------------------------------------------------------

    async def get_blob(self, address: Address, guard: Guard = NO_GUARD) -> BlobRecord:
        """:raises StorageFault: not found, a condition, a lease; ``NotModified``."""
        return await self._readers.run(lambda c: self._checked_for_read(c, address, guard))

    def _checked_for_read(self, connection: sqlite3.Connection, address: Address, guard: Guard) -> BlobRecord:
        record = blob_rows.require_blob(connection, address.container, address.name, address.snapshot)
        self._check_read(record, guard)
        return record

    def _check_read(self, record: BlobRecord, guard: Guard) -> None:
        check_read(guard.conditions, record.present)
        leases.check_use(record.lease, self._clock(), guard.lease_id, writes=False)

    async def read_blob(self, address: Address, guard: Guard = NO_GUARD) -> BlobReading:
        """The blob's present state, to be streamed."""
        record = await self.get_blob(address, guard)
        return BlobReading(record, self._readers, self._arenas, self._freed_space, self._executor)

    async def delete_blob(self, address: Address, snapshots: SnapshotsToo = None, guard: Guard = NO_GUARD) -> None:
        await self._commit(lambda t: blobs.delete(t, address, snapshots, guard))

    async def set_metadata(self, address: Address, metadata: Mapping[str, str], guard: Guard = NO_GUARD) -> BlobRecord:
        return await self._commit(lambda t: blobs.set_metadata(t, address, metadata, guard))

    async def set_headers(self, address: Address, headers: ContentHeaders, guard: Guard = NO_GUARD) -> BlobRecord:
        return await self._commit(lambda t: blobs.set_headers(t, address, headers, guard))

    async def snapshot_blob(
        self, address: Address, metadata: Mapping[str, str] | None = None, guard: Guard = NO_GUARD
    ) -> BlobRecord:
        return await self._commit(lambda t: blobs.snapshot(t, address, metadata, guard))

    async def copy_blob(self, address: Address, request: CopyRequest, guard: Guard = NO_GUARD) -> BlobRecord:
        return await self._commit(lambda t: blobs.copy(t, address, request, guard))

    async def change_lease(
        self, address: Address, action: LeaseAction, conditions: Conditions = NO_CONDITIONS
    ) -> BlobRecord:
        return await self._commit(lambda t: blobs.change_lease(t, address, action, conditions))

    # -- block blobs ------------------------------------------------------------------------------------------

    async def put_block_blob(
        self, address: Address, new: NewBlob, body: BodyWriter, guard: Guard = NO_GUARD
    ) -> BlobRecord:
        """``body`` must be finished."""
        place = await body.finish()
        record = await self._commit(lambda t: block_blobs.put(t, address, new, place, guard), body)
        self._on_put(address.container, address.name)
        return record

    async def put_block(self, address: Address, block_id: str, body: BodyWriter, lease_id: str | None = None) -> None:
        place = await body.finish()
        if place is None:
            raise StorageFault(StorageCode.INVALID_HEADER_VALUE, "a block is not empty")
        await self._commit(lambda t: block_blobs.put_block(t, address, block_id, place, lease_id), body)

    async def put_block_list(
        self, address: Address, new: NewBlob, choices: Sequence[BlockChoice], guard: Guard = NO_GUARD
    ) -> BlobRecord:
        return await self._commit(lambda t: block_blobs.put_block_list(t, address, new, choices, guard))

    async def get_block_lists(self, address: Address, guard: Guard = NO_GUARD) -> BlockLists:
        def read(connection: sqlite3.Connection) -> BlockLists:
            lists = block_blobs.block_lists(connection, address)
            if lists.record is not None:
                self._check_read(lists.record, guard)
            return lists

        return await self._readers.run(read)

    async def drop_stale_blocks(self) -> None:
        """Discard blocks that were put a week ago or earlier and never committed."""
        before = int(self._clock()) - STALE_BLOCK_S
        while await self._commit(lambda t: block_blobs.drop_stale(t, before, _STALE_BLOCKS_AT_ONCE)):
            pass

    # -- page blobs -------------------------------------------------------------------------------------------

    async def create_page_blob(
        self, address: Address, new: NewBlob, size: int, sequence_number: int = 0, guard: Guard = NO_GUARD
    ) -> BlobRecord:
        return await self._commit(lambda t: page_blobs.create(t, address, new, size, sequence_number, guard))

    async def put_pages(
        self,
        address: Address,
        start: int,
        body: BodyWriter,
        guard: Guard = NO_GUARD,
        numbers: SequenceConditions = NO_SEQUENCE_CONDITIONS,
    ) -> BlobRecord:
        """At most ``MAX_PUT_PAGES_BYTES``, which the caller checks before it receives the body."""
        place = await body.finish()
        if place is None:
            raise StorageFault(StorageCode.INVALID_PAGE_RANGE)
        return await self._commit(lambda t: page_blobs.write(t, address, start, place, guard, numbers), body)

    async def clear_pages(
        self,
        address: Address,
        start: int,
        end: int,
        guard: Guard = NO_GUARD,
        numbers: SequenceConditions = NO_SEQUENCE_CONDITIONS,
    ) -> BlobRecord:
        return await self._commit(lambda t: page_blobs.clear(t, address, start, end, guard, numbers))

    async def resize_page_blob(self, address: Address, size: int, guard: Guard = NO_GUARD) -> BlobRecord:
        return await self._commit(lambda t: page_blobs.resize(t, address, size, guard))

    async def change_sequence_number(
        self, address: Address, action: SequenceAction, number: int | None, guard: Guard = NO_GUARD
    ) -> BlobRecord:
        return await self._commit(lambda t: page_blobs.change_sequence_number(t, address, action, number, guard))

    async def page_map(
        self,
        address: Address,
        start: int,
        end: int | None,
        *,
        previous_snapshot: str | None = None,
        limit: int,
        guard: Guard = NO_GUARD,
    ) -> PageMapPage:
        """Which pages hold data in [start, end), with about ``limit`` pieces; also as of ``previous_snapshot``, to compare.

        :raises StorageFault: InvalidBlobType, PreviousSnapshotNotFound, and what ``get_blob`` raises.
        """
        return await self._readers.run(
            lambda c: self._page_map(c, address, start, end, previous_snapshot, limit, guard)
        )

    def _page_map(
        self,
        connection: sqlite3.Connection,
        address: Address,
        start: int,
        end: int | None,
        previous_snapshot: str | None,
        limit: int,
        guard: Guard,
    ) -> PageMapPage:
        record = self._checked_for_read(connection, address, guard)
        if record.blob_type is not BlobType.PAGE:
            raise StorageFault(StorageCode.INVALID_BLOB_TYPE)
        stop = record.length if end is None else min(end, record.length)
        now, reached = plan(connection, record, start, stop, limit)
        before: list[Piece] = []
        if previous_snapshot is not None:
            previous = blob_rows.find_blob(connection, record.container, record.name, previous_snapshot)
            if previous is None:
                raise StorageFault(StorageCode.PREVIOUS_SNAPSHOT_NOT_FOUND)
            if address.snapshot is not None and previous_snapshot > address.snapshot:
                raise StorageFault(StorageCode.PREVIOUS_SNAPSHOT_CANNOT_BE_NEWER)
            before, reached = plan(connection, previous, start, reached, limit)
            now = [piece.part(start, reached) for piece in now if piece.start < reached]
        return PageMapPage(record, now, before, reached)


def _lock_directory(directory: Path) -> int:
    """Take the directory for this process; the lock goes with the returned descriptor.

    :raises SettingsError: another process has it.
    """
    descriptor = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise SettingsError(
            f"cannot open the blob store {directory}: another process has it open", hint="stop the other azure-sink"
        ) from None
    return descriptor
