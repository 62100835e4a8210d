"""The ledger of a disk's epochs: what is pending, which epochs are unconfirmed, which attempt of each counts. Pure values.

Called by ``disk_session`` (decides with it) and ``epoch_journal`` (keeps it durable). Theory of operation:

Every granule that may differ from the replica is in exactly one place that survives a crash: the tracker's own bits, ``pending``,
or the granules of an unconfirmed epoch (R2). A *cut* moves granules from ``pending`` to a new OPEN epoch. Its *attempt* number is
durable before the attempt's first read (R4); a new attempt makes a point epoch an ordinary one. *Sealed* means that the manifest of
that attempt was fixed and is durable here; it is put, and put again, until a receipt says that the epoch is applied. Only the
receipt removes it (P1). Manifests chain, so epochs are sealed in order; when one must be opened again, all later ones must too.

Invariant: epochs are numbered without gaps from ``applied_epoch`` + 1, and no SEALED epoch follows an OPEN one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.epoch_manifest import NO_MANIFEST, ConsistentCut, EpochFlag, manifest_hash
from replication.errors import BlockferryError, ResyncRequired
from replication.identifiers import AttemptNumber, DiskId, EpochId, GenerationId


class EpochState(enum.StrEnum):
    """An epoch's life at the agent; CONFIRMED and VOIDED ones have left the ledger."""

    OPEN = "open"
    SEALED = "sealed"
    CONFIRMED = "confirmed"
    VOIDED = "voided"


class EpochEvent(enum.StrEnum):
    """What happens to an epoch."""

    ATTEMPT_BEGUN = "attempt-begun"
    MANIFEST_FIXED = "manifest-fixed"
    RECEIPT_ARRIVED = "receipt-arrived"
    VOID_DECIDED = "void-decided"


TRANSITIONS: Final[dict[tuple[EpochState, EpochEvent], EpochState]] = {
    (EpochState.OPEN, EpochEvent.ATTEMPT_BEGUN): EpochState.OPEN,
    (EpochState.OPEN, EpochEvent.MANIFEST_FIXED): EpochState.SEALED,
    # An earlier attempt's manifest, put before a crash, may decide the epoch while a later attempt is being read.
    (EpochState.OPEN, EpochEvent.RECEIPT_ARRIVED): EpochState.CONFIRMED,
    (EpochState.OPEN, EpochEvent.VOID_DECIDED): EpochState.VOIDED,
    (EpochState.SEALED, EpochEvent.ATTEMPT_BEGUN): EpochState.OPEN,
    (EpochState.SEALED, EpochEvent.RECEIPT_ARRIVED): EpochState.CONFIRMED,
    (EpochState.SEALED, EpochEvent.VOID_DECIDED): EpochState.VOIDED,
}

_POINT_FLAGS: Final = EpochFlag.POINT | EpochFlag.FINAL | EpochFlag.APP_CONSISTENT


@dataclass(frozen=True, slots=True)
class Epoch:
    """One unconfirmed epoch. Once sealed, ``manifest`` is its encoded manifest and ``sealed_attempt`` the attempt it names."""

    number: EpochId
    granules: GranuleRuns
    attempt: AttemptNumber
    flags: EpochFlag
    cut_time_ns: int
    cut: ConsistentCut | None
    state: EpochState
    manifest: bytes = b""
    sealed_attempt: AttemptNumber | None = None

    def after(self, event: EpochEvent) -> EpochState:
        """:raises BlockferryError: for a pair that is no transition: a defect, never an input."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise BlockferryError(f"cannot take {event} in an epoch that is {self.state}", epoch=self.number)
        return state


@dataclass(frozen=True, slots=True)
class Confirmation:
    """An epoch that the sink has applied. ``digests_known``: the applied content is the attempt whose digests were kept."""

    epoch: Epoch
    digests_known: bool


class EpochLedger:
    """Mutable; the owner persists it after each method that changes it, before acting on the change."""

    def __init__(self, disk: DiskId, generation: GenerationId, geometry: Geometry) -> None:
        self.disk = disk
        self.generation = generation
        self.geometry = geometry
        self.applied_epoch = EpochId(0)
        self.applied_hash = NO_MANIFEST
        self.applied_cut_time_ns = 0
        self.pending = DirtyBitmap(geometry.granules)
        self.epochs: list[Epoch] = []
        self.seed_cursor: int | None = None
        """Next granule that initial replication or resync will take; None once every granule was taken."""
        self.last_seed_epoch = EpochId(0)

    # ---- what is to do

    @property
    def next_epoch(self) -> EpochId:
        return EpochId(self.applied_epoch + len(self.epochs) + 1)

    @property
    def open_epoch(self) -> Epoch | None:
        """The first epoch that must be (re-)shipped."""
        return next((epoch for epoch in self.epochs if epoch.state is EpochState.OPEN), None)

    @property
    def sealed_epochs(self) -> list[Epoch]:
        return [epoch for epoch in self.epochs if epoch.state is EpochState.SEALED]

    @property
    def sealed_epoch(self) -> EpochId:
        """The newest sealed epoch, or the applied one."""
        return max((epoch.number for epoch in self.sealed_epochs), default=self.applied_epoch)

    @property
    def is_seeding(self) -> bool:
        """Until every granule has been taken *and* the last epoch that took one is applied."""
        return self.seed_cursor is not None or self.applied_epoch < self.last_seed_epoch

    @property
    def is_clean(self) -> bool:
        """Nothing but what the tracker may hold differs from the replica."""
        return not self.epochs and not self.pending.any()

    def unconfirmed_bytes(self) -> int:
        return sum(epoch.granules.byte_count(self.geometry) for epoch in self.epochs)

    def pending_bytes(self) -> int:
        return self.pending.count() * self.geometry.granularity_bytes

    def granules_not_to_skip(self, number: EpochId) -> DirtyBitmap | None:
        """Granules of other unconfirmed epochs: their digest at the sink is not known yet (R1). None if there are none."""
        others = [epoch.granules for epoch in self.epochs if epoch.number != number]
        if not any(others):
            return None
        bitmap = DirtyBitmap(self.geometry.granules)
        for runs in others:
            bitmap.mark_runs(runs)
        return bitmap

    def chain_hash(self, number: EpochId) -> bytes:
        """The hash that the manifest of epoch ``number`` chains to. Its predecessor is sealed or applied."""
        if number == self.applied_epoch + 1:
            return self.applied_hash
        before = self._epoch(EpochId(number - 1))
        if before.state is not EpochState.SEALED:
            raise BlockferryError("cannot chain to an epoch that is not sealed", disk=self.disk, epoch=number)
        return manifest_hash(before.manifest)

    # ---- what happens

    def begin_seeding(self) -> None:
        """Initial replication or resync: every granule is to be compared, then sent if it differs."""
        self.pending.mark_all()
        self.seed_cursor = 0

    def absorb(self, harvested: DirtyBitmap) -> None:
        self.pending.mark_words(harvested.words)

    @property
    def covered_time_ns(self) -> int:
        """The instant whose every earlier write is in the replica once all known epochs are applied; 0 if there is none."""
        return self.epochs[-1].cut_time_ns if self.epochs else self.applied_cut_time_ns

    def cut(self, *, limit_granules: int, harvest_time_ns: int | None) -> Epoch | None:
        """Move up to ``limit_granules`` from ``pending`` to a new OPEN epoch; None if nothing is pending.

        ``harvest_time_ns`` is when the tracker was flipped just now, None if it was not. It becomes the epoch's cut time only
        if nothing stays pending: a cut time says that every write completed before it is covered.

        While seeding, granules are taken in ascending order from the cursor: what changes behind it waits for the delta,
        so that a hot block is not sent over and over.
        """
        flags = EpochFlag(0)
        if self.seed_cursor is not None:
            runs = self.pending.runs(limit_granules, self.seed_cursor)
            flags = EpochFlag.SEEDING
            if runs.granule_count < limit_granules:
                self.seed_cursor = None
            else:
                start, count = (int(value) for value in runs.pairs[-1])
                self.seed_cursor = start + count
                if self.seed_cursor >= self.geometry.granules:
                    self.seed_cursor = None
            if not runs:
                flags = EpochFlag(0)
        else:
            runs = GranuleRuns.of(())
        if not runs:
            runs = self.pending.runs(limit_granules)
        if not runs:
            return None
        covered_time_ns = self.covered_time_ns
        epoch = self._add(runs, flags, covered_time_ns, None)
        if harvest_time_ns is not None and not self.pending.any():
            epoch = self.epochs[-1] = replace(epoch, cut_time_ns=harvest_time_ns)
        if flags & EpochFlag.SEEDING:
            self.last_seed_epoch = epoch.number
        return epoch

    def add_point(self, runs: GranuleRuns, flags: EpochFlag, cut_time_ns: int, cut: ConsistentCut) -> Epoch:
        """A point epoch over ``runs``, which are all that differs from the replica and have been read already."""
        return self._add(runs, flags | EpochFlag.POINT, cut_time_ns, cut)

    def _add(self, runs: GranuleRuns, flags: EpochFlag, cut_time_ns: int, cut: ConsistentCut | None) -> Epoch:
        self.pending.clear_runs(runs)
        epoch = Epoch(self.next_epoch, runs, AttemptNumber(1), flags, cut_time_ns, cut, EpochState.OPEN)
        self.epochs.append(epoch)
        return epoch

    def begin_attempt(self, number: EpochId) -> Epoch:
        """Open the next attempt of ``number`` and of every later epoch. A point that has to be re-read is no point any more."""
        for index, epoch in enumerate(self.epochs):
            if epoch.number >= number:
                self.epochs[index] = replace(
                    epoch,
                    state=epoch.after(EpochEvent.ATTEMPT_BEGUN),
                    attempt=AttemptNumber(epoch.attempt + 1),
                    flags=epoch.flags & ~_POINT_FLAGS,
                    cut=None,
                    manifest=b"",
                    sealed_attempt=None,
                )
        return self._epoch(number)

    def seal(self, number: EpochId, manifest: bytes) -> Epoch:
        """Fix the manifest of the present attempt; epochs are sealed in order."""
        index = self._index(number)
        if any(epoch.state is EpochState.OPEN for epoch in self.epochs[:index]):
            raise BlockferryError("cannot seal an epoch before the one it chains to", disk=self.disk, epoch=number)
        epoch = self.epochs[index]
        sealed = replace(
            epoch, state=epoch.after(EpochEvent.MANIFEST_FIXED), manifest=manifest, sealed_attempt=epoch.attempt
        )
        self.epochs[index] = sealed
        return sealed

    def adopt(self, number: EpochId, manifest: bytes, attempt: AttemptNumber, *, void: bool) -> None:
        """Another attempt's manifest decided this epoch (R5): it is sealed with that one; later epochs are opened again.

        A *void* manifest carries nothing, so the epoch's granules are pending again.
        """
        index = self._index(number)
        if index + 1 < len(self.epochs):
            self.begin_attempt(EpochId(number + 1))
        epoch = self.epochs[index]
        granules = epoch.granules
        if void:
            epoch.after(EpochEvent.VOID_DECIDED)
            self.pending.mark_runs(granules)
            granules = GranuleRuns.of(())
        self.epochs[index] = replace(
            epoch,
            state=EpochState.SEALED,
            manifest=manifest,
            granules=granules,
            attempt=AttemptNumber(max(epoch.attempt, attempt)),
            sealed_attempt=attempt,
        )

    def confirm(self, number: EpochId, applied_hash: bytes, cut_time_ns: int) -> list[Confirmation]:
        """A receipt says that ``number`` is applied with ``applied_hash``; epochs up to it leave the ledger.

        :raises ResyncRequired: if the sink is ahead of this ledger (a reverted machine, R4) or has another history.
        """
        if number < self.applied_epoch:
            return []
        if number == self.applied_epoch:
            if applied_hash != self.applied_hash:
                raise ResyncRequired("cannot go on: the sink applied another manifest", disk=self.disk, epoch=number)
            return []
        if number >= self.next_epoch:
            raise ResyncRequired(
                f"cannot go on: the sink has applied epoch {number}, this agent knows only up to {self.next_epoch - 1}",
                disk=self.disk,
                epoch=number,
                hint="the machine was probably reverted to an older state; a new generation is begun",
            )
        last = self._epoch(number)
        own = last.state is EpochState.SEALED and manifest_hash(last.manifest) == applied_hash
        confirmed = [
            Confirmation(replace(epoch, state=epoch.after(EpochEvent.RECEIPT_ARRIVED)), own and bool(epoch.manifest))
            for epoch in self.epochs
            if epoch.number <= number
        ]
        self.epochs = [epoch for epoch in self.epochs if epoch.number > number]
        self.applied_epoch, self.applied_hash, self.applied_cut_time_ns = number, applied_hash, cut_time_ns
        if not own and self.epochs:
            self.begin_attempt(self.epochs[0].number)
        return confirmed

    def _index(self, number: EpochId) -> int:
        index = number - self.applied_epoch - 1
        if not 0 <= index < len(self.epochs):
            raise BlockferryError("cannot find an epoch in the ledger", disk=self.disk, epoch=number)
        return index

    def _epoch(self, number: EpochId) -> Epoch:
        return self.epochs[self._index(number)]
