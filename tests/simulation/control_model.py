"""A model of the configuration server, as far as the data plane knows it: generations, their keys, take-over, pruning of recovery points.

Used by the simulation in place of ``config_server``, whose database and API are tested elsewhere (``test_reconciler_crashes``).
It keeps the order of ``config_server/generations``: the generation before is closed at the sink and its final epoch known, the
record with the wrapped key is in the store, and only then a request is answered; a request names its generation for ever.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from random import Random
from typing import Final

from config_server.core.age import Age
from config_server.core.capacity import GB, Capacity
from config_server.core.placement import Candidate, PlacedItem, Rules, decide
from config_server.core.retention import Point, points_to_prune
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobNotFound
from replication.control_plane import DataKeyGrant, GenerationGrant, GenerationRequest
from replication.documents import WriterIdentity
from replication.errors import Conflict, NotFound, Retryable
from replication.identifiers import DiskId, GenerationId, GenerationKey, ItemId, MachineId
from replication.segment_keys import manifest_key, wrap_for_writer
from replication.store_documents import (
    NEVER_OPENED,
    TORN_EPOCH,
    CloseGeneration,
    GenerationBase,
    GenerationRecord,
    PrunePoints,
    RecoveryPoint,
    WriterAnswer,
)
from replication.store_layout import (
    RECOVERY_POINTS_CONTAINER,
    REPLICATION_CONTAINER,
    answer_name,
    generation_record_name,
    recovery_point_prefix,
    request_name,
)

MACHINE: Final = MachineId("33333333-3333-4333-8333-333333333333")
ITEM: Final = ItemId("11111111-1111-4111-8111-111111111111")
CLOSE_AGAIN_S: Final = 30.0
_ANSWER_BYTES: Final = 2**20


@dataclass(slots=True)
class Generation:
    """One generation of a disk. ``closing``: the request to close it that was last made, and when."""

    request: str
    number: int
    data_key: bytes
    record: GenerationRecord
    is_published: bool = False
    is_closed: bool = False
    base: GenerationBase | None = None
    """What the next generation continues, once this one is closed."""
    is_torn: bool = False
    closing: str = ""
    closing_asked_s: float = 0.0


class ControlModel:
    """Durable state and the calls of agents and process servers, to be run in a process of its own."""

    def __init__(self, store: BlobClient, writer: WriterIdentity, random: Random) -> None:
        self.generations: dict[DiskId, list[Generation]] = {}
        self._store = store
        self._writer = writer
        self._random = random
        self._digest_keys: dict[DiskId, bytes] = {}
        self._pruning = ""

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def find(self, key: GenerationKey) -> Generation | None:
        return next((each for each in self.generations.get(key.disk, ()) if each.number == key.generation), None)

    # ---- agents

    async def new_generation(self, disk: DiskId, request: GenerationRequest, now_s: float) -> GenerationGrant:
        """:raises Retryable: while the generation before is being closed. :raises Conflict: ask with a new request."""
        known = self.generations.setdefault(disk, [])
        found = next((each for each in known if each.request == request.request), None)
        if found is None:
            found = await self._allocate(disk, request, now_s)
        if found.is_closed:
            raise Conflict("cannot grant a generation: it is closed", disk=disk)
        await self._publish(disk, found)
        return self._grant(disk, found)

    async def _allocate(self, disk: DiskId, request: GenerationRequest, now_s: float) -> Generation:
        known = self.generations[disk]
        newest = known[-1] if known else None
        if newest is not None and not await self._has_closed(disk, newest, now_s):
            raise Retryable("cannot open a new generation yet", disk=disk, retry_after_s=1.0)
        if (known[-1] if known else None) is not newest:  # another request was faster
            raise Retryable("cannot open a new generation yet", disk=disk, retry_after_s=1.0)
        base = None if newest is None else newest.base
        bare = GenerationRecord(
            disk=disk,
            generation=1 if newest is None else newest.number + 1,
            machine=MACHINE,
            item=ITEM,
            size_bytes=request.size_bytes,
            granularity_bytes=request.granularity_bytes,
            base=base,
            writer_key_id=self._writer.public.key_id,
        )
        key = self._random.randbytes(32)
        wrapped = wrap_for_writer(self._writer.public.wrapping, key, bare.associated_data())
        made = Generation(request.request, bare.generation, key, bare.with_keys(bytes(60), wrapped))
        known.append(made)
        return made

    async def _publish(self, disk: DiskId, generation: Generation) -> None:
        if not generation.is_published:
            name = generation_record_name(GenerationKey(disk, GenerationId(generation.number)))
            await self._put_once(name, generation.record.encode())
            generation.is_published = True

    async def _put_once(self, name: str, content: bytes) -> None:
        try:
            await self._store.put_blob(REPLICATION_CONTAINER, name, content, if_none_match_any=True)
        except Conflict:
            return

    async def _has_closed(self, disk: DiskId, generation: Generation, now_s: float) -> bool:
        """Ask the writer, or take its answer."""
        if generation.is_closed:
            return True
        await self._publish(disk, generation)
        if not generation.closing:
            generation.closing, generation.closing_asked_s = self._new_id(), now_s
        request = CloseGeneration(request=generation.closing, disk=disk, generation=generation.number)
        answer = await self._answer(generation.closing)
        if answer is None:
            await self._put_once(request_name(generation.closing), request.encode())
        elif answer.state == "succeeded" and answer.final_epoch is not None:
            self._note_closed(disk, generation, answer)
        elif answer.state == "failed" and not 0 <= now_s - generation.closing_asked_s <= CLOSE_AGAIN_S:
            generation.closing = ""
            generation.is_published = False  # a store that was put back to an older state may have lost the record
        return generation.is_closed

    def _note_closed(self, disk: DiskId, generation: Generation, answer: WriterAnswer) -> None:
        code = None if answer.problem is None else answer.problem.code
        generation.is_closed, generation.base, generation.is_torn = True, answer.base, code == TORN_EPOCH
        if code == NEVER_OPENED and answer.base is not None:
            for continued in self.generations[disk]:
                if continued.number == answer.base.generation:
                    continued.is_torn = True  # whatever was written after the base is sent again (R1)

    async def _answer(self, request: str) -> WriterAnswer | None:
        try:
            found = await self._store.get_blob(REPLICATION_CONTAINER, answer_name(request), max_bytes=_ANSWER_BYTES)
        except BlobNotFound:
            return None
        return None if found is None else self._writer.public.open_signed(WriterAnswer, found.content)

    def _grant(self, disk: DiskId, generation: Generation) -> GenerationGrant:
        if disk not in self._digest_keys:
            self._digest_keys[disk] = self._random.randbytes(32)
        key = GenerationKey(disk, GenerationId(generation.number))
        record = generation.record
        ended = 0 if record.base is None else record.base.generation
        before = next((each for each in self.generations[disk] if each.number == ended), None)
        return GenerationGrant(
            disk=disk,
            item=ITEM,
            generation=generation.number,
            size_bytes=record.size_bytes,
            granularity_bytes=record.granularity_bytes,
            base=record.base,
            torn=before is not None and before.is_torn,
            manifest_key=manifest_key(generation.data_key, key).hex(),
            digest_key=self._digest_keys[disk].hex(),
            writer_public_key=self._writer.public.encode(),
        )

    # ---- process servers

    async def data_key(self, key: GenerationKey) -> DataKeyGrant:
        """:raises NotFound: if there is no such generation."""
        found = self.find(key)
        if found is None or not found.is_published:
            raise NotFound(f"cannot find generation {key.generation}", disk=key.disk)
        return DataKeyGrant(
            disk=key.disk,
            generation=key.generation,
            machine=MACHINE,
            size_bytes=found.record.size_bytes,
            data_key=found.data_key.hex(),
        )

    def taken_over_by(self, silent: str, alive: list[str]) -> str:
        """Who takes over the item of a process server whose silence has lasted long enough: as the configuration server decides."""
        rules = Rules()
        heard = dict.fromkeys(alive, 1.0) | {silent: rules.silent_after_s + 1}
        candidates = [
            Candidate(name, name, Age(age_s), Age(age_s), False, None, 1.0, Capacity(1, 250 * GB, 85))
            for name, age_s in heard.items()
        ]
        decision = decide(candidates, [PlacedItem(ITEM, silent)], rules, listening_s=rules.silent_after_s + 1)
        return decision.moves[0].target

    # ---- the store

    async def prune(self, retention_s: float) -> None:
        """Ask for the deletion of every recovery point that ``core/retention`` lets go."""
        if self._pruning and await self._answer(self._pruning) is None:
            return
        points = []
        async for item in self._store.list_blobs(RECOVERY_POINTS_CONTAINER, recovery_point_prefix(ITEM)):
            found = await self._store.get_blob(RECOVERY_POINTS_CONTAINER, item.name, max_bytes=_ANSWER_BYTES)
            if found is not None:
                point = self._writer.public.open_signed(RecoveryPoint, found.content)
                points.append(Point(point.cut, point.time_ns))
        cuts = points_to_prune(points, retention_s)
        if cuts:
            self._pruning = self._new_id()
            request = PrunePoints(request=self._pruning, item=ITEM, cuts=cuts)
            await self._put_once(request_name(self._pruning), request.encode())
