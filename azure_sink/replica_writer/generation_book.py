"""The generations whose records are in the store, with their data keys unwrapped: how the writer finds its work.

Called by ``replica_writer.py`` (``refresh``, and the sweep's question for orphans) and ``disk_follower.py``. A record that cannot be read
or used (too large, damaged, or wrapped for another writer) is kept as a problem of its generation; the other disks go on. Data keys stay
in memory.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from azure_sink.core.generation_choice import KnownGeneration
from azure_sink.core.replica_state import Position
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobNotFound, BlobServiceFailed
from replication.documents import MAX_DOCUMENT_BYTES, WriterIdentity
from replication.errors import BlockferryError, IntegrityError, PeerProtocolError
from replication.identifiers import DiskId, GenerationId, GenerationKey, ItemId
from replication.segment_keys import manifest_key, unwrap_for_writer
from replication.store_documents import GenerationRecord
from replication.store_layout import KEYS_PREFIX, REPLICATION_CONTAINER, parse_generation_record_name


@dataclass(frozen=True, slots=True)
class OpenedGeneration:
    """A usable generation record and the keys that come with it."""

    record: GenerationRecord
    data_key: bytes
    manifest_key: bytes


@dataclass(frozen=True, slots=True)
class UnusableGeneration:
    """A record that this writer cannot use, and why."""

    reason: BlockferryError


@dataclass(frozen=True, slots=True)
class _Entry:
    etag: str | None
    """None: it could not be read, and is read again at the next look."""
    generation: OpenedGeneration | UnusableGeneration


class GenerationBook:
    """Every generation of every disk, as last read; a record is read again when its blob has changed."""

    def __init__(self, client: BlobClient, identity: WriterIdentity) -> None:
        self._client = client
        self._identity = identity
        self._entries: dict[DiskId, dict[GenerationId, _Entry]] = {}
        self._is_full = False

    @property
    def disks(self) -> set[DiskId]:
        return set(self._entries)

    async def refresh(self) -> None:
        """Bring the book up to the store's state. On raise it is as it was, and no disk counts as an orphan until a refresh succeeds."""
        try:
            await self._refresh(KEYS_PREFIX)
        except BaseException:
            self._is_full = False
            raise
        self._is_full = True

    def may_be_orphan(self, disk: DiskId) -> bool:
        """Whether all records were seen at the last look, and none of them was of ``disk``. One that cannot be used is one all the same."""
        return self._is_full and disk not in self._entries

    async def refresh_disk(self, disk: DiskId) -> None:
        """The same for one disk."""
        await self._refresh(f"{KEYS_PREFIX}{disk}/")

    async def _refresh(self, prefix: str) -> None:
        seen: dict[DiskId, dict[GenerationId, _Entry]] = {}
        async for item in self._client.list_blobs(REPLICATION_CONTAINER, prefix):
            try:
                key = parse_generation_record_name(item.name)
            except BlockferryError:
                continue  # not a record's name: nobody's work
            entry = self._entries.get(key.disk, {}).get(key.generation)
            if entry is None or entry.etag != item.properties.etag:
                entry = await self._read(item.name, key)
            if entry is not None:
                seen.setdefault(key.disk, {})[key.generation] = entry
        scope = [disk for disk in self._entries if f"{KEYS_PREFIX}{disk}/".startswith(prefix)]
        for disk in scope:
            del self._entries[disk]
        self._entries.update(seen)

    async def _read(self, name: str, key: GenerationKey) -> _Entry | None:
        try:
            found = await self._client.get_blob(REPLICATION_CONTAINER, name, max_bytes=MAX_DOCUMENT_BYTES)
        except BlobNotFound:
            return None
        except (PeerProtocolError, BlobServiceFailed) as error:
            return _Entry(None, UnusableGeneration(error))
        if found is None:
            return None
        try:
            generation: OpenedGeneration | UnusableGeneration = self._open(key, found.content)
        except BlockferryError as error:
            generation = UnusableGeneration(error)
        return _Entry(found.properties.etag, generation)

    def _open(self, key: GenerationKey, content: bytes) -> OpenedGeneration:
        record = GenerationRecord.decode(content)
        if record.disk != key.disk or record.generation != key.generation:
            raise PeerProtocolError(
                f"cannot accept the record of {record.disk}/{record.generation} as that of {key}", disk=key.disk
            )
        if record.writer_key_id != self._identity.public.key_id:
            raise IntegrityError(
                f"cannot use generation {key.generation}: its data key is wrapped for writer {record.writer_key_id}, "
                f"this one is {self._identity.public.key_id}",
                disk=key.disk,
                hint="give the configuration server the line that `azure-sink show-writer-key` prints here",
            )
        try:
            wrapped = base64.b64decode(record.key_for_writer, validate=True)
        except ValueError as error:
            raise PeerProtocolError("cannot read a wrapped data key: it is no base64", disk=key.disk) from error
        data_key = unwrap_for_writer(self._identity.unwrapping, wrapped, record.associated_data())
        return OpenedGeneration(record, data_key, manifest_key(data_key, key))

    def disks_of(self, item: ItemId) -> set[DiskId]:
        """Disks that a usable record gives to ``item``."""
        return {
            disk
            for disk, entries in self._entries.items()
            for entry in entries.values()
            if isinstance(entry.generation, OpenedGeneration) and entry.generation.record.item == item
        }

    def known(self, disk: DiskId) -> list[KnownGeneration]:
        """The usable generations of a disk, for ``choose_generation``."""
        found = []
        for entry in self._entries.get(disk, {}).values():
            if isinstance(entry.generation, OpenedGeneration):
                record = entry.generation.record
                base = record.base
                position = None if base is None else Position(base.generation, base.epoch)
                base_hash = None if base is None else base.manifest_hash
                found.append(KnownGeneration(record.generation, position, record.size_bytes, base_hash))
        return found

    def numbers(self, disk: DiskId) -> set[int]:
        """The generations of a disk whose records are in the store, usable or not."""
        return {int(generation) for generation in self._entries.get(disk, {})}

    def unusable(self, disk: DiskId, after: int) -> BlockferryError | None:
        """Why the newest record of a disk beyond generation ``after`` cannot be used, if that is so."""
        newer = {number: entry for number, entry in self._entries.get(disk, {}).items() if number > after}
        if not newer:
            return None
        newest = newer[max(newer)].generation
        return newest.reason if isinstance(newest, UnusableGeneration) else None

    def opened(self, key: GenerationKey) -> OpenedGeneration:
        """The keys of a generation.

        :raises PeerProtocolError: (or ``IntegrityError``) its record is not in the store or cannot be used.
        """
        entry = self._entries.get(key.disk, {}).get(key.generation)
        if entry is None:
            raise PeerProtocolError(
                f"cannot follow generation {key.generation}: its record is not in the store", disk=key.disk
            )
        if isinstance(entry.generation, UnusableGeneration):
            raise entry.generation.reason
        return entry.generation
