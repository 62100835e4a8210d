"""Generations and their keys: allocating one for an agent, and handing the data key to the process server that seals with it.

Called by ``api/agent_generations.py`` and ``api/process_server.py``. Order (R8, and the key before the first acknowledgement): close the
generation before and learn its final epoch; allocate the next number with a new data key, wrapped for site and writer, in the database;
put the record into the store with If-None-Match; only then answer. Each step is repeated safely: a request names its generation for
ever, and the record's bytes are kept. If the store already holds another record under the number (this database is older than the
store: a restored backup), that generation is adopted, so that it gets closed before anything goes on.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.protected_item import DELETING_STATES, State
from config_server.database import Database, Guard, unguarded
from config_server.events import SYSTEM, Actor, Clock, record_event
from config_server.items import active_item, item_disks
from config_server.key_encryption import KeyEncryptionKey
from config_server.tables import DiskRow, GenerationRow, ProtectedItemRow
from config_server.tracking_losses import note_resync
from config_server.writer_requests import SUCCEEDED, answer_of, ask_writer_anew, failure_of
from replication.blob_client.api import BlobClient
from replication.control_plane import AssignedElsewhere, DataKeyGrant, GenerationGrant, GenerationRequest
from replication.documents import MAX_DOCUMENT_BYTES, WriterPublicKey
from replication.errors import Conflict, IntegrityError, NotFound, Refused, Retryable
from replication.failpoint import reached
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.segment_keys import manifest_key, new_data_key, wrap_for_writer
from replication.store_documents import NEVER_OPENED, TORN_EPOCH, CloseGeneration, GenerationBase, GenerationRecord
from replication.store_layout import (
    KEYS_PREFIX,
    REPLICATION_CONTAINER,
    generation_record_name,
    parse_generation_record_name,
)

ALLOCATED: Final = "allocated"
OPEN: Final = "open"
CLOSED: Final = "closed"
DELETED: Final = "deleted"
CLOSE_RETRY_S: Final = 1.0
CLOSE_AGAIN_S: Final = 30.0

_logger = logging.getLogger(__name__)


class Generations:
    """Allocates generations and unwraps their keys; plain keys are returned, never stored or logged."""

    def __init__(
        self,
        database: Database,
        store: BlobClient,
        key_encryption_key: KeyEncryptionKey,
        writer: WriterPublicKey,
        clock: Clock,
    ) -> None:
        self._database = database
        self._store = store
        self._site_key = key_encryption_key
        self._writer = writer
        self._clock = clock

    async def grant(
        self, machine_id: str, disk: str, request: GenerationRequest, *, guard: Guard = unguarded
    ) -> GenerationGrant:
        """The generation of ``request``, made if it is new; its record is in the store on return. ``guard``: may the caller still?

        :raises Retryable: while the writer has not closed the generation before; PeerUnavailable if the store does not answer.
        :raises Refused: if the disk is not this machine's, or not under protection.
        :raises Conflict: if ``request`` was for another disk, or its generation has been closed since.
        """
        row = await self._find_or_allocate(machine_id, disk, request, guard)
        if row.state == ALLOCATED:
            reached("config.generation.allocated")
            await self._publish_record(row)
            reached("config.generation.opened")
            async with self._database.read() as session:
                await guard(session)  # the store may have taken its time
        return await self._grant_of(machine_id, row)

    async def _find_or_allocate(
        self, machine_id: str, disk: str, request: GenerationRequest, guard: Guard
    ) -> GenerationRow:
        first_number = await self._first_number(disk)
        unpublished: GenerationRow | None = None
        while True:
            if unpublished is not None:
                await self._publish_record(unpublished)  # an earlier request's, cut off before its record was stored
            async with self._database.guarded(guard).write() as session:
                item = await self._protected(session, machine_id, disk)
                row = await session.scalar(select(GenerationRow).where(GenerationRow.request == request.request))
                if row is not None:
                    return _checked_repeat(row, disk, request)
                newest = await newest_generation(session, disk)
                if newest is not None and newest.item_id == item.id and newest.state != DELETED:
                    await note_resync(session, item, disk, newest.generation, request.reason, self._clock())
                if newest is None or newest.state in (CLOSED, DELETED):
                    return await self._allocate(session, item, disk, request, newest, first_number)
                if newest.state == OPEN:
                    problem = await close_generation(session, newest, self._clock())
                    if newest.state == CLOSED:
                        return await self._allocate(session, item, disk, request, newest, first_number)
                    break
                unpublished = newest
        if problem is not None:
            # A store that was put back to an older state does not know the generation; what is not known cannot be closed.
            await self._put_record(newest)
        raise Retryable(
            f"cannot open a new generation yet: {problem or 'the replica writer has not closed the one before'}",
            disk=disk,
            retry_after_s=CLOSE_RETRY_S,
            hint="if this lasts, see that the replica writer runs",
        )

    async def granted(self, machine_id: str, key: GenerationKey, *, guard: Guard = unguarded) -> GenerationGrant:
        """A grant given earlier. ``guard``: may the caller still?

        :raises NotFound: if it was not given. :raises Refused: if the disk is not this machine's.
        """
        async with self._database.read() as session:
            await guard(session)
            await self._owned(session, machine_id, key.disk)
            row = await session.get(GenerationRow, (key.disk, key.generation))
        if row is None or row.state in (ALLOCATED, DELETED):
            raise NotFound(f"cannot find generation {key.generation}", disk=key.disk)
        return await self._grant_of(machine_id, row)

    async def data_key(self, process_server_id: str, key: GenerationKey, *, guard: Guard = unguarded) -> DataKeyGrant:
        """What a process server needs to seal for a generation. ``guard``: may it still?

        :raises NotFound: if there is no such generation any more, or its item is being stopped or completed: whatever the store has of
            it is deleted, and what goes there meanwhile is not missed. :raises AssignedElsewhere: if the item is another process server's.
        """
        async with self._database.read() as session:
            await guard(session)
            row = await session.get(GenerationRow, (key.disk, key.generation))
            item = None if row is None else await session.get(ProtectedItemRow, row.item_id)
        if row is None or item is None or row.state in (ALLOCATED, DELETED) or State(item.state) in DELETING_STATES:
            raise NotFound(f"cannot find generation {key.generation}", disk=key.disk)
        if item.process_server_id != process_server_id:
            raise AssignedElsewhere(
                "cannot give the data key: this item is assigned to another process server",
                disk=key.disk,
                hint="the agent learns from the configuration server where to ship to",
            )
        record = _record_of(row)
        return DataKeyGrant(
            disk=key.disk,
            generation=key.generation,
            machine=record.machine,
            size_bytes=record.size_bytes,
            data_key=self._data_key(record).hex(),
        )

    # -- steps ------------------------------------------------------------------------------------------------

    async def _owned(self, session: AsyncSession, machine_id: str, disk: str) -> DiskRow:
        row = await session.get(DiskRow, disk)
        if row is None or row.machine_id != machine_id:
            raise Refused("cannot use this disk: it is not registered as this machine's", disk=disk)
        return row

    async def _protected(self, session: AsyncSession, machine_id: str, disk: str) -> ProtectedItemRow:
        await self._owned(session, machine_id, disk)
        item = await active_item(session, machine_id)
        if item is None or State(item.state) in DELETING_STATES:
            raise Refused("cannot open a generation: the machine is not protected", disk=disk)
        if disk not in {row.disk_id for row in await item_disks(session, item.id)}:
            raise Refused("cannot open a generation: this disk is not protected", disk=disk)
        return item

    async def _allocate(
        self,
        session: AsyncSession,
        item: ProtectedItemRow,
        disk: str,
        request: GenerationRequest,
        newest: GenerationRow | None,
        first_number: int,
    ) -> GenerationRow:
        owner = await session.get_one(DiskRow, disk)
        if owner.digest_key is None:
            owner.digest_key = self._site_key.wrap_digest_key(new_data_key(), disk)
        number, base = first_number, None
        if newest is not None:
            number = max(newest.generation, newest.final_generation or 0) + 1
        if newest is not None and newest.state == CLOSED and newest.item_id == item.id and newest.final_generation != 0:
            ended = newest.final_generation or newest.generation
            base = GenerationBase(
                generation=ended,
                epoch=newest.final_epoch or 0,
                manifest_hash=newest.final_manifest_hash,
                torn_manifest_hash=newest.torn_manifest_hash,
            )
        bare = GenerationRecord(
            disk=disk,
            generation=number,
            machine=item.machine_id,
            item=item.id,
            size_bytes=request.size_bytes,
            granularity_bytes=request.granularity_bytes,
            base=base,
            writer_key_id=self._writer.key_id,
        )
        key, associated = new_data_key(), bare.associated_data()
        record = bare.with_keys(
            self._site_key.wrap_data_key(key, associated), wrap_for_writer(self._writer.wrapping, key, associated)
        )
        row = GenerationRow(
            disk_id=disk,
            generation=number,
            item_id=item.id,
            request=request.request,
            reason=request.reason,
            distrusts_digests=request.distrust_digests,
            state=ALLOCATED,
            record=record.model_dump_json(),
            created_ns=self._clock(),
        )
        session.add(row)
        record_event(
            session,
            self._clock(),
            Actor(f"agent:{item.machine_id}"),
            "generation-allocated",
            f"generation {number} of disk {disk}: {request.reason}"
            + ("; every block is sent, whatever the digests say" if request.distrust_digests else ""),
            machine_id=item.machine_id,
            item_id=item.id,
        )
        return row

    async def _first_number(self, disk: str) -> int:
        """Which generation a disk begins with that this database knows nothing of: the newest one in the store, which is then adopted
        and closed (an earlier number would be refused by the writer for ever); where its record is gone, but not what was written
        under it, the number after it; else 1.
        """
        async with self._database.read() as session:
            if await newest_generation(session, disk) is not None:
                return 1  # not asked for
        recorded = written = 0
        with contextlib.suppress(NotFound):
            async for item in self._store.list_blobs(REPLICATION_CONTAINER, f"{KEYS_PREFIX}{disk}/"):
                recorded = max(recorded, parse_generation_record_name(item.name).generation)
            async for item in self._store.list_blobs(REPLICATION_CONTAINER, f"{disk}/"):
                number = item.name.split("/")[1]
                written = max(written, int(number) if number.isdigit() else 0)
        return recorded if 0 < recorded >= written else written + 1

    async def _publish_record(self, row: GenerationRow) -> None:
        await self._put_record(row)
        reached("config.generation.recorded")
        async with self._database.write() as session:
            stored = await session.get_one(GenerationRow, (row.disk_id, row.generation))
            item = await session.get_one(ProtectedItemRow, stored.item_id)
            is_wanted = item.ended_ns is None and State(item.state) not in DELETING_STATES
            if stored.state == ALLOCATED and is_wanted:
                stored.state = OPEN
        if not is_wanted:
            # The protection was ended while the record was on its way: what has deleted the keys may not have seen this one.
            with contextlib.suppress(NotFound):
                await self._store.delete_blob(REPLICATION_CONTAINER, _record_name(row))
            raise Refused("cannot open a generation: the machine is not protected any more", disk=row.disk_id)

    async def _put_record(self, row: GenerationRow) -> None:
        """Put the record unless it is there already; adopt a foreign one."""
        name = _record_name(row)
        content = _record_of(row).encode()
        try:
            await self._store.put_blob(REPLICATION_CONTAINER, name, content, if_none_match_any=True)
        except Conflict:
            found = await self._store.get_blob(REPLICATION_CONTAINER, name, max_bytes=MAX_DOCUMENT_BYTES)
            if found is not None and found.content == content:
                return
            await self._adopt(row, b"" if found is None else found.content)
            raise Retryable(
                "cannot open the generation yet: the store knows a later one, which is closed first",
                disk=row.disk_id,
                retry_after_s=CLOSE_RETRY_S,
            ) from None

    async def _adopt(self, row: GenerationRow, content: bytes) -> None:
        """Take over the generation that the store holds under this number, after checking that this site's key opens it.

        :raises Conflict: if it is another disk's or another site's.
        """
        record = GenerationRecord.decode(content)
        if (record.disk, record.generation) != (row.disk_id, row.generation):
            raise Conflict(
                f"cannot open generation {row.generation}: the store holds another's record", disk=row.disk_id
            )
        try:
            self._data_key(record)
        except IntegrityError as error:
            raise Conflict(
                f"cannot open generation {row.generation}: the store holds one of another key-encryption key",
                disk=row.disk_id,
                hint="restore the key-encryption key from the backup, or give this site a store of its own",
            ) from error
        async with self._database.write() as session:
            stored = await session.get_one(GenerationRow, (row.disk_id, row.generation))
            stored.record, stored.state, stored.request = record.model_dump_json(), OPEN, str(uuid.uuid4())
            stored.distrusts_digests = False
            message = f"generation {row.generation} of disk {row.disk_id} was found in the store and adopted"
            record_event(session, self._clock(), SYSTEM, "generation-adopted", message, item_id=row.item_id)
        _logger.warning("adopted a generation", extra={"fields": {"disk": row.disk_id, "generation": row.generation}})

    # -- answers ----------------------------------------------------------------------------------------------

    def _data_key(self, record: GenerationRecord) -> bytes:
        try:
            wrapped = base64.b64decode(record.key_for_site, validate=True)
        except ValueError as error:
            raise IntegrityError("cannot unwrap a data key: it is no base64", disk=record.disk) from error
        return self._site_key.unwrap_data_key(wrapped, record.associated_data())

    async def _grant_of(self, machine_id: str, row: GenerationRow) -> GenerationGrant:
        record = _record_of(row)
        async with self._database.read() as session:
            owner = await self._owned(session, machine_id, row.disk_id)
            base = record.base
            before = None if base is None else await session.get(GenerationRow, (row.disk_id, base.generation))
        if owner.digest_key is None:
            raise NotFound("cannot find the digest key", disk=row.disk_id)
        key = GenerationKey(DiskId(record.disk), GenerationId(record.generation))
        return GenerationGrant(
            disk=record.disk,
            item=record.item,
            generation=record.generation,
            size_bytes=record.size_bytes,
            granularity_bytes=record.granularity_bytes,
            base=record.base,
            torn=before is not None and before.torn,
            manifest_key=manifest_key(self._data_key(record), key).hex(),
            digest_key=self._site_key.unwrap_digest_key(owner.digest_key, record.disk).hex(),
            writer_public_key=self._writer.encode(),
        )


def _checked_repeat(row: GenerationRow, disk: str, request: GenerationRequest) -> GenerationRow:
    if row.disk_id != disk or row.state in (CLOSED, DELETED):
        why = "it was another disk's" if row.disk_id != disk else f"its generation {row.generation} is closed"
        raise Conflict(
            f"cannot grant a generation for request {request.request}: {why}", disk=disk, hint="ask with a new request"
        )
    return row


def _record_name(row: GenerationRow) -> str:
    return generation_record_name(GenerationKey(DiskId(row.disk_id), GenerationId(row.generation)))


def _record_of(row: GenerationRow) -> GenerationRecord:
    if row.record is None:
        raise NotFound(f"cannot find the keys of generation {row.generation}: they are deleted", disk=row.disk_id)
    return GenerationRecord.decode(row.record.encode())


async def newest_generation(session: AsyncSession, disk: str) -> GenerationRow | None:
    """The generation with the highest number, in whatever state."""
    found: GenerationRow | None = await session.scalar(
        select(GenerationRow).where(GenerationRow.disk_id == disk).order_by(GenerationRow.generation.desc()).limit(1)
    )
    return found


def records_identity(rows: Sequence[GenerationRow]) -> str:
    """What tells the generations of ``rows`` from all others that ever had their numbers: their records hold random keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.disk_id}/{row.generation}/{row.record}\n".encode())
    return digest.hexdigest()[:32]


async def _continue_elsewhere(
    session: AsyncSession, row: GenerationRow, base: GenerationBase | None, now_ns: int
) -> None:
    """The writer never opened this generation: the next one continues ``base``."""
    row.final_generation, row.final_epoch = (0, 0) if base is None else (base.generation, base.epoch)
    continued = None if base is None else await session.get(GenerationRow, (row.disk_id, base.generation))
    if continued is not None:
        continued.torn = True  # whatever was written after the base is sent again (R1)
    where = "nothing: there is no replica" if base is None else f"generation {base.generation}, epoch {base.epoch}"
    message = (
        f"generation {row.generation} of disk {row.disk_id} was refused by the sink; the next one continues {where}"
    )
    record_event(session, now_ns, SYSTEM, "generation-refused", message, item_id=row.item_id)


async def close_generation(session: AsyncSession, row: GenerationRow, now_ns: int) -> str | None:
    """Ask the writer to close an open generation (R8), or take its answer: then ``row`` is CLOSED with its final epoch.

    Called again and again until it is. Returns what the writer complained of, if it did; it is asked anew after ``CLOSE_AGAIN_S``.
    A success may name a problem: that the epoch after the final one was applied in part. The request is made of the record's bytes,
    not only of its number: should numbers begin anew, an answer about an earlier generation of this number is none about this one.
    """
    asked = await ask_writer_anew(
        session,
        f"close-generation/{row.disk_id}/{row.generation}/{records_identity([row])}",
        lambda request: CloseGeneration(request=request, disk=row.disk_id, generation=row.generation),
        now_ns,
        after_failure_before_ns=now_ns - int(CLOSE_AGAIN_S * 1e9),
        item_id=row.item_id,
    )
    answer, failure = answer_of(asked), failure_of(asked)
    if failure is not None:
        return failure.message
    if asked.state == SUCCEEDED and answer is not None:
        if answer.final_epoch is None:
            return "the replica writer's answer names no final epoch"
        row.state, row.final_epoch, row.closed_ns = CLOSED, answer.final_epoch, now_ns
        code = None if answer.problem is None else answer.problem.code
        row.torn = code == TORN_EPOCH
        if answer.base is not None:
            row.final_manifest_hash = answer.base.manifest_hash
            row.torn_manifest_hash = answer.base.torn_manifest_hash
        if code == NEVER_OPENED:
            await _continue_elsewhere(session, row, answer.base, now_ns)
    return None
