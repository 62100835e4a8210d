"""The backlog: which segments and manifests the spool holds, which of them the store has, by generation, epoch and attempt.

Called by the intake (is this batch known? add it), the uploader (what is next, what became of it) and the daemon (rebuild it from the
spool at start). Rebuilt, never persisted: the spool's records and marks are the truth. One entry takes about ``SEGMENT_INDEX_BYTES``,
so entries are packed; an epoch is forgotten once its manifest is decided. All methods are called on the event loop.

A segment's state: waiting → uploading → stored; or displaced (the store has this key with another tag or digest), or lost (the
spool's copy is damaged). Invariant: an entry that is waiting or uploading has a place in the spool.
"""

from __future__ import annotations

import enum
import heapq
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from process_server.core.epoch_chain import EpochChain, PendingManifest
from process_server.core.places import NOWHERE, RecordPlace
from process_server.core.spool_budget import EPOCH_INDEX_BYTES, SEGMENT_INDEX_BYTES
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, EpochId, EpochKey, GenerationKey, MachineId

_NO_ATTEMPT: Final = AttemptNumber(0)
_PACKED: Final = struct.Struct("<16s16sIBIIQQ")


class SegmentState(enum.IntEnum):
    """Where a segment is."""

    WAITING = 0
    UPLOADING = 1
    STORED = 2
    DISPLACED = 3
    LOST = 4


class SegmentEntry(NamedTuple):
    """One segment. ``place`` is ``NOWHERE`` where only the store has it."""

    digest: bytes
    tag: bytes
    segment_bytes: int
    state: SegmentState
    place: RecordPlace
    accepted_unix_ns: int

    def pack(self) -> bytes:
        place = self.place
        return _PACKED.pack(
            self.digest,
            self.tag,
            self.segment_bytes,
            self.state,
            place.file,
            place.offset,
            place.number,
            self.accepted_unix_ns,
        )

    @classmethod
    def unpack(cls, packed: bytes) -> SegmentEntry:
        digest, tag, segment_bytes, state, file, offset, number, accepted = _PACKED.unpack(packed)
        place = RecordPlace(file, offset, segment_bytes, number) if number else NOWHERE
        return cls(digest, tag, segment_bytes, SegmentState(state), place, accepted)


@dataclass(slots=True)
class _Attempt:
    segments: dict[BatchNumber, bytes] = field(default_factory=dict)
    waiting: deque[BatchNumber] = field(default_factory=deque)
    queued: bool = False

    def skip_what_waits_no_longer(self) -> None:
        """Recovery marks segments as stored long after it queued them."""
        while self.waiting and SegmentEntry.unpack(self.segments[self.waiting[0]]).state is not SegmentState.WAITING:
            self.waiting.popleft()


@dataclass(slots=True)
class _Epoch:
    attempts: dict[AttemptNumber, _Attempt] = field(default_factory=dict)
    newest: AttemptNumber = _NO_ATTEMPT
    manifest: PendingManifest | None = None


class GenerationBacklog:
    """One generation's part. ``queue`` orders (superseded attempt?, epoch, attempt): oldest epoch first, dead attempts last."""

    __slots__ = ("activity", "chain", "epochs", "key", "machine", "queue")

    def __init__(self, key: GenerationKey, machine: MachineId) -> None:
        self.key = key
        self.machine = machine
        self.chain = EpochChain()
        self.epochs: dict[EpochId, _Epoch] = {}
        self.queue: list[tuple[bool, EpochId, AttemptNumber]] = []
        self.activity = 0
        """Counts whatever happens: the same number twice means that nothing did."""

    def enqueue(self, epoch: EpochId, attempt: AttemptNumber, shelf: _Attempt) -> None:
        if not shelf.queued:
            shelf.queued = True
            heapq.heappush(self.queue, (attempt < self.epochs[epoch].newest, epoch, attempt))

    def head(self) -> tuple[bool, BatchKey, SegmentEntry] | None:
        """The segment to upload next and whether its attempt is superseded by a newer one; None if nothing waits."""
        while self.queue:
            dead, epoch, attempt = self.queue[0]
            shelf = self.epochs.get(epoch)
            segments = None if shelf is None else shelf.attempts.get(attempt)
            if segments is not None:
                segments.skip_what_waits_no_longer()
            if shelf is None or segments is None or not segments.waiting:
                heapq.heappop(self.queue)
                if segments is not None:
                    segments.queued = False
            elif not dead and attempt < shelf.newest:
                heapq.heapreplace(self.queue, (True, epoch, attempt))
            else:
                batch = segments.waiting[0]
                key = BatchKey(self.key.disk, self.key.generation, epoch, attempt, batch)
                return dead, key, SegmentEntry.unpack(segments.segments[batch])
        return None

    @property
    def next_manifest(self) -> PendingManifest | None:
        """The pending manifest of the lowest epoch: the only one of a generation that can be next."""
        pending = [epoch for epoch, shelf in self.epochs.items() if shelf.manifest is not None]
        return self.epochs[min(pending)].manifest if pending else None

    def pending_manifest(self, epoch: EpochId) -> PendingManifest | None:
        shelf = self.epochs.get(epoch)
        return None if shelf is None else shelf.manifest


class Backlog:
    """Everything the spool holds, by generation."""

    def __init__(self) -> None:
        self.generations: dict[GenerationKey, GenerationBacklog] = {}
        self.index_bytes = 0
        self.waiting_bytes = 0
        """Bytes that the store does not have yet: segments and manifests."""
        self._taken: dict[BatchKey, int] = {}

    # -- looking up -------------------------------------------------------------------------------------------

    def generation(self, key: GenerationKey, machine: MachineId) -> GenerationBacklog:
        """The generation's part, made if it is new."""
        found = self.generations.get(key)
        if found is None:
            found = self.generations[key] = GenerationBacklog(key, machine)
        return found

    def find(self, key: BatchKey) -> SegmentEntry | None:
        attempt = self._attempt(key)
        packed = None if attempt is None else attempt.segments.get(key.batch)
        return None if packed is None else SegmentEntry.unpack(packed)

    def _attempt(self, key: BatchKey) -> _Attempt | None:
        generation = self.generations.get(key.generation_key)
        epoch = None if generation is None else generation.epochs.get(key.epoch)
        return None if epoch is None else epoch.attempts.get(key.attempt)

    def attempt_entries(self, key: EpochKey, attempt: AttemptNumber) -> dict[BatchNumber, SegmentEntry]:
        """Every known segment of one attempt of an epoch."""
        generation = self.generations.get(key.generation_key)
        shelf = None if generation is None else generation.epochs.get(key.epoch)
        found = None if shelf is None else shelf.attempts.get(attempt)
        return {} if found is None else {batch: SegmentEntry.unpack(packed) for batch, packed in found.segments.items()}

    def pending_manifests(self) -> Iterator[PendingManifest]:
        for generation in self.generations.values():
            for shelf in generation.epochs.values():
                if shelf.manifest is not None:
                    yield shelf.manifest

    def oldest_accepted_unix_ns(self) -> int | None:
        """When the oldest of what the store does not have yet was accepted."""
        moments = [*self._taken.values(), *(manifest.accepted_unix_ns for manifest in self.pending_manifests())]
        for generation in self.generations.values():
            for shelf in generation.epochs.values():
                for attempt in shelf.attempts.values():
                    attempt.skip_what_waits_no_longer()
                    if attempt.waiting:
                        moments.append(SegmentEntry.unpack(attempt.segments[attempt.waiting[0]]).accepted_unix_ns)
        return min(moments, default=None)

    # -- segments ---------------------------------------------------------------------------------------------

    def add_segment(self, key: BatchKey, machine: MachineId, entry: SegmentEntry) -> bool:
        """Add or replace a segment's entry. False, and nothing is added, if its epoch is over already: it can never count.

        What is replaced must not be on its way to the store; giving up its record is the caller's part.
        """
        generation = self.generation(key.generation_key, machine)
        if generation.chain.is_over(key.epoch):
            return False
        generation.activity += 1
        shelf = self._epoch(generation, key.epoch)
        attempt = shelf.attempts.get(key.attempt)
        if attempt is None:
            attempt = shelf.attempts[key.attempt] = _Attempt()
            self.index_bytes += EPOCH_INDEX_BYTES
            shelf.newest = max(shelf.newest, key.attempt)
        packed = attempt.segments.get(key.batch)
        if packed is None:
            self.index_bytes += SEGMENT_INDEX_BYTES
        elif SegmentEntry.unpack(packed).state is SegmentState.WAITING:
            attempt.waiting.remove(key.batch)
            self.waiting_bytes -= SegmentEntry.unpack(packed).segment_bytes
        attempt.segments[key.batch] = entry.pack()
        if entry.state is SegmentState.WAITING:
            self.waiting_bytes += entry.segment_bytes
            attempt.waiting.append(key.batch)
            generation.enqueue(key.epoch, key.attempt, attempt)
        return True

    def _epoch(self, generation: GenerationBacklog, epoch: EpochId) -> _Epoch:
        shelf = generation.epochs.get(epoch)
        if shelf is None:
            shelf = generation.epochs[epoch] = _Epoch()
            self.index_bytes += EPOCH_INDEX_BYTES
        return shelf

    def mark_stored(self, key: BatchKey, number: int) -> None:
        """Recovery found the mark of a segment that it has added as waiting."""
        attempt = self._attempt(key)
        packed = None if attempt is None else attempt.segments.get(key.batch)
        if attempt is None or packed is None:
            return
        entry = SegmentEntry.unpack(packed)
        if entry.state is SegmentState.WAITING and entry.place.number == number:
            attempt.segments[key.batch] = entry._replace(state=SegmentState.STORED, place=NOWHERE).pack()
            self.waiting_bytes -= entry.segment_bytes

    def forget_segment(self, key: BatchKey, number: int) -> None:
        """Recovery found that a segment which it has added as waiting was discarded."""
        attempt = self._attempt(key)
        packed = None if attempt is None else attempt.segments.get(key.batch)
        if attempt is None or packed is None:
            return
        entry = SegmentEntry.unpack(packed)
        if entry.state is SegmentState.WAITING and entry.place.number == number:
            attempt.waiting.remove(key.batch)
            del attempt.segments[key.batch]
            self.waiting_bytes -= entry.segment_bytes
            self.index_bytes -= SEGMENT_INDEX_BYTES

    def places(self) -> Iterator[RecordPlace]:
        """Every record of the spool that is still needed."""
        for generation in self.generations.values():
            yield from self.places_of(generation)

    @staticmethod
    def places_of(generation: GenerationBacklog) -> Iterator[RecordPlace]:
        """Every record of one generation that is still needed."""
        for shelf in generation.epochs.values():
            if shelf.manifest is not None:
                yield shelf.manifest.place
            for attempt in shelf.attempts.values():
                for packed in attempt.segments.values():
                    entry = SegmentEntry.unpack(packed)
                    if entry.state in (SegmentState.WAITING, SegmentState.UPLOADING):
                        yield entry.place

    def take(self, key: BatchKey) -> SegmentEntry:
        """The head of a generation goes to the store now."""
        attempt = self._attempt(key)
        if attempt is None or not attempt.waiting or attempt.waiting[0] != key.batch:
            raise LookupError(f"{key} is not the head of its queue")
        attempt.waiting.popleft()
        entry = SegmentEntry.unpack(attempt.segments[key.batch])._replace(state=SegmentState.UPLOADING)
        attempt.segments[key.batch] = entry.pack()
        self._taken[key] = entry.accepted_unix_ns
        return entry

    def give_back(self, key: BatchKey, place: RecordPlace) -> None:
        """What was taken did not reach the store: it waits again, before what came after it."""
        attempt = self._taken_back(key, place)
        if attempt is not None:
            entry = SegmentEntry.unpack(attempt.segments[key.batch])
            attempt.segments[key.batch] = entry._replace(state=SegmentState.WAITING).pack()
            attempt.waiting.appendleft(key.batch)
            self.generations[key.generation_key].enqueue(key.epoch, key.attempt, attempt)

    def finish(self, key: BatchKey, place: RecordPlace, state: SegmentState) -> bool:
        """What was taken is stored, displaced or lost: the spool's record is not needed any more.

        Returns False if it was discarded meanwhile (its record has been given up already).
        """
        attempt = self._taken_back(key, place)
        if attempt is None:
            return False
        entry = SegmentEntry.unpack(attempt.segments[key.batch])
        attempt.segments[key.batch] = entry._replace(state=state, place=NOWHERE).pack()
        self.waiting_bytes -= entry.segment_bytes
        generation = self.generations[key.generation_key]
        generation.activity += 1
        manifest = generation.epochs[key.epoch].manifest
        if manifest is not None and manifest.attempt == key.attempt and key.batch in manifest.missing:
            manifest.missing.discard(key.batch)
            if state is not SegmentState.STORED:
                manifest.lost.add(key.batch)
        return True

    def _taken_back(self, key: BatchKey, place: RecordPlace) -> _Attempt | None:
        self._taken.pop(key, None)
        attempt = self._attempt(key)
        packed = None if attempt is None else attempt.segments.get(key.batch)
        if attempt is None or packed is None or SegmentEntry.unpack(packed).place.number != place.number:
            return None
        return attempt

    # -- manifests --------------------------------------------------------------------------------------------

    def add_manifest(self, manifest: PendingManifest, machine: MachineId) -> PendingManifest | None:
        """Add a durable manifest. Returns the one of the same epoch whose place it takes, for the caller to discard."""
        generation = self.generation(manifest.key.generation_key, machine)
        generation.activity += 1
        shelf = self._epoch(generation, manifest.key.epoch)
        replaced = shelf.manifest
        if replaced is not None:
            self.waiting_bytes -= replaced.place.payload_bytes
        shelf.manifest = manifest
        self.waiting_bytes += manifest.place.payload_bytes
        return replaced

    def drop_manifest(self, manifest: PendingManifest) -> bool:
        """Forget a pending manifest; False if another has taken its place already."""
        generation = self.generations.get(manifest.key.generation_key)
        shelf = None if generation is None else generation.epochs.get(manifest.key.epoch)
        if shelf is None or shelf.manifest is not manifest:
            return False
        shelf.manifest = None
        self.waiting_bytes -= manifest.place.payload_bytes
        return True

    def doubt_stored(self, key: GenerationKey) -> None:
        """The store may be an older one than it was (it was away, or says less than before): what it was given may be gone. Such segments
        are forgotten here, so that the store is asked for them when a manifest names them.
        """
        generation = self.generations.get(key)
        for shelf in () if generation is None else generation.epochs.values():
            for attempt in shelf.attempts.values():
                for batch, packed in list(attempt.segments.items()):
                    if SegmentEntry.unpack(packed).state is SegmentState.STORED:
                        del attempt.segments[batch]
                        self.index_bytes -= SEGMENT_INDEX_BYTES
            if shelf.manifest is not None:
                shelf.manifest.unverified = True

    # -- the end of epochs ------------------------------------------------------------------------------------

    def settle(self, key: GenerationKey) -> list[RecordPlace]:
        """Forget every epoch that is over: what is left of it in the spool can never count. Returns those places."""
        generation = self.generations.get(key)
        if generation is None:
            return []
        return self._forget(generation, [epoch for epoch in generation.epochs if generation.chain.is_over(epoch)])

    def discard_generation(self, key: GenerationKey) -> list[RecordPlace]:
        """Forget a generation that is over (R8: closed at the sink before the next one began); returns the places it held."""
        generation = self.generations.pop(key, None)
        return [] if generation is None else self._forget(generation, list(generation.epochs))

    def _forget(self, generation: GenerationBacklog, epochs: Iterable[EpochId]) -> list[RecordPlace]:
        places: list[RecordPlace] = []
        for epoch in epochs:
            shelf = generation.epochs.pop(epoch)
            self.index_bytes -= EPOCH_INDEX_BYTES
            if shelf.manifest is not None:
                places.append(shelf.manifest.place)
                self.waiting_bytes -= shelf.manifest.place.payload_bytes
            for number, attempt in shelf.attempts.items():
                self.index_bytes -= EPOCH_INDEX_BYTES + SEGMENT_INDEX_BYTES * len(attempt.segments)
                for batch, packed in attempt.segments.items():
                    entry = SegmentEntry.unpack(packed)
                    if entry.state in (SegmentState.WAITING, SegmentState.UPLOADING):
                        places.append(entry.place)
                        self.waiting_bytes -= entry.segment_bytes
                        key = generation.key
                        self._taken.pop(BatchKey(key.disk, key.generation, epoch, number, batch), None)
        return places
